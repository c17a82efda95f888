"""Floor 2: energies whose normaliser and exact draws are known, one mode each; see `wells`, `mixtures` and `zoo`.

Each scores one point of shape (dim,) and carries `dim`, `log_z` (the log of the integral of exp(-E/T) over the plane
or space, a float computed on the host in float64, so its leaves must be concrete) and `sample(key, num)`, which
returns exact draws of shape (num, dim). Leaves are kept as float64 numpy arrays or Python floats: under
`jax.enable_x64` nothing is lost to float32. `exact.as_arrays` takes them to the precision of the moment.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import register_dataclass

from energyflow.energies.exact import as_arrays
from energyflow.types import Key, Scalar


@register_dataclass
@dataclass(frozen=True)
class Gaussian:
    """`E(x) = |F (x - mean)|^2 / 2 - offset`, where F'F is the precision; `log Z = offset + d/2 log 2pi - log|det F|`.

    The factor F is the leaf, not the precision: a trained factor stays positive definite, and float32 sees the
    square root of the condition number. Shapes: mean (d,), factor (d, d), offset ().
    """

    mean: Any
    factor: Any
    offset: Any = 0.0

    @property
    def dim(self) -> int:
        return self.mean.shape[-1]

    @property
    def log_z(self) -> float:
        log_det = np.linalg.slogdet(np.asarray(self.factor, np.float64))[1]
        return float(self.offset) + self.dim / 2 * math.log(2 * math.pi) - float(log_det)

    def __call__(self, x: Array) -> Scalar:
        mean, factor = as_arrays(self.mean, self.factor)
        return jnp.sum((factor @ (x - mean)) ** 2) / 2 - self.offset

    @partial(jax.jit, static_argnames="num")
    def sample(self, key: Key, num: int) -> Array:
        mean, factor = as_arrays(self.mean, self.factor)
        return mean[None, :] + jnp.linalg.solve(factor, jax.random.normal(key, (self.dim, num))).T


def gaussian(mean: Any, *, precision: Any = None, covariance: Any = None, offset: float = 0.0) -> Gaussian:
    """Return a Gaussian energy from its mean (d,) and either its precision or its covariance, (d, d).

    Raises ValueError unless exactly one of the two is given, fits the mean, is symmetric and positive definite.
    """
    if (precision is None) == (covariance is None):
        raise ValueError("give the precision or the covariance of a Gaussian, and not both")
    mean = np.atleast_1d(np.asarray(mean, np.float64))
    matrix = np.asarray(covariance if precision is None else precision, np.float64)
    if matrix.shape != (mean.size, mean.size) or not np.allclose(matrix, matrix.T, rtol=1e-10):
        raise ValueError(f"the matrix of a {mean.size}-d Gaussian must be symmetric; got shape {matrix.shape}")
    try:
        lower = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        raise ValueError("the matrix of a Gaussian must be positive definite") from None
    return Gaussian(mean, np.linalg.inv(lower) if precision is None else lower.T, float(offset))


@register_dataclass
@dataclass(frozen=True)
class Funnel:
    """Neal's funnel (Neal 2003): `x_0 ~ N(0, sigma^2)`, `x_i | x_0 ~ N(0, exp(x_0))`; exp(offset) times the density.

    `E(x) = x_0^2/(2 sigma^2) + (d-1) x_0/2 + sum_{i>0} x_i^2 exp(-x_0)/2 - offset`, up to its constant:
    `log Z = offset + d/2 log 2pi + log sigma`. Shapes: sigma and offset ().
    """

    dim: int = field(metadata={"static": True})
    sigma: Any = 3.0
    offset: Any = 0.0

    @property
    def log_z(self) -> float:
        return float(self.offset) + self.dim / 2 * math.log(2 * math.pi) + math.log(self.sigma)

    def __call__(self, x: Array) -> Scalar:
        # exp(-x_0) overflows float32 long before x_i exp(-x_0/2) does.
        rest = jnp.sum((x[1:] * jnp.exp(-x[0] / 2)) ** 2)
        return (x[0] / self.sigma) ** 2 / 2 + (self.dim - 1) * x[0] / 2 + rest / 2 - self.offset

    @partial(jax.jit, static_argnames="num")
    def sample(self, key: Key, num: int) -> Array:
        noise = jax.random.normal(key, (num, self.dim))
        neck = self.sigma * noise[:, :1]
        return jnp.concatenate([neck, jnp.exp(neck / 2) * noise[:, 1:]], axis=1)


def funnel(dim: int, sigma: float = 3.0, offset: float = 0.0) -> Funnel:
    """Return Neal's funnel in `dim` >= 2 dimensions with neck scale `sigma` > 0; ValueError otherwise."""
    if dim < 2 or not sigma > 0:
        raise ValueError(f"a funnel needs dim >= 2 and sigma > 0; got {dim} and {sigma}")
    return Funnel(dim, float(sigma), float(offset))


@register_dataclass
@dataclass(frozen=True)
class Banana:
    """Twisted Gaussian (Haario, Saksman, Tamminen 1999): `x ~ N(0, scale^2)`, `y | x ~ N(shift - bend x^2, 1)`.

    `E(x, y) = x^2/(2 scale^2) + (y + bend x^2 - shift)^2/2`; `log Z = log(2 pi scale)`. Points (2,), leaves ().
    """

    scale: Any = 5.0
    bend: Any = 0.03
    shift: Any = 3.0

    @property
    def dim(self) -> int:
        return 2

    @property
    def log_z(self) -> float:
        return math.log(2 * math.pi * self.scale)

    def __call__(self, x: Array) -> Scalar:
        return (x[0] / self.scale) ** 2 / 2 + (x[1] + self.bend * x[0] ** 2 - self.shift) ** 2 / 2

    @partial(jax.jit, static_argnames="num")
    def sample(self, key: Key, num: int) -> Array:
        first, second = jax.random.normal(key, (2, num))
        first = self.scale * first
        return jnp.stack([first, self.shift - self.bend * first**2 + second], axis=1)
