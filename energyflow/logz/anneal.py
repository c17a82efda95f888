"""The annealing pass both directions share: weigh and move along a path, one gradient per move.

A kernel state caches the log density and gradient at the temperature it last moved at. Along the geometric path both
are affine in beta, so the cache is transported to the next temperature exactly: the ratio's part is recovered from it
(the base is cheap) and mixed again. Other paths re-initialise the kernel, at one more gradient per move.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from energyflow.chains import chain_keys, count_chains
from energyflow.kernels.algorithm import bind, carried, start, with_step_size
from energyflow.kernels.transitions import move_of, scan_ahead, step_keys
from energyflow.logz.path import Path
from energyflow.types import Algorithm, Array, Kernel, Key, Scalar, Tree


class Annealed(NamedTuple):
    """Chains after a pass: log weights (n,) in float64, end positions, acceptance per move (K,), gradients spent."""

    log_weights: np.ndarray
    position: Tree
    acceptance: np.ndarray
    num_gradients: int


class _Total(NamedTuple):
    """A compensated sum (Kahan 1965): thousands of small increments in float32 without losing the small ones."""

    value: Array
    lost: Array

    def add(self, x: Array) -> "_Total":
        y = x - self.lost
        value = self.value + y
        # A start outside the target's support has weight zero for good.
        return _Total(
            jnp.where(self.value > -jnp.inf, value, -jnp.inf),
            jnp.where(value > -jnp.inf, (value - self.value) - y, 0.0),
        )


def anneal_forward(
    key: Key, path: Path, kernel: Kernel, betas: np.ndarray, steps: Any, position: Tree, *, unroll: bool = False
) -> Annealed:
    """Weigh, then move, from beta 0 up (Neal 2001). position: exact draws of the base, leading axis [chain].

    betas: (K+1,) from 0 to 1. steps: (K,) step sizes or None to keep the kernel's. `mean(exp(log_weights))` estimates
    Z_target / Z_base without bias.
    """
    deltas = np.append(np.diff(betas)[1:], 0.0)
    return _run(key, path, kernel, betas[1:], deltas, np.append(betas[2:], 1.0), steps, position, betas[1], unroll)


def anneal_reverse(
    key: Key, path: Path, kernel: Kernel, betas: np.ndarray, steps: Any, position: Tree, *, unroll: bool = False
) -> Annealed:
    """Move, then weigh, from beta 1 down: the exact mirror of `anneal_forward` for a reversible kernel.

    position: exact draws of the target. `mean(exp(log_weights))` estimates Z_base / Z_target without bias.
    """
    down = betas[::-1]
    steps = None if steps is None else steps[::-1]
    return _run(key, path, kernel, down[:-1], np.diff(down), down[1:], steps, position, 0.0, unroll)


def _run(
    key: Key,
    path: Path,
    kernel: Kernel,
    betas: np.ndarray,
    deltas: np.ndarray,
    nexts: np.ndarray,
    steps: Any,
    position: Tree,
    first_delta: float,
    unroll: bool,
) -> Annealed:
    keys = chain_keys(key, count_chains(position))
    total, state = _begin(keys, path, kernel, position, betas[0], betas[0] - first_delta, first_delta)
    size = 10 if unroll else len(betas)
    rates, gradients = [], count_chains(position) * int(hasattr(state, "logdensity_grad"))
    for i in range(0, len(betas), size):
        part = slice(i, i + size)
        xs = (jnp.arange(i, i + size)[: len(betas[part])], betas[part], deltas[part], nexts[part], _of(steps, part))
        total, state, rate, spent = _block(keys, path, kernel, total, state, xs, unroll)
        rates.append(np.asarray(rate))
        gradients += int(np.asarray(spent, np.int64).sum())
    weights = np.asarray(total.value, np.float64) - np.asarray(total.lost, np.float64)
    return Annealed(weights, state.position, np.concatenate(rates), gradients)


def _of(steps: Any, part: slice) -> Any:
    return None if steps is None else steps[part]


@jax.jit
def _begin(
    keys: Key, path: Path, kernel: Kernel, position: Tree, beta: Scalar, before: Scalar, delta: Scalar
) -> tuple[_Total, Any]:
    """Start the kernel states at `beta`, with the first weight, log f(before + delta) - log f(before)."""

    def one(key: Key, x: Tree) -> Any:
        state = start(bind(kernel, path.at(beta)), jax.random.fold_in(key, 0), x)
        weight = _increment(path, state, beta, before, delta)
        return _Total(weight, jnp.zeros_like(weight)), state

    return jax.vmap(one)(keys, position)


@functools.partial(jax.jit, static_argnames="unroll")
def _block(keys: Key, path: Path, kernel: Kernel, total: _Total, state: Any, xs: Any, unroll: bool) -> Any:
    def chain(key: Key, total: _Total, state: Any) -> Any:
        index, betas, *_ = xs
        body, keys = functools.partial(_move, key, path, kernel), step_keys(key, len(index), index[0])
        algorithm = bind(kernel, path.at(betas[0]))  # for its noise, which is the same at every temperature
        (total, state), (rate, spent) = scan_ahead(
            body, algorithm, state.position, (total, state), keys, xs, unroll=unroll
        )
        return total, state, rate, jnp.sum(spent)

    total, state, rate, spent = jax.vmap(chain)(keys, total, state)
    return total, state, jnp.mean(rate, axis=0), spent


def _move(key: Key, path: Path, kernel: Kernel, carry: tuple[_Total, Any], row: tuple) -> Any:
    (total, state), (drawn, (i, beta, delta, following, step)) = carry, row
    kernel = kernel if step is None else with_step_size(kernel, step)
    state, info = move_of(bind(kernel, path.at(beta)), jax.random.key_impl(key))(state, drawn)
    total = total.add(_increment(path, state, beta, beta, delta))
    state, extra = _transport(jax.random.fold_in(key, -(i + 1)), path, kernel, state, beta, following)
    return (total, state), (info.acceptance_rate, info.num_gradients + extra)


def _increment(path: Path, state: Any, beta: Scalar, before: Scalar, delta: Scalar) -> Array:
    """Return log f(before + delta) - log f(before) at the state's position; its cache is at `beta`."""
    if path.order == 1.0:
        return delta * (state.logdensity - path.base.log_prob(state.position)) / beta
    x = state.position
    return path.at(before + delta)(x) - path.at(before)(x)


def _transport(key: Key, path: Path, kernel: Kernel, state: Any, beta: Scalar, following: Scalar) -> tuple[Any, int]:
    """Move a state's cache from `beta` to `following`; returns it and the gradients that took."""
    if path.order != 1.0:
        algorithm: Algorithm = bind(kernel, path.at(following))
        fresh = start(algorithm, key, state.position, carried(state))
        return fresh, int(hasattr(state, "logdensity_grad"))
    scale = following / beta
    if not hasattr(state, "logdensity_grad"):
        base = path.base.log_prob(state.position)
        return state._replace(logdensity=base + scale * (state.logdensity - base)), 0
    base, slope = jax.value_and_grad(path.base.log_prob)(state.position)
    mixed = jax.tree.map(lambda g, s: s + scale * (g - s), state.logdensity_grad, slope)
    return state._replace(logdensity=base + scale * (state.logdensity - base), logdensity_grad=mixed), 0
