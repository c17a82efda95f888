"""Ladders of inverse temperatures for parallel tempering: geometric ones, and ones fitted to equal swap rates."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from energyflow.energy import as_energy
from energyflow.kernels.algorithm import bind, start, with_settings
from energyflow.kernels.tempering import parallel_tempering
from energyflow.types import Array, Kernel, Key, LogDensity, Tree, as_key


class Ladder(NamedTuple):
    """A ladder that was tuned. kernel: parallel tempering on it, ready to use. betas: (R,) from 1 down.

    swap_rates: (R-1,) and acceptance_rates: (R,), means over chains and the last round. round_trips: of all chains in
    the last round of `num_steps` transitions. position: where the chains of beta = 1 are now. num_gradients: the cost.
    """

    kernel: Kernel
    betas: np.ndarray
    swap_rates: np.ndarray
    acceptance_rates: np.ndarray
    round_trips: int
    num_steps: int
    position: Tree
    num_gradients: int

    @property
    def barrier(self) -> float:
        """The sum of the rejection rates: about the same for any number of rungs (Syed et al. 2022)."""
        return float(np.sum(1 - self.swap_rates))

    def __str__(self) -> str:
        rows = [f"{'beta':>10} {'acceptance':>10} {'swap with next':>14}"]
        for beta, rate, swap in zip(self.betas, self.acceptance_rates, [*self.swap_rates, np.nan], strict=True):
            rows.append(f"{beta:10.4g} {rate:10.3f} {'' if np.isnan(swap) else f'{swap:.3f}':>14}")
        enough = int(np.ceil(self.barrier / 0.7)) + 1
        rows.append(
            f"{self.round_trips} round trips in {self.num_steps} transitions; barrier {self.barrier:.2f}: "
            f"{enough} rungs would swap at .3"
        )
        return "\n".join(rows)


def geometric_ladder(num_rungs: int, beta_min: float = 0.01) -> np.ndarray:
    """Return `num_rungs` inverse temperatures from 1 down to `beta_min`, equal ratios."""
    return np.geomspace(1.0, beta_min, num_rungs)


def tune_ladder(
    key: Key | int,
    kernel: Kernel,
    logdensity: LogDensity,
    position: Tree,
    *,
    num_rungs: int = 8,
    beta_min: float = 0.01,
    base: Any = None,
    num_rounds: int = 8,
    steps_per_round: int = 200,
    target_acceptance: float | None = 0.6,
) -> Ladder:
    """Place `num_rungs` betas from 1 to `beta_min` so that all neighbours swap equally often (Syed et al. 2022).

    position: leading axis [chain]; all chains share one ladder. After each round the sum of rejection rates is
    interpolated over the ladder and cut into equal parts. target_acceptance: also fits a step size per rung (None keeps
    the scales of `parallel_tempering`). The last round is run on the ladder that is returned, so its rates are of that
    ladder. Swap rates of .2 to .4 cost least; the Ladder prints how many rungs would give .3. beta_min may be 0 with a
    base. Raises ValueError as `parallel_tempering` does.
    """
    key, logdensity = as_key(key), as_energy(logdensity)
    if beta_min > 0:
        betas = geometric_ladder(num_rungs, beta_min)
    else:
        betas = np.append(geometric_ladder(num_rungs - 1, 0.01), 0.0)
    tempering: Any = parallel_tempering(kernel, betas, base)
    tuned = target_acceptance is not None and "step_size" in tempering.keywords
    scales = np.asarray(tempering.keywords["step_scales"], np.float64)
    state, spent = None, 0
    for i in range(num_rounds):
        carry = None if state is None else {"rungs": state.rungs}
        position = position if state is None else state.position
        state, cost = _round(jax.random.fold_in(key, i), tempering, logdensity, position, carry, steps_per_round)
        spent += int(cost)
        if i == num_rounds - 1:
            break
        moved = _equalised(betas, np.asarray(state.swap_rates, np.float64).mean(axis=0), beta_min > 0)
        if tuned:
            rates = np.asarray(state.acceptance_rates, np.float64).mean(axis=0)
            scales = scales * np.exp(2.0 * (rates - target_acceptance))
        scales = np.exp(np.interp(-moved, -betas, np.log(scales)))
        betas = moved
        tempering = with_settings(tempering, betas=jnp.asarray(betas, float), step_scales=jnp.asarray(scales, float))
    if state is None:
        raise ValueError(f"tuning a ladder takes at least one round; got num_rounds = {num_rounds}")
    swap_rates, rates = (np.asarray(x).mean(axis=0) for x in (state.swap_rates, state.acceptance_rates))
    trips = int(np.sum(state.round_trips))
    return Ladder(tempering, betas, swap_rates, rates, trips, steps_per_round, state.position, spent)


def _equalised(betas: np.ndarray, swap_rates: np.ndarray, logarithmic: bool) -> np.ndarray:
    """Return betas between the same ends at equal parts of the cumulated rejection rate."""
    # A floor keeps the cut well defined where no swap was ever rejected.
    barrier = np.concatenate([[0.0], np.cumsum(np.maximum(1 - swap_rates, 1e-3))])
    x = np.log(betas) if logarithmic else betas
    x = np.interp(np.linspace(0, barrier[-1], len(betas)), barrier, x)
    out = np.exp(x) if logarithmic else x
    out[0], out[-1] = betas[0], betas[-1]
    return out


@functools.partial(jax.jit, static_argnames="num_steps")
def _round(key: Key, kernel: Kernel, logdensity: LogDensity, position: Tree, carry: Any, num_steps: int) -> Any:
    algorithm = bind(kernel, logdensity)

    def chain(index: Array, position: Tree, carry: Any) -> Any:
        own = jax.random.fold_in(key, index)

        def move(state: Any, i: Array) -> Any:
            state, stats = algorithm.step(jax.random.fold_in(own, i + 1), state)
            return state, stats.num_gradients

        state = start(algorithm, jax.random.fold_in(own, 0), position, carry)
        state, gradients = jax.lax.scan(move, state, jnp.arange(num_steps))
        return state, jnp.sum(gradients)

    num_chains = jax.tree.leaves(position)[0].shape[0]
    state, gradients = jax.vmap(chain)(jnp.arange(num_chains), position, carry)
    return state, jnp.sum(gradients)
