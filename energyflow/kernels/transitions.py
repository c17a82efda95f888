"""One chain's transitions, a scan over their keys."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from energyflow.types import Algorithm, Array, Key, Stats, Tree

AHEAD = 32
"""Transitions whose noise is drawn at once: what a move draws for itself, XLA's CPU code draws anew for every use."""


def step_keys(key: Key, num_steps: int, first: Array | int = 0) -> Key:
    """Return the keys of `num_steps` transitions of one chain, the first of them `fold_in(key, first + 1)`.

    All at once: a hash inside the loop of transitions costs as much as a small energy's gradient.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(1, num_steps + 1))


def evolve(keys: Key, algorithm: Algorithm, state: Any, *, unroll: bool = False) -> tuple[Any, Stats]:
    """Make one transition of one chain for each of `keys`, leading axis [step].

    unroll: straight-line code instead of a loop (convolutions inside a loop are slow on the CPU backend).
    Returns the state and the stats of every transition, arrays leading with [step].
    """
    impl = jax.random.key_impl(keys)
    return scan_ahead(move_of(algorithm, impl), algorithm, state.position, state, keys, unroll=unroll)


def move_of(algorithm: Algorithm, impl: Any) -> Callable[[Any, Any], tuple[Any, Stats]]:
    """Return `move(state, drawn)` of what `scan_ahead` draws, for keys of an implementation (`jax.random.key_impl`)."""
    move = algorithm.move
    if move is None:
        return lambda state, words: algorithm.step(jax.random.wrap_key_data(words, impl=impl), state)
    return lambda state, drawn: move(drawn, state)


def scan_ahead(
    body: Callable, algorithm: Algorithm, position: Tree, carry: Any, keys: Key, xs: Any = None, *, unroll: bool = False
) -> tuple[Any, Any]:
    """Scan `body(carry, drawn)`, or `body(carry, (drawn, x))` over `xs` too, along the leading axis of `keys`.

    drawn: of one row of keys, whatever their further axes: the noise of a kernel that tells it apart, drawn for up to
    AHEAD transitions at once, as the length has divisors; else the keys as words (under vmap the debug check takes
    scanned keys for reused). position: of the chain, for its shape.
    """
    words, impl, noise = jax.random.key_data(keys), jax.random.key_impl(keys), algorithm.noise
    if noise is None:
        return jax.lax.scan(body, carry, words if xs is None else (words, xs), unroll=unroll)
    draw = lambda words: noise(jax.random.wrap_key_data(words, impl=impl), position)  # noqa: E731
    for _ in keys.shape:
        draw = jax.vmap(draw)

    def block(carry: Any, rows: tuple) -> Any:
        words, xs = rows
        drawn = draw(words)
        return jax.lax.scan(body, carry, drawn if xs is None else (drawn, xs), unroll=unroll)

    num, rest = keys.shape[0], math.prod(keys.shape[1:])
    size = max((n for n in range(1, AHEAD // rest + 1) if num % n == 0), default=1)
    if size >= num:
        return block(carry, (words, xs))
    blocks = jax.tree.map(lambda x: x.reshape(num // size, size, *x.shape[1:]), (words, xs))
    carry, out = jax.lax.scan(block, carry, blocks)
    return carry, jax.tree.map(lambda x: x.reshape(num, *x.shape[2:]), out)


def scan_keys(move: Callable, state: Any, keys: Key, unroll: bool = False) -> tuple[Any, Any]:
    """Scan `move(state, key)` over keys; as words, since under vmap the debug check takes scanned keys for reused."""
    impl = jax.random.key_impl(keys)

    def move_by_words(state: Any, words: Array) -> tuple[Any, Any]:
        return move(state, jax.random.wrap_key_data(words, impl=impl))

    return jax.lax.scan(move_by_words, state, jax.random.key_data(keys), unroll=unroll)
