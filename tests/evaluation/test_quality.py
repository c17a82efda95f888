"""The quality of draws: closed forms of Gaussians, and sets whose answer is plain."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from energyflow.evaluation.quality import frechet_distance, maximum_mean_discrepancy, memorisation, precision_recall

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 4)) @ RNG.normal(size=(4, 4))


def test_the_frechet_distance_of_a_shift_and_of_a_scale():
    shift = np.array([1.0, -2.0, 0.5, 0.0])
    assert frechet_distance(X + shift, X) == pytest.approx(shift @ shift, rel=1e-9)
    expected = 0.25 * (X.var(axis=0, ddof=1).sum() + np.square(X.mean(axis=0)).sum())
    assert frechet_distance(1.5 * X, X) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(X, X) == pytest.approx(0.0, abs=1e-9)


def test_the_frechet_distance_of_covariances_that_do_not_commute():
    y = RNG.normal(size=(200, 4)) @ RNG.normal(size=(4, 4)) + 1.0
    c, d = np.cov(X, rowvar=False), np.cov(y, rowvar=False)
    means = X.mean(axis=0) - y.mean(axis=0)
    expected = means @ means + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert frechet_distance(X, y) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(y, X) == pytest.approx(expected, rel=1e-6)


def test_features_of_one_dimension_and_of_images():
    x, y = RNG.normal(size=(50, 1)), RNG.normal(size=(60, 1))
    gap = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(x, y) == pytest.approx(gap, rel=1e-9)
    assert frechet_distance(X.reshape(-1, 2, 2), X.reshape(-1, 2, 2) + 1) == pytest.approx(4.0, rel=1e-9)


@pytest.mark.parametrize(("shift", "spread"), [(0.0, 1.0), (1.0, 1.0), (0.0, 2.0)])
def test_the_discrepancy_of_gaussians_is_their_closed_form(shift, spread):
    """Over 60 pairs of sets the mean of an unbiased estimate lies within 4 of its standard errors."""
    dim, width = 2, 1.5

    def kernel(distance, variance):
        total = width**2 + variance
        return (width**2 / total) ** (dim / 2) * np.exp(-(distance**2) / (2 * total))

    expected = kernel(0, 2) + kernel(0, 2 * spread**2) - 2 * kernel(shift, 1 + spread**2)
    rng, towards = np.random.default_rng(1), np.array([shift, 0.0])
    found = [
        maximum_mean_discrepancy(rng.normal(size=(80, dim)), towards + spread * rng.normal(size=(90, dim)), width)
        for _ in range(60)
    ]
    assert abs(np.mean(found) - expected) < 4 * np.std(found, ddof=1) / 60**0.5


def test_precision_and_recall_tell_poor_draws_from_missing_modes():
    rng = np.random.default_rng(2)
    modes = np.array([[-10.0, 0.0], [10.0, 0.0]])
    data = modes[rng.integers(2, size=400)] + rng.normal(size=(400, 2))
    half = modes[0] + rng.normal(size=(200, 2))
    precision, recall = precision_recall(half, data)
    share = np.mean(data[:, 0] < 0)
    assert precision > 0.9 and 0.85 * share < recall <= share
    assert precision_recall(data, data) == (1.0, 1.0)
    assert precision_recall(data + 100, data) == (0.0, 0.0)


def test_memorisation_is_a_half_for_fresh_draws_and_one_for_copies():
    rng = np.random.default_rng(3)
    train, held_out, fresh = (rng.normal(size=(500, 3)) for _ in range(3))
    assert memorisation(train[:100], train, held_out) == 1.0
    assert memorisation(held_out[:100], train, held_out) == 0.0
    # The nearest row is one of 1000 exchangeable ones; rows shared by draws widen the binomial error by at most 2.
    assert abs(memorisation(fresh, train, held_out) - 0.5) < 4 * 2 * 0.5 / 500**0.5
    assert memorisation(train[:100], np.concatenate([held_out, train]), held_out) == 0.5  # equal rows are compared


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="two rows or more of one dimension"):
        frechet_distance(X, X[:, :2])
    with pytest.raises(ValueError, match="finite values"):
        memorisation(np.full((3, 2), np.nan), np.zeros((3, 2)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="bandwidth must be positive"):
        maximum_mean_discrepancy(X, X, 0.0)
    with pytest.raises(ValueError, match="k must be at least 1 and below"):
        precision_recall(X[:3], X, 3)
