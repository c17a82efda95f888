"""Floor 2: mixtures of Gaussians and of Student-t densities in any dimension, with closed-form log Z and exact draws.

The contract is that of `analytic`: points of shape (dim,), `dim`, `log_z` in float64, `sample(key, num)`.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import logsumexp
from jax.tree_util import register_dataclass

from energyflow.energies.exact import as_arrays
from energyflow.types import Key, Scalar


@register_dataclass
@dataclass(frozen=True)
class GaussianMixture:
    """`E(x) = -log sum_k w_k s_k^-d exp(-|x - m_k|^2/(2 s_k^2)) - offset`; `log Z = offset + d/2 log 2pi + log sum w`.

    Shapes: means (K, d), scales and log_weights (K,), offset ().
    """

    means: Any
    scales: Any
    log_weights: Any
    offset: Any = 0.0

    @property
    def dim(self) -> int:
        return self.means.shape[-1]

    @property
    def log_z(self) -> float:
        return float(self.offset) + self.dim / 2 * math.log(2 * math.pi) + _log_mass(self.log_weights)

    def __call__(self, x: Array) -> Scalar:
        means, scales, log_weights = as_arrays(self.means, self.scales, self.log_weights)
        # Scaled before squaring: far out nothing overflows float32 sooner than it must.
        squares = jnp.sum(((x[None, :] - means) / scales[:, None]) ** 2, axis=1)
        return -logsumexp(log_weights - squares / 2 - self.dim * jnp.log(scales)) - self.offset

    @partial(jax.jit, static_argnames="num")
    def sample(self, key: Key, num: int) -> Array:
        key_pick, key_noise = jax.random.split(key)
        means, scales, log_weights = as_arrays(self.means, self.scales, self.log_weights)
        pick = jax.random.categorical(key_pick, log_weights, shape=(num,))
        return means[pick] + scales[pick][:, None] * jax.random.normal(key_noise, (num, self.dim))


def gaussian_mixture(means: Any, scales: Any = 1.0, weights: Any = None, offset: float = 0.0) -> GaussianMixture:
    """Return a mixture of isotropic Gaussians: means (K, d), scales () or (K,), weights (K,) or None for equal ones.

    Weights are normalised. Raises ValueError for shapes that disagree and for scales or weights that are not positive.
    """
    return GaussianMixture(*_components(means, scales, weights), float(offset))


def eight_gaussians() -> GaussianMixture:
    """Return eight unnormalised Gaussians of scale 0.5 on a circle of radius 4: `Z = 8 * 2 pi * 0.25`."""
    angles = np.arange(8) * np.pi / 4
    return gaussian_mixture(4 * np.stack([np.cos(angles), np.sin(angles)], axis=1), 0.5, offset=np.log(2.0))


def gmm40(dim: int = 2, offset: float = 0.0) -> GaussianMixture:
    """Return the 40-component mixture of FAB's JAX code (Midgley et al. 2023) and its 10- and 50-d versions.

    Means uniform on [-40, 40]^dim from threefry seed 0 in its legacy layout, in float32 as published; unit scales,
    equal weights.
    """
    with jax.threefry_partitionable(False):
        key = jax.random.key(0, impl="threefry2x32")
        means = jax.random.uniform(key, (40, dim), jnp.float32, -1, 1)
    return gaussian_mixture(np.asarray(means) * np.float32(40), offset=offset)


@register_dataclass
@dataclass(frozen=True)
class StudentMixture:
    """`E(x) = -log sum_k w_k s_k^-d (1 + |x - m_k|^2/(df s_k^2))^(-(df+d)/2)` (Peel, McLachlan 2000).

    `log Z = log Gamma(df/2) - log Gamma((df+d)/2) + d/2 log(df pi) + log sum w`.
    Shapes: means (K, d), scales and log_weights (K,), df (), shared by the components.
    """

    means: Any
    scales: Any
    log_weights: Any
    df: Any

    @property
    def dim(self) -> int:
        return self.means.shape[-1]

    @property
    def log_z(self) -> float:
        df = float(self.df)
        gammas = math.lgamma(df / 2) - math.lgamma((df + self.dim) / 2)
        return gammas + self.dim / 2 * math.log(df * math.pi) + _log_mass(self.log_weights)

    def __call__(self, x: Array) -> Scalar:
        means, scales, log_weights = as_arrays(self.means, self.scales, self.log_weights)
        squares = jnp.sum(((x[None, :] - means) / scales[:, None]) ** 2, axis=1)
        kernel = -(self.df + self.dim) / 2 * jnp.log1p(squares / self.df)
        return -logsumexp(log_weights + kernel - self.dim * jnp.log(scales))

    @partial(jax.jit, static_argnames="num")
    def sample(self, key: Key, num: int) -> Array:
        key_pick, key_noise, key_tail = jax.random.split(key, 3)
        means, scales, log_weights = as_arrays(self.means, self.scales, self.log_weights)
        pick = jax.random.categorical(key_pick, log_weights, shape=(num,))
        spread = scales[pick] * jnp.sqrt(self.df / jax.random.chisquare(key_tail, self.df, shape=(num,)))
        return means[pick] + spread[:, None] * jax.random.normal(key_noise, (num, self.dim))


def student_mixture(means: Any, scales: Any = 1.0, weights: Any = None, df: float = 3.0) -> StudentMixture:
    """Return a mixture of isotropic Student-t densities; arguments and errors of `gaussian_mixture`, and df > 0."""
    if not df > 0:
        raise ValueError(f"a Student-t needs positive degrees of freedom; got {df}")
    return StudentMixture(*_components(means, scales, weights), float(df))


def _components(means: Any, scales: Any, weights: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    means = np.asarray(means, np.float64)
    if means.ndim != 2:
        raise ValueError(f"the means of a mixture have shape (components, dim); got {means.shape}")
    scales = np.asarray(scales, np.float64)
    weights = np.ones(len(means)) if weights is None else np.asarray(weights, np.float64)
    if scales.shape not in ((), (len(means),)) or weights.shape != (len(means),):
        raise ValueError(f"{len(means)} means do not fit scales {scales.shape} and weights {weights.shape}")
    if not (np.all(scales > 0) and np.all(weights > 0)):
        raise ValueError("the scales and weights of a mixture must be positive")
    return means, np.broadcast_to(scales, (len(means),)).copy(), np.log(weights / weights.sum())


def _log_mass(log_weights: Any) -> float:
    return float(np.logaddexp.reduce(np.asarray(log_weights, np.float64)))
