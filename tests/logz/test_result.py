"""What a LogZ says: the reductions behind it and the words of its verdict."""

import numpy as np
import pytest

import energyflow as ef
from energyflow.logz.result import combine, judge
from energyflow.stats import bennett_acceptance_ratio, effective_sample_size, log_mean_exp

pytestmark = pytest.mark.core


def crooks_pair(rng, num, spread, log_z):
    """Gaussian log weights that satisfy Crooks' relation exactly: both directions have mean log Z -+ spread^2/2."""
    forward = log_z - spread**2 / 2 + spread * rng.normal(size=num)
    reverse = log_z + spread**2 / 2 + spread * rng.normal(size=num)
    return forward, reverse


def test_log_mean_exp_and_its_error():
    """For log-normal weights of spread s the mean is known; the z-scores of 400 repetitions have unit spread."""
    rng, scores = np.random.default_rng(0), []
    for _ in range(400):
        forward, _ = crooks_pair(rng, 2000, 0.5, 3.0)
        value, stderr = log_mean_exp(forward)
        scores.append((value - 3.0) / stderr)
    assert abs(np.mean(scores)) < 4.5 / np.sqrt(400)
    assert abs(np.std(scores) - 1) < 4.5 / np.sqrt(2 * 400)


def test_bar_is_unbiased_with_the_stated_error_for_unequal_sizes():
    rng, scores = np.random.default_rng(1), []
    for _ in range(400):
        forward, reverse = crooks_pair(rng, 300, 1.5, -2.0)
        value, stderr = bennett_acceptance_ratio(forward, reverse[:150])
        scores.append((value + 2.0) / stderr)
    assert abs(np.mean(scores)) < 4.5 / np.sqrt(400)
    assert abs(np.std(scores) - 1) < 4.5 / np.sqrt(2 * 400)


def test_bar_beats_either_side():
    rng = np.random.default_rng(2)
    errors = []
    for _ in range(200):
        forward, reverse = crooks_pair(rng, 200, 2.0, 0.0)
        errors.append([bennett_acceptance_ratio(forward, reverse).value, log_mean_exp(forward).value])
    bar, alone = np.sqrt(np.mean(np.square(errors), axis=0))
    assert bar < 0.7 * alone


def test_a_swapped_direction_is_caught():
    """Negative control: reverse values with the wrong sign of the work give a bracket that crosses or widens."""
    forward, reverse = crooks_pair(np.random.default_rng(3), 256, 1.0, 5.0)
    wrong = 10.0 - reverse  # log Z - (R - log Z)
    good = combine(
        forward, reverse, "exact", num_gradients=1, position=None, betas=np.zeros(2), acceptance=None, steps=None
    )
    bad = combine(
        forward, wrong, "exact", num_gradients=1, position=None, betas=np.zeros(2), acceptance=None, steps=None
    )
    assert good.lower < 5.0 < good.upper and good.verdict == "bracketed"
    assert bad.verdict in ("inconsistent", "wide") or not bad.lower < 5.0 < bad.upper


def test_effective_sample_size():
    assert effective_sample_size(np.zeros(10)) == pytest.approx(10)
    assert effective_sample_size([0.0, -1000.0, -1000.0]) == pytest.approx(1)
    assert effective_sample_size(np.array([700.0, 700.0]) * 10) == pytest.approx(2)


def test_verdicts_in_order():
    rng = np.random.default_rng(4)
    forward, reverse = crooks_pair(rng, 256, 0.5, 0.0)
    assert judge(forward, reverse, "exact", -0.2, 0.2, 200) == "bracketed"
    assert judge(forward, reverse, "approximate", -0.2, 0.2, 200) == "approximate"
    assert judge(forward, None, "none", -0.2, np.inf, 200) == "one-sided"
    assert judge(forward, reverse, "exact", 0.3, 0.2, 200) == "inconsistent"
    assert judge(forward, reverse, "exact", -1.0, 1.0, 200) == "wide"
    spiked = np.append(forward, 50.0)
    assert judge(spiked, reverse, "exact", -0.2, 0.2, 1) == "unusable"
    assert judge(np.append(forward, np.nan), reverse, "exact", -0.2, 0.2, 200) == "unusable"


def test_bits_per_dimension_of_a_uniform_model():
    """A uniform density over 2^b levels costs b bits a dimension: in [-1, 1]^d its log density is -d log 2."""
    assert ef.bits_per_dimension(-64 * np.log(2.0), 64, 2 / 16) == pytest.approx(4.0)


def test_weights_that_are_all_zero_give_no_estimate_and_no_warning():
    none, some = np.full(100, -np.inf), np.zeros(100)
    assert log_mean_exp(none) == (-np.inf, np.inf)
    for pair in ((none, some), (some, -none)):
        estimate = bennett_acceptance_ratio(*pair)
        assert np.isnan(estimate.value) and estimate.stderr == np.inf
    half = np.where(np.arange(100) < 50, 0.0, -np.inf)
    assert bennett_acceptance_ratio(half, some).value == pytest.approx(np.log(0.5), abs=1e-9)
