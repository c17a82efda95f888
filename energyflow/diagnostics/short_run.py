"""Floor 6: whether contrastive training made a density or only a short sampler (Nijkamp et al. 2019, 2020).

Chains that are too short to converge can train an energy whose short runs look like data while its density is another.
Two things tell: the energy gap of training, which for converged chains swings about 0, and long runs from data, which
stay where they begin if the data are the energy's density, and leave if they are not.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist

from energyflow.chains import count_chains, sample_chains
from energyflow.energy import as_energy, logdensity
from energyflow.mixing import rank_statistics
from energyflow.rows import flat_rows
from energyflow.types import Array, Kernel, Key, LogDensity, Tree, as_key

SURE = 4.5
"""Standard errors beyond which chance is no explanation."""
NEAR = 0.95
"""Share of the rows that count as near the others."""


class GapReport(NamedTuple):
    """How the energy gap `E_model - E_data` moved in training; prints itself as a sentence.

    verdict: "balanced" where its mean is 0 within 4.5 standard errors, else "model above data" or "model below data".
    mean, stderr: of the gap, the error from its effective sample size. positive: share of steps with a gap over 0.
    sign_changes: share of steps at which it changes sign; .5 for independent gaps about 0. autocorrelation: (lags,),
    at lags 1, 2, ...
    """

    verdict: str
    mean: float
    stderr: float
    positive: float
    sign_changes: float
    autocorrelation: np.ndarray

    def __str__(self) -> str:
        return (
            f"{self.verdict}: the gap is {self.mean:.3g} +- {self.stderr:.2g}, over 0 in {self.positive:.0%} of the "
            f"steps, of autocorrelation {self.autocorrelation[0]:.2f} from one to the next"
        )


def gap_report(metrics: Sequence[Any] | np.ndarray, *, skip: float = 0.5, num_lags: int = 20) -> GapReport:
    """Report how the energy gap moved over training.

    metrics: the rows of metrics in their order, or their gaps (n,). skip: share of the steps left out, the first: they
    are the way to the data. num_lags: autocorrelations reported.
    A gap of one sign means chains that do not follow the model, or a regulariser (`l2`, weight decay, short chains
    from fresh starts) that holds it open. A balanced gap certifies nothing: chains that hardly move have one as well.
    Raises ValueError for fewer than 20 steps, or num_lags + 2, after `skip`, and for gaps that are not finite.
    """
    rows = [row["gap"] if isinstance(row, dict) else row for row in metrics]
    gaps = np.asarray(jax.device_get(rows), np.float64)[int(skip * len(rows)) :]
    if gaps.ndim != 1 or len(gaps) < max(20, num_lags + 2) or not np.isfinite(gaps).all():
        raise ValueError(f"need finite gaps of {max(20, num_lags + 2)} steps or more; got shape {gaps.shape}")
    around = gaps - gaps.mean()
    square = around @ around
    lags = [around[lag:] @ around[:-lag] / square if square > 0 else 1.0 for lag in range(1, num_lags + 1)]
    stderr = float(gaps.std(ddof=1) / np.sqrt(rank_statistics(gaps[None])[1])) if square > 0 else 0.0
    mean = float(gaps.mean())
    verdict = "balanced" if abs(mean) <= SURE * stderr else f"model {'above' if mean > 0 else 'below'} data"
    changes = float(np.mean(np.diff(gaps > 0)))
    return GapReport(verdict, mean, stderr, float(np.mean(gaps > 0)), changes, np.asarray(lags))


class LongRun(NamedTuple):
    """What long chains from data did; prints itself.

    verdict: "convergent", "drifts" or "undecided". reasons: a sentence for each thing that speaks against the first.
    drift: change of the mean of E/T from the starts to the ends, in standard deviations over the starts. near,
    expected_near: shares of the ends and of the starts that are near. memory: correlation of E at a chain's start and
    end, 1 for chains that stand still. steps, energy, slope: (k,), transitions made, and at them the means over the
    chains of E/T and |grad E|/T. position: the ends, leading axis [chain].
    """

    verdict: str
    reasons: list[str]
    drift: float
    near: float
    expected_near: float
    memory: float
    steps: np.ndarray
    energy: np.ndarray
    slope: np.ndarray
    position: Tree

    def __str__(self) -> str:
        head = (
            f"{self.verdict} after {self.steps[-1]} steps: energy drift {self.drift:+.2f} sd, "
            f"near {self.near:.3f} (starts {self.expected_near:.3f}), memory {self.memory:.2f}"
        )
        return "\n".join([head, *(f"- {reason}" for reason in self.reasons)])


def long_run(
    key: Key | int,
    energy: Any,
    kernel: Kernel,
    starts: Tree,
    num_steps: int,
    *,
    near: Callable[[Tree], Any] | None = None,
    drift: float = 0.25,
    lost: float = 0.1,
    num_kept: int = 50,
) -> LongRun:
    """Run chains from data far longer than training did, and judge whether they stay with the data.

    energy: at its temperature: `tempered(energy, T)` where chains were trained at another than 1, and `condition`ed.
    kernel: give one with an accept step: an unadjusted one has a law of its own, which is then what is judged.
    starts: held-out rows of data, leading axis [chain], a thousand of them. num_steps: thousands.
    near: of one position, whether it is where data are, such as within 3 sd of a known mode. By default, whether
    another start is as near to it as for .95 of the starts. drift, lost: what is tolerated, in standard deviations of
    the starts' energies and in share of chains near; more is a drift where it is also beyond 4.5 standard errors.
    num_kept: points of the path that are kept.
    "undecided": more than tolerated, and within 4.5 standard errors, as is likely with fewer than some hundreds of
    starts; or nothing drifts, and starts and ends still have energies of correlation over .5. "convergent" speaks for
    the places that the chains can reach from data, not for modes elsewhere or for weights of modes never left.
    Raises ValueError for fewer than two starts or no steps, and SamplingStopped where an unadjusted chain leaves the
    finite numbers.
    """
    num = count_chains(starts)
    if num < 2 or num_steps < 1:
        raise ValueError(f"a long run needs two starts and a step; got {num} and {num_steps}")
    target, thin = logdensity(as_energy(energy)), max(1, num_steps // num_kept)
    starts = jax.tree.map(jnp.asarray, starts)
    trace = sample_chains(as_key(key), kernel, target, starts, num_steps // thin, thin=thin, fields=("position",))
    path = jax.tree.map(
        lambda x, draws: np.concatenate([np.asarray(x)[None], np.moveaxis(draws, 1, 0)]), starts, trace.position
    )
    energies, slopes = (np.asarray(x, np.float64) for x in _along(target, path))
    ends = jax.tree.map(lambda x: x[-1], path)
    at_end, at_start = _near_others(starts, ends) if near is None else (_hits(near, ends), _hits(near, starts))
    memory = _correlation(energies[0], energies[-1])
    moved = _shift(energies)
    reasons, unsure = _drifts(moved, energies, at_end, at_start, drift, lost)
    verdict = "drifts" if reasons else "convergent"
    if not reasons:
        reasons = [f"{text}, or so it may seem by chance: give more starts" for text in unsure]
        if not memory < 0.5:
            reasons.append(f"starts and ends have energies of correlation {memory:.2f}: run longer")
        verdict = "undecided" if reasons else "convergent"
    return LongRun(
        verdict,
        reasons,
        moved,
        float(at_end.mean()),
        float(at_start.mean()),
        memory,
        thin * np.arange(len(energies)),
        energies.mean(axis=1),
        slopes.mean(axis=1),
        ends,
    )


@jax.jit
def _along(target: LogDensity, path: Tree) -> tuple[Array, Array]:
    """Return E/T and |grad E|/T at every point of the paths, (step, chain)."""

    def one(x: Tree) -> tuple[Array, Array]:
        value, slope = jax.value_and_grad(target)(x)
        return -value, jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(slope)))

    return jax.lax.map(jax.vmap(one), path)


def _shift(energies: np.ndarray) -> float:
    spread = energies[0].std(ddof=1)
    change = energies[-1].mean() - energies[0].mean()
    return float(change / spread) if spread > 0 else float(np.sign(change) * np.inf if change else 0.0)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    spread = a.std() * b.std()
    return float(np.mean((a - a.mean()) * (b - b.mean())) / spread) if spread > 0 else 1.0


def _drifts(
    moved: float, energies: np.ndarray, at_end: np.ndarray, at_start: np.ndarray, drift: float, lost: float
) -> tuple[list[str], list[str]]:
    """Return what is more than tolerated: beyond chance, and within it."""
    num, found = len(at_end), ([], [])
    change = energies[-1] - energies[0]  # paired: a chain's start and end have one law if that is the energy's
    if abs(moved) > drift:
        sure = abs(change.mean()) > SURE * change.std(ddof=1) / np.sqrt(num)
        way = "up" if moved > 0 else "down"
        found[not sure].append(f"energies went {way} by {abs(moved):.2f} sd: data are not typical of the density")
    fewer = at_start.mean() - at_end.mean()
    if fewer > lost:
        sure = fewer > SURE * np.sqrt((at_start.var() + at_end.var()) / num)
        text = f"{at_end.mean():.0%} of the chains end near data, against {at_start.mean():.0%} of the starts"
        found[not sure].append(text)
    return found


def _hits(near: Callable[[Tree], Any], rows: Tree) -> np.ndarray:
    return np.asarray(jax.vmap(near)(jax.tree.map(jnp.asarray, rows)), np.float64)


def _near_others(starts: Tree, ends: Tree) -> tuple[np.ndarray, np.ndarray]:
    """Return whether ends, and starts, have a start of another chain within the distance that most starts have one."""
    rows, points = (np.asarray(flat_rows(x)[0], np.float64) for x in (starts, ends))
    own, theirs = _nearest_other(rows, rows), _nearest_other(points, rows)
    reach = np.quantile(own, NEAR)
    return (theirs <= reach).astype(float), (own <= reach).astype(float)


def _nearest_other(points: np.ndarray, rows: np.ndarray) -> np.ndarray:
    found = []
    for block in np.array_split(np.arange(len(points)), -(-len(points) * len(rows) // 10**7)):
        distances = cdist(points[block], rows)
        distances[np.arange(len(block)), block] = np.inf
        found.append(distances.min(axis=1))
    return np.concatenate(found)
