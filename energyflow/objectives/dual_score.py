"""Dual score matching: energies whose log Z is one number for all noise levels (Guth, Kadkhodaie and Simoncelli 2025).

The score in x leaves an energy's offset free at every noise level, and between modes that are far apart in x. At a
large noise all modes are one, so the way through the noise levels connects them: the derivative of the energy along it
is a regression too, and with it one constant is left, known where the noise drowns the data.

    space:  |z - sigma grad U|^2 / d,   U = E(x + sigma z, sigma) / T
    time:   ((1 - |z|^2 / d) / 2 - (t / d) dU/dt)^2,   t = sigma^2, so that t dU/dt = sigma/2 dU/dsigma
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import multivariate_normal
from jax.tree_util import Partial

from energyflow.chains import require_floats
from energyflow.energy import Normalised, as_energy, logdensity, normalised, require_density
from energyflow.rows import flat_rows
from energyflow.types import Array, Key, Objective, Scalar, Tree, as_key


class Normaliser(NamedTuple):
    """One log Z for all noise levels of an energy; made by `normalise_at`.

    energy: `E(x, sigma)/T + log_z`, so that its negative is a log density at every level that was trained.
    log_z: in nats. stderr: its Monte Carlo error, which knows nothing of errors in the energy.
    """

    energy: Normalised
    log_z: float
    stderr: float


def dual_score_matching(sigma_min: float, sigma_max: float, *, time_weight: float = 1.0) -> Objective:
    """Return the sum of a space and a time loss of an energy `E(x, sigma)` (Guth, Kadkhodaie and Simoncelli 2025).

    The scale sigma of the noise of each row is log-uniform between `sigma_min`, below what the density should resolve,
    and `sigma_max`, many times the spread of the data. time_weight: of the time loss; the space loss has weight 1.
    Metrics: `space`, the squared error of the noise per dimension, 1 for a zero score; `time`, 1/(2d) for an energy
    that ignores sigma. Their optimum is -log p_sigma up to one constant: see `normalise_at`. It includes the weights of
    modes that no single level connects, learned through the levels that do.
    Raises ValueError unless 0 < sigma_min < sigma_max; refuses a landscape when training starts.
    """
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"need 0 < sigma_min < sigma_max, both finite; got {sigma_min} and {sigma_max}")
    log_range = jnp.log(jnp.asarray([sigma_min, sigma_max], float))
    return Objective(Partial(_require_density), Partial(_dual, log_range, time_weight))


def normalise_at(key: Key | int, energy: Any, data: Tree, sigma_max: float) -> Normaliser:
    """Return `energy` with the log Z that makes it a density where noise of scale `sigma_max` drowns the data.

    There the noisy data y are nearly Gaussian, and `log Z = mean(-log q(y) - E(y, sigma_max)/T)` with q the Gaussian of
    their mean and covariance, one draw of y per row. (Guth et al. 2025 put d/2 log(2 pi e sigma_max^2) for the mean of
    -log q, which leaves out the spread of the data and averages the noise away instead of cancelling it.)
    energy: `E(x, sigma)` whose levels share one log Z: trained by `dual_score_matching`, or by
    `noise_level_classification` with sigma_max a level of its ladder. data: (n, ...). sigma_max: the largest trained.
    `ef.condition(result.energy, sigma)` is the density at one level, that of the data for the smallest sigma.
    Raises ValueError for a landscape, fewer than two rows, or a sigma_max that is not positive.
    """
    if not 0 < sigma_max < math.inf:
        raise ValueError(f"sigma_max must be positive and finite; got {sigma_max}")
    _require_density(key, energy, data)
    values = np.asarray(_normalisers(as_key(key), as_energy(energy), data, jnp.asarray(sigma_max, float)), np.float64)
    if values.size < 2:
        raise ValueError("one row of data has no spread: give two or more")
    log_z = float(values.mean())
    return Normaliser(normalised(energy, log_z), log_z, float(values.std(ddof=1) / values.size**0.5))


@jax.jit
def _normalisers(key: Key, energy: Any, data: Tree, sigma: Scalar) -> Array:
    """Return -log q(y) - E(y, sigma)/T of one noisy draw per row, (n,)."""
    points, unravel = flat_rows(data)
    sigma = sigma.astype(points.dtype)
    noisy = points + sigma * jax.random.normal(key, points.shape, points.dtype)
    mean = jnp.mean(points, axis=0)
    centred = points - mean[None]
    covariance = centred.T @ centred / len(points) + sigma**2 * jnp.eye(mean.size, dtype=points.dtype)
    densities = jax.vmap(lambda y: logdensity(energy, sigma)(unravel(y)))(noisy)
    return densities - jax.vmap(lambda y: multivariate_normal.logpdf(y, mean, covariance))(noisy)


def _dual(log_range: Array, time_weight: Any, energy: Any, batch: Tree, key: Key, state: None) -> Any:
    level_key, noise_key = jax.random.split(key)
    points, unravel = flat_rows(batch)
    low, high = log_range.astype(points.dtype)
    sigmas = jnp.exp(jax.random.uniform(level_key, points.shape[:1], points.dtype, low, high))
    noise = jax.random.normal(noise_key, points.shape, points.dtype)
    space, time = jax.vmap(Partial(_misses, energy, unravel))(points, sigmas, noise)
    space, time = jnp.mean(space**2), jnp.mean(time**2)
    return space + time_weight * time, (state, {"space": space, "time": time})


def _misses(energy: Any, unravel: Any, x: Array, sigma: Scalar, z: Array) -> tuple[Array, Scalar]:
    """Return the errors of one noisy point: of its noise, (d,), and of half the noise's missing energy, ()."""

    def density(y: Array, sigma: Scalar) -> Scalar:
        return logdensity(energy, sigma)(unravel(y))

    score, drift = jax.grad(density, argnums=(0, 1))(x + sigma * z, sigma)
    return z + sigma * score, (1 - jnp.mean(z**2)) / 2 + sigma / (2 * z.size) * drift


def _require_density(key: Key | int, energy: Any, batch: Tree) -> None:
    require_density(energy, "dual score matching")
    require_floats(batch)
