"""Separation of scores: scikit-learn's figures, hand-computed ones, and a closed form that intervals must hold."""

import numpy as np
import pytest
from scipy.special import ndtr
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from energyflow.evaluation.ood import ood_report, ood_table

COVERAGE_SETS = 250


def figures(report):
    return [interval.estimate for interval in report[:3]]


@pytest.mark.parametrize("decimals", [12, 1, 0])  # ties between none, some and most scores
@pytest.mark.parametrize("sizes", [(60, 45), (1, 7), (400, 20)])
def test_figures_are_those_of_scikit_learn(decimals, sizes, seed):
    rng = np.random.default_rng([seed, decimals, *sizes])
    inside, outside = (np.round(rng.normal(shift, 1, n), decimals) for n, shift in zip(sizes, (0.7, 0), strict=True))
    labels, scores = np.repeat([1, 0], sizes), np.concatenate([inside, outside])
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    expected = [roc_auc_score(labels, scores), average_precision_score(labels, scores), false[np.argmax(true >= 0.95)]]
    report = ood_report(inside, outside, num_resamples=2)
    np.testing.assert_allclose(figures(report), expected, rtol=0, atol=1e-9)
    assert (report.num_in, report.num_out) == sizes


def test_figures_by_hand():
    """In 3, 2, 2 and out 2, 1: of six pairs four are won and two tied; passing 95 % of the data passes the 2 as well.

    Precision is 1 at the score 3 and 3/4 at the score 2, weighted 1/3 and 2/3.
    """
    assert figures(ood_report([3, 2, 2], [2, 1])) == pytest.approx([5 / 6, 1 / 3 + 2 / 3 * 3 / 4, 1 / 2], abs=1e-12)
    assert figures(ood_report([1, 2], [3, 4, 5])) == pytest.approx([0, (1 / 4 + 2 / 5) / 2, 1], abs=1e-12)
    assert figures(ood_report([0, 0], [0, 0, 0])) == pytest.approx([0.5, 0.4, 1], abs=1e-12)


def test_separate_sets_have_no_width_and_the_wrong_sign_is_seen():
    report = ood_report([4.0, 5.0, 6.0], [1.0, 2.0])
    assert report.auroc == report.aupr == (1, 1, 1) and report.fpr95 == (0, 0, 0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 1, 300), rng.normal(0, 1, 300)
    right, wrong = ood_report(x, y).auroc, ood_report(-x, -y).auroc
    assert right.estimate + wrong.estimate == pytest.approx(1, abs=1e-12) and wrong.upper < 0.5 < right.lower


def test_figures_know_order_alone():
    """AUROC is invariant to any increasing map of the scores; an added constant is one."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(1, 1, 50), rng.normal(0, 1, 70)
    assert ood_report(x + 1024, y + 1024) == ood_report(x, y) == ood_report(np.exp(x), np.exp(y))


def coverage(shift, seed, **options):
    rng, expected = np.random.default_rng(seed), ndtr(shift / np.sqrt(2))
    found = [
        ood_report(rng.normal(shift, 1, 80), rng.normal(0, 1, 120), seed=i, num_resamples=300, **options).auroc
        for i in range(COVERAGE_SETS)
    ]
    return np.mean([interval.lower <= expected <= interval.upper for interval in found])


def test_intervals_of_the_binormal_auroc_cover_it(seed):
    """Phi(d / sqrt 2). The share that covers is .9 to 4.5 binomial errors, and .03 for what percentiles lack here."""
    error = 4.5 * np.sqrt(0.9 * 0.1 / COVERAGE_SETS)
    assert abs(coverage(1.0, [seed, 2], level=0.9) - 0.9) < error + 0.03


def test_intervals_of_half_the_level_do_not(seed):
    """The negative control of the test above."""
    assert coverage(1.0, [seed, 2], level=0.45) < 0.9 - 4.5 * np.sqrt(0.9 * 0.1 / COVERAGE_SETS) - 0.03


def test_a_seed_gives_one_interval_and_others_give_others():
    rng = np.random.default_rng(3)
    x, y = rng.normal(1, 1, 40), rng.normal(0, 1, 40)
    assert ood_report(x, y, seed=5) == ood_report(x, y, seed=5) != ood_report(x, y, seed=6)


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match="2 scores of out are not finite, the first in row 1"):
        ood_report([1.0], [0.0, np.nan, np.inf])
    with pytest.raises(ValueError, match=r"those of in are \(0,\)"):
        ood_report([], [1.0])
    with pytest.raises(ValueError, match=r"those of out are \(2, 1\)"):
        ood_report([1.0], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="two resamples or more and a level"):
        ood_report([1.0], [1.0], level=1.0)


def test_a_table_is_its_reports():
    report = ood_report([3.0, 2.0], [1.0, 2.5])
    lines = ood_table({"energy": report, "ratio": report}).splitlines()
    assert [line.split()[0] for line in lines] == ["score", "energy", "ratio"]
    assert all(str(interval) in line for line in lines[1:] for interval in report[:3])
    assert str(report).startswith("AUROC 0.750 [") and str(report).endswith("2 in, 2 out")
