"""Floor 2: densities fitted to draws: the Gaussian that annealing starts from, and noise that is near the data."""

import warnings
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.tree_util import register_dataclass
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from energyflow.energy import as_energy, logdensity, require_density
from energyflow.types import Key, Scalar, Tree


@register_dataclass
@dataclass(frozen=True, eq=False)
class GaussianBase:
    """A multivariate normal over the raveled leaves of a position.

    mean: (d,). factor: lower Cholesky factor of the covariance, (d, d), and `whiten`, its inverse: XLA's triangular
    solve costs tens of gradients of many a model on a CPU. like: a position, for its shapes.
    """

    mean: Array
    factor: Array
    whiten: Array
    like: Tree
    batch_shape = ()

    @property
    def covariance_matrix(self) -> Array:
        """The covariance over raveled positions, (d, d)."""
        return self.factor @ self.factor.T

    def log_prob(self, position: Tree) -> Scalar:
        """Return the normalised log density of one position."""
        white = self.whiten @ (ravel_pytree(position)[0] - self.mean)
        log_det = jnp.sum(jnp.log(jnp.diag(self.factor)))
        return -0.5 * jnp.sum(white**2) - log_det - 0.5 * self.mean.size * jnp.log(2 * jnp.pi)

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Tree:
        """Return exact draws, leaves with leading axes `sample_shape`."""
        white = jax.random.normal(key, (*sample_shape, self.mean.size), self.mean.dtype)
        unravel: Any = ravel_pytree(self.like)[1]
        for _ in sample_shape:
            unravel = jax.vmap(unravel)
        return unravel(white @ self.factor.T + self.mean)


def gaussian_base(draws: Tree, inflate: float | None = None) -> GaussianBase:
    """Return the Gaussian with the mean of `draws`, leaves [draw, ...], and `inflate` times their spread.

    Correlations are shrunk towards none by the factor under which the second half of the draws (of several chains, one
    after another: other chains) is most likely, which matters where draws are not many times the dimension d. A base
    somewhat wider than its target keeps the tails of the weights light, at a price that grows with d: a fifth wider up
    to ten dimensions, less so as 1 / sqrt(d) beyond, by default.
    Raises ValueError for fewer than d + 2 draws, or draws that do not vary in some direction.
    """
    flat = np.asarray(jax.vmap(lambda x: ravel_pytree(x)[0])(draws), np.float64)
    num, dim = flat.shape
    if num < dim + 2:
        raise ValueError(f"{num} draws cannot fit a Gaussian in {dim} dimensions: at least {dim + 2} are needed")
    mean, spread = flat.mean(axis=0), flat.std(axis=0, ddof=1)
    white = (flat - mean) / np.where(spread > 0, spread, 1.0)
    kept = _kept_correlation(white)
    correlations = kept * (white.T @ white) / (num - 1) + (1 - kept) * np.eye(dim)
    inflate = 1 + 0.2 * min(1.0, (10 / dim) ** 0.5) if inflate is None else inflate
    try:
        factor = inflate * spread[:, None] * np.linalg.cholesky(correlations)
    except np.linalg.LinAlgError:
        factor = np.zeros((dim, dim))
    if not np.diag(factor).all():
        raise ValueError("the draws do not vary in some direction, so no Gaussian has their covariance")
    like = jax.tree.map(lambda x: jnp.zeros_like(jnp.asarray(x)[0]), draws)
    mean, factor, whiten = (jnp.asarray(x, dtype=float) for x in (mean, factor, np.linalg.inv(factor)))
    return GaussianBase(mean, factor, whiten, like)


def _kept_correlation(white: np.ndarray) -> float:
    """Return the share of the first half's correlations that makes the second half of standardised draws likeliest."""
    first, second = np.array_split(white, 2)
    values, vectors = np.linalg.eigh(first.T @ first / len(first))
    squares = np.square(second @ vectors).mean(axis=0)
    shares = np.array([0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0])
    shrunk = np.maximum(shares[:, None] * values + 1 - shares[:, None], 1e-12)
    return float(shares[np.argmin((np.log(shrunk) + squares / shrunk).sum(axis=1))])


def mixture_base(rows: Any, num_components: int, seed: int = 0) -> dist.MixtureSameFamily:
    """Return the Gaussian mixture with full covariances fitted to `rows` (n, d) by scikit-learn, as noise or a base.

    Raises ValueError for rows that are not vectors, or fewer than two a component.
    """
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or len(rows) < 2 * num_components:
        raise ValueError(f"a mixture of {num_components} needs rows (n, d), two a component; got shape {rows.shape}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = GaussianMixture(num_components, reg_covar=1e-4, random_state=seed).fit(rows)
    factors = np.linalg.cholesky(np.asarray(fitted.covariances_))
    weights, means, factors = (jnp.asarray(x, float) for x in (fitted.weights_, fitted.means_, factors))
    parts = dist.MultivariateNormal(means, scale_tril=factors)
    return dist.MixtureSameFamily(dist.CategoricalProbs(weights), parts)


@register_dataclass
@dataclass(frozen=True, eq=False)
class DrawnNoise:
    """A density known by draws (leaves [draw, ...]) and an energy: `log_prob` is -E/T - log Z."""

    draws: Tree
    energy: Any
    log_z: Any
    batch_shape = ()

    def log_prob(self, position: Tree) -> Scalar:
        """Return the log density of one position, normalised as far as log Z is."""
        return logdensity(self.energy)(position) - self.log_z

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Tree:
        """Return rows of the draws, picked with replacement."""
        num = len(jax.tree.leaves(self.draws)[0])
        rows = jax.random.randint(key, sample_shape, 0, num)
        return jax.tree.map(lambda x: x[rows], self.draws)


def drawn_noise(draws: Tree, energy: Any, log_z: float = 0.0) -> DrawnNoise:
    """Return noise that is an energy's draws: at a higher temperature, say, `tempered(energy, 2.0)`.

    draws: leaves [draw, ...], of a sampler that was checked. log_z: of that energy; where it is left at 0, NCE learns
    its own log Z relative to it. Raises ValueError for a landscape.
    """
    require_density(energy, "noise")
    return DrawnNoise(draws, as_energy(energy), log_z)
