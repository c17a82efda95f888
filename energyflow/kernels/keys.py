"""Floor 2: JAX's random numbers, faster in the loop of many chains on a CPU; the same numbers, bit for bit.

On the CPU backend JAX computes its hash (threefry-2x32, Salmon et al. 2011) in a loop of five rounds, which compiles
faster: nothing fuses with that loop, and keys that differ by chain are copied in every round. A move of small energies
spends a tenth of its time there. The keys made here hash in straight-line code. Chains use them within one call; they
are never stored.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.random import define_prng_impl

from energyflow.types import Key

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def straight(key: Key) -> Key:
    """Return a key that draws what `key` draws; any but a typed threefry key comes back as it is."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or jax.random.key_impl(key) != "threefry2x32" or not jax.config.jax_threefry_partitionable:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_STRAIGHT)


def _hash(key: Array, high: Array, low: Array) -> tuple[Array, Array]:
    schedule = key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA)
    a, b = high + schedule[0], low + schedule[1]
    for block in range(1, 6):
        for rotation in _ROTATIONS[(block - 1) % 2]:
            a = a + b
            b = a ^ (b << jnp.uint32(rotation) | b >> jnp.uint32(32 - rotation))
        a, b = a + schedule[block % 3], b + schedule[(block + 1) % 3] + jnp.uint32(block)
    return a, b


def _hash_counts(key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    counts = lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return _hash(key, jnp.zeros_like(counts), counts)


def _seed(seed: Array) -> Array:
    return jax.random.key_data(jax.random.key(seed))


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.stack(_hash_counts(key, shape), axis=-1)


def _fold_in(key: Array, data: Array) -> Array:
    return jnp.stack(_hash(key, jnp.uint32(0), jnp.asarray(data).astype(jnp.uint32)))


def _random_bits(key: Array, width: int, shape: tuple[int, ...]) -> Array:
    high, low = _hash_counts(key, shape)
    if width == 64:
        return high.astype(jnp.uint64) << jnp.uint64(32) | low.astype(jnp.uint64)
    return (high ^ low).astype(f"uint{width}")


_FUNCTIONS: Any = {"seed": _seed, "split": _split, "random_bits": _random_bits, "fold_in": _fold_in}
_STRAIGHT = define_prng_impl(key_shape=(2,), **_FUNCTIONS, name="straight", tag="straight")
