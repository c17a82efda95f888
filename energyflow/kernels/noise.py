"""Normal numbers in the shape of a position, as a pytree or as a row drawn ahead of its move."""

import jax
from jax.flatten_util import ravel_pytree

from energyflow.types import Array, Key, Tree


def normal_like(key: Key, tree: Tree) -> Tree:
    """Return standard normal noise of the shapes and dtypes of `tree`."""
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))


def normal_row(key: Key, position: Tree) -> Array:
    """Return the noise of `normal_like` raveled, and unused numbers up to a multiple of 8.

    XLA's code for CPUs draws rows of 8 numbers in vectors, and rows of 3, 6, 10 or 12 three to five times as slowly.
    """
    flat = ravel_pytree(position)[0]
    size = flat.size if flat.size <= 2 else -(-flat.size // 8) * 8
    return jax.random.normal(key, (size,), flat.dtype)


def shaped_like(row: Array, tree: Tree) -> Tree:
    """Return the pytree that `tree` is of the first numbers of a row."""
    flat, unravel = ravel_pytree(tree)
    return unravel(row[: flat.size])
