"""Floor 6: how well a score tells points of the data from others, with intervals.

Scores are high for points of the data ("in", the positives) and low for others ("out"); see `evaluation.scores`.
"""

from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95


class Interval(NamedTuple):
    """A figure, and the bootstrap interval that it lies in."""

    estimate: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.lower:.3f}, {self.upper:.3f}]"


class OodReport(NamedTuple):
    """How well scores separate; prints itself in one line.

    auroc: the probability that a point of the data scores above another point, ties counting half; 0.5 by chance, and
    less where the others score higher. aupr: the average precision with points of the data as positives, by chance the
    share of them, num_in / (num_in + num_out). fpr95: the share of other points that pass the highest threshold that
    passes 95 % of the data; 0 is best. num_in, num_out: points of either set.
    """

    auroc: Interval
    aupr: Interval
    fpr95: Interval
    num_in: int
    num_out: int

    def __str__(self) -> str:
        return (
            f"AUROC {self.auroc}, AUPR {self.aupr}, FPR at 95 % TPR {self.fpr95}; {self.num_in} in, {self.num_out} out"
        )


def ood_report(
    scores_in: Any, scores_out: Any, *, seed: int = 0, num_resamples: int = 1000, level: float = LEVEL
) -> OodReport:
    """Return AUROC, AUPR and the false positive rate at 95 % true positives, each with a bootstrap interval.

    scores_in, scores_out: (n,) and (m,), high for points of the data. AUPR is scikit-learn's average precision and
    FPR95 a point of its ROC curve, neither of them interpolated. Both sets are resampled apart, `num_resamples` times
    by a NumPy generator of `seed`, and an interval holds the middle `level` of the figures (percentiles, Efron 1979).
    It covers the chance of which points were scored, not that of training. Where the sets do not overlap it has no
    width: that says nothing of points not seen.
    Raises ValueError for an empty set, scores that are not one number a point or not finite, fewer than two resamples
    and a level outside (0, 1).
    """
    ranks_in, ranks_out = _ranks(_scores(scores_in, "in"), _scores(scores_out, "out"))
    if num_resamples < 2 or not 0 < level < 1:
        raise ValueError(f"need two resamples or more and a level in (0, 1); got {num_resamples} and {level}")
    rng, num = np.random.default_rng(seed), 1 + max(ranks_in.max(), ranks_out.max())
    resampled = np.empty((num_resamples, 3))
    for i in range(num_resamples):
        picks = (ranks[rng.integers(len(ranks), size=len(ranks))] for ranks in (ranks_in, ranks_out))
        resampled[i] = _figures(*(np.bincount(pick, minlength=num) for pick in picks))
    whole = _figures(*(np.bincount(ranks, minlength=num) for ranks in (ranks_in, ranks_out)))
    sides = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    auroc, aupr, fpr95 = (Interval(*map(float, row)) for row in zip(whole, *sides, strict=True))
    return OodReport(auroc, aupr, fpr95, len(ranks_in), len(ranks_out))


def ood_table(reports: dict[str, OodReport]) -> str:
    """Return {name of a score: report} as lines of text, one a score, under a line of headings."""
    width = max(map(len, ["score", *reports]))
    rows = [("score", "AUROC", "AUPR", "FPR at 95 % TPR")]
    rows += [(name, str(found.auroc), str(found.aupr), str(found.fpr95)) for name, found in reports.items()]
    return "\n".join(f"{row[0]:{width}}  {row[1]:20}  {row[2]:20}  {row[3]}".rstrip() for row in rows)


def _scores(values: Any, name: str) -> np.ndarray:
    scores = np.asarray(values, np.float64)
    if scores.ndim != 1 or not scores.size:
        raise ValueError(f"scores are one number a point, (n,), of at least one; those of {name} are {scores.shape}")
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise ValueError(f"{bad.size} scores of {name} are not finite, the first in row {bad[0]}")
    return scores


def _ranks(scores_in: np.ndarray, scores_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return places in the common order, 0 for the highest score and equal ones for ties."""
    ranks = np.unique(-np.concatenate([scores_in, scores_out]), return_inverse=True)[1]
    return ranks[: len(scores_in)], ranks[len(scores_in) :]


def _figures(num_in: np.ndarray, num_out: np.ndarray) -> tuple[float, float, float]:
    """Return AUROC, average precision and FPR95 of the numbers of points at every score, the highest first."""
    passed_in, passed_out = num_in.cumsum(), num_out.cumsum()
    all_in, all_out = passed_in[-1], passed_out[-1]
    auroc = np.dot(num_out, passed_in - num_in / 2) / (all_in * all_out)
    precision = passed_in / np.maximum(passed_in + passed_out, 1)
    threshold = np.argmax(passed_in / all_in >= 0.95)
    return auroc, np.dot(num_in, precision) / all_in, passed_out[threshold] / all_out
