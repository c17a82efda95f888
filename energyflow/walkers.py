"""Floor 5: weighted walkers as a negative phase: maximum likelihood corrected by Jarzynski's identity.

Walkers follow the model while it trains, and every update of the weights that they have not followed yet is put into
log weights, as annealed importance sampling does along a path of temperatures. So the gradient is that of the
likelihood however slowly the walkers mix, and Z is known while training goes on (Carbone, Hua, Coste and
Vanden-Eijnden 2023).
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.smc.resampling import systematic
from jax.tree_util import Partial, register_dataclass

from energyflow.chains import chain_keys, count_chains, summary_of
from energyflow.energy import as_energy, logdensity, require_density, require_one_point
from energyflow.kernels.algorithm import bind, carried, is_adjusted
from energyflow.kernels.langevin import ula_step_size
from energyflow.kernels.noise import normal_like
from energyflow.negatives import Moves, move, start_tuner
from energyflow.stats import effective_sample_size, log_mean_exp
from energyflow.stepsize import StepTuner
from energyflow.types import Array, Kernel, Key, LogDensity, Negatives, Scalar, Stats, Tree


class Walkers(NamedTuple):
    """Weighted draws of a model in training; weighed by `exp(log_weights)` they target `energy`.

    position: leading axis [walker]. log_weights: (N,), of mean weight 1. log_z: log Z of `energy`, and what the float32
    sum of its increments lost (Kahan 1965). carry, tuner: of the kernel.
    """

    position: Tree
    carry: dict[str, Any]
    log_weights: Array
    log_z: Scalar
    lost: Scalar
    energy: Any
    tuner: Any


@register_dataclass
@dataclass(frozen=True)
class _Settings:
    moves: Moves
    base: Any
    min_ess: Any
    num_walkers: int | None = field(metadata={"static": True})


def jarzynski(
    kernel: Kernel,
    num_steps: int = 1,
    *,
    num_walkers: int | None = None,
    base: Any = None,
    min_ess: float = 0.5,
    tuner: StepTuner | None = None,
) -> Negatives:
    """Return walkers that are reweighted at every update of the energy, then moved (Carbone et al. 2023).

    kernel: one with an accept step, which adds `log p_new(x) - log p_old(x)` to the log weight before it moves, or
    `ula`, whose weights also count its own error, so that neither needs a small step. num_walkers: the batch size by
    default. base: normalised distribution that walkers start from, exactly, with the importance weights of the first
    energy; None takes that of a tilted energy. min_ess: share of the walkers under whose effective number they are
    resampled (systematically). Metrics: those of the moves; `ess`, effective walkers; `log_z` of the energy that the
    step began with, from which `contrastive` makes `log_likelihood` of the batch; `resampled`. `live_log_z` extends it
    to other weights. Weights collapse where the energy changes faster than walkers follow: watch `ess`.
    Raises ValueError, when training starts, for a landscape, for another kernel without an accept step, and where there
    is no base.
    """
    if not 0 < min_ess <= 1:
        raise ValueError(f"min_ess must be a share of the walkers, in (0, 1]; got {min_ess}")
    if base is not None:
        require_one_point(base)
    settings = _Settings(Moves(as_energy(kernel), tuner, num_steps), base, min_ess, num_walkers)
    return Negatives(Partial(_init, settings), Partial(_draw, settings))


def live_log_z(walkers: Walkers, energy: Any) -> tuple[float, float]:
    """Return log Z of `energy` by weighing walkers from their own energy to it, and how many of them are effective.

    walkers: `state.objective_state` of a training state. energy: the current one, or its average: near the walkers'.
    """
    shifts = _shifts(walkers.position, logdensity(walkers.energy), logdensity(energy))
    log_weights = np.asarray(walkers.log_weights, np.float64) + np.asarray(shifts, np.float64)
    shift, _ = log_mean_exp(log_weights)
    return float(walkers.log_z) - float(walkers.lost) + shift, effective_sample_size(log_weights)


def _init(settings: _Settings, key: Key, energy: Any, batch: Tree) -> Walkers:
    require_density(energy, "a negative phase of weighted walkers")
    base = getattr(energy, "base", None) if settings.base is None else settings.base
    if base is None:
        raise ValueError("walkers need exact draws to start from: give base, or a tilted energy (energyflow.tilt)")
    start_key, carry_key = jax.random.split(key)
    position = base.sample(start_key, (settings.num_walkers or count_chains(batch),))
    density, one = logdensity(energy), jax.tree.map(lambda x: x[0], position)
    if not is_adjusted(settings.moves.kernel, density, one) and ula_step_size(settings.moves.kernel) is None:
        raise ValueError("walkers know the weights of kernels with an accept step and of ula; this one has neither")
    algorithm = bind(settings.moves.kernel, density)
    keys = chain_keys(carry_key, count_chains(position))
    carry = jax.vmap(lambda key, x: carried(algorithm.init(x, key)))(keys, position)
    zero = jnp.zeros(())
    log_weights = _shifts(position, base.log_prob, density)
    return Walkers(position, carry, log_weights, zero, zero, energy, start_tuner(settings.moves))


def _draw(settings: _Settings, key: Key, energy: Any, batch: Tree, state: Walkers) -> Any:
    move_key, pick_key = jax.random.split(key)
    before, after = logdensity(state.energy), logdensity(energy)
    step = ula_step_size(settings.moves.kernel)
    if step is None:
        state = _weighed(state, _shifts(state.position, before, after))
        state, metrics = _resampled(settings, pick_key, state)
        position, carry, tuner, moved = move(settings.moves, move_key, energy, state.position, state.carry, state.tuner)
        state = state._replace(position=position, carry=carry, tuner=tuner)
    else:
        position, shifts, moved = _langevin(settings.moves, step, move_key, before, after, state.position)
        state = _weighed(state._replace(position=position), shifts)
        state, metrics = _resampled(settings, pick_key, state)
    return state.position, state.log_weights, state._replace(energy=energy), moved | metrics


def _shifts(position: Tree, before: LogDensity, after: LogDensity) -> Array:
    """Return the log weights (N,) that carry draws of one density to another; -inf outside its support."""
    shifts = jax.vmap(lambda x: after(x) - before(x))(position)
    return jnp.where(jnp.isnan(shifts), -jnp.inf, shifts)


def _weighed(state: Walkers, shifts: Array) -> Walkers:
    log_weights = state.log_weights + shifts
    total = jax.nn.logsumexp(log_weights) - np.log(log_weights.shape[0])
    increment = total - state.lost
    log_z = state.log_z + increment
    return state._replace(log_weights=log_weights - total, log_z=log_z, lost=(log_z - state.log_z) - increment)


def _resampled(settings: _Settings, key: Key, state: Walkers) -> tuple[Walkers, dict[str, Array]]:
    """Resample where too few walkers carry the weight; the mean weight, and so log Z, stays what it is."""
    weights, num = jnp.exp(state.log_weights), state.log_weights.shape[0]
    ess = num / jnp.mean(weights**2)
    again = ess < settings.min_ess * num
    rows = jnp.where(again, systematic(key, weights / num, num), jnp.arange(num))
    position, carry = jax.tree.map(lambda x: x[rows], (state.position, state.carry))
    log_weights = jnp.where(again, 0.0, state.log_weights)
    metrics = {"ess": ess, "log_z": state.log_z, "resampled": again.astype(float)}
    return state._replace(position=position, carry=carry, log_weights=log_weights), metrics


def _langevin(moves: Moves, h: Any, key: Key, before: LogDensity, after: LogDensity, position: Tree) -> Any:
    """Move by ULA, first on the density before the update; returns positions, log weights and metrics.

    A step from x to y adds `log p'(y) K'(y, x) - log p(x) K(x, y)`, primes after the update: at any h the weights make
    y a draw of p' if x was one of p.
    """
    slopes = jax.value_and_grad(after)

    def step(key: Key, x: Tree, level: Scalar, slope: Tree) -> Any:
        moved = jax.tree.map(lambda a, g, z: a + h * g + jnp.sqrt(2 * h) * z, x, slope, normal_like(key, x))
        distance = jnp.sqrt(sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), moved, x))))
        there = slopes(moved)
        kernels = jax.tree.map(
            lambda a, b, g, s: h / 4 * jnp.sum(g**2 - s**2) - jnp.sum((b - a) * (g + s)) / 2, x, moved, slope, there[1]
        )
        shift = there[0] - level + sum(jax.tree.leaves(kernels))
        sound = jnp.isfinite(distance) & ~jnp.isnan(shift)
        kept = jax.tree.map(lambda a, b: jnp.where(sound, a, b), (moved, *there), (x, level, slope))
        stats = Stats(None, jnp.where(sound, distance, 0.0), ~sound, jnp.int32(1))
        return kept, (jnp.where(sound, shift, -jnp.inf), stats)

    def one(key: Key, x: Tree) -> Any:
        def again(now: Any, i: Array) -> Any:
            return step(jax.random.fold_in(key, i), *now)

        now, first = step(jax.random.fold_in(key, 0), x, *jax.value_and_grad(before)(x))
        (x, *_), rest = jax.lax.scan(again, now, jnp.arange(1, moves.num_steps))
        shifts, stats = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
        return x, jnp.sum(shifts), stats

    num = count_chains(position)
    position, shifts, stats = jax.vmap(one)(chain_keys(key, num), position)
    return position, shifts, summary_of(stats, num)
