"""Floor 4: where chains begin."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from energyflow.chains import count_chains
from energyflow.energy import as_energy
from energyflow.kernels.algorithm import configured
from energyflow.kernels.noise import normal_like
from energyflow.rows import per_row
from energyflow.types import Array, Key, Tree

Start = Callable[[Key, Any, Tree, int], Tree]
"""Where chains begin: (key, energy, batch, num) -> positions, leading axis [num]."""


def from_data(noise: float = 0.0) -> Start:
    """Start at the rows of the batch (drawn with replacement for any other number), plus Gaussian noise of that sd."""
    return Partial(_from_data, noise)


def _from_data(noise: Any, key: Key, energy: Any, batch: Tree, num: int) -> Tree:
    row_key, noise_key = jax.random.split(key)
    picked = _rows(row_key, batch, num)
    return jax.tree.map(lambda x, z: x + noise * z, picked, normal_like(noise_key, picked))


def _rows(key: Key, batch: Tree, num: int) -> Tree:
    """Return the rows of a batch, drawn with replacement for any other number."""
    size = count_chains(batch)
    rows = jnp.arange(num) if num == size else jax.random.randint(key, (num,), 0, size)
    return jax.tree.map(lambda x: x[rows], batch)


def from_normal(scale: float = 1.0) -> Start:
    """Start at Gaussian noise of standard deviation `scale`, shaped like the batch."""
    return Partial(_from_normal, scale)


def _from_normal(scale: Any, key: Key, energy: Any, batch: Tree, num: int) -> Tree:
    like = jax.tree.map(lambda x: jnp.zeros((num, *x.shape[1:]), x.dtype), batch)
    return jax.tree.map(lambda z: scale * z, normal_like(key, like))


def from_uniform(low: float = -1.0, high: float = 1.0) -> Start:
    """Start uniformly in [low, high), shaped like the batch."""
    return Partial(_from_uniform, low, high)


def _from_uniform(low: Any, high: Any, key: Key, energy: Any, batch: Tree, num: int) -> Tree:
    leaves, treedef = jax.tree.flatten(batch)
    keys = jax.random.split(key, len(leaves))
    draws = [jax.random.uniform(k, (num, *x.shape[1:]), x.dtype, low, high) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, draws)


def from_base() -> Start:
    """Start at exact draws from the base distribution of a tilted energy (`energyflow.tilt`)."""
    return Partial(_from_base)


def _from_base(key: Key, energy: Any, batch: Tree, num: int) -> Tree:
    if not hasattr(energy, "base"):
        raise ValueError("from_base needs a tilted energy, which has a base to draw from; see energyflow.tilt")
    return energy.base.sample(key, (num,))


def from_sampler(sample: Callable[[Key, int], Tree]) -> Start:
    """Start at what `sample(key, num)` returns, positions with a leading axis [num]."""
    return Partial(configured(_from_sampler, sample=sample))


def _from_sampler(key: Key, energy: Any, batch: Tree, num: int, sample: Callable) -> Tree:
    return sample(key, num)


def from_source(source: Any) -> Start:
    """Start at draws of a distribution over one point, anything with `sample(key, shape)`."""
    return Partial(_from_source, source)


def _from_source(source: Any, key: Key, energy: Any, batch: Tree, num: int) -> Tree:
    return source.sample(key, (num,))


def from_either(first: Start, second: Start, share: float = 0.5) -> Start:
    """Start the first `share` of the chains where `first` does and the others where `second` does."""
    return Partial(_from_either, as_energy(first), as_energy(second), share)


def _from_either(first: Start, second: Start, share: Any, key: Key, energy: Any, batch: Tree, num: int) -> Tree:
    keys = jax.random.split(key)
    is_first = jnp.arange(float(num)) < jnp.round(share * num)
    a, b = first(keys[0], energy, batch, num), second(keys[1], energy, batch, num)
    return jax.tree.map(lambda a, b: where(is_first, a, b), a, b)


def begin(start: Start, conditional: bool, key: Key, energy: Any, batch: Tree, num: int) -> tuple[Tree, tuple]:
    """Return the positions of `num` fresh chains, and their conditions, those of rows of the batch."""
    if not conditional:
        return start(key, energy, batch, num), ()
    row_key, start_key = jax.random.split(key)
    x, *cond = _rows(row_key, batch, num)
    return start(start_key, energy, x, num), tuple(cond)


def with_conditions(position: Tree, cond: tuple) -> Tree:
    """Return negatives as a batch is: positions alone, or a tuple of them and their conditions."""
    return (position, *cond) if cond else position


def where(mask: Array, a: Array, b: Array) -> Array:
    """Choose rows of `a` where the mask (num,) says so, and of `b` elsewhere."""
    return jnp.where(per_row(mask, a), a, b)
