"""Diffusion recovery likelihood: energies at the levels of a diffusion, each learned given the next (Gao et al. 2021).

The conditional density of a point given a noisier one is nearly unimodal where the marginal is not, so short chains
sample it; yet its energy is that of the marginal. Cooperative training adds a network that guesses where chains should
start, and draws both points of a pair with one noise (Zhu et al. 2024).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial, register_dataclass

from energyflow.chains import chain_keys, count_chains, require_floats, start_cost, summary_of
from energyflow.diffusion import Diffusion
from energyflow.energy import as_energy, require_density, temperature
from energyflow.kernels.continuous import mala
from energyflow.kernels.noise import normal_like
from energyflow.recovery import (
    Initialised,
    RecoveryStart,
    Rungs,
    first_point,
    recover,
    recovery_rungs,
    temperature_of_moves,
)
from energyflow.rows import per_row
from energyflow.stepsize import decaying_gain
from energyflow.types import Array, Kernel, Key, Objective, Scalar, Tree


class RecoveryState(NamedTuple):
    """Step size of each level in units of v_t, (T,), and how often it has been adapted."""

    step_sizes: Array
    count: Array


@register_dataclass
@dataclass(frozen=True, eq=False)
class _Settings:
    rungs: Rungs
    kernel: Any
    step_sizes: Any
    weights: Any
    target_acceptance: Any
    num_steps: int = field(metadata={"static": True})
    shared_noise: bool = field(metadata={"static": True})
    start: RecoveryStart = field(metadata={"static": True})


def recovery_likelihood(
    diffusion: Diffusion,
    num_steps: int = 30,
    *,
    kernel: Callable[[Any], Kernel] = mala,
    step_size: Any = 0.1,
    target_acceptance: float | None = 0.6,
    weights: Any = 1.0,
    shared_noise: bool = False,
    start: RecoveryStart = "normal",
) -> Objective:
    """Return the contrast of energies `E(x, t)` given points of the next level, mean over rows and random levels.

    `mean w_t (E(x_t, t) - E(x-, t)) / T` with x- the end of a chain of `num_steps` transitions on the conditional
    density given `x_{t+1}` (see `energyflow.recovery`). Its gradient is that of the recovery likelihood as far as the
    chains mix; short ones that start too wide make energies too sharp (with 30 moves of Gao et al.'s first step, 4
    times the precision of a Gaussian), which an accept step, tuned steps and the start "normal" undo.
    kernel, step_size, start: as of `recovery_sample`. target_acceptance: for kernels with an accept step, each level's
    step is moved towards it; None keeps `step_size`. weights: w_t, one or (T,), see `published_recovery`. shared_noise:
    one noise for both points of a pair: the expected gradient stays, its variance falls (Zhu et al. 2024).
    With `with_initialiser` the network is trained too, by the squared distance of its guess from the chain's end.
    Metrics: `gap`, `energy_data`, `energy_model`, those of the moves, `step_smallest`, and `initialiser`, that distance
    a dimension.
    Raises ValueError for what is no diffusion, and refuses a landscape when training starts.
    """
    rungs = recovery_rungs(diffusion)
    num_levels = len(rungs.alphas)
    steps, factors = (np.broadcast_to(np.asarray(x, np.float64), (num_levels,)) for x in (step_size, weights))
    if num_steps < 1 or not (np.isfinite(steps).all() and (steps > 0).all()):
        raise ValueError(f"step sizes must be positive, and moves at least 1; got {step_size} and {num_steps}")
    if target_acceptance is not None and not 0 < target_acceptance < 1:
        raise ValueError(f"target_acceptance must lie between 0 and 1; got {target_acceptance}")
    own_steps, own_weights = (jnp.asarray(x, float) for x in (steps, factors))
    settings = _Settings(
        rungs, as_energy(kernel), own_steps, own_weights, target_acceptance, num_steps, shared_noise, start
    )
    return Objective(Partial(_init, settings), Partial(_loss, settings))


def published_recovery(diffusion: Diffusion, step_scale: float = 2e-4) -> dict[str, np.ndarray]:
    """Return the step sizes and weights of Gao et al. (2021), settings of `recovery_likelihood`.

    They go with `kernel=ula, start="noisy"`. The squared step there is `step_scale sigma_t / sigma_0 s^2`, of which a
    Langevin step is half, and the network is the energy times that squared step, so that the loss weighs energies by
    it and by `s_0 / s_t`.
    """
    rungs = recovery_rungs(diffusion)
    a, s, sigmas, variances = (
        np.asarray(x, np.float64) for x in (rungs.shrinks, rungs.spreads, rungs.sigmas, rungs.variances)
    )
    squared = step_scale * sigmas / sigmas[0] * s**2
    shrink = np.where(np.arange(len(a)) < len(a) - 1, a, 1.0)  # theirs are points a x, ours are x
    return {"step_size": squared / 2 / shrink**2 / variances, "weights": squared * s[0] / s}


def _init(settings: _Settings, key: Key, energy: Any, batch: Tree) -> RecoveryState:
    require_density(energy, "recovery likelihood")
    require_floats(batch)
    return RecoveryState(settings.step_sizes, jnp.zeros((), jnp.int32))


def _loss(settings: _Settings, energy: Any, batch: Tree, key: Key, state: RecoveryState) -> Any:
    energy = as_energy(energy)
    pair_key, level_key, first_key, move_key = jax.random.split(key, 4)
    num = count_chains(batch)
    level = jax.random.randint(level_key, (num,), 0, len(settings.rungs.alphas))
    rung, weight, step = jax.tree.map(lambda x: x[level], (settings.rungs, settings.weights, state.step_sizes))
    clean, noisy = _pairs(pair_key, rung, batch, settings.shared_noise)
    starts = Partial(first_point, start=settings.start)
    first = jax.vmap(starts, (0, None, 0, 0, 0))(chain_keys(first_key, num), energy, rung, level, noisy)
    still = jax.lax.stop_gradient((energy, first))

    def one(key: Key, rung: Rungs, level: Scalar, step: Scalar, noisy: Tree, first: Tree) -> Any:
        own = settings.kernel(step * rung.variances)
        return recover(key, still[0], own, rung, level, noisy, first, settings.num_steps)

    done, stats = jax.vmap(one)(chain_keys(move_key, num), rung, level, step, noisy, still[1])
    fake = jax.lax.stop_gradient(done.position)
    data, model = (jax.vmap(energy)(x, level) / temperature(energy) for x in (clean, fake))
    metrics = summary_of(stats, start_cost(done) * num) | {
        "gap": jnp.mean(model - data),
        "energy_data": jnp.mean(data),
        "energy_model": jnp.mean(model),
        "sampler_temperature": temperature_of_moves(settings.kernel, settings.step_sizes[0]),
    }
    loss = jnp.mean(weight * (data - model))
    if isinstance(energy, Initialised):
        misses = _mean_square(fake, first)
        loss, metrics = loss + misses, metrics | {"initialiser": misses}
    if settings.target_acceptance is not None and stats.acceptance_rate is not None:
        state = _adapted(state, settings.target_acceptance, level, jnp.mean(stats.acceptance_rate, axis=1))
        metrics["step_smallest"] = jnp.min(state.step_sizes)
    return loss, (state, metrics)


def _pairs(key: Key, rung: Rungs, batch: Tree, shared_noise: bool) -> tuple[Tree, Tree]:
    """Return points of a level and of the next, for rows of data; rung: arrays (B,)."""
    key, other_key = jax.random.split(key)
    noise = normal_like(key, batch)
    clean = jax.tree.map(lambda x, z: _rows(rung.alphas, x) * x + _rows(rung.sigmas, x) * z, batch, noise)
    if shared_noise:
        shrink, spread = rung.alphas * rung.shrinks, jnp.sqrt(1 - (rung.alphas * rung.shrinks) ** 2)
        return clean, jax.tree.map(lambda x, z: _rows(shrink, x) * x + _rows(spread, x) * z, batch, noise)
    other = normal_like(other_key, batch)
    return clean, jax.tree.map(lambda x, z: _rows(rung.shrinks, x) * x + _rows(rung.spreads, x) * z, clean, other)


def _rows(values: Array, like: Array) -> Array:
    return per_row(values, like).astype(like.dtype)


def _mean_square(a: Tree, b: Tree) -> Scalar:
    squares = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), a, b)
    return jnp.asarray(sum(jax.tree.leaves(squares))) / sum(x.size for x in jax.tree.leaves(a))


def _adapted(state: RecoveryState, target: Any, level: Array, acceptance: Array) -> RecoveryState:
    """Move each level's log step by the mean error of its chains, less and less (Robbins and Monro 1951)."""
    at_level = jax.nn.one_hot(level, len(state.step_sizes), dtype=acceptance.dtype)
    errors = (acceptance - target) @ at_level / jnp.maximum(jnp.sum(at_level, axis=0), 1.0)
    return RecoveryState(state.step_sizes * jnp.exp(decaying_gain(state.count) * errors), state.count + 1)
