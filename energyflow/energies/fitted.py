"""Floor 2: a Gaussian fitted to draws of any pytree, as the base that annealing starts from."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular
from jax.tree_util import register_dataclass

from energyflow.types import Key, Scalar, Tree


@register_dataclass
@dataclass(frozen=True, eq=False)
class GaussianBase:
    """A multivariate normal over the raveled leaves of a position.

    mean: (d,). factor: lower Cholesky factor of the covariance, (d, d). like: a position, for its shapes.
    """

    mean: Array
    factor: Array
    like: Tree
    batch_shape = ()

    @property
    def covariance_matrix(self) -> Array:
        """The covariance over raveled positions, (d, d)."""
        return self.factor @ self.factor.T

    def log_prob(self, position: Tree) -> Scalar:
        """Return the normalised log density of one position."""
        white = solve_triangular(self.factor, ravel_pytree(position)[0] - self.mean, lower=True)
        log_det = jnp.sum(jnp.log(jnp.diag(self.factor)))
        return -0.5 * jnp.sum(white**2) - log_det - 0.5 * self.mean.size * jnp.log(2 * jnp.pi)

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Tree:
        """Return exact draws, leaves with leading axes `sample_shape`."""
        white = jax.random.normal(key, (*sample_shape, self.mean.size), self.mean.dtype)
        unravel: Any = ravel_pytree(self.like)[1]
        for _ in sample_shape:
            unravel = jax.vmap(unravel)
        return unravel(white @ self.factor.T + self.mean)


def gaussian_base(draws: Tree, inflate: float = 1.2) -> GaussianBase:
    """Return the Gaussian with the mean of `draws`, leaves [draw, ...], and `inflate` times their spread.

    A base somewhat wider than its target keeps the tails of the weights light. Raises ValueError for fewer than d + 2
    draws, or draws that do not vary in some direction.
    """
    flat = np.asarray(jax.vmap(lambda x: ravel_pytree(x)[0])(draws), np.float64)
    num, dim = flat.shape
    if num < dim + 2:
        raise ValueError(f"{num} draws cannot fit a Gaussian in {dim} dimensions: at least {dim + 2} are needed")
    try:
        factor = np.linalg.cholesky(np.cov(flat.T).reshape(dim, dim)) * inflate
    except np.linalg.LinAlgError:
        raise ValueError("the draws do not vary in some direction, so no Gaussian has their covariance") from None
    like = jax.tree.map(lambda x: jnp.zeros_like(jnp.asarray(x)[0]), draws)
    return GaussianBase(jnp.asarray(flat.mean(axis=0), dtype=float), jnp.asarray(factor, dtype=float), like)
