"""The helpers themselves: right about the null, sensitive to a bias, strict about shapes."""

import numpy as np
import pytest

from laws import assert_mean, assert_not_mean, z_score

pytestmark = pytest.mark.core


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def test_scores_of_the_null_are_standard_normal(rng):
    scores = z_score(rng.exponential(size=(4096, 500)), 1.0)
    # mean and variance of 500 standard normals: standard errors 1/sqrt(500) and sqrt(2/500)
    assert abs(scores.mean()) < 4.5 / np.sqrt(500)
    assert abs(scores.var() - 1) < 4.5 * np.sqrt(2 / 500)


def test_one_biased_component_is_named(rng):
    draws = rng.normal(size=(4096, 2, 3))
    assert_mean(draws, 0.0)
    draws[:, 1, 2] += 10 / np.sqrt(4096)
    assert_not_mean(draws, np.zeros((2, 3)))
    with pytest.raises(AssertionError, match=r"component \(1, 2\): z = .*, allowed 4.5"):
        assert_mean(draws, np.zeros((2, 3)))
    with pytest.raises(AssertionError, match="negative control was not caught"):
        assert_not_mean(draws[:, 0], 0.0)


def test_draws_without_spread():
    assert (z_score(np.ones(5), 1.0), z_score(np.ones(5), 2.0)) == (0, -np.inf)


@pytest.mark.parametrize(
    ("samples", "expected", "message"),
    [
        (np.zeros((5, 3)), np.zeros(1), r"expected has shape \(1,\)"),
        (np.zeros((5, 3)), np.zeros((5, 3)), r"one draw has shape \(3,\)"),
        (np.zeros((1, 3)), 0.0, "at least two draws"),
        ([0.0, np.nan, np.inf], 0.0, "2 of 3 values are not finite"),
    ],
)
def test_input_that_cannot_be_judged_is_refused(samples, expected, message):
    with pytest.raises(ValueError, match=message):
        assert_mean(samples, expected)
