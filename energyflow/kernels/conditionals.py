"""Gibbs kernels on discrete positions: exact draws from conditionals, a block or a single coordinate at a time.

A discrete position is a pytree of floating arrays that hold the allowed values only, two of them here: `values = (low,
high)`, {0, 1} by default and (-1.0, 1.0) for spins. Chains, negative phases and annealing then work as for continuous
positions. `discrete` holds the kernels that propose and accept.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.nn import sigmoid
from jax.tree_util import Partial

from energyflow.kernels.algorithm import adapt, configured, pair
from energyflow.kernels.metropolis import MoveInfo, PointState, SlopeState, slope_state
from energyflow.types import Algorithm, Array, Kernel, Key, LogDensity, Scalar, Tree

BINARY = (0.0, 1.0)


class _SweepInfo(NamedTuple):
    acceptance_rate: Array
    is_divergent: Array
    num_integration_steps: int


def block_gibbs(blocks: Sequence[Tree], values: tuple[float, float] = BINARY, *, palindrome: bool = True) -> Kernel:
    """Gibbs sampling of whole blocks (Geman and Geman 1984), exact for log densities that are linear in every block.

    blocks: boolean masks, each a pytree like the position (or of scalars for whole leaves), True where updated.
    Given the rest, the coordinates of a block must be independent and the log density linear in each, as for an RBM
    over its joint position, a checkerboard of an Ising model, and the geometric path between such and a Bernoulli
    base: then coordinate i has log odds (high - low) d log p / d x_i. A density that is not so is sampled wrongly, and
    its transitions are flagged divergent. palindrome: update blocks 0..n-1 and back to 0, a reversible move of 2n - 1
    gradients; without it the scan is 0..n-1, n gradients, and reverse annealing refuses it.
    Raises ValueError without blocks, for values that are not low < high, and for masks unlike the position.
    """
    if not blocks:
        raise ValueError("block Gibbs needs at least one block: give boolean masks shaped like the position")
    function = configured(_block_gibbs, palindrome=palindrome)
    return Partial(function, blocks=tuple(blocks), values=ordered(values))


def _block_gibbs(logdensity: LogDensity, blocks: tuple, values: tuple, palindrome: bool) -> Algorithm:
    count = len(blocks)
    order = np.array([*range(count), *range(count - 2, -1, -1)] if palindrome else [*range(count)])
    low, high = values

    def init(position: Tree, key: Key) -> SlopeState:
        _stacked(blocks, position)
        return slope_state(logdensity, position)

    def step(key: Key, state: SlopeState) -> tuple[SlopeState, _SweepInfo]:
        masks = jax.tree.map(lambda m: m[order], _stacked(blocks, state.position))

        def update(carry: Any, xs: Any) -> Any:
            state, linear = carry
            new = _heat_bath(jax.random.fold_in(key, xs[0]), state, xs[1], low, high)
            new = slope_state(logdensity, new)
            return (new, linear & _is_linear(state, new)), None

        carry = (state, jnp.asarray(True))
        unroll = len(order) <= 5
        (new, linear), _ = jax.lax.scan(update, carry, (np.arange(len(order)), masks), unroll=unroll)
        return new, _SweepInfo(jnp.ones_like(new.logdensity), ~linear, len(order))

    return adapt(pair(init, step), reversible=palindrome or count == 1)


def _heat_bath(key: Key, state: SlopeState, mask: Tree, low: Scalar, high: Scalar) -> Tree:
    """Draw the masked coordinates from their conditionals."""
    x, unravel = ravel_pytree(state.position)
    uniform = unravel(jax.random.uniform(key, x.shape, x.dtype))

    def draw(x: Array, g: Array, u: Array, m: Array) -> Array:
        return jnp.where(m, coin(u, sigmoid((high - low) * g), high, low), x)

    return jax.tree.map(draw, state.position, state.logdensity_grad, uniform, mask)


def _is_linear(old: SlopeState, new: SlopeState) -> Array:
    """Whether the log density changed as its gradient said, up to rounding: free, as both ends are known."""
    terms = jax.tree.map(lambda g, n, o: g * (n - o), old.logdensity_grad, new.position, old.position)
    flat = ravel_pytree(terms)[0]
    scale = 1 + jnp.abs(old.logdensity) + jnp.abs(new.logdensity) + jnp.sum(jnp.abs(flat))
    return jnp.abs(new.logdensity - old.logdensity - jnp.sum(flat)) <= 1e-3 * scale


def _stacked(blocks: tuple, position: Tree) -> Tree:
    """Return all masks in one pytree like the position, leading axis [block]."""
    try:
        spread = [jax.tree.map(lambda x, m: jnp.broadcast_to(m, x.shape), position, block) for block in blocks]
    except (TypeError, ValueError):
        shapes = jax.tree.map(jnp.shape, (position, blocks[0]))
        raise ValueError(f"every block must be a mask shaped like the position; got shapes {shapes}") from None
    return jax.tree.map(lambda *masks: jnp.stack(masks).astype(bool), *spread)


def gibbs(values: tuple[float, float] = BINARY) -> Kernel:
    """Gibbs sampling of one uniformly chosen coordinate (Glauber 1963): a reference, valid for any log density.

    No gradients; one evaluation of the log density a move. It accepts always, though mostly to stay.
    """
    return Partial(_gibbs, values=ordered(values))


def _gibbs(logdensity: LogDensity, values: tuple) -> Algorithm:
    def init(position: Tree, key: Key) -> PointState:
        return PointState(position, logdensity(position))

    def step(key: Key, state: PointState) -> tuple[PointState, MoveInfo]:
        site_key, flip_key = jax.random.split(key)
        x, unravel = ravel_pytree(state.position)
        site = jax.random.randint(site_key, (), 0, x.size)
        flipped = unravel(x.at[site].set((values[0] + values[1] - x[site]).astype(x.dtype)))
        other = PointState(flipped, logdensity(flipped))
        flip = jax.random.uniform(flip_key, (), x.dtype) < sigmoid(other.logdensity - state.logdensity)
        new = jax.tree.map(lambda o, s: jnp.where(flip, o, s), other, state)
        return new, MoveInfo(jnp.ones_like(new.logdensity), other)

    return adapt(pair(init, step))


def coin(uniform: Array, probability: Array, heads: Any, tails: Any) -> Array:
    """Return heads where uniform < probability, else tails; NaN, which every kernel rejects, where that is NaN."""
    return jnp.where(uniform < probability, heads, tails).astype(uniform.dtype) + 0 * probability


def ordered(values: tuple[float, float]) -> tuple[float, float]:
    """Return the two values as floats; ValueError unless low < high."""
    if len(values) != 2 or not values[0] < values[1]:
        raise ValueError(f"two values low < high are needed, such as (0.0, 1.0) or (-1.0, 1.0); got {values}")
    return float(values[0]), float(values[1])
