"""What moves the particles of sequential Monte Carlo: stages of weighing, resampling and moving groups of them.

BlackJAX gives the resampling, the bisection and the persistent weights; the loops are here, because a kernel of this
package is bound to its density at every temperature and counts its gradients.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.smc.ess import log_ess
from blackjax.smc.persistent_sampling import compute_log_persistent_weights
from blackjax.smc.resampling import systematic
from blackjax.smc.solver import dichotomy

from energyflow.chains import chain_keys, evolve_from, start_cost
from energyflow.kernels.algorithm import with_step_size
from energyflow.logz.path import Path
from energyflow.types import Array, Kernel, Key, Scalar, Tree


@jax.jit
def increment(ratios: Array, most: Scalar, target_ess: Scalar) -> Scalar:
    """Return the largest step of beta, up to `most`, whose weights keep the target ESS."""
    finite = jnp.isfinite(ratios)
    # Particles outside of the target's support have no weight at any beta: the target is of the others.
    goal = jnp.log(target_ess * jnp.sum(finite).astype(ratios.dtype))
    values = jnp.where(finite, ratios, 0.0)

    def surplus(delta: Scalar) -> Scalar:
        return log_ess(jnp.where(finite, delta * values, -jnp.inf)) - goal

    most = jnp.asarray(most, ratios.dtype)
    return dichotomy(surplus, jnp.zeros_like(most), most)


@jax.jit
def ratios_of(path: Path, position: Tree) -> Array:
    """Return log p - log q of particles, axes [group, particle]."""
    return jax.vmap(jax.vmap(path.log_ratio))(position)


@functools.partial(jax.jit, static_argnames="num_steps")
def stage(
    key: Key,
    path: Path,
    kernel: Kernel,
    step: Any,
    position: Tree,
    ratios: Array,
    delta: Scalar,
    beta: Scalar,
    num_steps: int,
) -> Any:
    """Weigh by delta, resample, move at beta; leading axes [group, particle].

    Returns position, log ratios, log of the mean weight and ESS per group, mean acceptance, gradients.
    """

    def group(key: Key, position: Tree, ratios: Array) -> Any:
        pick_key, move_key = jax.random.split(key)
        weights = delta * ratios
        total = jax.nn.logsumexp(weights)
        rows = systematic(pick_key, jnp.exp(weights - total), ratios.shape[0])
        position, rate, cost = _moved(move_key, path, kernel, step, position, rows, beta, num_steps)
        return position, total - np.log(ratios.shape[0]), jnp.exp(log_ess(weights)), rate, cost

    position, log_mean, ess, rate, cost = jax.vmap(group)(chain_keys(key, ratios.shape[0]), position, ratios)
    return position, ratios_of(path, position), log_mean, ess, jnp.mean(rate), jnp.sum(cost)


def _moved(
    key: Key, path: Path, kernel: Kernel, step: Any, position: Tree, rows: Array, beta: Scalar, num_steps: int
) -> Any:
    """Move the particles of one group at `rows`; returns positions, mean acceptance and gradients."""
    kernel = kernel if step is None else with_step_size(kernel, step)
    start = jax.tree.map(lambda x: x[rows], position)
    move = functools.partial(evolve_from, kernel=kernel, logdensity=path.at(beta), num_steps=num_steps)
    keys = chain_keys(key, rows.shape[0])
    state, stats = jax.vmap(lambda key, x: move(key, position=x))(keys, start)
    cost = jnp.sum(stats.num_gradients) + start_cost(state) * rows.shape[0]
    return state.position, jnp.mean(stats.acceptance_rate), cost


def tempered(
    key: Key, path: Path, kernel: Kernel, steps_at: Any, betas: np.ndarray, position: Tree, num_steps: int
) -> tuple:
    """Carry groups of draws of the base up the schedule, weighed by one temperature's ratio to the last.

    position: axes [group, particle]. steps_at: beta -> step size, or None for the kernel's. Returns log Z (G,), ESS and
    acceptance (K,), the particles at beta 1 and the gradients spent. Always resampled, so the mean of Z is unbiased.
    """
    ratios = ratios_of(path, position)
    log_z, ess, acceptance, spent = np.zeros(ratios.shape[0]), [], [], 0
    for i, beta in enumerate(betas[1:]):
        stage_key, delta = jax.random.fold_in(key, i), beta - betas[i]
        out = stage(stage_key, path, kernel, steps_at(beta), position, ratios, delta, beta, num_steps)
        position, ratios, log_mean, effective, rate, cost = out
        log_z += np.asarray(log_mean, np.float64)
        ess.append(float(np.mean(effective)))
        acceptance.append(float(rate))
        spent += int(cost)
    return log_z, np.array(ess), np.array(acceptance), position, spent


class _History(NamedTuple):
    """All particles so far, padded: positions [group, stage, particle], log ratios alike, log Z (G, S), betas (S,)."""

    position: Tree
    ratios: Array
    log_z: Array
    betas: Array


def persistent(
    key: Key, path: Path, kernel: Kernel, steps_at: Any, betas: np.ndarray, position: Tree, num_steps: int
) -> tuple:
    """Do the same with the particles of all temperatures weighed together (Karamanis et al. 2025)."""
    ratios = ratios_of(path, position)
    size = 1 << (len(betas) - 1).bit_length()  # padded to a power of two: other schedules then compile nothing
    pad = lambda x: jnp.zeros((x.shape[0], size, *x.shape[1:]), x.dtype).at[:, 0].set(x)  # noqa: E731
    filled = jnp.zeros(size).at[: len(betas)].set(jnp.asarray(betas, float))
    history = _History(jax.tree.map(pad, position), pad(ratios), jnp.zeros((ratios.shape[0], size)), filled)
    ess, acceptance, spent = [], [], 0
    for i in range(1, len(betas)):
        stage_key = jax.random.fold_in(key, i)
        out = _persistent_stage(stage_key, path, kernel, steps_at(betas[i]), history, i, num_steps)
        history, effective, rate, cost = out
        ess.append(float(np.mean(effective)))
        acceptance.append(float(rate))
        spent += int(cost)
    last = len(betas) - 1
    log_z = np.asarray(history.log_z[:, last], np.float64)
    return log_z, np.array(ess), np.array(acceptance), jax.tree.map(lambda x: x[:, last], history.position), spent


@functools.partial(jax.jit, static_argnames="num_steps")
def _persistent_stage(
    key: Key, path: Path, kernel: Kernel, step: Any, history: _History, index: Array, num_steps: int
) -> Any:
    """Weigh the particles of all stages before `index` for its beta, resample as many as a stage holds, and move."""
    beta, num_particles = history.betas[index], history.ratios.shape[2]

    def group(key: Key, position: Tree, ratios: Array, log_z: Array) -> Any:
        pick_key, move_key = jax.random.split(key)
        weights, total = compute_log_persistent_weights(ratios, log_z, history.betas, index, normalize_to_one=True)
        rows = systematic(pick_key, jnp.exp(weights).ravel(), num_particles)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), position)
        new, rate, cost = _moved(move_key, path, kernel, step, flat, rows, beta, num_steps)
        return new, total, jnp.exp(log_ess(weights.ravel())), rate, cost

    out = jax.vmap(group)(chain_keys(key, history.ratios.shape[0]), history.position, history.ratios, history.log_z)
    new, total, ess, rate, cost = out
    put = lambda store, x: store.at[:, index].set(x)  # noqa: E731
    position = jax.tree.map(put, history.position, new)
    kept = _History(position, put(history.ratios, ratios_of(path, new)), put(history.log_z, total), history.betas)
    return kept, ess, jnp.mean(rate), jnp.sum(cost)
