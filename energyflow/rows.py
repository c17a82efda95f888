"""Floor 0: batches of positions, pytrees of arrays with a leading axis [row], as matrices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree


def flat_rows(batch: Any) -> tuple[Array, Callable]:
    """Return the rows of a batch as vectors, (B, d), and what makes a vector a position again."""
    unravel = ravel_pytree(jax.tree.map(lambda x: x[0], batch))[1]
    return jax.vmap(lambda x: ravel_pytree(x)[0])(batch), unravel


def gradients(function: Callable, batch: Any) -> Any:
    """Return the gradients of a function of one position at the rows of a batch.

    Those of the sum: where weights are then trained through them, that is a pass over matrices, and a gradient of each
    row one over vectors and their transposes.
    """
    return jax.grad(lambda batch: jnp.sum(jax.vmap(function)(batch)))(batch)


def per_row(values: Array, like: Array) -> Array:
    """Return numbers (B,) in the shape that multiplies the rows of `like`, (B, ...)."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def some_rows(key: Array, size: int, num: int) -> Array:
    """Return `num` different row numbers below `size`, every subset alike.

    `jax.random.choice` sorts all of them: milliseconds for 10000.
    """
    return jax.lax.top_k(jax.random.uniform(key, (size,)), num)[1]
