"""The exact-start law of adjusted kernels: chains that start at exact draws are still exact draws after k transitions.

N = 4096 chains and k = 20: each first and second moment of the ends is a mean of independent draws, held to its exact
value by `laws.assert_mean`. The three targets are one energy with other leaves, so a kernel compiles once for all.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import register_dataclass

from energyflow.chains import advance_chains
from energyflow.energy import logdensity
from laws import assert_mean, assert_not_mean

NUM_CHAINS, NUM_STEPS = 4096, 20
COVARIANCE = ((1.0, 0.6), (0.6, 0.8))


@register_dataclass
@dataclass(frozen=True)
class TwoGaussians:
    """A mixture of two Gaussians in the plane; the energy is `beyond`, not finite, where x_0 <= wall.

    Positions are the dict {"a": (1,), "b": ()}. Shapes: weights (2,), means (2, 2), covariances (2, 2, 2); wall and
    beyond (). The wall is at the mean of two equal components, so that the first coordinate is half a Gaussian.
    """

    weights: Any
    means: Any
    covariances: Any
    wall: Any
    beyond: Any

    def __call__(self, position: dict[str, jax.Array]) -> jax.Array:
        x = ravel_pytree(position)[0]
        energy = -jax.nn.logsumexp(jax.vmap(self._log_component, (0, 0, 0, None))(*self._components(), x))
        return jnp.where(x[0] > self.wall, energy, self.beyond)

    def _components(self) -> tuple:
        return tuple(map(jnp.asarray, (self.weights, self.means, self.covariances)))

    @staticmethod
    def _log_component(weight: jax.Array, mean: jax.Array, covariance: jax.Array, x: jax.Array) -> jax.Array:
        (a, b), (_, c) = covariance  # by hand: a factorisation in a loop of chains is slow
        det = a * c - b * b
        u, v = x - mean
        return jnp.log(weight) - (c * u * u - 2 * b * u * v + a * v * v) / (2 * det) - jnp.log(det) / 2

    def sample(self, key: jax.Array, num: int) -> dict[str, jax.Array]:
        """Exact draws, leading axis [draw]."""
        pick_key, noise_key = jax.random.split(key)
        weights, means, covariances = self._components()
        pick = jax.random.categorical(pick_key, jnp.log(weights), shape=(num,))
        noise = jax.random.normal(noise_key, (num, 2))
        if self.walled:
            noise = noise.at[:, 0].set(jnp.abs(noise[:, 0]))
        x = means[pick] + jnp.einsum("nij,nj->ni", jnp.linalg.cholesky(covariances)[pick], noise)
        return {"a": x[:, :1], "b": x[:, 1]}

    @property
    def walled(self) -> bool:
        return bool(np.isfinite(self.wall))

    @property
    def moments(self) -> np.ndarray:
        """The exact means of `features`: of x_0, x_1, x_0^2, x_0 x_1, x_1^2."""
        first, second = np.zeros(2), np.zeros((2, 2))
        shift = np.array([np.sqrt(2 / np.pi), 0.0]) if self.walled else np.zeros(2)
        for weight, mean, covariance in zip(self.weights, self.means, self.covariances, strict=True):
            move = np.linalg.cholesky(covariance) @ shift
            first += weight * (mean + move)
            cross = np.outer(mean, move)
            second += weight * (np.outer(mean, mean) + cross + cross.T + covariance)
        return np.concatenate([first, second[np.triu_indices(2)]])


def features(position: Any) -> np.ndarray:
    """Return per chain the coordinates and their products, (N, 5) for a position in the plane."""
    x = np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(position)], axis=1)
    x = x.astype(np.float64)
    i, j = np.triu_indices(x.shape[1])
    return np.concatenate([x, x[:, i] * x[:, j]], axis=1)


_MEAN = np.array([0.5, -1.0], np.float32)
_EQUAL = [np.array([0.5, 0.5], np.float32), np.stack([_MEAN, _MEAN]), np.array([COVARIANCE, COVARIANCE], np.float32)]
_NOWHERE = np.float32(-np.inf)
TARGETS = {
    "gaussian": TwoGaussians(*_EQUAL, _NOWHERE, _NOWHERE),
    "mixture": TwoGaussians(
        np.array([0.3, 0.7], np.float32),
        np.array([[-1.5, 0.5], [1.0, -1.0]], np.float32),
        np.array([[[0.3, -0.1], [-0.1, 0.5]], [[0.6, 0.3], [0.3, 0.4]]], np.float32),
        _NOWHERE,
        _NOWHERE,
    ),
    "nan_wall": TwoGaussians(*_EQUAL, _MEAN[0], np.float32(np.nan)),
    "high_wall": TwoGaussians(*_EQUAL, _MEAN[0], np.float32(np.inf)),
    "deep_wall": TwoGaussians(*_EQUAL, _MEAN[0], np.float32(-np.inf)),
}


def ends_of(key: jax.Array, kernel: Any, target: TwoGaussians) -> tuple[np.ndarray, dict[str, jax.Array]]:
    """Start N chains at exact draws, make k transitions; return the features of the ends, and the metrics."""
    start_key, move_key = jax.random.split(key)
    start = target.sample(start_key, NUM_CHAINS)
    end, metrics = advance_chains(move_key, kernel, logdensity(target), start, NUM_STEPS)
    return features(end), metrics


def assert_invariant(key: jax.Array, kernel: Any, target: TwoGaussians) -> dict[str, jax.Array]:
    """Assert that `kernel` keeps every first and second moment of `target`; return the metrics of its moves."""
    ends, metrics = ends_of(key, kernel, target)
    assert_mean(ends, target.moments)
    return metrics


def assert_not_invariant(key: jax.Array, kernel: Any, target: TwoGaussians) -> None:
    """Assert the negative control: a broken kernel that `assert_invariant` catches."""
    assert_not_mean(ends_of(key, kernel, target)[0], target.moments)
