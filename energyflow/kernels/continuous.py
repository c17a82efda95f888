"""Adjusted kernels on continuous positions: BlackJAX's, by their names, with defaults, counts and guards.

MALA is one leapfrog step of its HMC: it then reports what it proposed. Both draw their noise ahead of their moves.

Every public function returns a kernel: a `Partial` of the module-level function below it, whose settings are pytree
leaves (a new step size compiles nothing) and whose repr is its configuration. `inverse_mass_matrix` is None (identity),
a vector (diagonal) or a matrix (dense), over the raveled position; it estimates the covariance of the target.

Step conventions differ and are stated at each kernel: MALA's h is the drift step (noise sqrt(2h)); HMC's is the
leapfrog step, so `mala(h)` equals `hmc(sqrt(2h), 1)` draw for draw; Barker's and the random walk's are the proposal's
standard deviation.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
from blackjax.mcmc import metrics
from blackjax.mcmc.hmc import hmc_proposal
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from energyflow.kernels.algorithm import adapt, configured, pair
from energyflow.kernels.metropolis import PointState, accept, normal_and_uniform
from energyflow.kernels.noise import shaped_like
from energyflow.types import Algorithm, Array, Kernel, Key, LogDensity, Scalar, Tree


def mala(step_size: float, inverse_mass_matrix: Any = None) -> Kernel:
    """Metropolis-adjusted Langevin (Roberts and Tweedie 1996): `x + h M^-1 grad logp + sqrt(2h) M^-1/2 z`, accepted.

    step_size: h, in squared units of the (scaled) position. Acceptance 0.574 is optimal in high dimension.
    """
    return Partial(_mala, step_size=step_size, inverse_mass_matrix=inverse_mass_matrix)


def _mala(logdensity: LogDensity, step_size: Scalar, inverse_mass_matrix: Any) -> Algorithm:
    # One leapfrog step, which reports a non-finite proposal and costs less than blackjax.mala (0.7x on small energies).
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
    metric_of = _metrics(inverse_mass_matrix)

    def init(position: Tree, key: Key) -> Any:
        metric_of(position)
        return blackjax.hmc.init(position, logdensity)

    def move(drawn: tuple, state: Any) -> Any:
        """BlackJAX's step, its momentum and its accept step made of what was drawn."""
        row, uniform = drawn
        metric = metric_of(state.position)
        momentum = metric.scale(state.position, shaped_like(row, state.position), inv=False, trans=False)
        metric = metric._replace(sample_momentum=lambda key, position: momentum)
        propose = functools.partial(hmc_proposal, sample_proposal=functools.partial(_accept, uniform))
        algorithm = blackjax.hmc(logdensity, step_size, metric, num_integration_steps, build_proposal=propose)
        return algorithm.step(jax.random.key(0), state)  # a key that nothing uses

    return adapt(pair(init, move), noise=normal_and_uniform)


def _accept(uniform: Array, key: Key, log_ratio: Array, state: Any, proposal: Any) -> tuple[Any, tuple]:
    """BlackJAX's accept step, by a number drawn before."""
    new, info = accept(uniform, log_ratio, proposal, state)
    return new, (uniform < info.acceptance_rate, info.acceptance_rate, None)


def nuts(step_size: float, inverse_mass_matrix: Any = None, *, max_num_doublings: int = 10) -> Kernel:
    """The no-U-turn sampler (Hoffman and Gelman 2014; multinomial, Betancourt 2017); `step_size` is the leapfrog's."""
    return Partial(
        configured(_nuts, max_num_doublings=max_num_doublings),
        step_size=step_size,
        inverse_mass_matrix=inverse_mass_matrix,
    )


def _nuts(logdensity: LogDensity, step_size: Scalar, inverse_mass_matrix: Any, max_num_doublings: int) -> Algorithm:
    make = Partial(configured(blackjax.nuts.differentiable, max_num_doublings=max_num_doublings), logdensity, step_size)
    return adapt(_euclidean(make, inverse_mass_matrix))


def dynamic_hmc(step_size: float, max_num_integration_steps: int = 10, inverse_mass_matrix: Any = None) -> Kernel:
    """HMC with a number of leapfrog steps drawn uniformly from 1..`max_num_integration_steps` (Neal 2011, jittered)."""
    return Partial(
        _dynamic_hmc,
        step_size=step_size,
        max_num_integration_steps=max_num_integration_steps,
        inverse_mass_matrix=inverse_mass_matrix,
    )


def _dynamic_hmc(
    logdensity: LogDensity, step_size: Scalar, max_num_integration_steps: Any, inverse_mass_matrix: Any
) -> Algorithm:
    make = Partial(
        blackjax.dynamic_hmc.differentiable,
        logdensity,
        step_size,
        next_random_arg_fn=_next_generator,
        integration_steps_fn=_uniform_steps,
        integration_steps_params=(max_num_integration_steps,),
    )
    return adapt(_euclidean(make, inverse_mass_matrix))


def _next_generator(key: Key) -> Key:
    return jax.random.fold_in(key, 1)


def _uniform_steps(key: Key, maximum: Scalar) -> Array:
    return jax.random.randint(jax.random.fold_in(key, 0), (), 1, maximum + 1)


def ghmc(step_size: float, alpha: float = 0.5, delta: float | None = None, inverse_mass_matrix: Any = None) -> Kernel:
    """Generalised HMC (Horowitz 1991) with a persistent, non-reversible slice (Neal 2020): one leapfrog step a move.

    alpha: share of the momentum's variance refreshed a move, in (0, 1]. delta: drift of the slice, alpha/2 by default
    (Hoffman and Sountsov 2022). Not reversible: reverse annealing refuses it.
    """
    delta = alpha / 2 if delta is None else delta
    return Partial(_ghmc, step_size=step_size, alpha=alpha, delta=delta, inverse_mass_matrix=inverse_mass_matrix)


def _ghmc(
    logdensity: LogDensity, step_size: Scalar, alpha: Scalar, delta: Scalar, inverse_mass_matrix: Any
) -> Algorithm:
    def make(metric: metrics.Metric) -> Any:
        return blackjax.ghmc(logdensity, step_size, metric, alpha, delta)

    def init(position: Tree, key: Key) -> Any:
        # BlackJAX draws the first momentum for an identity mass matrix; the stationary law needs this metric's.
        state_key, momentum_key = jax.random.split(key)
        state = algorithm.init(position, state_key)
        return state._replace(momentum=_metric(inverse_mass_matrix, position).sample_momentum(momentum_key, position))

    algorithm = _euclidean(make, inverse_mass_matrix)
    return adapt(pair(init, algorithm.step), reversible=False)


def adjusted_mclmc(step_size: float, num_integration_steps: int) -> Kernel:
    """Adjusted microcanonical HMC (Robnik et al. 2025): isokinetic trajectories of McLachlan steps, then accepted.

    Two gradients per integration step; positions of at least two dimensions.
    """
    return Partial(_adjusted_mclmc, step_size=step_size, num_integration_steps=num_integration_steps)


def _adjusted_mclmc(logdensity: LogDensity, step_size: Scalar, num_integration_steps: Any) -> Algorithm:
    algorithm = blackjax.adjusted_mclmc(logdensity, step_size, integration_steps_params=(num_integration_steps,))
    return adapt(algorithm, gradients_per_step=2)


def elliptical_slice(mean: Any, covariance: Any) -> Kernel:
    """Elliptical slice sampling (Murray, Adams and MacKay 2010): for log densities that tilt N(mean, covariance).

    mean: (d,) or scalar. covariance: (d,) variances, one for all, or a (d, d) matrix, over the raveled position. The
    density sampled is the whole `logdensity`; the Gaussian is divided out and put back. No step size, no gradients, no
    rejections.
    """
    return Partial(_elliptical_slice, mean=mean, covariance=covariance)


def _elliptical_slice(logdensity: LogDensity, mean: Any, covariance: Any) -> Algorithm:
    covariance = jnp.asarray(covariance)
    dense = covariance.ndim == 2
    whiten = jnp.linalg.inv(jnp.linalg.cholesky(covariance)) if dense else 1 / jnp.sqrt(covariance)

    def gaussian(position: Tree) -> Scalar:
        centred = ravel_pytree(position)[0] - mean
        return -0.5 * jnp.sum((whiten @ centred if dense else whiten * centred) ** 2)

    def ratio(position: Tree) -> Scalar:
        return logdensity(position) - gaussian(position)

    ready = blackjax.elliptical_slice(ratio, mean=mean, cov=covariance) if covariance.ndim else None

    def sized(position: Tree) -> Any:
        """One variance becomes a vector where the number of dimensions is known."""
        size = ravel_pytree(position)[0].size
        return ready or blackjax.elliptical_slice(ratio, mean=mean, cov=jnp.full(size, covariance))

    def init(position: Tree, key: Key) -> PointState:
        return PointState(position, logdensity(position))

    def step(key: Key, state: Any) -> tuple[PointState, Any]:
        known = state.logdensity - gaussian(state.position)
        start = blackjax.elliptical_slice.init(state.position, lambda _: known)
        new: Any = sized(state.position).step(key, start)[0]
        return PointState(new.position, new.logdensity + gaussian(new.position)), _Accepted(jnp.asarray(True))

    return adapt(pair(init, step))


class _Accepted(NamedTuple):
    is_accepted: Array


def slice_sampling(width: float = 1.0) -> Kernel:
    """Slice sampling along a random direction (Neal 2003), bracket by doubling from `width`; needs no gradient."""
    return Partial(_slice_sampling, width=width)


def _slice_sampling(logdensity: LogDensity, width: Scalar) -> Algorithm:
    return adapt(blackjax.slice_sampling(logdensity, width=width))


def _metric(inverse_mass_matrix: Any, position: Tree) -> metrics.Metric:
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


def _metrics(inverse_mass_matrix: Any) -> Callable[[Tree], metrics.Metric]:
    """Return position -> metric: its size comes with the position; a dense one is factorised once, outside the loop."""
    fits = inverse_mass_matrix is not None and len(set(jnp.shape(inverse_mass_matrix))) == 1  # else _metric refuses it
    ready = metrics.default_metric(jnp.asarray(inverse_mass_matrix)) if fits else None

    def of(position: Tree) -> metrics.Metric:
        checked = _metric(inverse_mass_matrix, position)
        return checked if ready is None else ready

    return of


def _euclidean(make: Callable[[metrics.Metric], Any], inverse_mass_matrix: Any) -> Any:
    """Bind the metric late, with the position."""
    metric_of = _metrics(inverse_mass_matrix)
    return pair(
        lambda position, key: make(metric_of(position)).init(position, key),
        lambda key, state: make(metric_of(state.position)).step(key, state),
    )
