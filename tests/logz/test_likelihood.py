"""From sides of log Z to sides of the log-likelihood: a Gaussian, whose likelihood is known, and its images."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import energyflow as ef
from energyflow.logz import LogZ
from laws import assert_mean

pytestmark = pytest.mark.core

DIM, SCALE, SHIFT = 3, 0.7, 0.4
LOG_Z = DIM * np.log(SCALE * np.sqrt(2 * np.pi))


def gaussian(x):
    return jnp.sum(((x - SHIFT) / SCALE) ** 2) / 2


def known(lower, log_z, upper):
    blank = dict.fromkeys(LogZ._fields)
    return LogZ(**blank | {"lower": lower, "log_z": log_z, "upper": upper})


@pytest.fixture
def points(seed):
    return np.random.default_rng([seed, 50]).normal(0.3, 0.9, size=(500, DIM)).astype(np.float32)


def closed_form(points):
    return norm(SHIFT, SCALE).logpdf(points.astype(float)).sum(axis=1)


def test_the_sides_are_the_closed_form_less_the_other_sides_of_log_z(points):
    found = ef.log_likelihood(gaussian, points, known(LOG_Z - 0.2, LOG_Z, LOG_Z + 0.5))
    exact = closed_form(points)
    assert found.estimate == pytest.approx(exact.mean(), rel=1e-6)
    assert (found.lower, found.upper) == pytest.approx((exact.mean() - 0.5, exact.mean() + 0.2), rel=1e-6)
    assert found.stderr == pytest.approx(exact.std(ddof=1) / np.sqrt(500), rel=1e-5)
    np.testing.assert_allclose(found.unnormalised - LOG_Z, exact, rtol=1e-5, atol=1e-5)
    assert found.unnormalised.dtype == np.float64


def test_its_standard_error_is_that_of_the_mean_over_points():
    """z-scores of 500 means of n = 100 points: their mean is -skewness / (2 sqrt(n)), their mean square 1 + O(1/n)."""
    rng, scores = np.random.default_rng(0), []
    expected = -DIM / 2 - LOG_Z
    for _ in range(500):
        rows = rng.normal(SHIFT, SCALE, size=(100, DIM)).astype(np.float32)
        found = ef.log_likelihood(gaussian, rows, known(LOG_Z, LOG_Z, LOG_Z))
        scores.append((found.estimate - expected) / found.stderr)
    skewness = -np.sqrt(8 / DIM)  # of minus half a chi square
    assert_mean(scores, -skewness / (2 * np.sqrt(100)))
    assert_mean(np.square(scores), 1.0)


def test_a_change_of_coordinates_enters_by_its_determinant(points):
    """y = 2 x + 1: log p(y) = log p(x) - d log 2."""
    found = ef.log_likelihood(gaussian, points, known(LOG_Z, LOG_Z, LOG_Z), -DIM * np.log(2.0))
    exact = norm(2 * SHIFT + 1, 2 * SCALE).logpdf(2 * points.astype(float) + 1).sum(axis=1)
    assert found.estimate == pytest.approx(exact.mean(), rel=1e-6)


def test_a_temperature_divides_the_energy(points):
    """At T = 4 the Gaussian is twice as wide, and so is its Z in every dimension."""
    log_z = LOG_Z + DIM * np.log(2.0)
    found = ef.log_likelihood(ef.tempered(gaussian, 4.0), points, known(log_z, log_z, log_z))
    exact = norm(SHIFT, 2 * SCALE).logpdf(points.astype(float)).sum(axis=1)
    assert found.estimate == pytest.approx(exact.mean(), rel=1e-6)


def test_a_one_sided_log_z_leaves_one_side_open(points):
    found = ef.log_likelihood(gaussian, points, known(LOG_Z - 0.1, LOG_Z, np.inf))
    assert found.lower == -np.inf and np.isfinite(found.upper)


def test_points_are_pytrees():
    def energy(point):
        return 0.5 * jnp.sum(point["a"] ** 2) + 0.5 * point["b"] ** 2

    rng = np.random.default_rng(0)
    rows = {"a": rng.normal(size=(50, 2)).astype(np.float32), "b": rng.normal(size=50).astype(np.float32)}
    log_z = 1.5 * np.log(2 * np.pi)
    found = ef.log_likelihood(energy, rows, known(log_z, log_z, log_z))
    exact = norm.logpdf(rows["a"].astype(float)).sum(axis=1) + norm.logpdf(rows["b"].astype(float))
    assert found.estimate == pytest.approx(exact.mean(), rel=1e-6)


def test_new_weights_cost_no_compilation(points, count_compilations):
    log_z = known(LOG_Z, LOG_Z, LOG_Z)
    nets = [ef.mlp(i, DIM, (4,)) for i in range(2)]
    ef.log_likelihood(nets[0], points, log_z)
    with count_compilations() as made:
        ef.log_likelihood(nets[1], points, log_z)
    assert made.count == 0


def test_a_landscape_has_no_likelihood(points):
    with pytest.raises(ValueError, match="a likelihood needs a density, and this energy is a landscape"):
        ef.log_likelihood(ef.landscape(gaussian), points, known(LOG_Z, LOG_Z, LOG_Z))
