"""Floor 6: looking for modes that no chain visited, by restarts from far away; draws alone cannot show them.

A restart has found a mode of its own where every straight way from its end to the draws crosses a barrier of low
density. Under a log-concave density no straight way does, so nothing is ever found
there, however the restarts end.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from scipy.spatial.distance import cdist

from energyflow.chains import Trace, advance_chains
from energyflow.diagnostics.export import named_draws, with_chain_axis
from energyflow.energy import as_energy
from energyflow.kernels.algorithm import name_of, with_step_size
from energyflow.types import Array, Kernel, Key, LogDensity, Scalar, Tree, as_key

BARRIER = 4.0
"""Nats below the lower end at which a way counts as closed: one try in e^4 crosses it."""
NEGLIGIBLE = 7.0
"""Nats of log mass, density times volume, below that of the draws where a mode is not worth a word: a thousandth."""
HOTTEST = 0.02
HOT, WARM, COLD = 10, 10, 8
"""Blocks of moves: annealed to the inverse temperature 1, at 1, and annealed on to where the noise is gone."""
KEPT = 8
"""Snapshots of a restart, one a block, that its mode's log density and volume are taken from."""
MOST_DRAWS = 20_000
REPLICAS = 3
"""Coolings of each draw, all of which must reach a mode for the draw to have visited it: near a pass they part."""
NEIGHBOURS, POINTS = 8, 11
"""Cooled draws to which an end looks for ways, and points on a way."""
VARIANCES = frozenset({"mala", "ula", "langevin", "sgld"})
"""Kernels whose step size is a variance."""


class Probe(NamedTuple):
    """What restarts found; prints itself as a sentence that says what to do.

    found: number of modes that no chain visited. positions: a point of each, leading axis [mode], heaviest first.
    logdensity_gap: (found,) mean log density there less that of the draws, in nats; a narrow mode needs more of it for
    the same mass. num_gradients: what the restarts cost.
    """

    found: int
    positions: Tree
    logdensity_gap: np.ndarray
    num_gradients: int

    def __str__(self) -> str:
        cost = f"({self.num_gradients} gradients)"
        if not self.found:
            return f"no restart found a mode that the chains had not visited {cost}; modes farther away may still exist"
        modes = "1 mode" if self.found == 1 else f"{self.found} modes"
        gaps = ", ".join(f"{gap:+.1f}" for gap in self.logdensity_gap[:5]) + (", ..." if self.found > 5 else "")
        return (
            f"restarts found {modes} that no chain visited, with log densities of {gaps} nats beside the draws' "
            f"{cost}: start chains there as well (.positions), or use parallel tempering, and draw again"
        )


def probe_modes(
    key: Key | int,
    kernel: Kernel,
    logdensity: LogDensity,
    trace: Trace | Any,
    *,
    num_restarts: int = 64,
    num_moves: int = 200,
    spread: tuple[float, ...] = (2.0, 4.0, 7.0, 10.0),
) -> Probe:
    """Look for modes that no chain of `trace` visited.

    key: typed key or int seed. kernel: as the draws were made. trace: a Trace, or draws as an array or pytree
    [chain, draw, ...]. num_restarts: rounded up to an even number; half start at a Gaussian fitted to the draws and
    inflated by the factors in `spread`, half at draws, heated to a fiftieth of the inverse temperature; both are
    annealed (Kirkpatrick et al. 1983). num_moves: transitions of each restart, half to arrive, half at home.
    Then the ends, and the draws nearest to them, are cooled down to where only their basins are left. An end counts
    where barriers of 4 nats or more close the straight ways to the cooled draws near it, and its mode has a thousandth
    of the draws' mass or more, by the volume of its last moves. Ends without a barrier between them are one mode.
    Finding nothing proves nothing: modes farther away, or with a narrow way in, stay unseen.
    Raises ValueError for draws that are not finite floats, and for fewer than 2 restarts or 20 moves.
    """
    if num_restarts < 2 or num_moves < HOT + WARM:
        raise ValueError(f"a probe needs 2 restarts and {HOT + WARM} moves; got {num_restarts} and {num_moves}")
    key, kernel, logdensity = as_key(key), as_energy(kernel), as_energy(logdensity)
    draws, one = _flat_draws(trace)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(jax.random.fold_in(key, 0))))
    target, factor = Partial(_flat_logdensity, logdensity, one), _factor(draws)
    half = -(-num_restarts // 2)
    away = draws.mean(axis=0) + _inflated(rng, spread, half, draws.shape[1]) @ factor.T
    home = draws[rng.integers(len(draws), size=half)]
    away = np.where(np.isfinite(_values(target, away))[:, None], away, home).astype(draws.dtype)
    move = functools.partial(_move, kernel=kernel, logdensity=logdensity, one=one, num_moves=num_moves // (HOT + WARM))
    groups, seen, spent = [away, home], [], 0
    ladder = np.geomspace(HOTTEST, 1.0, HOT)
    for block in range(HOT + WARM):
        # Starts far away are warmed less: only so far that no move is too long for the slopes there.
        beta = ladder[block] if block < HOT else 1.0
        groups, cost = move(jax.random.fold_in(key, block + 1), groups, betas=(np.sqrt(beta), beta))
        spent += cost
        seen.append(np.concatenate(groups))
    groups += np.split(_near(draws, seen[-1], factor), 2) * REPLICAS
    for block, beta in enumerate(np.geomspace(1.0, max(16.0, draws.shape[1] / 2), COLD)):
        groups, cost = move(jax.random.fold_in(key, HOT + WARM + block + 1), groups, betas=(beta,) * len(groups))
        spent += cost
    points, gaps = _modes(target, draws, np.stack(seen[-KEPT:]), np.concatenate(groups), factor)
    positions = jax.tree.map(np.asarray, _unflatten(one, jnp.asarray(points, draws.dtype)))
    return Probe(len(gaps), positions, gaps, spent)


def _move(
    key: Key,
    groups: list[np.ndarray],
    *,
    kernel: Kernel,
    logdensity: LogDensity,
    one: Tree,
    num_moves: int,
    betas: Sequence[float],
) -> tuple[list[np.ndarray], int]:
    """Move groups (point, dim) of one size, each at its inverse temperature; return them and the gradients spent."""
    moved, spent = [], 0
    for group, (points, beta) in enumerate(zip(groups, betas, strict=True)):
        position, metrics = advance_chains(
            jax.random.fold_in(key, group),
            _heated(kernel, float(beta)),
            Partial(_tempered, logdensity, jnp.asarray(beta, dtype=float)),
            _unflatten(one, jnp.asarray(points)),
            num_moves,
        )
        moved.append(np.asarray(_flatten(position)))
        spent += int(metrics["num_gradients"])
    return moved, spent


def _modes(
    target: LogDensity, draws: np.ndarray, seen: np.ndarray, cooled: np.ndarray, factor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Group the restarts that no open way leads home from: points (mode, dim) and gaps (mode,) of log density.

    seen: (snapshot, restart, dim). cooled: their ends, then every replica of the draws near them.
    """
    num, dim = seen.shape[1:]
    values = np.stack([_values(target, x) for x in seen])
    best = seen[values.argmax(axis=0), np.arange(num)]
    ends, references = cooled[:num], cooled[num:].reshape(REPLICAS, num, dim)
    usable = np.isfinite(values).all(axis=0) & (seen[0] != seen[-1]).any(axis=1) & np.isfinite(_values(target, ends))
    closed = usable & (_barriers(target, ends, references, factor) > BARRIER)
    # Few moves underestimate a volume, at home as much as there: home is judged by the restarts that came home.
    spreads = np.log(np.maximum(_whitened(seen, factor).var(axis=0, ddof=1), 1e-30)).sum(axis=1) / 2
    returned = usable & ~closed
    home = float(_values(target, draws[:: max(len(draws) // 512, 1)]).mean())
    volume = float(np.median(spreads[returned])) if returned.any() else 0.0
    rest, found = np.flatnonzero(closed), []
    while rest.size:
        first = rest[values[:, rest].max(axis=0).argmax()]
        ways = _dips(target, ends[rest], np.broadcast_to(ends[first], (len(rest), dim)))
        same = (ways < BARRIER) | (rest == first)
        gap = float(values[:, rest[same]].mean()) - home
        mass = gap + float(np.median(spreads[rest[same]])) - volume
        if mass > -NEGLIGIBLE:
            found.append((mass, gap, best[first]))
        rest = rest[~same]
    found.sort(key=lambda mode: -mode[0])
    return np.array([mode[2] for mode in found]).reshape(-1, dim), np.array([mode[1] for mode in found])


def _near(draws: np.ndarray, ends: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return as many different draws as there are ends: the nearest of each, then their next nearest."""
    pool = draws[:: -(-len(draws) // MOST_DRAWS)]
    order = np.argsort(cdist(_whitened(ends, factor), _whitened(pool, factor)), axis=1)[:, : len(ends)]
    return pool[np.resize(list(dict.fromkeys(order.T.ravel().tolist())), len(ends))]


def _barriers(target: LogDensity, ends: np.ndarray, references: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return the dip of the best way from each end (end, dim) to a draw near it; references: (replica, draw, dim)."""
    white, dim = _whitened(references, factor), ends.shape[1]
    distance = np.min([cdist(_whitened(ends, factor), replica) for replica in white], axis=0)
    near = np.argsort(distance, axis=1)[:, :NEIGHBOURS]
    others = references[:, near]
    dips = _dips(target, np.broadcast_to(ends[:, None], others.shape).reshape(-1, dim), others.reshape(-1, dim))
    return dips.reshape(others.shape[:-1]).max(axis=0).min(axis=1)


def _whitened(points: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return np.linalg.solve(factor, points.reshape(-1, len(factor)).T).T.reshape(points.shape)


def _dips(target: LogDensity, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return how far the log density falls under its lower end on the way from one point to the other, (pair,)."""
    values = np.asarray(_along(target, jnp.asarray(one), jnp.asarray(other)), float)
    values = np.where(np.isfinite(values), values, -np.inf)
    lower = np.minimum(values[:, 0], values[:, -1])
    dips = np.full(len(values), np.inf)
    return np.subtract(lower, values.min(axis=1), out=dips, where=np.isfinite(values).all(axis=1))


@jax.jit
def _along(target: LogDensity, one: Array, other: Array) -> Array:
    share = jnp.linspace(0.0, 1.0, POINTS, dtype=one.dtype)[None, :, None]
    return jax.vmap(jax.vmap(target))(one[:, None] * (1 - share) + other[:, None] * share)


def _values(target: LogDensity, points: np.ndarray) -> np.ndarray:
    """Return the log density of points (point, dim), minus infinity where it is not a number."""
    values = np.asarray(_each(target, jnp.asarray(points)), float)
    return np.where(np.isfinite(values), values, -np.inf)


@jax.jit
def _each(target: LogDensity, points: Array) -> Array:
    return jax.vmap(target)(points)


def _flat_logdensity(logdensity: LogDensity, one: Tree, x: Array) -> Scalar:
    return logdensity(ravel_pytree(one)[1](x))


@jax.jit
def _unflatten(one: Tree, points: Array) -> Tree:
    return jax.vmap(ravel_pytree(one)[1])(points)


@jax.jit
def _flatten(points: Tree) -> Array:
    return jax.vmap(lambda x: ravel_pytree(x)[0])(points)


def _tempered(logdensity: LogDensity, beta: Scalar, x: Tree) -> Scalar:
    value = logdensity(x)
    return beta.astype(value.dtype) * value


def _heated(kernel: Kernel, beta: float) -> Kernel:
    """Return the kernel with the step size that suits exp(beta log p), where it has one."""
    keywords = getattr(kernel, "keywords", {})
    if "step_size" not in keywords:
        return kernel
    power = 1.0 if beta > 1 and name_of(kernel) in VARIANCES else 0.5
    return with_step_size(kernel, jnp.asarray(keywords["step_size"], dtype=float) * beta**-power)


def _flat_draws(trace: Trace | Any) -> tuple[np.ndarray, Tree]:
    """Return all draws as (draw, dim), and one of them as it was."""
    trace = with_chain_axis(trace) if isinstance(trace, Trace) else trace
    position = trace.position if isinstance(trace, Trace) else trace
    for name, x in named_draws(position).items():
        if x.dtype.kind != "f" or not x.size or not np.isfinite(x).all():
            raise ValueError(f"a probe needs finite floating-point draws; {name!r} ({x.dtype}) has none or others")
    merged = jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, *np.shape(x)[2:]), position)
    return np.asarray(_flatten(merged)), jax.tree.map(lambda x: x[0], merged)


def _factor(draws: np.ndarray) -> np.ndarray:
    """Return a square root (dim, dim) of the draws' covariance, of its diagonal where draws are few."""
    num, dim = draws.shape
    sd = np.maximum(draws.std(axis=0, dtype=float), 1e-6)
    if num < 4 * dim:
        return np.diag(sd)
    correlation = np.atleast_2d(np.cov((draws / sd).T.astype(float), ddof=0))
    return sd[:, None] * np.linalg.cholesky(0.999 * correlation + 0.001 * np.eye(dim))


def _inflated(rng: np.random.Generator, spread: tuple[float, ...], num: int, dim: int) -> np.ndarray:
    factors = np.resize(np.asarray(spread, float), num)
    return factors[:, None] * rng.normal(size=(num, dim))
