"""Floor 4: negative phases. Each is a `Negatives(init, draw)` whose state (chains, buffer, step size) is explicit.

Chains persist as positions, plus momenta and the like, and are re-initialised on the current energy at every draw: a
kernel state carried across a parameter update samples the old energy (PCD on a Gaussian then learns variance .97
instead of .70). No gradient flows through any chain.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, register_dataclass

from energyflow.chains import chain_keys, count_chains, evolve_from, start_cost, summary_of
from energyflow.energy import as_energy, logdensity
from energyflow.kernels.algorithm import bind, carried, configured, step_size, with_step_size
from energyflow.kernels.langevin import normal_like
from energyflow.stepsize import StepTuner
from energyflow.types import Array, Kernel, Key, Negatives, Tree

Start = Callable[[Key, Any, Tree, int], Tree]
"""Where chains begin: (key, energy, batch, num) -> positions, leading axis [num]."""


@register_dataclass
@dataclass(frozen=True)
class Moves:
    """How a negative phase moves its chains: kernel, step tuner (or None), transitions per draw, unrolled or not."""

    kernel: Kernel
    tuner: StepTuner | None
    num_steps: int = field(metadata={"static": True})
    unroll: bool = field(default=False, metadata={"static": True})


def from_data(noise: float = 0.0) -> Start:
    """Start at the rows of the batch (drawn with replacement for any other number), plus Gaussian noise of that sd."""
    return Partial(_from_data, noise)


def _from_data(noise: Any, key: Key, energy: Any, batch: Tree, num: int) -> Tree:
    row_key, noise_key = jax.random.split(key)
    size = count_chains(batch)
    rows = jnp.arange(num) if num == size else jax.random.randint(row_key, (num,), 0, size)
    picked = jax.tree.map(lambda x: x[rows], batch)
    return jax.tree.map(lambda x, z: x + noise * z, picked, normal_like(noise_key, picked))


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
    return jax.tree.map(lambda a, b: _where(is_first, a, b), a, b)


@register_dataclass
@dataclass(frozen=True)
class ShortRun:
    """Settings of chains that start afresh at every draw."""

    moves: Moves
    start: Start
    num_chains: int | None = field(metadata={"static": True})


def cd(kernel: Kernel, num_steps: int, *, tuner: StepTuner | None = None, unroll: bool = False) -> Negatives:
    """CD-k (Hinton 2002): chains start at the batch and make `num_steps` transitions.

    On a Gaussian the gradient is shrunk by 1 - a^k, a being the chain's autocorrelation, and its zero is kept.
    """
    return short_run(kernel, num_steps, start=from_data(), tuner=tuner, unroll=unroll)


def short_run(
    kernel: Kernel,
    num_steps: int,
    *,
    start: Start | None = None,
    num_chains: int | None = None,
    tuner: StepTuner | None = None,
    unroll: bool = False,
) -> Negatives:
    """Fresh chains at every draw (Nijkamp et al. 2019): from `start` (Gaussian noise by default), `num_steps` moves.

    num_chains: negatives per draw, the batch size by default. A model trained so is right only for samplers of this
    length from this start.
    """
    moves = Moves(as_energy(kernel), tuner, num_steps, unroll)
    settings = ShortRun(moves, from_normal() if start is None else as_energy(start), num_chains)
    return Negatives(Partial(_short_run_init, settings), Partial(_short_run_draw, settings))


def _short_run_init(settings: ShortRun, key: Key, energy: Any, batch: Tree) -> Any:
    return start_tuner(settings.moves)


def _short_run_draw(settings: ShortRun, key: Key, energy: Any, batch: Tree, state: Any) -> Any:
    start_key, move_key = jax.random.split(key)
    position = settings.start(start_key, energy, batch, settings.num_chains or count_chains(batch))
    position, _, tuner, metrics = move(settings.moves, move_key, energy, position, {}, state)
    return position, None, tuner, metrics


class Buffer(NamedTuple):
    """Persistent chains: positions and carried kernel fields with leading axis [slot], and their book-keeping.

    lineage: which of the original starts each slot descends from (fresh numbers for re-initialised ones).
    pointer: next slot a FIFO overwrites. seen: how many draws a reservoir was offered. tuner: step tuner state.
    """

    position: Tree
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
    capacity: int | None = field(metadata={"static": True})
    num_chains: int | None = field(metadata={"static": True})
    policy: str = field(metadata={"static": True})


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
) -> Negatives:
    """Persistent contrastive divergence (Younes 1999; Tieleman 2008): chains go on where they stopped, in their slots.

    capacity: persistent chains kept; num_chains: how many of them move and are used at each draw (a random subset
    without replacement). Both default to the batch size, and with equal numbers all chains move.
    start: where they begin, the batch by default. reinit: chance that a chain used now begins again at `start`; short
    chains from a fresh start bias the model.
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
    tuner: StepTuner | None = None,
    unroll: bool = False,
) -> Negatives:
    """A replay buffer (Du and Mordatch 2019): `num_chains` rows are drawn, moved, used, and kept by `policy`.

    policy: "in_place" writes each chain back to its own slot; "fifo" appends copies over the oldest rows, the parents
    stay; "reservoir" keeps every sample ever made with equal chance capacity/seen. start: Gaussian noise by default.
    The metric `lineages` counts the distinct starts that the buffer still descends from: under "fifo" it collapses.
    Raises ValueError for an unknown policy.
    """
    if policy not in ("in_place", "fifo", "reservoir"):
        raise ValueError(f'policy must be "in_place", "fifo" or "reservoir"; got {policy!r}')
    moves = Moves(as_energy(kernel), tuner, num_steps, unroll)
    begin: Start = from_normal() if start is None else as_energy(start)
    settings = Persistent(moves, begin, reinit or None, capacity, num_chains, policy)
    return Negatives(Partial(_buffer_init, settings), Partial(_buffer_draw, settings))


def _buffer_init(settings: Persistent, key: Key, energy: Any, batch: Tree) -> Buffer:
    capacity = settings.capacity or settings.num_chains or count_chains(batch)
    if capacity < (settings.num_chains or 0):
        raise ValueError(f"a buffer of {capacity} rows cannot lend {settings.num_chains} chains a draw")
    start_key, carry_key = jax.random.split(key)
    position = settings.start(start_key, energy, batch, capacity)
    algorithm = bind(settings.moves.kernel, logdensity(energy))
    carry = jax.vmap(lambda key, x: carried(algorithm.init(x, key)))(chain_keys(carry_key, capacity), position)
    zero = jnp.zeros((), jnp.int32)
    return Buffer(position, carry, jnp.arange(capacity), zero, zero + capacity, start_tuner(settings.moves))


def _buffer_draw(settings: Persistent, key: Key, energy: Any, batch: Tree, state: Buffer) -> Any:
    row_key, fresh_key, coin_key, move_key, keep_key = jax.random.split(key, 5)
    capacity = state.lineage.shape[0]
    num = min(settings.num_chains or count_chains(batch), capacity)
    rows = jnp.arange(num) if num == capacity else jax.random.choice(row_key, capacity, (num,), replace=False)
    position, carry, lineage = jax.tree.map(lambda x: x[rows], (state.position, state.carry, state.lineage))
    if settings.reinit is not None:
        fresh = settings.start(fresh_key, energy, batch, num)
        again = jax.random.bernoulli(coin_key, settings.reinit, (num,))
        position = jax.tree.map(lambda f, p: _where(again, f, p), fresh, position)
        lineage = jnp.where(again, state.seen + jnp.arange(num), lineage)
    position, carry, tuner, metrics = move(settings.moves, move_key, energy, position, carry, state.tuner)
    slots = _slots(settings.policy, keep_key, state, rows)
    put = lambda store, new: store.at[slots].set(new, mode="drop")  # noqa: E731
    stored = (state.position, state.carry, state.lineage)
    kept, kept_carry, kept_lineage = jax.tree.map(put, stored, (position, carry, lineage))
    metrics["lineages"] = 1 + jnp.sum(jnp.diff(jnp.sort(kept_lineage)) != 0)
    pointer, seen = (state.pointer + num) % capacity, state.seen + num
    return position, None, Buffer(kept, kept_carry, kept_lineage, pointer, seen, tuner), metrics


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


def start_tuner(moves: Moves) -> Any:
    """Return the tuner's state at the kernel's own step size; None without a tuner."""
    return None if moves.tuner is None else moves.tuner.init(step_size(moves.kernel))


def move(moves: Moves, key: Key, energy: Any, position: Tree, carry: dict, tuner: Any) -> Any:
    """Move chains on the current energy; returns position, carry, tuner state and metrics."""
    energy = jax.lax.stop_gradient(as_energy(energy))
    target, num = logdensity(energy), count_chains(position)
    steps = None if moves.tuner is None else moves.tuner.propose(tuner, num)

    def one(key: Key, position: Tree, carry: dict, step: Any) -> Any:
        kernel = moves.kernel if step is None else with_step_size(moves.kernel, step)
        return evolve_from(key, kernel, target, position, moves.num_steps, carry=carry, unroll=moves.unroll)

    state, stats = jax.vmap(one)(chain_keys(key, num), position, carry, steps)
    metrics = summary_of(stats, start_cost(state) * num)
    squares = jax.tree.map(
        lambda a, b: jnp.sum(jnp.square(a - b), axis=tuple(range(1, a.ndim))), state.position, position
    )
    travelled = sum(jax.tree.leaves(squares))
    metrics["travel"] = jnp.sqrt(jnp.mean(travelled))
    metrics["sampler_temperature"] = jnp.asarray(bind(moves.kernel, target).temperature, dtype=float)
    if moves.tuner is not None:
        if stats.acceptance_rate is None:
            raise ValueError("a step tuner needs a kernel with an accept step; unadjusted kernels keep their step size")
        tuner = moves.tuner.update(tuner, steps, jnp.mean(stats.acceptance_rate, axis=1), travelled)
        metrics["step_size"] = moves.tuner.value(tuner)
    return jax.lax.stop_gradient(state.position), carried(state), tuner, metrics


def _where(mask: Array, a: Array, b: Array) -> Array:
    return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)
