"""Floor 5: warm-up of many chains at once: one scale and one step size from all of them together.

The scale is estimated from the draws of all chains, so that eight chains learn a covariance from an eighth of the moves
that one would need; windows double until the chains agree. It serves every kernel that has an
`inverse_mass_matrix`, MALA included, which BlackJAX has no warm-up for.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.step_size import dual_averaging_adaptation
from jax.flatten_util import ravel_pytree

from energyflow.chains import chain_keys, count_chains, require_floats, scan_keys, start_chains, start_cost, step_keys
from energyflow.energy import as_energy
from energyflow.kernels.algorithm import bind, name_of, start, step_size, with_settings
from energyflow.kernels.continuous import nuts
from energyflow.mixing import RUNAWAY, plain_r_hat
from energyflow.tuning import Tuned, require_acceptance
from energyflow.types import Array, Kernel, Key, LogDensity, Tree, as_key

TARGETS = {"mala": 0.574, "barker": 0.4, "rmh": 0.234}
"""Acceptance rates optimal in high dimension (Roberts and Rosenthal 1998, 2001; Livingstone and Zanella 2022)."""
AGREED = 1.2
"""R-hat of every dimension and of the log density at which chains are taken to have come home."""
MAX_DENSE = 100
"""Dimensions up to which a scale is dense by default."""


class _Stage(NamedTuple):
    """Rounds of moves: draws (chain, move, dim + 1), the log density last, what they cost, and where they end."""

    position: Tree
    averaging: Any
    draws: np.ndarray
    num_gradients: int


def warm_up(
    key: Key | int,
    kernel: Kernel,
    logdensity: LogDensity,
    position: Tree,
    *,
    scale: str | None = "auto",
    target_acceptance: float | None = None,
    max_windows: int | None = None,
) -> Tuned:
    """Fit the step size and scale of an adjusted kernel over the chains in `position`, leading axis [chain].

    Windows of moves, each twice as long as the one before: the draws of a window, all chains together, give the next
    scale (Hoffman and Gelman 2014, with Stan's shrinkage), while dual averaging (Nesterov 2009) fits a step size to
    every chain, since one that starts far away needs a smaller one to come home. Until R-hat of a window says that
    the chains are home, kernels with a scale are led there by NUTS. The third window that is at home, or the
    `max_windows`-th (6, for more than 16 chains 9), is the last; then one step size is fitted to the acceptance pooled
    over chains.
    scale: "diagonal", "dense", "auto" (dense up to 100 dimensions) or None, which keeps the kernel's.
    target_acceptance: by default 0.574 for MALA, 0.4 for Barker, 0.234 for a random walk, 0.8 otherwise.
    Raises ValueError for kernels without an accept step or a step size, and where no move is accepted at any.
    """
    key, kernel, logdensity = as_key(key), as_energy(kernel), as_energy(logdensity)
    one = jax.tree.map(lambda x: jnp.asarray(x)[0], position)
    require_floats(position)
    require_acceptance(kernel, logdensity, position)
    if scale not in (None, "auto", "diagonal", "dense"):
        raise ValueError(f'scale must be "auto", "diagonal", "dense" or None; got {scale!r}')
    key, start_key = jax.random.split(key)
    begun = start_chains(start_key, kernel, logdensity, position).state
    position = begun.position
    dim, num_chains = ravel_pytree(one)[0].size, count_chains(position)
    scale = scale if "inverse_mass_matrix" in kernel.keywords else None  # type: ignore[attr-defined]
    scale = ("dense" if dim <= MAX_DENSE else "diagonal") if scale == "auto" else scale
    if scale is not None and kernel.keywords["inverse_mass_matrix"] is None:  # type: ignore[attr-defined]
        kernel = with_settings(kernel, inverse_mass_matrix=jnp.eye(dim) if scale == "dense" else jnp.ones(dim))
    rate = TARGETS.get(name_of(kernel), 0.8) if target_acceptance is None else target_acceptance
    moves, length, most = (5, 10, 6) if num_chains <= 16 else (2, 4, 9)
    max_windows = most if max_windows is None else max_windows
    leading = scale is not None and name_of(kernel) != "nuts"
    moved = nuts(0.1, kernel.keywords["inverse_mass_matrix"]) if leading else kernel  # type: ignore[attr-defined]
    init, update, final = dual_averaging_adaptation(rate)
    averaging = jax.vmap(init)(jnp.full(num_chains, step_size(moved), dtype=float))
    begin = functools.partial(_stage, update=update, logdensity=logdensity, moves=moves)
    stage = begin(jax.random.fold_in(key, 0), moved, position, averaging, 2 * length)
    spent, at_home = stage.num_gradients + start_cost(begun) * num_chains, 0
    for window in range(1, max_windows + 1):
        stage = begin(jax.random.fold_in(key, window), moved, stage.position, stage.averaging, length)
        spent += stage.num_gradients
        settled = plain_r_hat(stage.draws).max() < AGREED
        steps = jnp.exp(stage.averaging.log_step_size_avg)
        points = stage.draws[..., :-1].reshape(-1, dim)
        if scale is not None and len(points) >= 2 * dim:
            moved = with_settings(moved, inverse_mass_matrix=_estimate(points, scale))
        if leading and settled or leading and window == max_windows - 3:
            # MALA's step is half the square of the leapfrog's.
            kernel = with_settings(kernel, inverse_mass_matrix=moved.keywords["inverse_mass_matrix"])  # type: ignore[attr-defined]
            moved, leading = kernel, False
            steps = steps**2 / 2 if name_of(kernel) == "mala" else steps
        stage = stage._replace(averaging=jax.vmap(init)(steps))
        at_home, length = at_home + settled, 2 * length
        if at_home >= 3:
            break
    stage = stage._replace(averaging=init(jnp.median(jnp.exp(stage.averaging.log_step_size))))
    stage = begin(jax.random.fold_in(key, max_windows + 1), moved, stage.position, stage.averaging, 20)
    step = float(final(stage.averaging))
    if not step > 1e-12:
        raise ValueError(
            f"no move is accepted even at a step size of {step:.2g}: the log density or its gradient is not finite, or "
            "not continuous, where the chains are"
        )
    return Tuned(with_settings(moved, step_size=jnp.asarray(step)), stage.position, [], spent + stage.num_gradients)


def _stage(
    key: Key,
    kernel: Kernel,
    position: Tree,
    averaging: Any,
    num_rounds: int,
    *,
    update: Any,
    logdensity: LogDensity,
    moves: int,
) -> _Stage:
    """Move all chains `num_rounds` times `moves` transitions, averaging step sizes per chain or, if scalar, pooled."""
    draws, spent = [], 0
    for i in range(num_rounds):
        steps = jnp.broadcast_to(jnp.exp(averaging.log_step_size), (count_chains(position),))
        out = _round(jax.random.fold_in(key, i), kernel, logdensity, position, steps, moves)
        position, drawn, acceptance, gradients = out
        single = averaging.log_step_size.ndim == 0
        averaging = update(averaging, jnp.mean(acceptance)) if single else jax.vmap(update)(averaging, acceptance)
        farthest = np.abs(drawn[:, -1, :-1]).max(axis=1)
        if not farthest.max() < RUNAWAY:
            raise ValueError(
                f"chain {int(jnp.argmax(farthest))} went as far as {farthest.max():.2g} during warm-up: the energy "
                "falls without bound on the way; check its sign, and that it rises in every direction"
            )
        draws.append(np.asarray(drawn, np.float64))
        spent += int(gradients)
    return _Stage(position, averaging, np.concatenate(draws, axis=1), spent)


@functools.partial(jax.jit, static_argnames="moves")
def _round(
    key: Key, kernel: Kernel, logdensity: LogDensity, position: Tree, steps: Array, moves: int
) -> tuple[Tree, Array, Array, Array]:
    """Return positions, draws (chain, move, dim + 1), the log density last, acceptance (chain,), gradients spent."""

    def one(key: Key, x: Tree, step: Array) -> Any:
        algorithm = bind(with_settings(kernel, step_size=step), logdensity)
        state = start(algorithm, jax.random.fold_in(key, 0), x)

        def move(state: Any, key: Key) -> Any:
            state, stats = algorithm.step(key, state)
            return state, (jnp.append(ravel_pytree(state.position)[0], state.logdensity), stats)

        return *scan_keys(move, state, step_keys(key, moves)), start_cost(state)

    num = count_chains(position)
    state, (draws, stats), extra = jax.vmap(one)(chain_keys(key, num), position, steps)
    gradients = jnp.sum(stats.num_gradients) + jnp.sum(extra)
    return state.position, draws, jnp.mean(stats.acceptance_rate, axis=1), gradients


def _estimate(draws: np.ndarray, scale: str) -> Array:
    """Return the (co)variance of draws (n, d), shrunk a little towards 1e-3 as Stan's is."""
    n, dim = draws.shape
    weight = n / (n + 5)
    spread = draws.var(axis=0) if scale == "diagonal" else np.cov(draws.T, ddof=0).reshape(dim, dim)
    floor = 1e-3 * (1 - weight) * (np.ones(dim) if scale == "diagonal" else np.eye(dim))
    return jnp.asarray(weight * spread + floor, dtype=float)
