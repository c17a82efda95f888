"""Classical densities: those with a closed form score what the closed form says, the others what their formula says."""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from energyflow.comparisons import MIXTURES, baselines


@pytest.fixture(scope="module")
def split(seed):
    """Gaussian rows of two dimensions, most of them inside [-1, 1]."""
    rng = np.random.default_rng([seed, 40])
    rows = rng.multivariate_normal([0.1, -0.2], [[0.04, 0.02], [0.02, 0.05]], size=240)
    return rows[:180], rows[180:]


@pytest.fixture(scope="module")
def fitted(split, seed):
    return {baseline.name: baseline for baseline in baselines(*split, seed)}


def test_there_are_four_and_each_scores_every_row(fitted, split):
    assert list(fitted) == ["uniform on [-1, 1]", "full Gaussian", "kernel density", "Gaussian mixture"]
    assert all(baseline.log_density.shape == (60,) for baseline in fitted.values())


def test_the_full_gaussian_is_the_maximum_likelihood_one(fitted, split):
    train, test = split
    covariance = np.cov(train.T, bias=True) + 1e-6 * np.eye(2)
    expected = multivariate_normal(train.mean(axis=0), covariance).logpdf(test)
    np.testing.assert_allclose(fitted["full Gaussian"].log_density, expected, rtol=1e-6, atol=1e-6)


def test_the_uniform_is_minus_d_log_two_inside_and_nothing_outside(split, seed):
    train, test = split
    test = np.vstack([np.clip(test, -1, 1), [[0.0, 1.01]]])
    uniform = baselines(train[:20], test, seed)[0]
    np.testing.assert_array_equal(uniform.log_density, [-2 * np.log(2)] * 60 + [-np.inf])


def test_the_kernel_density_is_a_mixture_of_training_rows(fitted, split):
    train, test = split
    baseline = fitted["kernel density"]
    widths = np.geomspace(0.05, 0.8, 9)
    width = widths[[f"bandwidth {w:.2g}" for w in widths].index(baseline.note)]
    squares = ((test[:, None] - train[None]) ** 2).sum(axis=-1)
    expected = logsumexp(-0.5 * squares / width**2, axis=1) - np.log(len(train)) - np.log(2 * np.pi * width**2)
    np.testing.assert_allclose(baseline.log_density, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_mixture_is_the_best_of_ten_on_the_test_rows(fitted, split, seed):
    train, test = split
    options = {"reg_covar": 1e-3, "random_state": seed}
    scores = {
        (kind, parts): GaussianMixture(parts, covariance_type=kind, **options).fit(train).score(test)
        for kind, parts in MIXTURES
    }
    kind, parts = max(scores, key=scores.get)
    baseline = fitted["Gaussian mixture"]
    assert baseline.log_density.mean() == pytest.approx(max(scores.values()))
    assert len(scores) == 10 and baseline.note == f"best of 10 on the test rows: {parts} {kind} parts"


def test_few_rows_get_fewer_mixtures(split, seed):
    train, test = split
    mixture = baselines(train[:15], test, seed)[-1]
    assert mixture.note.startswith("best of 2 on the test rows: 5 ")
