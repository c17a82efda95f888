"""Floor 4: annealed Langevin, sampling down a ladder of noise levels (Song and Ermon 2019).

A conditional energy `E(x, sigma)` is that of the data with noise N(0, sigma^2) added. At a large sigma its modes merge
and chains move freely between them; going down, each chain keeps the mode it is in, and adding noise changes no mode's
weight. So chains arrive in proportions that Langevin at the smallest sigma alone would not find.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from energyflow.chains import chain_keys, count_chains, evolve_from, start_cost
from energyflow.energy import as_energy, logdensity
from energyflow.kernels.langevin import ula
from energyflow.rows import gradients
from energyflow.types import Array, Kernel, Key, Scalar, Tree, as_key


class AnnealedLangevin(NamedTuple):
    """Chains at the end of a ladder of L noise levels, and what each level did.

    position: leading axis [chain]. acceptance (None for kernels without an accept step), jump_distance, divergent: each
    (L,), the mean acceptance rate, the mean distance of a move and the share of divergent transitions of a level.
    steps: (L,) step size of each level. num_gradients: everything spent, over all chains.
    """

    position: Tree
    acceptance: np.ndarray | None
    jump_distance: np.ndarray
    divergent: np.ndarray
    steps: np.ndarray
    num_gradients: int


def annealed_langevin(
    key: Key | int,
    energy: Any,
    sigmas: Any,
    position: Tree,
    *,
    num_steps: int = 100,
    step_size: float | None = None,
    kernel: Callable[[Any], Kernel] = ula,
    denoise: bool = False,
) -> AnnealedLangevin:
    """Move chains `num_steps` transitions at each noise level, from the largest to the smallest (Song and Ermon 2019).

    energy: `E(x, sigma)` of one point at one level, or a callable pytree of both. sigmas: (L,) noise levels, positive
    and strictly decreasing. position: starts, leading axis [chain], usually draws of N(0, sigmas[0]^2).
    step_size: h of the last level, in `x + h grad log p + sqrt(2h) z`; level i takes `h sigma_i^2 / sigma_L^2`. A tenth
    of sigma_L^2 by default. This h is the official code's; the paper's alpha is 2h.
    kernel: what makes a kernel of a Langevin step h: `ula`, `mala`, or for a length instead of a squared one
    `lambda h: hmc((2 * h) ** 0.5, 5)`. denoise: end with `x + sigma_L^2 grad log p(x, sigma_L)`, the mean of the data
    given the noisy point (Tweedie's formula; Robbins 1956): closer to the data, and no longer a draw.
    New weights and new levels, as many of them, cost no compilation.
    Raises ValueError for levels that are not such, starts that are not finite or share no leading axis, steps that are
    not positive, and an energy that returns no scalar; TypeError for a kernel whose step is already set.
    """
    sigmas = checked_ladder(sigmas)
    if not callable(kernel) or "step_size" in getattr(kernel, "keywords", {}):
        raise TypeError(
            f"kernel makes a kernel of each level's step: give ef.mala, not ef.mala(0.1); got {kernel!r:.40}"
        )
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1; got {num_steps}")
    step = 0.1 * sigmas[-1] ** 2 if step_size is None else float(step_size)
    if not (np.isfinite(step) and step > 0):
        raise ValueError(f"step_size must be positive and finite; got {step_size}")
    position = jax.tree.map(lambda x: jnp.asarray(x, float), position)
    num_chains = count_chains(position)
    if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(position)):
        raise ValueError("the starts hold values that are not finite")
    steps = step * (sigmas / sigmas[-1]) ** 2
    # Kernels are stacked as pytrees, one a level: whatever they make of the step (a noise scale, say) follows it.
    kernels = jax.tree.map(lambda *leaves: np.stack(leaves), *[as_energy(kernel(float(h))) for h in steps])
    keys = chain_keys(as_key(key), num_chains)
    levels = (np.arange(len(steps)), jnp.asarray(sigmas, float), kernels)
    position, (stats, spent) = _descend(keys, as_energy(energy), levels, position, num_steps)
    total = int(np.asarray(spent, np.int64).sum())
    if denoise:
        position, total = _denoise(as_energy(energy), jnp.asarray(sigmas[-1], float), position), total + num_chains
    jump, divergent, rate = (None if x is None else np.asarray(x, np.float64).mean(axis=0) for x in stats)
    assert jump is not None and divergent is not None
    return AnnealedLangevin(position, rate, jump, divergent, steps, total)


def checked_ladder(sigmas: Any) -> np.ndarray:
    """Return noise levels as float64, (L,). Raises ValueError unless finite, positive and strictly decreasing."""
    sigmas = np.asarray(sigmas, np.float64)
    if sigmas.ndim != 1 or len(sigmas) == 0:
        raise ValueError(f"sigmas must be one noise level per rung, shape (L,); got shape {sigmas.shape}")
    if not np.isfinite(sigmas).all() or not (sigmas > 0).all() or not (np.diff(sigmas) < 0).all():
        raise ValueError(f"sigmas must be finite, positive and strictly decreasing; got {sigmas}")
    return sigmas


@functools.partial(jax.jit, static_argnames="num_steps")
def _descend(keys: Key, energy: Any, levels: Any, position: Tree, num_steps: int) -> Any:
    """Run all chains down all levels; returns positions and (stats, gradients), leading axes [chain, level]."""

    def chain(key: Key, position: Tree) -> Any:
        return jax.lax.scan(functools.partial(_level, key, energy, num_steps), position, levels)

    return jax.vmap(chain)(keys, position)


def _level(key: Key, energy: Any, num_steps: int, position: Tree, level: tuple) -> tuple[Tree, Any]:
    """Move one chain at one noise level, (index, sigma, kernel)."""
    index, sigma, kernel = level
    density = logdensity(energy, sigma)
    state, stats = evolve_from(jax.random.fold_in(key, index), kernel, density, position, num_steps)
    rate = None if stats.acceptance_rate is None else jnp.mean(stats.acceptance_rate)
    means = jnp.mean(stats.jump_distance), jnp.mean(stats.is_divergent.astype(float)), rate
    return state.position, (means, jnp.sum(stats.num_gradients) + start_cost(state))


@jax.jit
def _denoise(energy: Any, sigma: Scalar, position: Tree) -> Tree:
    """Return the mean of the data given points (n, ...) with noise of scale sigma."""

    def shift(x: Array, slope: Array) -> Array:
        return x + sigma**2 * slope

    slopes = gradients(logdensity(energy, sigma), position)
    return jax.tree.map(shift, position, slopes)
