"""Floor 2: a Gaussian fitted to draws of any pytree, as the base that annealing starts from."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.tree_util import register_dataclass

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
