"""The accept step, and the proposals written out around it: the random walk and Barker's.

BlackJAX's random walk does not tell what it proposed: a non-finite proposal could not be reported. Its Barker computes
log(1 + exp(a)) literally: on steep energies that is infinite in float32, and every proposal is rejected.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from energyflow.kernels.algorithm import adapt, pair
from energyflow.kernels.noise import normal_row
from energyflow.types import Algorithm, Array, Kernel, Key, LogDensity, Scalar, Tree


class PointState(NamedTuple):
    """Position and its log density, for kernels without gradients."""

    position: Tree
    logdensity: Scalar


class SlopeState(NamedTuple):
    """Position, its log density and gradient."""

    position: Tree
    logdensity: Scalar
    logdensity_grad: Tree


class MoveInfo(NamedTuple):
    """Acceptance rate () and the state that was proposed."""

    acceptance_rate: Array
    proposal: Any


def slope_state(logdensity: LogDensity, position: Tree) -> SlopeState:
    """Return the state of a kernel at `position`."""
    return SlopeState(position, *jax.value_and_grad(logdensity)(position))


def accept(uniform: Array, log_ratio: Array, proposal: Any, state: Any) -> tuple[Any, MoveInfo]:
    """Take `proposal` with probability min(1, exp(log_ratio)), and never where that is NaN; else stay at `state`.

    uniform: a number of [0, 1), shape ().
    """
    rate = jnp.exp(jnp.minimum(log_ratio, 0.0))
    taken = uniform < rate
    return jax.tree.map(lambda p, s: jnp.where(taken, p, s), proposal, state), MoveInfo(rate, proposal)


def normal_and_uniform(key: Key, position: Tree) -> tuple[Array, Array]:
    """Return a row of normal numbers for a proposal, and the uniform number of its accept step."""
    noise_key, accept_key = jax.random.split(key)
    row = normal_row(noise_key, position)
    return row, jax.random.uniform(accept_key, (), row.dtype)


def rmh(scale: Any) -> Kernel:
    """Random-walk Metropolis (Metropolis et al. 1953): Gaussian proposals of standard deviation `scale` (broadcast)."""
    return Partial(_rmh, step_size=scale)


def _rmh(logdensity: LogDensity, step_size: Any) -> Algorithm:
    def init(position: Tree, key: Key) -> PointState:
        return PointState(position, logdensity(position))

    def move(drawn: tuple, state: PointState) -> tuple[PointState, MoveInfo]:
        z, uniform = drawn
        x, unravel = ravel_pytree(state.position)
        moved = unravel(x + step_size * z[: x.size])
        proposal = PointState(moved, logdensity(moved))
        return accept(uniform, proposal.logdensity - state.logdensity, proposal, state)

    return adapt(pair(init, move), noise=normal_and_uniform)


def barker(step_size: float, scale: float | Array = 1.0) -> Kernel:
    """Barker's gradient-skewed random walk: robust to steps that are too large, where MALA collapses.

    Livingstone and Zanella (2022). step_size: standard deviation of the proposal before its skew. scale: extra standard
    deviations per dimension of the raveled position, (d,) or a scalar.
    """
    return Partial(_barker, step_size=step_size, scale=scale)


def _barker(logdensity: LogDensity, step_size: Scalar, scale: Scalar | Array) -> Algorithm:
    def init(position: Tree, key: Key) -> SlopeState:
        return slope_state(logdensity, position)

    def noise(key: Key, position: Tree) -> tuple[Array, Array, Array]:
        noise_key, sign_key, accept_key = jax.random.split(key, 3)
        x, uniform = ravel_pytree(position)[0], jax.random.uniform
        return normal_row(noise_key, position), uniform(sign_key, x.shape, x.dtype), uniform(accept_key, (), x.dtype)

    def move(drawn: tuple, state: SlopeState) -> tuple[SlopeState, MoveInfo]:
        z, sign, uniform = drawn
        x, unravel = ravel_pytree(state.position)
        gradient = ravel_pytree(state.logdensity_grad)[0]
        z = step_size * scale * z[: x.size]
        step = jnp.where(sign < jax.nn.sigmoid(z * gradient), z, -z)
        proposal = slope_state(logdensity, unravel(x + step))
        back = jax.nn.log_sigmoid(-step * ravel_pytree(proposal.logdensity_grad)[0])
        there = jax.nn.log_sigmoid(step * gradient)
        log_ratio = proposal.logdensity - state.logdensity + jnp.sum(back - there)
        return accept(uniform, log_ratio, proposal, state)

    return adapt(pair(init, move), noise=noise)
