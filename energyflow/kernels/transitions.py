"""One chain's transitions, a scan over their keys."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from energyflow.types import Algorithm, Array, Key, Stats

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
    return scan_ahead(lambda move, state, drawn: move(drawn, state), algorithm, state, keys, unroll)


def scan_ahead(body: Callable, algorithm: Algorithm, state: Any, keys: Key, unroll: bool = False) -> tuple[Any, Any]:
    """Scan `body(move, state, drawn)` over the leading axis of `keys`; `move(drawn, state)` makes one transition.

    drawn: of one row of keys, whatever their further axes: the noise of a kernel that tells it apart, drawn for up to
    AHEAD transitions at once, as the length has divisors; else the keys as words (under vmap the debug check takes
    scanned keys for reused).
    """
    words, impl, position = jax.random.key_data(keys), jax.random.key_impl(keys), state.position
    noise, move = algorithm.noise, algorithm.move
    if noise is None or move is None:
        step = lambda words, state: algorithm.step(jax.random.wrap_key_data(words, impl=impl), state)  # noqa: E731
        return jax.lax.scan(functools.partial(body, step), state, words, unroll=unroll)
    draw = lambda words: noise(jax.random.wrap_key_data(words, impl=impl), position)  # noqa: E731
    for _ in keys.shape:
        draw = jax.vmap(draw)

    def block(state: Any, words: Array) -> Any:
        return jax.lax.scan(functools.partial(body, move), state, draw(words), unroll=unroll)

    num, rest = keys.shape[0], math.prod(keys.shape[1:])
    size = max((n for n in range(1, num + 1) if num % n == 0 and n * rest <= AHEAD), default=1)
    if size >= num:
        return block(state, words)
    state, out = jax.lax.scan(block, state, words.reshape(num // size, size, *words.shape[1:]))
    return state, jax.tree.map(lambda x: x.reshape(num, *x.shape[2:]), out)


def scan_keys(move: Callable, state: Any, keys: Key, unroll: bool = False) -> tuple[Any, Any]:
    """Scan `move(state, key)` over keys; as words, since under vmap the debug check takes scanned keys for reused."""
    impl = jax.random.key_impl(keys)

    def move_by_words(state: Any, words: Array) -> tuple[Any, Any]:
        return move(state, jax.random.wrap_key_data(words, impl=impl))

    return jax.lax.scan(move_by_words, state, jax.random.key_data(keys), unroll=unroll)
