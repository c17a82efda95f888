"""Floor 4: Langevin along a transport potential, from a source to data and then among them (Balcerak et al. 2025).

From a source at t = 0 the flow `-grad V` of such a potential arrives at the data at t = 1, where V at its temperature
is the energy of a density: there the noise of Langevin comes on, and chains go on sampling. `transport_langevin` draws;
`transport_run` is the same chain as a negative phase.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial, register_dataclass

from energyflow.chains import chain_keys, count_chains, evolve_from, summary_of
from energyflow.energy import as_energy, logdensity, require_density, temperature as temperature_of
from energyflow.kernels.algorithm import bind, start, step_size as step_of, with_settings, with_step_size
from energyflow.kernels.langevin import ramped_langevin
from energyflow.rows import per_row
from energyflow.types import Kernel, Key, Negatives, Scalar, Tree, as_key


class TransportLangevin(NamedTuple):
    """Chains at each of H horizons, and what they did since the horizon before.

    position: leading axes [horizon, chain]. jump_distance, divergent: (H,), the mean distance of a move and the share
    of divergent transitions. num_gradients: everything spent, over all chains.
    """

    position: Tree
    jump_distance: np.ndarray
    divergent: np.ndarray
    num_gradients: int


def transport_langevin(
    key: Key | int,
    energy: Any,
    horizons: Any,
    position: Tree,
    *,
    step_size: float = 0.01,
    onset: float = 0.8,
    temperature: float | None = None,
) -> TransportLangevin:
    """Move chains from draws of the source through one or more horizons, `x - dt grad V + sqrt(2 dt eps(t)) z`.

    energy: V, of one point. horizons: one time or (H,) increasing ones, rounded to moves of `step_size`, dt; at 1 the
    flow has arrived. position: draws of the source, leading axis [chain]. onset: when the noise begins to come on, by
    `temperature_ramp`. temperature: of the noise at t >= 1, the energy's by default; 0 for the flow alone. To draw with
    an accept step, go on with `mala` and the like on `logdensity(energy)` from the positions at a horizon.
    New weights and new horizons, as many of them, cost no compilation.
    Raises ValueError for horizons that are not such, a step that is not positive, an onset outside [0, 1], starts that
    share no leading axis, and a landscape, whose noise would have no temperature, unless `temperature` is 0.
    """
    energy = as_energy(energy)
    if not (np.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size must be positive and finite; got {step_size}")
    if temperature != 0:
        require_density(energy, "noise in transport")
        density, own = logdensity(energy), temperature_of(energy)
    else:
        density, own = Partial(_downhill, energy), 1.0
    noise = 1.0 if temperature is None else temperature / own
    kernel = with_settings(
        ramped_langevin(step_size, step_size, onset=onset), step_size=step_size * own, temperature=noise
    )
    ends = _ends(horizons, step_size)
    position = jax.tree.map(lambda x: jnp.asarray(x, float), position)
    keys = chain_keys(as_key(key), count_chains(position))
    path, stats = _follow(keys, density, kernel, position, np.r_[0, ends[:-1]], ends)
    jump, divergent = (np.asarray(x, np.float64).mean(axis=1) for x in stats)
    return TransportLangevin(path, jump, divergent, int(ends[-1]) * len(keys))


def _ends(horizons: Any, step_size: float) -> np.ndarray:
    """Return the numbers of moves after which chains are at the horizons."""
    times = np.atleast_1d(np.asarray(horizons, np.float64))
    if times.ndim != 1 or times.size == 0 or not np.isfinite(times).all():
        raise ValueError(f"horizons must be one time or (H,) times, finite; got {horizons}")
    ends = np.round(times / step_size).astype(int)
    if not (np.diff(ends, prepend=0) > 0).all():
        raise ValueError(f"horizons must increase, each by a step of {step_size} at least; got {horizons}")
    return ends


@jax.jit
def _follow(keys: Key, density: Any, kernel: Kernel, position: Tree, begins: Any, ends: Any) -> tuple[Tree, Any]:
    """Run all chains; returns their paths and (mean jump, share divergent), leading axes [horizon, chain]."""
    algorithm = bind(kernel, density)

    def chain(key: Key, position: Tree) -> Any:
        def move(i: Scalar, carry: tuple) -> tuple:
            state, jump, divergent = carry
            state, stats = algorithm.step(jax.random.fold_in(key, i + 1), state)
            return state, jump + stats.jump_distance, divergent + stats.is_divergent.astype(float)

        def segment(state: Any, bounds: tuple) -> Any:
            zero = jnp.zeros((), float)
            begin, end = bounds
            state, jump, divergent = jax.lax.fori_loop(begin, end, move, (state, zero, zero))
            num = (end - begin).astype(float)
            return state, (state.position, (jump / num, divergent / num))

        state = start(algorithm, jax.random.fold_in(key, 0), position)
        return jax.lax.scan(segment, state, (begins, ends))[1]

    return jax.vmap(chain, out_axes=1)(keys, position)


def _downhill(energy: Any, x: Tree) -> Scalar:
    return -energy(x)


@register_dataclass
@dataclass(frozen=True)
class TransportRun:
    """Settings of `transport_run`; the kernel's step is in units of the clock."""

    source: Any
    kernel: Kernel
    share: Any
    data_time: Any
    num_steps: int = field(metadata={"static": True})
    num_chains: int | None = field(metadata={"static": True})


def transport_run(
    source: Any,
    num_steps: int = 200,
    *,
    step_size: float = 0.01,
    onset: float = 0.8,
    share: float = 0.5,
    data_time: float = 1.0,
    num_chains: int | None = None,
) -> Negatives:
    """Fresh chains at every draw, moved as `transport_langevin` moves them at the energy's temperature.

    share: of the chains that start at rows of the batch, with their clocks at `data_time` (at 0 they too descend
    without noise at first). The others start at draws of `source`, anything with `sample(key, shape)`, at t = 0.
    num_chains: negatives per draw, the batch size by default.
    """
    kernel = ramped_langevin(step_size, step_size, onset=onset)
    settings = TransportRun(source, kernel, share, data_time, num_steps, num_chains)
    return Negatives(Partial(_run_init), Partial(_run_draw, settings))


def _run_init(key: Key, energy: Any, batch: Tree) -> None:
    return None


def _run_draw(settings: TransportRun, key: Key, energy: Any, batch: Tree, state: None) -> Any:
    row_key, source_key, move_key = jax.random.split(key, 3)
    size = count_chains(batch)
    num = settings.num_chains or size
    rows = jnp.arange(num) if num == size else jax.random.randint(row_key, (num,), 0, size)
    at_data = jnp.arange(float(num)) < jnp.round(settings.share * num)
    position = jax.tree.map(
        lambda data, drawn: jnp.where(per_row(at_data, drawn), data[rows], drawn),
        batch,
        settings.source.sample(source_key, (num,)),
    )
    clocks = jnp.where(at_data, settings.data_time, 0.0)
    kernel = with_step_size(settings.kernel, step_of(settings.kernel) * temperature_of(energy))
    density = jax.lax.stop_gradient(logdensity(energy))

    def one(key: Key, position: Tree, time: Scalar) -> Any:
        return evolve_from(key, kernel, density, position, settings.num_steps, carry={"time": time})

    done, stats = jax.vmap(one)(chain_keys(move_key, num), position, clocks)
    metrics = summary_of(stats) | {"sampler_temperature": jnp.ones((), float)}
    return jax.lax.stop_gradient(done.position), None, None, metrics
