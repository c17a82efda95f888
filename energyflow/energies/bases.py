"""Floor 2: normalised distributions over discrete positions, where annealing starts: Bernoulli units and categories.

They answer what annealing asks of a NumPyro distribution over one point: `sample(key, shape)`, `log_prob(position)`
and an empty `batch_shape`; NumPyro's own draw integers and know no pytrees. Their log probabilities are linear in each
coordinate, so that block Gibbs stays exact along the path from them.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import log_softmax, sigmoid, softplus
from jax.tree_util import register_dataclass

from energyflow.energies.exact import as_arrays
from energyflow.types import Key, Scalar, Tree


@register_dataclass
@dataclass(frozen=True, eq=False)
class BernoulliBase:
    """Independent coordinates, each `values[1]` with log odds `logits` and `values[0]` otherwise.

    logits: a pytree of arrays, shaped like one position.
    """

    logits: Tree
    values: tuple[float, float] = field(default=(0.0, 1.0), metadata={"static": True})

    @property
    def batch_shape(self) -> tuple[()]:
        return ()

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Tree:
        """Return exact draws, `sample_shape` leading in every leaf."""

        def draw(key: Key, logits: Array) -> Array:
            chance = jnp.broadcast_to(sigmoid(logits), (*sample_shape, *logits.shape))
            up = jax.random.uniform(key, chance.shape, chance.dtype) < chance
            return jnp.where(up, self.values[1], self.values[0]).astype(logits.dtype)

        return _each_leaf(draw, key, self.logits)

    def log_prob(self, value: Tree) -> Scalar:
        """Return the log probability of one position, extended linearly between the two values."""
        low, high = self.values

        def one(x: Array, logits: Array) -> Scalar:
            (logits,) = as_arrays(logits)
            return jnp.sum((x - low) / (high - low) * logits - softplus(logits))

        return _total(jax.tree.map(one, value, self.logits))


def bernoulli_base(logits: Tree, values: tuple[float, float] = (0.0, 1.0)) -> BernoulliBase:
    """Return independent coordinates of two values, log odds `logits` for the second; ValueError unless low < high."""
    if not values[0] < values[1]:
        raise ValueError(f"two values low < high are needed, such as (0.0, 1.0) or (-1.0, 1.0); got {values}")
    return BernoulliBase(logits, (float(values[0]), float(values[1])))


def uniform_spins(shape: tuple[int, ...]) -> BernoulliBase:
    """Return independent fair spins, -1 or +1, of the given shape."""
    return bernoulli_base(np.zeros(shape), (-1.0, 1.0))


@register_dataclass
@dataclass(frozen=True, eq=False)
class CategoricalBase:
    """Independent one-hot rows along the last axis, with unnormalised log probabilities `logits`, shaped like one."""

    logits: Tree

    @property
    def batch_shape(self) -> tuple[()]:
        return ()

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Tree:
        """Return exact draws, `sample_shape` leading in every leaf."""

        def draw(key: Key, logits: Array) -> Array:
            index = jax.random.categorical(key, logits, shape=(*sample_shape, *logits.shape[:-1]))
            return jax.nn.one_hot(index, logits.shape[-1], dtype=logits.dtype)

        return _each_leaf(draw, key, self.logits)

    def log_prob(self, value: Tree) -> Scalar:
        """Return the log probability of one position of one-hot rows."""
        one = lambda x, logits: jnp.sum(x * log_softmax(as_arrays(logits)[0], axis=-1))  # noqa: E731
        return _total(jax.tree.map(one, value, self.logits))


def categorical_base(logits: Tree) -> CategoricalBase:
    """Return independent one-hot rows with log probabilities `logits` (..., K), normalised along the last axis."""
    return CategoricalBase(logits)


def _each_leaf(draw: Any, key: Key, logits: Tree) -> Tree:
    leaves, treedef = jax.tree.flatten(logits)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(treedef, [draw(k, as_arrays(x)[0]) for k, x in zip(keys, leaves, strict=True)])


def _total(terms: Tree) -> Scalar:
    return jnp.sum(jnp.stack(jax.tree.leaves(terms)))
