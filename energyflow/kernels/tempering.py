"""Parallel tempering: a ladder of hotter copies of one chain, which carries it between modes.

One state holds all rungs of one chain, so it is sampled, trained with and checked like any other kernel. Rung k moves
on its own density, p^beta_k or q (p/q)^beta_k; then neighbours swap places, even and odd pairs in turn (Geyer 1991; the
alternation is Okabe et al. 2001, Syed et al. 2022). A negative phase over it is Desjardins et al. (2010), Cho et al.
(2010). Every gradient of every rung is counted.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial

from energyflow.energy import as_energy, require_one_point
from energyflow.kernels.algorithm import adapt, bind, carried, name_of, pair, start, step_size, with_step_size
from energyflow.types import Algorithm, Array, Kernel, Key, LogDensity, Scalar, Tree


class TemperingState(NamedTuple):
    """All R rungs of one chain. Fields after `logdensity` survive a change of the energy; no value of it is kept there.

    position: the rung of beta = 1. logdensity: of the position, shape (). rungs: positions, leading axis [rung], rung 0
    being `position`. inner: what the inner kernel carries (momenta), leading axis [rung]. replica: (R,) the replica
    that sits at each rung. direction: (R,) per replica, 1 on its way from beta = 1 to the hottest rung, -1 on its way
    back, 0 before it was at beta = 1. round_trips: completed ways there and back, of all replicas. num_steps:
    transitions made. swap_rates: (R-1,) mean probability of a swap of k and k+1, over swap_attempts (R-1,).
    acceptance_rates: (R,) mean acceptance rate of the moves of each rung.
    """

    position: Tree
    logdensity: Scalar
    rungs: Tree
    inner: dict[str, Any]
    replica: Array
    direction: Array
    round_trips: Array
    num_steps: Array
    swap_rates: Array
    swap_attempts: Array
    acceptance_rates: Array


class _Info(NamedTuple):
    acceptance_rate: Array
    is_divergent: Array
    num_integration_steps: Array


def parallel_tempering(kernel: Kernel, betas: Any, base: Any = None, *, step_scales: Any = None) -> Kernel:
    """Parallel tempering (Geyer 1991): rungs at inverse temperatures `betas` that move by `kernel` and swap.

    kernel: one with an accept step. betas: (R,) from exactly 1 strictly down, above 0; see `geometric_ladder`,
    `tune_ladder`. base: None for rungs p^beta; a normalised NumPyro distribution q over one point for q (p/q)^beta, and
    then the last beta may be 0, where every move is an exact draw of q. step_scales: (R,) what multiplies the kernel's
    step size at each rung; by default 1/beta for MALA, whose step is in squared units, 1/sqrt(beta) for others, 1 with
    a base. Hotter rungs start at the chain's position, or at draws of the base, and need a warm-up of their own.

    A transition re-evaluates all rungs, since the energy may have changed: R more gradients for kernels that use them.
    The acceptance rate and divergences reported are those of the rung of beta = 1; `swap_rates` and `round_trips` are
    fields of the state. Not for annealing: its weights know one temperature.
    Raises ValueError for betas that are no ladder and, when it moves, for a kernel without an accept step.
    """
    kernel, num = as_energy(kernel), np.shape(betas)
    if not isinstance(betas, Tracer):
        _check(np.asarray(betas, float), base)
    betas = jnp.asarray(betas, float)
    sized = "step_size" in getattr(kernel, "keywords", {})
    if step_scales is None:
        power = 1.0 if name_of(kernel) == "mala" else 0.5
        step_scales = jnp.ones_like(betas) if base is not None else betas**-power
    elif np.shape(step_scales) != num:
        raise ValueError(f"step_scales needs one factor per rung, shape {num}; got shape {np.shape(step_scales)}")
    settings = {"kernel": kernel, "betas": betas, "base": base, "step_scales": jnp.asarray(step_scales, float)}
    if sized:
        settings["step_size"] = step_size(kernel)  # where tuners look for it
    return Partial(_parallel_tempering, **settings)


def _check(betas: np.ndarray, base: Any) -> None:
    if betas.ndim != 1 or len(betas) < 2 or betas[0] != 1 or (np.diff(betas) >= 0).any() or betas[-1] < 0:
        raise ValueError(f"betas must go strictly down from exactly 1, two or more of them; got {betas}")
    if base is None and betas[-1] == 0:
        raise ValueError("without a base no rung may have beta 0: give a base, or end the ladder above 0")
    require_one_point(base)


def _parallel_tempering(
    logdensity: LogDensity, kernel: Kernel, betas: Array, base: Any, step_scales: Array, step_size: Any = None
) -> Algorithm:
    num_rungs = betas.shape[0]

    def at(beta: Scalar, scale: Scalar) -> Algorithm:
        inner = kernel if step_size is None else with_step_size(kernel, step_size * scale)
        return bind(inner, functools.partial(_tempered, logdensity, base, beta))

    def init(position: Tree, key: Key) -> TemperingState:
        inner_key, base_key = jax.random.split(key)
        rungs = _first_rungs(base_key, logdensity, base, position, num_rungs)
        inner = jax.vmap(lambda k, x, b, s: carried(at(b, s).init(x, k)))(
            jax.random.split(inner_key, num_rungs), rungs, betas, step_scales
        )
        zero, pairs = jnp.zeros((), jnp.int32), jnp.zeros(num_rungs - 1)
        replica = jnp.arange(num_rungs)
        direction = (replica == 0).astype(jnp.int32)
        counts = (replica, direction, zero, zero, pairs, pairs.astype(jnp.int32), jnp.zeros(num_rungs))
        return TemperingState(position, logdensity(position), rungs, inner, *counts)

    def move(key: Key, x: Tree, carry: dict, beta: Scalar, scale: Scalar) -> Any:
        start_key, step_key = jax.random.split(key)
        algorithm = at(beta, scale)
        state = start(algorithm, start_key, x, carry)
        new, stats = algorithm.step(step_key, state)
        if stats.acceptance_rate is None:
            raise ValueError("parallel tempering needs a kernel with an accept step, such as mala, hmc or rmh")
        return new.position, carried(new), stats, jnp.int32(hasattr(state, "logdensity_grad"))

    def step(key: Key, state: TemperingState) -> tuple[TemperingState, _Info]:
        move_key, base_key, swap_key = jax.random.split(key, 3)
        # The position rules: a negative phase may have put another one there.
        rungs = jax.tree.map(lambda r, x: r.at[0].set(x), state.rungs, state.position)
        keys = jax.random.split(move_key, num_rungs)
        rungs, inner, stats, starts = jax.vmap(move)(keys, rungs, state.inner, betas, step_scales)
        if base is not None:
            exact = betas[-1] == 0.0
            rungs = jax.tree.map(lambda r, x: r.at[-1].set(jnp.where(exact, x, r[-1])), rungs, base.sample(base_key))
        values = jax.vmap(logdensity)(rungs)
        ratios = values if base is None else values - jax.vmap(base.log_prob)(rungs)
        order, chance, tried = _swaps(swap_key, betas, ratios, state.num_steps % 2)
        rungs = jax.tree.map(lambda r: r[order], rungs)
        attempts = state.swap_attempts + tried.astype(jnp.int32)
        num_steps = state.num_steps + 1
        replica, direction, trips = _follow(state.replica[order], state.direction)
        swap_rates = jnp.where(tried, _mean_with(state.swap_rates, chance, attempts), state.swap_rates)
        rates = _mean_with(state.acceptance_rates, stats.acceptance_rate, num_steps)
        position = jax.tree.map(lambda r: r[0], rungs)
        new = (position, values[order][0], rungs, inner, replica, direction, state.round_trips + trips)
        info = _Info(stats.acceptance_rate[0], stats.is_divergent[0], jnp.sum(stats.num_gradients + starts))
        return TemperingState(*new, num_steps, swap_rates, attempts, rates), info

    return adapt(pair(init, step), reversible=False)


def _tempered(logdensity: LogDensity, base: Any, beta: Scalar, x: Tree) -> Scalar:
    if base is None:
        return beta * logdensity(x)
    prior = base.log_prob(x)
    return prior + beta * (logdensity(x) - prior)


def _first_rungs(key: Key, logdensity: LogDensity, base: Any, position: Tree, num_rungs: int) -> Tree:
    copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_rungs, *jnp.shape(x))), position)
    if base is None:
        return copies
    draws = jax.vmap(base.sample)(jax.random.split(key, num_rungs))
    # A draw outside of the target's support would never move.
    use = jnp.isfinite(jax.vmap(logdensity)(draws)) & (jnp.arange(num_rungs) > 0)
    return jax.tree.map(lambda d, c: jnp.where(use.reshape(-1, *[1] * (c.ndim - 1)), d, c), draws, copies)


def _swaps(key: Key, betas: Array, ratios: Array, parity: Scalar) -> tuple[Array, Array, Array]:
    """Return the order of the rungs after the swaps (R,), each pair's chance (R-1,) and whether it was tried (R-1,)."""
    pairs = jnp.arange(betas.shape[0] - 1)
    tried = pairs % 2 == parity
    log_chance = (betas[:-1] - betas[1:]) * (ratios[1:] - ratios[:-1])
    chance = jnp.exp(jnp.minimum(log_chance, 0.0))
    chance = jnp.where(jnp.isnan(chance), 0.0, chance)
    swap = (tried & (jax.random.uniform(key, pairs.shape, chance.dtype) < chance)).astype(jnp.int32)
    # Pairs that are tried share no rung: each rung moves up, down or not at all.
    none = jnp.zeros(1, jnp.int32)
    order = jnp.arange(betas.shape[0]) + jnp.concatenate([swap, none]) - jnp.concatenate([none, swap])
    return order, chance, tried


def _follow(replica: Array, direction: Array) -> tuple[Array, Array, Array]:
    """Turn the replicas at both ends around; returns replica, direction and the round trips completed now."""
    coldest, hottest = replica[0], replica[-1]
    back = (direction[coldest] == -1).astype(jnp.int32)
    direction = direction.at[coldest].set(1)
    return replica, direction.at[hottest].set(jnp.where(direction[hottest] == 1, -1, direction[hottest])), back


def _mean_with(mean: Array, value: Array, count: Array) -> Array:
    """Return the mean over `count` values, of which `value` is the last and `mean` was that of the others."""
    return mean + (value - mean) / jnp.maximum(count, 1).astype(mean.dtype)
