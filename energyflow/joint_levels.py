"""Floor 4: chains over points and levels of a diffusion at once, with the law p(x, t) ~ exp(-E(x, t) / T).

A chain moves its point by a kernel at the level it is on, then draws its level given the point, exactly. At the noisy
levels modes merge, so a chain that wanders up and down crosses between them, and the points of the clean level among
its draws are draws of exp(-E(x, 0) / T) in the right proportions (Zhang, Tan and Ou 2023).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jax.tree_util import register_dataclass

from energyflow.chains import chain_keys, count_chains, evolve_from, start_cost, summary_of
from energyflow.diffusion import Diffusion, checked_diffusion
from energyflow.energy import as_energy, logdensity, require_density
from energyflow.kernels.algorithm import step_size, with_step_size
from energyflow.kernels.noise import normal_like
from energyflow.kernels.transitions import scan_keys, step_keys
from energyflow.rows import flat_rows
from energyflow.stats import log_mean_exp
from energyflow.stepsize import decaying_gain
from energyflow.types import Array, Kernel, Key, Tree, as_key


class LevelSteps(NamedTuple):
    """What each level multiplies the kernel's step size by, as logarithms, and how often it was adapted; (T + 1,)."""

    log_scales: Array
    counts: Array

    @property
    def scales(self) -> Array:
        """The factors, (T + 1,); `joint_chain(step_scales=...)` takes them."""
        return jnp.exp(self.log_scales)


@register_dataclass
@dataclass(frozen=True)
class JointMoves:
    """How chains move: `num_rounds` times `num_steps` transitions of the kernel and a draw of the level.

    target_acceptance: what the step size of each level adapts to; None holds them.
    """

    kernel: Kernel
    target_acceptance: Any
    num_steps: int = field(metadata={"static": True})
    num_rounds: int = field(default=1, metadata={"static": True})
    unroll: bool = field(default=False, metadata={"static": True})


class JointTrace(NamedTuple):
    """Draws of chains over points and levels; arrays lead with [chain, draw].

    position, level: the points and their levels. energy: `E(x, t) / T` of each. acceptance_rate: (T + 1,), the mean of
    the moves made at each level, NaN at one never visited; None for kernels without an accept step. level_moves: the
    share of rounds that changed the level. step_scales: (T + 1,), as used. final: (position, level), to go on from.
    """

    position: Tree
    level: np.ndarray
    energy: np.ndarray
    acceptance_rate: np.ndarray | None
    level_moves: float
    step_scales: np.ndarray
    final: tuple[Tree, Array]

    def at(self, level: int = 0) -> Tree:
        """Return the points drawn at a level, the clean one by default, of all chains; leading axis [point]."""
        mask = self.level == level
        return jax.tree.map(lambda x: x[mask], self.position)

    @property
    def energy_drift(self) -> float:
        """The mean energy of the last quarter of the draws less that of the first, in standard deviations of a draw."""
        quarter = max(self.energy.shape[1] // 4, 1)
        rise = self.energy[:, -quarter:].mean() - self.energy[:, :quarter].mean()
        return float(rise / self.energy.std())


class FreeLogZ(NamedTuple):
    """The log Z of the clean level by the law of the last one; every `_error` is a standard error.

    log_z: of every level, if all are alike and the last is N(0, I). end: of the last level, by importance sampling from
    N(0, I). imbalance: log Z of the clean level less that of the last, by the shares of the chains' levels.
    """

    log_z: float
    std_error: float
    end: float
    end_error: float
    imbalance: float
    imbalance_error: float

    @property
    def corrected(self) -> tuple[float, float]:
        """`end + imbalance`, log Z of the clean level without either assumption, and its standard error."""
        return self.end + self.imbalance, float(np.hypot(self.end_error, self.imbalance_error))


def level_scales(diffusion: Diffusion) -> np.ndarray:
    """Return sigma_t^2, (T + 1,), by which steps that are squared lengths (MALA's) shrink with the noise of a level.

    A clean level has no noise and takes the first noisy level's.
    """
    sigmas = checked_diffusion(diffusion).sigmas
    return np.maximum(sigmas, sigmas[sigmas > 0].min()) ** 2


def start_steps(diffusion: Diffusion, step_scales: Any = None) -> LevelSteps:
    """Return the step factors that a run begins with, `level_scales` by default.

    Raises ValueError unless there is one positive factor for each level.
    """
    default = level_scales(diffusion)
    scales = default if step_scales is None else np.asarray(step_scales, np.float64)
    if scales.shape != default.shape or not (np.isfinite(scales) & (scales > 0)).all():
        raise ValueError(f"step_scales must be {len(default)} positive numbers, one a level; got {step_scales}")
    return LevelSteps(jnp.asarray(np.log(scales), float), jnp.zeros(len(scales), jnp.int32))


def checked_moves(kernel: Kernel, target_acceptance: Any, num_steps: int, num_rounds: int, unroll: bool) -> JointMoves:
    """Return the moves. Raises ValueError for no step or round, a rate outside (0, 1) and a kernel without a step."""
    step_size(kernel)
    if min(num_steps, num_rounds) < 1:
        raise ValueError(f"need num_steps and num_rounds of at least 1; got {num_steps} and {num_rounds}")
    if target_acceptance is not None and not 0 < target_acceptance < 1:
        raise ValueError(f"target_acceptance must lie between 0 and 1, or be None; got {target_acceptance}")
    return JointMoves(as_energy(kernel), target_acceptance, num_steps, num_rounds, unroll)


def level_logits(energy: Any, position: Tree, num_levels: int) -> Array:
    """Return `-E(x, t) / T` of points at all levels, (num, num_levels); -inf where it is not finite."""
    every = jnp.arange(num_levels)
    logits = jax.vmap(lambda x: jax.vmap(lambda t: logdensity(energy, t)(x))(every))(position)
    return jnp.where(jnp.isfinite(logits), logits, -jnp.inf)


def joint_moves(
    moves: JointMoves, key: Key, energy: Any, position: Tree, level: Array, steps: LevelSteps
) -> tuple[Tree, Array, LevelSteps, dict[str, Array]]:
    """Move chains over points and levels; returns both, the adapted steps and scalar metrics.

    position: leading axis [chain]; level: (num,), integers. No gradient flows through.
    """
    energy = jax.lax.stop_gradient(as_energy(energy))

    def again(state: tuple, key: Key) -> Any:
        position, level, steps, report = joint_round(moves, key, energy, *state)
        return (position, level, steps), report.metrics

    state = (position, level, steps)
    if moves.num_rounds == 1:
        state, metrics = again(state, key)
    else:
        state, rows = scan_keys(again, state, step_keys(key, moves.num_rounds))
        metrics = jax.tree.map(lambda x: jnp.sum(x) if x.dtype == jnp.int32 else jnp.mean(x), rows)
    position, level, steps = jax.lax.stop_gradient(state)
    return position, level, steps, metrics


class RoundReport(NamedTuple):
    """What a round did: scalar metrics, the chains' energies (num,), and by level acceptance and visits, (T + 1,)."""

    metrics: dict[str, Array]
    energy: Array
    accepted: Array | None
    visits: Array


def joint_round(moves: JointMoves, key: Key, energy: Any, position: Tree, level: Array, steps: LevelSteps) -> Any:
    """Make `num_steps` transitions of each chain at its level and draw its level anew.

    Returns position, level, steps and a `RoundReport`. Chain c has keys of its own, `fold_in(., c)`.
    """
    move_key, level_key = jax.random.split(key)
    num, num_levels = count_chains(position), len(steps.counts)
    own_steps = (step_size(moves.kernel) * steps.scales)[level]

    def one(key: Key, position: Tree, level: Array, step: Array) -> Any:
        kernel = with_step_size(moves.kernel, step)
        return evolve_from(key, kernel, logdensity(energy, level), position, moves.num_steps, unroll=moves.unroll)

    state, stats = jax.vmap(one)(chain_keys(move_key, num), position, level, own_steps)
    here = jax.nn.one_hot(level, num_levels, axis=0)
    rate, visits = stats.acceptance_rate, here.sum(axis=1)
    accepted = None if rate is None else here @ jnp.mean(rate, axis=1).astype(here.dtype)
    steps = _adapt(moves.target_acceptance, steps, accepted, visits)
    logits = level_logits(energy, state.position, num_levels)
    drawn = jax.vmap(jax.random.categorical)(chain_keys(level_key, num), logits).astype(level.dtype)
    energies = -jnp.take_along_axis(logits, drawn[:, None], axis=1)[:, 0]
    metrics = summary_of(stats, start_cost(state) * num)
    metrics["level_moves"] = jnp.mean((drawn != level).astype(float))
    return state.position, drawn, steps, RoundReport(metrics, energies, accepted, visits)


def _adapt(target: Any, steps: LevelSteps, accepted: Array | None, visits: Array) -> LevelSteps:
    """Move the steps of the levels that were visited towards the target (Robbins and Monro 1951)."""
    if target is None:
        return steps
    if accepted is None:
        raise ValueError("target_acceptance needs a kernel with an accept step; give None for unadjusted kernels")
    error = accepted / jnp.maximum(visits, 1.0) - target
    log_scales = steps.log_scales + jnp.where(visits > 0, decaying_gain(steps.counts) * error, 0.0).astype(
        steps.log_scales.dtype
    )
    return LevelSteps(log_scales, steps.counts + (visits > 0).astype(jnp.int32))


def joint_chain(
    key: Key | int,
    energy: Any,
    diffusion: Diffusion,
    position: Tree,
    level: Any,
    kernel: Kernel,
    num_rounds: int,
    *,
    num_steps: int = 10,
    step_scales: Any = None,
    target_acceptance: float | None = 0.574,
    warmup: int = 0,
    thin: int = 1,
    chunk_size: int = 100,
) -> JointTrace:
    """Sample chains over points and levels, `num_rounds` times `num_steps` transitions and a draw of the level.

    energy: `E(x, t)`, t an integer level of the diffusion. position, level: starts, leading axis [chain]; those of the
    trained state, or N(0, I) and levels spread evenly. kernel: its step size is multiplied by `step_scales[t]`, the
    trained state's `steps.scales` or `level_scales`. warmup: rounds that come first, are discarded, and adapt the
    step of each level to `target_acceptance` (None holds it); afterwards steps are held, so the law is exact for
    kernels with an accept step. thin: rounds per draw. Points of the clean level are `trace.at(0)`.
    Draws do not depend on `chunk_size`, the rounds of one jitted call.
    Raises ValueError for a landscape, levels that the diffusion does not have, and settings that are none.
    """
    require_density(energy, "sampling over levels")
    moves = checked_moves(kernel, target_acceptance, num_steps, 1, False)
    steps, key = start_steps(diffusion, step_scales), as_key(key)
    level = _checked_levels(level, count_chains(position), len(steps.counts))
    if min(num_rounds, thin, chunk_size, warmup + 1) < 1 or num_rounds % thin:
        raise ValueError(
            f"need a round or more, a multiple of thin, and a warmup that is not negative; got {num_rounds}, {thin} "
            f"and {warmup}"
        )
    state = (jax.tree.map(lambda x: jnp.asarray(x, float), position), level, steps)
    held, kept = replace(moves, target_acceptance=None), []
    for first, size in _pieces(warmup, chunk_size):
        state, _ = _chunk(step_keys(key, size, first), moves, as_energy(energy), state, size)
    for first, size in _pieces(num_rounds, thin * max(chunk_size // thin, 1)):
        state, made = _chunk(step_keys(key, size, warmup + first), held, as_energy(energy), state, thin)
        kept.append(jax.tree.map(np.asarray, made))
    return _joined(kept, state)


def _checked_levels(level: Any, num: int, num_levels: int) -> Array:
    level = np.asarray(level)
    if level.shape != (num,) or level.dtype.kind not in "iu" or level.min() < 0 or level.max() >= num_levels:
        raise ValueError(f"level must be {num} integers, one a chain, from 0 to {num_levels - 1}; got {level}")
    return jnp.asarray(level, jnp.int32)


def _pieces(total: int, size: int) -> list[tuple[int, int]]:
    """Return (first, length) of pieces of a run."""
    return [(first, min(size, total - first)) for first in range(0, total, size)]


@functools.partial(jax.jit, static_argnames="thin")
def _chunk(keys: Key, moves: JointMoves, energy: Any, state: tuple, thin: int) -> Any:
    """Make a round for each key and keep every `thin`-th; draws lead with [draw, chain], totals with [draw]."""

    def one(state: tuple, key: Key) -> Any:
        position, level, steps, report = joint_round(moves, key, energy, *state)
        return (position, level, steps), (report.energy, report.accepted, report.visits, report.metrics["level_moves"])

    def draw(state: tuple, keys: Key) -> Any:
        state, (energies, *totals) = scan_keys(one, state, keys)
        return state, ((*state[:2], energies[-1]), jax.tree.map(lambda x: jnp.sum(x, axis=0), tuple(totals)))

    return scan_keys(draw, state, keys.reshape(-1, thin))


def _joined(kept: Sequence[Any], state: tuple) -> JointTrace:
    """Join the chunks of a run, on the host."""
    draws, totals = jax.tree.map(lambda *parts: np.concatenate(parts), *kept)
    position, level, energy = jax.tree.map(lambda x: np.swapaxes(x, 0, 1), draws)
    accepted, visits, changed = (None if x is None else np.asarray(x, np.float64).sum(axis=0) for x in totals)
    assert visits is not None and changed is not None
    rate = None if accepted is None else np.divide(accepted, visits, out=np.full_like(visits, np.nan), where=visits > 0)
    moved = float(changed / (visits.sum() / level.shape[0]))
    return JointTrace(position, level, energy, rate, moved, np.asarray(state[2].scales), state[:2])


def free_log_z(
    key: Key | int, energy: Any, diffusion: Diffusion, position: Tree, level: Any, *, num_draws: int = 4096
) -> FreeLogZ:
    """Return log Z of the clean level from draws over points and levels (Zhang, Tan and Ou 2023).

    At the optimum the log Z of all levels are equal, and the last level is N(0, I), so that log Z is the mean of
    `-E(x, T)/T' - log N(x; 0, I)` over the draws of the last level, T' being the temperature: that is `log_z`. It
    assumes both. Where sigma_T < 1 the last level is normal but nearly, also at the optimum, and the mean is too high
    by KL(p_T || N(0, I)). Off the optimum the levels differ, which `imbalance` shows: the log of the clean level's
    share of the draws over the last level's. `corrected` needs neither assumption, only chains in equilibrium.
    position, level: draws, leading axes [chain, draw], as in a `JointTrace`; standard errors take the chains to be
    independent. num_draws: of N(0, I), for `end`.
    Raises ValueError for fewer than two chains, or no draw at the clean or the last level.
    """
    last, level = len(checked_diffusion(diffusion).alphas) - 1, np.asarray(level)
    ends, clean = level == last, level == 0
    if level.ndim != 2 or level.shape[0] < 2 or not ends.any() or not clean.any():
        raise ValueError("free_log_z needs draws (chain, draw) of two chains or more that visit level 0 and the last")
    num = int(ends.sum())
    rows = np.resize(np.flatnonzero(ends), 1 << (num - 1).bit_length())  # a power of two: few shapes to compile for
    points = jax.tree.map(lambda x: jnp.asarray(x.reshape(-1, *x.shape[2:])[rows], float), position)
    noise = normal_like(as_key(key), jax.tree.map(lambda x: jnp.zeros((num_draws, *x.shape[1:]), x.dtype), points))
    weights, drawn = (np.asarray(_log_weights(as_energy(energy), last, x), np.float64) for x in (points, noise))
    weights = weights[:num]
    values = np.zeros(level.shape)
    values[ends] = weights - weights.mean()
    shares = clean / clean.sum() - ends / ends.sum()
    end, end_error = log_mean_exp(drawn)
    return FreeLogZ(
        float(weights.mean()),
        _error((values / ends.sum()).sum(axis=1)),
        float(end),
        float(end_error),
        float(np.log(clean.sum() / ends.sum())),
        _error(shares.sum(axis=1)),
    )


def _error(parts: np.ndarray) -> float:
    """Return the standard error of a sum of one independent part of each chain."""
    return float(np.sqrt(len(parts)) * parts.std(ddof=1))


@jax.jit
def _log_weights(energy: Any, level: Array, position: Tree) -> Array:
    """Return `-E(x, level)/T - log N(x; 0, I)` of points."""
    rows, _ = flat_rows(position)
    return jax.vmap(logdensity(energy, level))(position) - jnp.sum(norm.logpdf(rows), axis=1)
