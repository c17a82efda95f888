"""Floor 3: moving chains. One chain is the unit; `*_chains` are its vmap, sampled by a host loop over jitted chunks.

Transition t of chain c uses the key `fold_in(fold_in(key, c), t)`, so draws do not depend on the chunk size, and a run
that is stopped and resumed is bitwise the run that was not.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from energyflow.energy import as_energy
from energyflow.kernels.algorithm import bind, start
from energyflow.kernels.transitions import evolve, move_of, scan_ahead, step_keys
from energyflow.types import Array, Kernel, Key, LogDensity, Stats, Tree, as_key

FIELDS = ("position", "logdensity", "acceptance_rate", "jump_distance", "is_divergent", "num_gradients")


class ChainState(NamedTuple):
    """Where chains stand: their kernel states, leading axis [chain], and the number of transitions made."""

    state: Any
    step: int


class Trace(NamedTuple):
    """Draws of several chains; every array leads with [chain, draw] (one chain: [draw]), fields not kept are None.

    final: the `ChainState` to go on from, `sample_chains(..., resume=trace.final)`.
    """

    position: Tree
    logdensity: Any
    stats: Stats
    final: Any


class SamplingStopped(RuntimeError):
    """Sampling ended early; `trace` holds the draws of the chunks before, and its `final` the state after them.

    In the first chunk there is none yet: its arrays are None.
    """

    def __init__(self, message: str, trace: Trace):
        super().__init__(message)
        self.trace = trace


def start_cost(state: Any) -> int:
    """Return the energy gradients that initialising this kernel state took."""
    return int(hasattr(state, "logdensity_grad"))


def advance(
    key: Key | int, kernel: Kernel, logdensity: LogDensity, position: Tree, num_steps: int, *, unroll: bool = False
) -> tuple[Tree, dict[str, Array]]:
    """Move one chain `num_steps` transitions.

    position: a pytree of arrays without a chain axis. Returns the new position and scalar metrics: `acceptance_rate`
    (absent for unadjusted kernels), `jump_distance` (mean distance of a move), `divergent` (share of transitions) and
    `num_gradients` (total, the start's included).
    """
    return _advance(as_key(key), as_energy(kernel), as_energy(logdensity), position, num_steps, unroll)


def advance_chains(
    key: Key | int, kernel: Kernel, logdensity: LogDensity, position: Tree, num_steps: int, *, unroll: bool = False
) -> tuple[Tree, dict[str, Array]]:
    """Move many chains, leading axis [chain]; metrics are means over the chains, `num_gradients` the total."""
    return _advance_chains(as_key(key), as_energy(kernel), as_energy(logdensity), position, num_steps, unroll)


@functools.partial(jax.jit, static_argnames=("num_steps", "unroll"))
def _advance(
    key: Key, kernel: Kernel, logdensity: LogDensity, position: Tree, num_steps: int, unroll: bool
) -> tuple[Tree, dict[str, Array]]:
    state, stats = evolve_from(key, kernel, logdensity, position, num_steps, unroll=unroll)
    return state.position, summary_of(stats, start_cost(state))


@functools.partial(jax.jit, static_argnames=("num_steps", "unroll"))
def _advance_chains(
    key: Key, kernel: Kernel, logdensity: LogDensity, position: Tree, num_steps: int, unroll: bool
) -> tuple[Tree, dict[str, Array]]:
    def one(key: Key, position: Tree) -> Any:
        return evolve_from(key, kernel, logdensity, position, num_steps, unroll=unroll)

    state, stats = jax.vmap(one)(chain_keys(key, count_chains(position)), position)
    return state.position, summary_of(stats, start_cost(state) * count_chains(position))


def evolve_from(
    key: Key,
    kernel: Kernel,
    logdensity: LogDensity,
    position: Tree,
    num_steps: int,
    *,
    carry: dict[str, Any] | None = None,
    unroll: bool = False,
) -> tuple[Any, Stats]:
    """Start one chain at `position` (momenta and the like from `carry`) and make `num_steps` transitions."""
    algorithm = bind(kernel, logdensity)
    state = start(algorithm, jax.random.fold_in(key, 0), position, carry)
    return evolve(step_keys(key, num_steps), algorithm, state, unroll=unroll)


def summary_of(stats: Stats, start_gradients: int = 0) -> dict[str, Array]:
    """Return the scalar metrics of `advance` from stacked stats."""
    metrics = {
        "jump_distance": jnp.mean(stats.jump_distance),
        "divergent": jnp.mean(stats.is_divergent.astype(jnp.float32)),
        "num_gradients": jnp.sum(stats.num_gradients) + start_gradients,
    }
    if stats.acceptance_rate is not None:
        metrics["acceptance_rate"] = jnp.mean(stats.acceptance_rate)
    return metrics


@functools.partial(jax.jit, static_argnames="num_chains")
def chain_keys(key: Key, num_chains: int) -> Key:
    """Return one key per chain, `fold_in(key, chain)`: independent of how chains are sharded."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_chains))


def count_chains(position: Tree) -> int:
    """Return the length of the leading axis all leaves share. Raises ValueError where they do not."""
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(position)}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            f"positions of several chains need one shared leading axis [chain], not empty; their shapes are "
            f"{jax.tree.map(jnp.shape, position)}"
        )
    return lengths.pop()[0]


def require_floats(position: Tree) -> None:
    """Raise ValueError, naming the leaf, for positions too coarse for an accept step: integers, half precision."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(position):
        dtype = jnp.result_type(leaf)
        if dtype not in (jnp.float32, jnp.float64):
            raise ValueError(
                f"position{jax.tree_util.keystr(path)} has dtype {dtype}; accept steps need float32 or float64"
            )


def sample(
    key: Key,
    kernel: Kernel,
    logdensity: LogDensity,
    position: Tree,
    num_draws: int,
    *,
    warmup: int = 0,
    thin: int = 1,
) -> Trace:
    """Draw from one chain started at `position` (no chain axis); arrays of the Trace lead with [draw]."""
    many = jax.tree.map(lambda x: jnp.asarray(x)[None], position)
    trace = sample_chains(key, kernel, logdensity, many, num_draws, warmup=warmup, thin=thin)
    squeezed = jax.tree.map(lambda x: x[0], trace._replace(final=None))
    return squeezed._replace(final=trace.final)


def sample_chains(
    key: Key,
    kernel: Kernel,
    logdensity: LogDensity,
    position: Tree,
    num_draws: int,
    *,
    warmup: int = 0,
    thin: int = 1,
    fields: Sequence[str] = FIELDS,
    chunk_size: int = 500,
    progress: bool = False,
    resume: ChainState | None = None,
) -> Trace:
    """Draw `num_draws` from each chain, in jitted chunks that are brought to the host as they finish.

    key: typed key or int seed. position: leaves lead with [chain]; ignored with `resume`. warmup: the first
    transitions, discarded. thin: transitions per kept draw; stats then are the mean acceptance and distance, any
    divergence, total gradients. fields: what to keep, a subset of `energyflow.chains.FIELDS`. resume: a trace's
    `final`, with the same key, kernel and log density, continues that run exactly.

    Returns a Trace of NumPy arrays leading with [chain, draw]. Raises ValueError for a start that cannot be sampled
    (which chain, why); SamplingStopped, holding the draws of the chunks before, when an unadjusted kernel leaves the
    finite numbers or the run is interrupted.
    """
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise ValueError(f"unknown fields {unknown}; choose from {FIELDS}")
    key = as_key(key)
    kernel, logdensity = as_energy(kernel), as_energy(logdensity)
    if min(num_draws, thin - 1, warmup) < 0:
        raise ValueError(f"need thin >= 1 and nothing negative; got {num_draws} draws, thin {thin}, warmup {warmup}")
    now = resume if resume is not None else start_chains(key, kernel, logdensity, position)
    keys = chain_keys(key, count_chains(now.state.position))
    kept: list[Trace] = []
    plan = [(size, False) for size in _chunks(max(warmup - now.step, 0), chunk_size * thin)]
    plan += [(size, True) for size in _chunks(num_draws, chunk_size)]
    try:
        with tqdm(total=num_draws, disable=not progress, desc="sampling", unit="draw") as bar:
            for size, keep in plan:
                every = thin if keep else 1
                names = tuple(sorted(fields)) if keep else ()
                state, out, good = _chunk(keys, kernel, logdensity, now.state, now.step, size, every, names)
                if good is not None:
                    _stop_where_blown(np.asarray(good), size * every, kept, now)
                made = [Trace(*jax.tree.map(np.asarray, out), final=None)] if keep else []
                following = ChainState(state, now.step + size * every)
                kept, now = kept + made, following  # together: an interrupt falls before or after both
                bar.update(size * keep)
    except KeyboardInterrupt:
        raise SamplingStopped(f"interrupted after {now.step} transitions", _join(kept, now)) from None
    return _join(kept, now)


def _stop_where_blown(good: np.ndarray, num_steps: int, kept: list[Trace], now: ChainState) -> None:
    """Raise SamplingStopped where an unadjusted chain left the finite numbers; `good` as `_chunk` returns it."""
    chain = int(np.argmin(good))
    if good[chain] < num_steps:
        raise SamplingStopped(
            f"chain {chain} left the finite numbers at transition {now.step + int(good[chain]) + 1}: the kernel has no "
            "accept step and its step size is too large for this energy; lower it or use an adjusted kernel",
            _join(kept, now),
        )


def start_chains(key: Key, kernel: Kernel, logdensity: LogDensity, position: Tree) -> ChainState:
    """Initialise a kernel on every chain of `position`, leading axis [chain].

    Raises ValueError for integers and half precision, a step size that is none, and a start without a finite log
    density (which chain, and what it is there).
    """
    require_floats(position)
    step = getattr(kernel, "keywords", {}).get("step_size", 1.0)
    if not np.all(np.isfinite(step) & (np.asarray(step) > 0)):
        raise ValueError(f"the step size must be positive and finite; got {step}")
    position = jax.tree.map(jnp.asarray, position)
    state, value = _init_chains(chain_keys(key, count_chains(position)), kernel, logdensity, position)
    bad = np.flatnonzero(~np.isfinite(np.asarray(value)))
    if bad.size:
        raise ValueError(
            f"the log density is {np.asarray(value)[bad[0]]} at the start of chain {bad[0]} ({bad.size} of "
            f"{np.size(value)} chains): start inside the support, where the energy is finite"
        )
    return ChainState(state, 0)


@jax.jit
def _init_chains(keys: Key, kernel: Kernel, logdensity: LogDensity, position: Tree) -> Any:
    algorithm = bind(kernel, logdensity)
    state = jax.vmap(lambda key, x: start(algorithm, jax.random.fold_in(key, 0), x))(keys, position)
    return state, _values(logdensity, state)


def _values(logdensity: LogDensity, state: Any) -> Array:
    return state.logdensity if hasattr(state, "logdensity") else jax.vmap(logdensity)(state.position)


@functools.partial(jax.jit, static_argnames=("size", "thin", "fields"))
def _chunk(
    keys: Key, kernel: Kernel, logdensity: LogDensity, state: Any, first: Array, size: int, thin: int, fields: Any
) -> tuple[Any, Any, Array | None]:
    """Run `size` draws of all chains.

    Returns the states, (position, logdensity, stats) of the draws, and per chain the number of transitions made before
    the first that left the finite numbers (`size * thin` if none did; None for adjusted kernels, which reject it).
    """
    algorithm = bind(kernel, logdensity)
    move = move_of(algorithm, jax.random.key_impl(keys))

    def draw(state: Any, drawn: Any) -> Any:
        state, stats = jax.lax.scan(move, state, drawn)
        value = state.logdensity if hasattr(state, "logdensity") else logdensity(state.position)
        everything = {"position": state.position, "logdensity": value, **_thinned(stats)._asdict()}
        blown = stats.is_divergent if stats.acceptance_rate is None else None
        return state, ({name: everything[name] for name in fields}, blown)

    def chain(key: Key, state: Any) -> Any:
        rows = step_keys(key, size * thin, first).reshape(size, thin)
        return scan_ahead(draw, algorithm, state.position, state, rows)

    state, (out, blown) = jax.vmap(chain)(keys, state)
    stats = Stats(*(out.get(name) for name in Stats._fields))
    if blown is not None:
        blown = blown.reshape(-1, size * thin)
        blown = jnp.where(jnp.any(blown, axis=1), jnp.argmax(blown, axis=1), size * thin)
    return state, (out.get("position"), out.get("logdensity"), stats), blown


def _thinned(stats: Stats) -> Stats:
    rate = None if stats.acceptance_rate is None else jnp.mean(stats.acceptance_rate)
    distance = jnp.mean(stats.jump_distance)
    return Stats(rate, distance, jnp.any(stats.is_divergent), jnp.sum(stats.num_gradients))


def _chunks(total: int, size: int) -> list[int]:
    """Split `total` into equal chunks of at most `size`, so that one compilation serves all (a rest comes last)."""
    if not total:
        return []
    equal = -(-total // -(-total // size))
    rest = total % equal
    return [equal] * (total // equal) + ([rest] if rest else [])


def _join(kept: list[Trace], now: ChainState) -> Trace:
    if not kept:
        return Trace(None, None, Stats(None, None, None, None), now)
    joined = kept[0] if len(kept) == 1 else jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *kept)
    return joined._replace(final=now)
