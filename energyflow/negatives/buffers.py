"""Floor 4: chains that persist between draws.

They persist as positions, plus momenta and the like, and are re-initialised on the current energy at every draw: a
kernel state carried across a parameter update samples the old energy (PCD on a Gaussian then learns variance .97
instead of .70).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, register_dataclass

from energyflow.chains import chain_keys, count_chains
from energyflow.energy import as_energy, logdensity
from energyflow.kernels.algorithm import bind, carried
from energyflow.negatives.moves import Moves, move, start_tuner
from energyflow.negatives.starts import Start, begin, from_data, from_normal, where, with_conditions
from energyflow.rows import some_rows
from energyflow.stepsize import StepTuner
from energyflow.types import Array, Kernel, Key, Negatives, Tree


class Buffer(NamedTuple):
    """Persistent chains: positions, conditions and carried kernel fields, leading axis [slot], and their book-keeping.

    cond: what each chain is conditioned on, () for nothing.
    lineage: which of the original starts each slot descends from (fresh numbers for re-initialised ones).
    pointer: next slot a FIFO overwrites. seen: how many draws a reservoir was offered. tuner: step tuner state.
    """

    position: Tree
    cond: tuple
    carry: dict[str, Any]
    lineage: Array
    pointer: Array
    seen: Array
    tuner: Any


@register_dataclass
@dataclass(frozen=True)
class Persistent:
    """Settings of a replay buffer."""

    moves: Moves
    start: Start
    reinit: float | None
    augment: Any
    capacity: int | None = field(metadata={"static": True})
    num_chains: int | None = field(metadata={"static": True})
    policy: str = field(metadata={"static": True})
    conditional: bool = field(metadata={"static": True})


def pcd(
    kernel: Kernel,
    num_steps: int,
    *,
    capacity: int | None = None,
    num_chains: int | None = None,
    start: Start | None = None,
    reinit: float = 0.0,
    tuner: StepTuner | None = None,
    unroll: bool = False,
    conditional: bool = False,
) -> Negatives:
    """Persistent contrastive divergence (Younes 1999; Tieleman 2008): chains go on where they stopped, in their slots.

    capacity: persistent chains kept; num_chains: how many of them move and are used at each draw (a random subset
    without replacement). Both default to the batch size, and with equal numbers all chains move.
    start: where they begin, the batch by default. reinit: chance that a chain used now begins again at `start`; short
    chains from a fresh start bias the model. conditional: as of `short_run`; a chain keeps its conditions until it
    begins again.
    """
    return replay(
        kernel,
        num_steps,
        capacity=capacity,
        num_chains=num_chains,
        policy="in_place",
        start=from_data() if start is None else start,
        reinit=reinit,
        tuner=tuner,
        unroll=unroll,
        conditional=conditional,
    )


def replay(
    kernel: Kernel,
    num_steps: int,
    *,
    capacity: int | None = None,
    num_chains: int | None = None,
    policy: str = "in_place",
    start: Start | None = None,
    reinit: float = 0.05,
    augment: Callable[[Key, Tree], Tree] | None = None,
    tuner: StepTuner | None = None,
    unroll: bool = False,
    conditional: bool = False,
) -> Negatives:
    """A replay buffer (Du and Mordatch 2019): `num_chains` rows are drawn, moved, used, and kept by `policy`.

    policy: "in_place" writes each chain back to its own slot; "fifo" appends copies over the oldest rows, the parents
    stay; "reservoir" keeps every sample ever made with equal chance capacity/seen. start: Gaussian noise by default.
    augment: `(key, positions) -> positions` of all rows drawn, before they move: a transition of its own, which carries
    chains between modes that it knows of and leaves no density invariant (Du et al. 2021). conditional: as of `pcd`.
    The metric `lineages` counts the distinct starts that the buffer still descends from: under "fifo" it collapses.
    Raises ValueError for an unknown policy.
    """
    if policy not in ("in_place", "fifo", "reservoir"):
        raise ValueError(f'policy must be "in_place", "fifo" or "reservoir"; got {policy!r}')
    moves = Moves(as_energy(kernel), tuner, num_steps, unroll)
    begin: Start = from_normal() if start is None else as_energy(start)
    augment = None if augment is None else as_energy(augment)
    settings = Persistent(moves, begin, reinit or None, augment, capacity, num_chains, policy, conditional)
    return Negatives(Partial(_buffer_init, settings), Partial(_buffer_draw, settings))


def _buffer_init(settings: Persistent, key: Key, energy: Any, batch: Tree) -> Buffer:
    capacity = settings.capacity or settings.num_chains or count_chains(batch)
    if capacity < (settings.num_chains or 0):
        raise ValueError(f"a buffer of {capacity} rows cannot lend {settings.num_chains} chains a draw")
    start_key, carry_key = jax.random.split(key)
    position, cond = begin(settings.start, settings.conditional, start_key, energy, batch, capacity)

    def first(key: Key, x: Tree, cond: tuple) -> dict[str, Any]:
        return carried(bind(settings.moves.kernel, logdensity(energy, *cond)).init(x, key))

    carry = jax.vmap(first)(chain_keys(carry_key, capacity), position, cond)
    zero = jnp.zeros((), jnp.int32)
    return Buffer(position, cond, carry, jnp.arange(capacity), zero, zero + capacity, start_tuner(settings.moves))


def _buffer_draw(settings: Persistent, key: Key, energy: Any, batch: Tree, state: Buffer) -> Any:
    row_key, fresh_key, coin_key, move_key, keep_key = jax.random.split(key, 5)
    capacity = state.lineage.shape[0]
    num = min(settings.num_chains or count_chains(batch), capacity)
    rows = jnp.arange(num) if num == capacity else some_rows(row_key, capacity, num)
    chains = (state.position, state.cond), state.carry, state.lineage
    (position, cond), carry, lineage = jax.tree.map(lambda x: x[rows], chains)
    if settings.augment is not None:
        move_key, augment_key = jax.random.split(move_key)
        position = settings.augment(augment_key, position)
    if settings.reinit is not None:
        fresh = begin(settings.start, settings.conditional, fresh_key, energy, batch, num)
        again = jax.random.bernoulli(coin_key, settings.reinit, (num,))
        position, cond = jax.tree.map(lambda f, p: where(again, f, p), fresh, (position, cond))
        lineage = jnp.where(again, state.seen + jnp.arange(num), lineage)
    position, carry, tuner, metrics = move(settings.moves, move_key, energy, position, carry, state.tuner, cond)
    slots = _slots(settings.policy, keep_key, state, rows)
    put = lambda store, new: store.at[slots].set(new, mode="drop")  # noqa: E731
    (kept, kept_cond), kept_carry, kept_lineage = jax.tree.map(put, chains, ((position, cond), carry, lineage))
    if settings.policy == "in_place":  # no chain is ever copied
        metrics["lineages"] = jnp.asarray(capacity)
    else:
        metrics["lineages"] = 1 + jnp.sum(jnp.diff(jnp.sort(kept_lineage)) != 0)
    pointer, seen = (state.pointer + num) % capacity, state.seen + num
    buffer = Buffer(kept, kept_cond, kept_carry, kept_lineage, pointer, seen, tuner)
    return with_conditions(position, cond), None, buffer, metrics


def _slots(policy: str, key: Key, state: Buffer, rows: Array) -> Array:
    """Return where the moved chains go; an index of `capacity` means nowhere."""
    capacity, num = state.lineage.shape[0], rows.shape[0]
    if policy == "in_place":
        return rows
    if policy == "fifo":
        return (state.pointer + jnp.arange(num)) % capacity
    # Vitter (1985): the n-th sample ever made lands on a uniform slot of n, and stays where that is a slot we have.
    seen = state.seen + jnp.arange(1, num + 1)
    slots = jnp.floor(jax.random.uniform(key, (num,)) * seen.astype(float)).astype(jnp.int32)
    later_wins = (slots[:, None] == slots[None, :]) & (jnp.arange(num)[:, None] < jnp.arange(num)[None, :])
    return jnp.where((slots < capacity) & ~later_wins.any(axis=1), slots, capacity)
