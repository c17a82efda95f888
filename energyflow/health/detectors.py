"""Floor 7: the classic failures of training, a detector each, which names it and says what it has seen.

A detector is a pure function of the last rows of metrics and of a `View`. The severity of what it returns is a measured
figure over its threshold, so 1 and more is an alarm.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from energyflow.evaluation import precision_recall
from energyflow.health.views import View, look
from energyflow.training import TrainState, trouble
from energyflow.types import Objective, Tree

WINDOW = 100
"""Rows of metrics that are judged together: many periods of a swing, and few against a run."""
MIN_ROWS = 20
"""Rows below which a trend is noise."""
GROWTH = 15.0
"""Gap and gradient norm over their usual size, at least 1. Sharpening modes make them some times larger, not orders."""
REACH = 2.5
"""Distance of chains from the data's centre over the farthest row's. Tails beyond a fitted density end well before."""
SWING = 1.0
"""Half the range of a swing, in temperatures or twice the noise of a batch: what chance leaves of it is about half."""
UNSURE = 0.9
"""Severity, at most, of a gap that is far from usual and may yet settle."""
RECALL = 0.3
"""Share of data near draws. One of two modes is .5 of the data, and may be what is learned of them so far."""
LINEAGES = 0.02
"""Share of slots that descend from different starts: a buffer of fifty copies of one chain each."""
LONG_RUN = 1.0
"""Fall of the energy along long chains, in spreads of the energy over data: of draws of the model it is 0."""
ACCEPTANCE = 0.02
"""Chains that accept one proposal in fifty have not moved between updates."""
TRAVEL = 0.005
"""Distance that chains travel between updates, in spreads of the data: they need 40000 updates to diffuse over one."""
BIAS = 1.0
"""Mean gap of one sign, in spreads of the energy: early in training chains lag behind by some tenths."""


class Alarm(NamedTuple):
    """A failure by its name, the evidence in a sentence, the remedies that answer it, and its severity, 1 and over."""

    name: str
    reason: str
    remedies: tuple[str, ...]
    severity: float


def energy_explosion(history: list[dict[str, float]], view: View | None = None) -> Alarm:
    """Numbers that are not finite, or a gap or gradient norm that is orders above its usual size and still rising."""
    remedies = "shrink_steps", "slow_down", "restart"
    gaps: list[float] = []
    for row in history:
        reason = trouble(row, gaps)
        if reason:
            return Alarm("energy explosion", reason, remedies, math.inf)
    worst = Alarm("energy explosion", "the energies keep their size", remedies, 0.0)
    for name in ("gap", "gradient_norm"):
        sizes = np.abs([row[name] for row in history if name in row])
        if len(sizes) < MIN_ROWS:
            continue
        last = len(sizes) // 4 if len(sizes) < 40 else 10
        now, usual = np.median(sizes[-last:]), max(1.0, float(np.quantile(sizes[:-last], 0.1)))
        reason = f"the {name.replace('_', ' ')} is {now:.3g}, {now / usual:.3g} times its usual size of {usual:.3g}"
        worst = max(
            worst, worst._replace(reason=reason, severity=float(now / usual / GROWTH)), key=lambda a: a.severity
        )
    return worst


def out_of_distribution(history: list[dict[str, float]], view: View) -> Alarm:
    """A tenth of the chains, or more, have left the region of the data."""
    remedies, reach = ("refresh", "restart", "shrink_steps"), math.nan
    if view.draws is not None:
        center = np.median(view.data, axis=0)
        far, own = (np.linalg.norm(x - center, axis=1) for x in (view.draws, view.data))
        reach = float(np.quantile(far, 0.9) / max(own.max(), 1e-30))
    reason = f"a tenth of the chains are {reach:.3g} times as far from the data's centre as the farthest row of data"
    return Alarm("out-of-distribution drift", reason, remedies, _known(reach / REACH))


def oscillation(history: list[dict[str, float]], view: View) -> Alarm:
    """The gap swings between both signs, further than batches can make it, and goes on to."""
    name, remedies = "oscillation", ("slow_down", "restart")
    gaps = np.array([row["gap"] for row in history[-WINDOW:] if "gap" in row])
    if len(gaps) < 2 * MIN_ROWS:
        return Alarm(name, "too few rows to tell a swing", remedies, 0.0)
    smooth = np.convolve(gaps, np.full(5, 0.2), "valid")  # a batch's own noise is not a swing
    swing, before, now = (
        float(np.ptp(np.quantile(part, [0.05, 0.95]))) / 2 for part in (smooth, *np.array_split(smooth, 2))
    )
    away = smooth - np.quantile(smooth, [0.05, 0.95]).mean()
    turns = int(np.count_nonzero(np.diff(np.sign(away[np.abs(away) > swing / 2]))))
    lasting = 0.05 < np.mean(smooth > 0) < 0.95 and turns >= 2 and now >= before / 2
    reason = (
        f"the gap turned {turns} times within {len(gaps)} steps and swings by {swing:.3g} to both sides, where batches "
        f"leave it {view.noise:.2g}"
    )
    severity = swing / max(view.temperature, 2 * view.noise) / SWING
    return Alarm(name, reason, remedies, severity if lasting else min(severity, UNSURE))


def mode_collapse(history: list[dict[str, float]], view: View) -> Alarm:
    """The draws are where few of the data are, though where data are; or they all descend from few starts."""
    name, remedies = "mode collapse", ("keep_slots", "restart")
    if view.draws is None or min(len(view.draws), len(view.data)) < MIN_ROWS or not np.isfinite(view.draws).all():
        return Alarm(name, "no draws to look at", remedies, 0.0)
    precision, recall = precision_recall(view.draws, view.data)
    reason = f"the draws are near {recall:.2f} of the data, and {precision:.2f} of them are where data are"
    found = Alarm(name, reason, remedies, RECALL / max(recall, 1e-3) if precision > 0.5 else 0.0)
    if view.slots and history and "lineages" in history[-1]:
        few = history[-1]["lineages"]
        reason = f"the {view.slots} chains of the buffer descend from {few:.0f} starts"
        severity = LINEAGES * view.slots / few if view.slots > 2 / LINEAGES else 0.0
        found = max(found, Alarm(name, reason, remedies, severity), key=lambda alarm: alarm.severity)
    return found


def long_run_collapse(history: list[dict[str, float]], view: View) -> Alarm:
    """Chains that go on from the draws find much lower energies: the model is a sampler of that length, no density."""
    unit = max(view.temperature, view.spread)
    reason = f"the energy of the draws falls by {view.fall:.3g} when their chains go on; its spread is {unit:.3g}"
    return Alarm("long-run collapse", reason, ("persist",), _known(view.fall / unit / LONG_RUN))


def poor_samples(history: list[dict[str, float]], view: View) -> Alarm:
    """Chains that stand still, or a gap of one sign all the time: the draws are not those of the model."""
    rows = history[-WINDOW:]
    if len(rows) < MIN_ROWS:
        return Alarm("poor samples", "too few rows to tell", (), 0.0)
    found = []
    if "acceptance_rate" in rows[-1]:
        rate = float(np.median([row["acceptance_rate"] for row in rows[-MIN_ROWS:]]))
        reason = f"chains accept a share of {rate:.3g} of their moves: they stand still"
        found.append((ACCEPTANCE / max(rate, 1e-9), reason, ("restart", "settle_steps")))
    if "travel" in rows[-1] and rows[-1].get("acceptance_rate", 1.0) > 0.5:
        spread = float(np.sqrt(view.data.var(axis=0).sum()))
        way = float(np.median([row["travel"] for row in rows[-MIN_ROWS:]])) / max(spread, 1e-30)
        reason = f"chains travel {way:.2g} of the data's spread between updates: they hardly move"
        found.append((TRAVEL / max(way, 1e-9), reason, ("stretch_steps", "restart")))
    gaps = np.array([row.get("gap", 0.0) for row in rows])
    if len(rows) >= 2 * MIN_ROWS and np.mean(np.sign(gaps) == np.sign(gaps.mean())) > 0.9:
        bias = min(abs(half.mean()) for half in np.array_split(gaps, 2)) / max(view.temperature, view.spread)
        reason = f"the gap has been {gaps.mean():.3g} for {len(rows)} steps, of one sign: the chains do not converge"
        found.append((bias / BIAS, reason, ("lengthen", "slow_down", "restart")))
    severity, reason, remedies = max(found, default=(0.0, "chains move", ()), key=lambda one: one[0])
    return Alarm("poor samples", reason, remedies, float(severity))


def _known(severity: float) -> float:
    return 0.0 if math.isnan(severity) else severity


DETECTORS = oscillation, energy_explosion, out_of_distribution, mode_collapse, long_run_collapse, poor_samples
"""From the most specific to the least: what has several of these signs is named by the first."""


def examine(history: list[dict[str, float]], view: View) -> list[Alarm]:
    """Return what each detector finds, whatever its severity."""
    return [detector(history, view) for detector in DETECTORS]


def watch(
    state: TrainState,
    history: list[dict[str, float]],
    batch: Tree,
    objective: Objective,
    *,
    size: int = 0,
    long_run: int = 0,
    conditional: bool = False,
) -> list[Alarm]:
    """Return the alarms of a run, none where it is healthy, the one to act on first.

    history: rows of metrics as floats, the last of them of `state`; some hundreds are enough. batch: rows of data, some
    hundreds too. The rest as of `look`; long-run collapse is seen only with `long_run`.
    """
    found = judge(state, history, batch, objective, size=size, long_run=long_run, conditional=conditional)
    return [alarm for alarm in found if alarm.severity >= 1]


def judge(
    state: TrainState, history: list[dict[str, float]], batch: Tree, objective: Objective, **how: Any
) -> list[Alarm]:
    """Return what each detector finds, as `watch`, whatever its severity; numbers that are not finite are all it is."""
    blown = energy_explosion(history)
    if not math.isfinite(blown.severity):
        return [blown]
    return examine(history, look(state, objective, batch, **how))
