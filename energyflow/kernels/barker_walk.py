"""Barker's proposal (Livingstone and Zanella 2022), with a log-sigmoid that does not overflow.

BlackJAX 1.7 computes log(1 + exp(a)) literally; on steep energies that is infinite in float32 and every proposal is
rejected. The move is short enough to own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from energyflow.kernels.algorithm import adapt, pair
from energyflow.types import Algorithm, Array, Kernel, Key, LogDensity, Scalar, Tree


class BarkerState(NamedTuple):
    """Position, its log density and gradient."""

    position: Tree
    logdensity: Scalar
    logdensity_grad: Tree


class _BarkerInfo(NamedTuple):
    acceptance_rate: Array
    proposal: BarkerState


def barker(step_size: float, scale: float | Array = 1.0) -> Kernel:
    """Barker's gradient-skewed random walk: robust to steps that are too large, where MALA collapses.

    step_size: standard deviation of the proposal before its skew. scale: extra standard deviations per dimension of
    the raveled position, (d,) or a scalar.
    """
    return Partial(_barker, step_size=step_size, scale=scale)


def _barker(logdensity: LogDensity, step_size: Scalar, scale: Scalar | Array) -> Algorithm:
    value_and_grad = jax.value_and_grad(logdensity)

    def init(position: Tree, key: Key) -> BarkerState:
        return BarkerState(position, *value_and_grad(position))

    def step(key: Key, state: BarkerState) -> tuple[BarkerState, _BarkerInfo]:
        noise_key, sign_key, accept_key = jax.random.split(key, 3)
        x, unravel = ravel_pytree(state.position)
        gradient = ravel_pytree(state.logdensity_grad)[0]
        z = step_size * scale * jax.random.normal(noise_key, x.shape, x.dtype)
        forward = jax.random.uniform(sign_key, x.shape, x.dtype) < jax.nn.sigmoid(z * gradient)
        move = jnp.where(forward, z, -z)
        proposal = BarkerState(unravel(x + move), *value_and_grad(unravel(x + move)))
        back = jax.nn.log_sigmoid(-move * ravel_pytree(proposal.logdensity_grad)[0])
        there = jax.nn.log_sigmoid(move * gradient)
        log_ratio = proposal.logdensity - state.logdensity + jnp.sum(back - there)
        rate = jnp.nan_to_num(jnp.exp(jnp.minimum(log_ratio, 0.0)), nan=0.0)
        accept = jax.random.uniform(accept_key, (), x.dtype) < rate
        new = jax.tree.map(lambda p, s: jnp.where(accept, p, s), proposal, state)
        return new, _BarkerInfo(rate, proposal)

    return adapt(pair(init, step))
