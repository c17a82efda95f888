"""Floor 5: warm-up of many chains at once: one scale and one step size from all of them together.

The scale is estimated from the draws of all chains and the gradients there, so that eight chains learn a covariance
from an eighth of the moves that one would need; windows grow until the chains agree. It serves every kernel that has an
`inverse_mass_matrix`, MALA included, which BlackJAX has no warm-up for.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.step_size import dual_averaging_adaptation
from jax.flatten_util import ravel_pytree

from energyflow.chains import chain_keys, count_chains, require_floats, start_chains, start_cost
from energyflow.energy import as_energy
from energyflow.kernels.algorithm import bind, name_of, start, step_size, with_settings
from energyflow.kernels.continuous import nuts
from energyflow.kernels.transitions import move_of, scan_ahead, step_keys
from energyflow.mixing import RUNAWAY, plain_r_hat
from energyflow.tuning import Tuned, require_acceptance
from energyflow.types import Array, Kernel, Key, LogDensity, Tree, as_key

TARGETS = {"mala": 0.574, "barker": 0.4, "rmh": 0.234}
"""Acceptance rates optimal in high dimension (Roberts and Rosenthal 1998, 2001; Livingstone and Zanella 2022)."""
AGREED = 1.2
"""R-hat of every dimension and of the log density at which chains are taken to have come home."""
MAX_DENSE = 100
"""Dimensions up to which a scale is dense by default."""
FIRST_DOUBLINGS = 3
"""Doublings of NUTS before there is a scale, where long trajectories are dear and the gradients teach more."""
LOST = 2
"""The window after which chains that are not at home yet start over from where they are, without a scale."""


class _Stage(NamedTuple):
    """Rounds of moves: where they end, draws and gradients (chain, move, dim), log densities, and what they cost."""

    position: Tree
    averaging: Any
    draws: np.ndarray
    slopes: np.ndarray
    logdensity: np.ndarray
    num_gradients: int

    @property
    def r_hat(self) -> float:
        """R-hat of the worst dim, of half chains, as chains on their way together are not home; or of log densities."""
        half = self.draws.shape[1] // 2
        halves = np.concatenate([self.draws[:, :half], self.draws[:, half:]])
        return max(plain_r_hat(halves).max(), plain_r_hat(self.logdensity[..., None])[0])


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

    Windows of moves, longer and longer: the draws and gradients of a window, all chains together, give the next scale,
    that of least Fisher divergence (Seyboldt, Carlson and Carpenter 2026), while dual averaging (Nesterov 2009) fits a
    step size to every chain, since one that starts far away needs a smaller one to come home, and to all of them
    together once R-hat of a window says that they are there. Kernels with a scale are led there by NUTS, at first on
    short trajectories; if chains are not there after three windows, on long ones without a scale. The second window at
    home, or the `max_windows`-th (8, for more than 16 chains 13), is the last; then the step size is fitted once more.
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
    moves, rounds, most = (5, 10, 8) if num_chains <= 16 else (2, 5, 13)
    max_windows = most if max_windows is None else max_windows
    guide = kernel
    if scale is not None and name_of(kernel) != "nuts":
        guide = nuts(0.1, kernel.keywords["inverse_mass_matrix"])  # type: ignore[attr-defined]
    moved = guide if scale is None else _brief(guide)
    init, update, final = dual_averaging_adaptation(rate)
    averaging = jax.vmap(init)(jnp.full(num_chains, step_size(moved), dtype=float))
    begin = functools.partial(_stage, update=update, logdensity=logdensity, moves=moves)
    spent, at_home = start_cost(begun) * num_chains, 0
    for window in range(max_windows):
        stage = begin(jax.random.fold_in(key, window), moved, position, averaging, rounds * 2 ** (window // 2))
        position, spent, home = stage.position, spent + stage.num_gradients, stage.r_hat < AGREED
        at_home += home
        if scale is not None and not at_home and window == LOST < max_windows - 1:
            moved, averaging = guide, jax.vmap(init)(jnp.full(num_chains, step_size(guide), dtype=float))
            continue
        steps = jnp.exp(stage.averaging.log_step_size_avg)
        if scale is not None:
            inverse_mass_matrix, ratio = _rescale(moved.keywords["inverse_mass_matrix"], stage)  # type: ignore[attr-defined]
            if guide is not kernel and (home or window >= max_windows - 4):
                guide = kernel
                # MALA's step is half the square of the leapfrog's.
                steps = steps**2 / 2 if name_of(kernel) == "mala" else steps
            moved = with_settings(guide if window or home else _brief(guide), inverse_mass_matrix=inverse_mass_matrix)
            steps = steps * (ratio**2 if name_of(moved) == "mala" else ratio)
        averaging = _resume(init(jnp.median(steps)) if home else jax.vmap(init)(jnp.broadcast_to(steps, (num_chains,))))
        if at_home >= 2:
            break
    averaging = _resume(init(jnp.median(jnp.exp(averaging.log_step_size))))
    stage = begin(jax.random.fold_in(key, max_windows), moved, position, averaging, 10)
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
    rounds, spent = [], 0
    for i in range(num_rounds):
        steps = jnp.broadcast_to(jnp.exp(averaging.log_step_size), (count_chains(position),))
        out = _round(jax.random.fold_in(key, i), kernel, logdensity, position, steps, moves)
        position, drawn, acceptance, gradients = out
        drawn = jax.tree.map(np.asarray, drawn)
        single = averaging.log_step_size.ndim == 0
        averaging = update(averaging, jnp.mean(acceptance)) if single else jax.vmap(update)(averaging, acceptance)
        farthest = np.abs(drawn[0][:, -1]).max(axis=1)
        if not farthest.max() < RUNAWAY:
            raise ValueError(
                f"chain {int(np.argmax(farthest))} went as far as {farthest.max():.2g} during warm-up: the energy "
                "falls without bound on the way; check its sign, and that it rises in every direction"
            )
        rounds.append(drawn)
        spent += int(gradients)
    drawn = (np.concatenate(parts, axis=1, dtype=np.float64) for parts in zip(*rounds, strict=True))
    return _Stage(position, averaging, *drawn, num_gradients=spent)


@functools.partial(jax.jit, static_argnames="moves")
def _round(
    key: Key, kernel: Kernel, logdensity: LogDensity, position: Tree, steps: Array, moves: int
) -> tuple[Tree, tuple[Array, Array, Array], Array, Array]:
    """Return positions, draws with gradients and log densities, acceptance (chain,) and gradients spent."""

    def one(key: Key, x: Tree, step: Array) -> Any:
        algorithm = bind(with_settings(kernel, step_size=step), logdensity)
        state, move = start(algorithm, jax.random.fold_in(key, 0), x), move_of(algorithm, jax.random.key_impl(key))

        def observed(state: Any, drawn: Any) -> Any:
            state, stats = move(state, drawn)
            slope = ravel_pytree(getattr(state, "logdensity_grad", ()))[0]
            return state, ((ravel_pytree(state.position)[0], slope, state.logdensity), stats)

        return *scan_ahead(observed, algorithm, x, state, step_keys(key, moves)), start_cost(state)

    num = count_chains(position)
    state, (draws, stats), extra = jax.vmap(one)(chain_keys(key, num), position, steps)
    gradients = jnp.sum(stats.num_gradients) + jnp.sum(extra)
    return state.position, draws, jnp.mean(stats.acceptance_rate, axis=1), gradients


def _brief(kernel: Kernel) -> Kernel:
    """Return NUTS at the step size and scale of `kernel`, NUTS too, with short trajectories."""
    return nuts(step_size(kernel), kernel.keywords["inverse_mass_matrix"], max_num_doublings=FIRST_DOUBLINGS)  # type: ignore[attr-defined]


def _resume(averaging: Any) -> Any:
    """Return dual averaging that leans to the step it starts from, not to ten times it as from a first, small guess."""
    return averaging._replace(mu=averaging.log_step_size)


def _rescale(inverse_mass_matrix: Array, stage: _Stage) -> tuple[Array, float]:
    """Return the scale of the same shape that fits a stage, and the ratio of leapfrog steps it allows.

    Draws less dense than all of the second half were on their way, and say little of where the chains are now. Twice as
    many points as dimensions are the least that say anything; until then the scale stays as it is.
    """
    arrived = stage.logdensity >= stage.logdensity[:, stage.logdensity.shape[1] // 2 :].min()
    usable = arrived & np.isfinite(stage.slopes).all(axis=2)
    x, slope = stage.draws[usable], stage.slopes[usable]
    if len(x) < 2 * x.shape[1]:
        return inverse_mass_matrix, 1.0
    fitted = _estimate(x, slope, dense=inverse_mass_matrix.ndim == 2)
    before, after = (_stiffness(slope, np.asarray(scale, float)) for scale in (inverse_mass_matrix, fitted))
    return jnp.asarray(fitted, dtype=float), before / after


def _estimate(x: np.ndarray, slope: np.ndarray, dense: bool) -> np.ndarray:
    """Return the scale M with M cov(slope) M = cov(x), from draws and gradients of the log density there, each (n, d).

    It is the scale of least Fisher divergence, and the covariance of a Gaussian wherever the draws come from, as its
    gradients are linear: chains on their way home learn it already. Both correlations are shrunk a little.
    """
    n, dim = x.shape
    spread, steep = x.std(axis=0), slope.std(axis=0)
    known = (spread > 0) & (steep > 0)
    spread, steep = np.where(known, spread, 1), np.where(known, steep, 1)
    if not dense:
        return spread / steep
    unit = np.sqrt(spread / steep)
    floor = 1e-3 * 5 / (n + 5) * np.diag(spread * steep)
    spreads, steeps = (np.cov(v.T, ddof=0).reshape(dim, dim) + floor for v in (x / unit, slope * unit))
    root = np.linalg.cholesky(steeps)
    values, vectors = np.linalg.eigh(root.T @ spreads @ root)
    half = np.linalg.solve(root.T, vectors) * np.maximum(values, 0) ** 0.25 * unit[:, None]
    return half @ half.T


def _stiffness(slope: np.ndarray, scale: np.ndarray) -> float:
    """Return the largest frequency (1 / time) of a leapfrog in a scale, from gradients (n, d)."""
    if scale.ndim == 1:
        most = (scale * slope.var(axis=0)).max()
    else:
        most = np.abs(np.linalg.eigvals(scale @ np.cov(slope.T, ddof=0).reshape(scale.shape))).max()
    return float(np.sqrt(max(most, np.finfo(float).tiny)))
