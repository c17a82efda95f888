"""Hamiltonian Monte Carlo and its one-step case MALA: the moves that training and annealing are made of.

Draw for draw BlackJAX's, but straight to the point: inner leapfrog steps take no energy, only its gradient, a proposal
is judged once instead of guarded afterwards, and without a mass matrix positions keep their shape.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.mcmc import metrics
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from energyflow.kernels.algorithm import all_finite
from energyflow.types import Algorithm, Info, Kernel, Key, LogDensity, Scalar, Tree

DIVERGENCE = 1000.0
"""A proposal that loses more log probability than this is reported as divergent (Stan's and BlackJAX's threshold)."""


class HamiltonianState(NamedTuple):
    """Position, its log density and gradient."""

    position: Tree
    logdensity: Scalar
    logdensity_grad: Tree


def mala(step_size: float, inverse_mass_matrix: Any = None) -> Kernel:
    """Metropolis-adjusted Langevin (Roberts and Tweedie 1996): `x + h M^-1 grad logp + sqrt(2h) M^-1/2 z`, accepted.

    step_size: h, in squared units of the (scaled) position. Acceptance 0.574 is optimal in high dimension.
    """
    return Partial(_mala, step_size=step_size, inverse_mass_matrix=inverse_mass_matrix)


def _mala(logdensity: LogDensity, step_size: Scalar, inverse_mass_matrix: Any) -> Algorithm:
    return _hmc(logdensity, jnp.sqrt(2 * step_size), 1, inverse_mass_matrix)


def hmc(step_size: float, num_integration_steps: int, inverse_mass_matrix: Any = None) -> Kernel:
    """Hamiltonian Monte Carlo (Duane et al. 1987; Neal 2011) with a fixed number of leapfrog steps of `step_size`."""
    return Partial(
        _hmc,
        step_size=step_size,
        num_integration_steps=num_integration_steps,
        inverse_mass_matrix=inverse_mass_matrix,
    )


def _hmc(logdensity: LogDensity, step_size: Scalar, num_integration_steps: Any, inverse_mass_matrix: Any) -> Algorithm:
    value_and_gradient, gradient = jax.value_and_grad(logdensity), jax.grad(logdensity)
    mass = early_metric(inverse_mass_matrix)

    def init(position: Tree, key: Key) -> HamiltonianState:
        metric(inverse_mass_matrix, position)
        return HamiltonianState(position, *value_and_gradient(position))

    def kick(momentum: Tree, slope: Tree) -> Tree:
        return jax.tree.map(lambda p, g: p + 0.5 * step_size * g, momentum, slope)

    def drift(position: Tree, momentum: Tree) -> Tree:
        velocity = momentum if mass is None else jax.grad(mass.kinetic_energy)(momentum)
        return jax.tree.map(lambda x, v: x + step_size * v, position, velocity)

    def leapfrog(_: Any, carry: tuple[Tree, Tree, Tree]) -> tuple[Tree, Tree, Tree]:
        position, momentum, slope = carry
        momentum = kick(momentum, slope)
        position = drift(position, momentum)
        slope = gradient(position)
        return position, kick(momentum, slope), slope

    def step(key: Key, state: HamiltonianState) -> tuple[HamiltonianState, Info]:
        momentum_key, accept_key = jax.random.split(key)
        flat, unravel = ravel_pytree(state.position)
        start = unravel(jax.random.normal(momentum_key, flat.shape, flat.dtype))
        start = start if mass is None else mass.scale(state.position, start, inv=False, trans=False)
        carry = state.position, start, state.logdensity_grad
        if not (isinstance(num_integration_steps, int) and num_integration_steps == 1):
            carry = jax.lax.fori_loop(0, num_integration_steps - 1, leapfrog, carry)
        position, momentum, slope = carry
        momentum = kick(momentum, slope)
        proposal = HamiltonianState(position := drift(position, momentum), *value_and_gradient(position))
        end = _kinetic(mass, kick(momentum, proposal.logdensity_grad)) - proposal.logdensity
        gain = _kinetic(mass, start) - state.logdensity - end
        sound = jnp.isfinite(end) & all_finite(proposal.position)
        # Compared as logarithms: XLA then keeps the drawn number instead of drawing it again for every array it selects.
        accept = sound & (jnp.log(jax.random.uniform(accept_key, (), gain.dtype)) < gain)  # never where the gain is NaN
        rate = jnp.where(sound & ~jnp.isnan(gain), jnp.exp(jnp.minimum(gain, 0.0)), 0.0)
        new = jax.tree.map(lambda p, s: jnp.where(accept, p, s), proposal, state)
        spent = jnp.asarray(num_integration_steps, jnp.int32)
        return new, Info(rate.astype(float), ~(sound & (gain >= -DIVERGENCE)), spent)

    return Algorithm(init, step)


def _kinetic(mass: metrics.Metric | None, momentum: Tree) -> Scalar:
    if mass is not None:
        return jnp.asarray(mass.kinetic_energy(momentum))
    squares = [jnp.sum(jnp.square(p)) for p in jax.tree.leaves(momentum)]
    return 0.5 * sum(squares[1:], squares[0])


def metric(inverse_mass_matrix: Any, position: Tree) -> metrics.Metric:
    """Return BlackJAX's metric for this position, identity for None. Raises ValueError where the sizes differ."""
    flat = ravel_pytree(position)[0]
    if inverse_mass_matrix is None:
        return metrics.default_metric(jnp.ones(flat.size, flat.dtype))
    shape = jnp.shape(inverse_mass_matrix)
    if shape not in ((flat.size,), (flat.size, flat.size)):
        raise ValueError(
            f"the inverse mass matrix has shape {shape}, but the position has {flat.size} dimensions: "
            f"give a vector of {flat.size} variances or a {flat.size} x {flat.size} covariance"
        )
    return metrics.default_metric(jnp.asarray(inverse_mass_matrix))


def early_metric(inverse_mass_matrix: Any) -> metrics.Metric | None:
    """Return the metric before a position is known, so that a dense one is factorised once, outside the chain's loop.

    None where there is no matrix, or one that `metric` will refuse.
    """
    fits = inverse_mass_matrix is not None and len(set(jnp.shape(inverse_mass_matrix))) == 1
    return metrics.default_metric(jnp.asarray(inverse_mass_matrix)) if fits else None
