"""What a log Z estimate says of itself: two sides, their provenance, and a verdict in words."""

from typing import Any, NamedTuple

import numpy as np

from energyflow.stats import bennett_acceptance_ratio, effective_sample_size, log_mean_exp
from energyflow.types import Tree

STANDARD_ERRORS = 4.0
"""z of `lower` and `upper`: a family of 500 brackets then misses by chance with probability 3 % at most (Gaussian)."""


class LogZ(NamedTuple):
    """An estimate of log Z with its two sides; prints itself in three lines.

    log_z: BAR of both directions when both ends are exact, else the forward log-mean-exp (reverse only: its value).
    lower: forward log-mean-exp minus 4 standard errors; upper: reverse value plus 4 standard errors (infinite where
    that direction was not run). stderr: of log_z. ess: of the forward weights, a number of chains.
    num_gradients: everything spent, pilot and preparation included. verdict: see `judge`.
    provenance: "exact", "approximate" or "none": where the reverse chains started. forward, reverse: per-chain values,
    float64. position: forward end points, weighted by `forward`. betas (K+1,); acceptance (K,) and steps (K,), per
    move in forward order, steps None where the kernel kept its own.
    """

    log_z: float
    lower: float
    upper: float
    stderr: float
    ess: float
    num_gradients: int
    verdict: str
    provenance: str
    forward: Any
    reverse: Any
    position: Tree
    betas: np.ndarray
    acceptance: Any
    steps: Any

    @property
    def gap(self) -> float:
        """Return upper - lower in nats, infinite for one direction alone."""
        return self.upper - self.lower

    def __str__(self) -> str:
        side = {"exact": "upper bound", "approximate": "approximate upper", "none": "no upper side"}[self.provenance]
        num = 0 if self.forward is None else len(self.forward)
        return (
            f"log Z = {self.log_z:.3f} +- {self.stderr:.3f} ({self.verdict})\n"
            f"[{self.lower:.3f}, {self.upper:.3f}] gap {self.gap:.3f} nats; lower bound, {side}, each at 4 standard "
            f"errors\nESS {self.ess:.1f} of {num} chains, {len(self.betas) - 1} annealing moves, "
            f"{self.num_gradients} gradients"
        )


def combine(
    forward: np.ndarray | None,
    reverse: np.ndarray | None,
    provenance: str,
    *,
    num_gradients: int,
    position: Any,
    betas: np.ndarray,
    acceptance: np.ndarray | None,
    steps: np.ndarray | None,
) -> LogZ:
    """Build a LogZ from the values of each direction, (n,) `log w` and (m,) `-log w~`, base normalised."""
    up = None if forward is None else log_mean_exp(forward)
    down = None if reverse is None else log_mean_exp(-reverse)
    lower = -np.inf if up is None else up.value - STANDARD_ERRORS * up.stderr
    upper = np.inf if down is None else -down.value + STANDARD_ERRORS * down.stderr
    ess = 0.0 if forward is None else effective_sample_size(forward)
    if up is not None and down is not None and provenance == "exact":
        log_z, stderr = bennett_acceptance_ratio(forward, reverse)
    elif up is not None:
        log_z, stderr = up
    else:
        assert down is not None, "at least one direction"
        log_z, stderr = -down.value, down.stderr
    verdict = judge(forward, reverse, provenance, lower, upper, ess)
    values = (num_gradients, verdict, provenance, forward, reverse, position, betas, acceptance, steps)
    return LogZ(float(log_z), float(lower), float(upper), float(stderr), ess, *values)


def judge(
    forward: np.ndarray | None, reverse: np.ndarray | None, provenance: str, lower: float, upper: float, ess: float
) -> str:
    """Return the verdict, worst first.

    "unusable": fewer than 5 effective chains (or fewer than 2 % of them) in a direction, or weights that are not
    finite. "one-sided": only one direction was run. "inconsistent": the lower side is above the upper. "wide": the gap
    exceeds 1 nat. "approximate": both directions, the reverse from chains rather than exact draws. "bracketed".
    """
    sides = [values for values in (forward, None if reverse is None else -reverse) if values is not None]
    for values in sides:
        if not np.isfinite(values).any() or np.isnan(values).any():
            return "unusable"
        if effective_sample_size(values) < max(5.0, 0.02 * len(values)):
            return "unusable"
    if len(sides) < 2:
        return "one-sided"
    if lower > upper:
        return "inconsistent"
    if upper - lower > 1.0:
        return "wide"
    return "approximate" if provenance == "approximate" else "bracketed"
