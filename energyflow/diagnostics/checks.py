"""Floor 6: a verdict on draws: named problems with where they are and what to do, or none.

Frozen chains report an effective sample size equal to the number of draws and an R-hat that is not a number, so the
checks look at the draws themselves first and at R-hat last.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from energyflow.chains import Trace
from energyflow.diagnostics.export import named_draws, with_chain_axis
from energyflow.diagnostics.problems import (
    FALSE_ALARM,
    disagreement,
    drift,
    energy_drift,
    mixing_numbers,
    sampler_problems,
    superchain_disagreement,
    unusable_draws,
)
from energyflow.stats import superchain_labels

UNSEEN = "draws cannot show a mode that no chain visited; ef.probe_modes looks for one"


class Check(NamedTuple):
    """verdict: "healthy" or the name of the worst problem. problems: one sentence each, worst first.

    numbers: the largest R-hat (of superchains: nested R-hat), the smallest bulk ESS, and where known the acceptance
    rate, the share of divergent transitions and the ESS per energy gradient. notes: what a verdict does not cover.
    """

    verdict: str
    problems: list[str]
    numbers: dict[str, float]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.numbers.items() if name[-4:] != "_dim")
        lines = [*(f"- {problem}" for problem in self.problems), *(f"note: {note}" for note in self.notes)]
        return "\n".join([self.verdict + (numbers and f": {numbers}"), *lines])


def check(trace: Trace | Any, *, superchains: Any = None) -> Check:
    """Judge draws of several chains.

    trace: a Trace of `sample_chains` (of `sample`: one chain), or an array or pytree of arrays [chain, draw, ...].
    superchains: for many short chains, even of one draw each: labels (chain,) or the number of superchains side by
    side. The chains of a superchain must have started at the same point (`superchain_starts` sees to it); only their
    counts are verified, and labels of chains that did not share a start make every draw look well mixed.
    Looks, in this order, for: draws that are not finite, chains or dimensions that never move, too few draws to judge,
    chains that all drift one way, a log density that does, chains that disagree, a bulk ESS under 100, divergences in
    more than one transition of ten thousand, acceptance under 0.05. What draws cannot show, a mode no chain visited, it
    cannot see, and says so in a note.

    Chains disagree where the rank-normalised split R-hat (Vehtari et al. 2021; the plain one for chains under 20 draws)
    is over 1.01, for more than eight chains where it says that all draws together are worth fewer than 800, since more
    chains need less of each; 1.1 is the limit (Gelman and Rubin 1992). Short chains are allowed what chance makes of
    their R-hat.
    Superchains are judged by nested R-hat (Margossian et al. 2024): over 1.01 by more than chance makes of superchains
    of so few chains.
    Raises ValueError for arrays without a chain and a draw axis, and for superchains of unequal size or of one chain.
    """
    trace = with_chain_axis(trace) if isinstance(trace, Trace) else trace
    position = trace.position if isinstance(trace, Trace) else trace
    draws = named_draws(position)
    sizes = {name: int(np.prod(x.shape[2:])) for name, x in draws.items()}
    parts = [x.reshape(*x.shape[:2], sizes[name]) for name, x in draws.items()]
    flat = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
    labels = [f"{name}[{i}]" for name, size in sizes.items() for i in range(size)]
    groups = None if superchains is None else superchain_labels(superchains, len(flat))
    if groups is not None and len(groups) < 2 * (groups.max() + 1):
        raise ValueError(f"superchains need two chains or more; got {len(groups)} superchains of one chain each")
    found = list(unusable_draws(flat, labels, groups))
    numbers: dict[str, float] = {}
    if not found:
        if groups is None:
            numbers = mixing_numbers(flat)
            apart = disagreement(flat, labels, numbers)
        else:
            numbers, apart = superchain_disagreement(flat, labels, groups)
        if flat.shape[1] > 1:
            found += drift(flat, labels, 1e-3 if apart else FALSE_ALARM)
            if not found and isinstance(trace, Trace) and trace.logdensity is not None:
                found += energy_drift(trace.logdensity)
        found += apart
    if isinstance(trace, Trace):
        numbers |= _sampler_numbers(trace, numbers.get("ess"))
        found += sampler_problems(numbers)
    verdict = found[0][0] if found else "healthy"
    return Check(verdict, [f"{name}: {text}" for name, text in found], numbers, [] if found else [UNSEEN])


def _sampler_numbers(trace: Trace, ess: float | None) -> dict[str, float]:
    stats, numbers = trace.stats, {}
    if stats.acceptance_rate is not None:
        numbers["acceptance_rate"] = float(np.mean(stats.acceptance_rate))
    if stats.is_divergent is not None:
        numbers["divergent"] = float(np.mean(stats.is_divergent))
    if stats.num_gradients is not None and ess is not None and np.sum(stats.num_gradients) > 0:
        numbers["ess_per_gradient"] = ess / float(np.sum(stats.num_gradients, dtype=np.float64))
    return numbers
