"""Floor 4: what recovery likelihood samples, a point of one level of a diffusion given a noisier one.

Given x' of the next level, `x' = a x + s z`, a point x has the density `exp(-E(x, t)/T - |x - x'/a|^2 / (2 v_t))` with
v_t = s^2 / a^2: the quadratic term makes it nearly unimodal, so that short chains can follow it (Gao et al. 2021). At
the last level x' is noise and the term is left out.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial, register_dataclass

from energyflow.chains import chain_keys, count_chains, evolve_from, start_cost
from energyflow.diffusion import Diffusion, checked_diffusion
from energyflow.energy import Around, Frozen, as_energy, logdensity, require_density
from energyflow.kernels.algorithm import bind
from energyflow.kernels.continuous import mala
from energyflow.kernels.noise import normal_like
from energyflow.rows import gradients
from energyflow.types import Array, Kernel, Key, Scalar, Tree, as_key

RecoveryStart = Literal["normal", "noisy"]


class Rungs(NamedTuple):
    """What is known of each of the T levels that have an energy, arrays (T,).

    alphas, sigmas: of its points. shrinks, spreads: a and s of the step up from it. precisions: a^2 / s^2, and 0 for
    the last level. variances: v_t, and at most 1. centers: 1 / a, and 1 for the last level. backward: sd of a point
    given the next level's and the datum.
    """

    alphas: Array
    sigmas: Array
    shrinks: Array
    spreads: Array
    precisions: Array
    variances: Array
    centers: Array
    backward: Array


class RecoveryDraws(NamedTuple):
    """Draws of the lowest level, and what each level did, arrays (T,) from the noisiest level down.

    position: leading axis [chain]. acceptance (None for kernels without an accept step), jump_distance, divergent: the
    mean acceptance rate, the mean distance of a move and the share of divergent transitions. num_gradients: everything
    spent, over all chains.
    """

    position: Tree
    acceptance: np.ndarray | None
    jump_distance: np.ndarray
    divergent: np.ndarray
    num_gradients: int


@register_dataclass
@dataclass(frozen=True, eq=False)
class Initialised(Around):
    """Energies of levels, and a network that guesses where their chains should start; made by `with_initialiser`."""

    energy: Any
    initialiser: Any

    def __call__(self, x: Tree, *cond: Tree) -> Scalar:
        return self.energy(x, *cond)


def with_initialiser(energy: Any, initialiser: Any) -> Initialised:
    """Return energies `E(x, t)` with a network `p(x', t)` from which chains start (Zhu et al. 2024).

    initialiser: maps a point x' of level t + 1 and the integer t to the mean of x of level t, as `level_mlp_field`
    does; it is trained with the energy by `recovery_likelihood`. Raises ValueError for a landscape.
    """
    require_density(energy, "recovery likelihood")
    return Initialised(as_energy(energy), as_energy(initialiser))


def recovery_rungs(diffusion: Diffusion) -> Rungs:
    """Return what chains need to know of the levels. Raises ValueError for what is no diffusion."""
    diffusion = checked_diffusion(diffusion)
    a, s = diffusion.steps
    alphas, sigmas = diffusion.alphas, diffusion.sigmas
    recovers = np.arange(len(a)) < len(a) - 1
    backward = sigmas[:-1] / sigmas[1:] * s
    variances = np.minimum(s**2 / a**2, 1.0)
    arrays = (
        alphas[:-1], sigmas[:-1], a, s, recovers * a**2 / s**2, variances, np.where(recovers, 1 / a, 1.0), backward
    )  # fmt: skip
    return Rungs(*(jnp.asarray(x, float) for x in arrays))


def recovery_energy(energy: Any, level: Scalar, center: Tree, precision: Scalar) -> Partial:
    """Return `E(x, level)/T + precision |x - center|^2 / 2`, an energy of x at temperature 1."""
    return Partial(_recovery_energy, as_energy(energy), Frozen((level, center, precision)))


def _recovery_energy(energy: Any, known: Frozen, x: Tree) -> Scalar:
    level, center, precision = known.value
    squares = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), x, center)
    return -logdensity(energy, level)(x) + 0.5 * precision * sum(jax.tree.leaves(squares))


def first_point(key: Key, energy: Any, rung: Rungs, level: Scalar, noisy: Tree, start: RecoveryStart) -> Tree:
    """Return where a chain of one level begins, given the point of the next.

    By the initialiser of an energy that has one, plus the noise that a point has given the datum; else `a x' + s z`
    ("normal": exact for standard normal data) or `x'/a` ("noisy"). rung: of that level, arrays ().
    """
    noise = normal_like(key, noisy)
    if isinstance(energy, Initialised):
        mean = energy.initialiser(noisy, level)
        return jax.tree.map(lambda m, z: m + rung.backward.astype(z.dtype) * z, mean, noise)
    if start == "noisy":
        return jax.tree.map(lambda x: rung.centers.astype(x.dtype) * x, noisy)
    return jax.tree.map(lambda x, z: rung.shrinks.astype(x.dtype) * x + rung.spreads.astype(x.dtype) * z, noisy, noise)


def recover(
    key: Key, energy: Any, kernel: Kernel, rung: Rungs, level: Scalar, noisy: Tree, first: Tree, num_steps: int
) -> tuple[Any, Any]:
    """Move one chain of one level from `first`; returns the kernel's state and stacked stats."""
    center = jax.tree.map(lambda x: rung.centers.astype(x.dtype) * x, noisy)
    density = logdensity(recovery_energy(energy, level, center, rung.precisions))
    return evolve_from(key, kernel, density, first, num_steps)


def recovery_sample(
    key: Key | int,
    energy: Any,
    diffusion: Diffusion,
    position: Tree,
    *,
    num_steps: int = 30,
    step_size: Any = 0.1,
    kernel: Callable[[Any], Kernel] = mala,
    start: RecoveryStart = "normal",
    denoise: bool = False,
) -> RecoveryDraws:
    """Draw from the lowest level by going down all of them, `num_steps` transitions at each (Gao et al. 2021).

    energy: `E(x, t)` of one point and an integer level 0 ... T - 1, or such with an initialiser. position: draws of
    N(0, I), leading axis [chain]. step_size: in units of v_t, one for all levels or (T,), of level 0 first.
    kernel: what makes a kernel of a Langevin step h: `mala`, `ula`, or `lambda h: hmc((2 * h) ** 0.5, 5)`.
    start: of the chain at each level, "normal" or "noisy"; an initialiser takes its place. denoise: end with the mean
    of the datum given the point, by Tweedie's formula: closer to the data, and no longer a draw.
    Draws are of level 0, alpha_0 x_0 + sigma_0 z. New weights and step sizes compile nothing.
    Raises ValueError for a landscape, what is no diffusion, steps that are not positive or starts of no common axis.
    """
    require_density(energy, "recovery")
    rungs = recovery_rungs(diffusion)
    num_levels = len(rungs.alphas)
    steps = np.broadcast_to(np.asarray(step_size, np.float64), (num_levels,))
    if not (np.isfinite(steps).all() and (steps > 0).all()) or num_steps < 1:
        raise ValueError(f"step sizes must be positive, and moves at least 1; got {step_size} and {num_steps}")
    position = jax.tree.map(lambda x: jnp.asarray(x, float), position)
    keys = chain_keys(as_key(key), count_chains(position))
    kernel, energy = as_energy(kernel), as_energy(energy)
    levels = jnp.arange(num_levels), rungs, jnp.asarray(steps, float)
    position, (stats, spent) = _go_down(keys, energy, kernel, levels, position, num_steps, start)
    total = int(np.asarray(spent, np.int64).sum())
    if denoise:
        position, total = _denoised(energy, rungs, position), total + len(keys)
    jump, divergent, rate = (None if x is None else np.asarray(x, np.float64).mean(axis=0) for x in stats)
    assert jump is not None and divergent is not None
    return RecoveryDraws(position, rate, jump, divergent, total)


@functools.partial(jax.jit, static_argnames=("num_steps", "start"))
def _go_down(
    keys: Key, energy: Any, kernel: Any, levels: tuple, position: Tree, num_steps: int, start: RecoveryStart
) -> Any:
    """Run all chains down all levels; returns positions and (stats, gradients), leading axes [chain, level]."""
    downwards = jax.tree.map(lambda x: x[::-1], levels)

    def chain(key: Key, noisy: Tree) -> Any:
        def at_level(noisy: Tree, one: tuple) -> Any:
            level, rung, step = one
            first_key, move_key = jax.random.split(jax.random.fold_in(key, level))
            first = first_point(first_key, energy, rung, level, noisy, start)
            own = kernel(step * rung.variances)
            state, stats = recover(move_key, energy, own, rung, level, noisy, first, num_steps)
            rate = None if stats.acceptance_rate is None else jnp.mean(stats.acceptance_rate)
            means = jnp.mean(stats.jump_distance), jnp.mean(stats.is_divergent.astype(float)), rate
            return state.position, (means, jnp.sum(stats.num_gradients) + start_cost(state))

        return jax.lax.scan(at_level, noisy, downwards)

    return jax.vmap(chain)(keys, position)


@jax.jit
def _denoised(energy: Any, rungs: Rungs, position: Tree) -> Tree:
    """Return `(x + sigma^2 grad log p(x)) / alpha` at level 0."""
    slopes = gradients(logdensity(energy, jnp.zeros((), jnp.int32)), position)
    alpha, sigma = rungs.alphas[0], rungs.sigmas[0]
    return jax.tree.map(lambda x, g: (x + sigma.astype(x.dtype) ** 2 * g) / alpha.astype(x.dtype), position, slopes)


def temperature_of_moves(kernel: Any, step: Any) -> Array:
    """Return the temperature that a kernel made of a Langevin step samples at."""
    return jnp.asarray(bind(kernel(step), Partial(_flat)).temperature, float)


def _flat(x: Tree) -> Scalar:
    return jnp.zeros(())
