"""Nested R-hat, BFMI and the energy distance against hand computations and the laws of independent draws."""

import arviz
import numpy as np
import pytest
from scipy.special import erf

from energyflow.stats import bfmi, energy_distance, nested_r_hat, nested_variances, superchain_labels
from laws import assert_mean, assert_not_mean

pytestmark = pytest.mark.core


@pytest.fixture
def rng(seed):
    return np.random.default_rng([seed, 30])


def test_nested_r_hat_is_the_hand_computed_one():
    """Means of chains 1, 3 | 6, 10, so 2 and 8 of superchains: B = 18; chains 2 and 8, draws 2 each: W = 5 + 2 = 7."""
    draws = np.array([[0.0, 2.0], [2.0, 4.0], [5.0, 7.0], [9.0, 11.0]])
    assert nested_variances(draws, 2) == (18.0, 5.0, 2.0)
    assert nested_r_hat(draws, 2) == pytest.approx(np.sqrt(1 + 18 / 7), rel=1e-15)


def test_one_draw_a_chain_is_an_analysis_of_variance():
    """With one draw, (R^2 - 1) M is the classical F: superchains 0, 2 | 4, 8 have B = 12.5 and W = (2 + 8) / 2."""
    draws = np.array([0.0, 2.0, 4.0, 8.0])[:, None]
    assert nested_r_hat(draws, 2) == pytest.approx(np.sqrt(1 + 12.5 / 5), rel=1e-15)


def test_labels_may_be_shuffled(rng):
    draws, labels = rng.normal(size=(24, 3, 2)), np.repeat(np.arange(4), 6)
    order = rng.permutation(24)
    shuffled = nested_r_hat(draws[order], 10 * labels[order] - 7)
    # Only the order of summation differs: some units in the last place of float64.
    np.testing.assert_allclose(shuffled, nested_r_hat(draws, 4), rtol=1e-13)
    assert superchain_labels(10 * labels - 7, 24).tolist() == labels.tolist()


@pytest.mark.parametrize(("groups", "size"), [(4, 8), (16, 16), (8, 256)])
def test_at_stationarity_it_is_what_independent_draws_give(groups, size, rng):
    """(R^2 - 1) M of one normal draw a chain is F(K - 1, K(M - 1)), of mean K(M - 1) / (K(M - 1) - 2)."""
    draws = rng.normal(size=(groups * size, 1, 4000))
    rest = groups * (size - 1)
    assert_mean((nested_r_hat(draws, groups) ** 2 - 1) * size, rest / (rest - 2))


def test_chains_that_remember_their_starts_are_caught(rng):
    """The negative control: starts that add a variance of 1 leave R^2 - 1 near 1 + 1/M, and 1/M is refused."""
    draws = rng.normal(size=(16 * 64, 1, 500)) + np.repeat(rng.normal(size=(16, 1, 500)), 64, axis=0)
    squared = nested_r_hat(draws, 16) ** 2 - 1
    assert_not_mean(squared * 64, 960 / 958)
    # B is (1 + 1/64) chi^2_15 / 15, under 0.06 with probability 2e-7 each; W is 1 within a fifth.
    assert (squared > 0.05).all()


def test_superchains_without_any_spread_are_infinitely_apart():
    assert nested_r_hat(np.array([[1.0], [1.0], [2.0], [2.0]]), 2) == np.inf
    assert np.isnan(nested_r_hat(np.ones((4, 2)), 2))


@pytest.mark.parametrize(
    ("shape", "superchains", "words"),
    [
        ((6, 2), 4, "6 chains cannot be split into 4 superchains of equal size"),
        ((6, 2), [0, 0, 0, 0, 1, 1], r"equal size; their sizes are \[4, 2\]"),
        ((6, 2), 1, "two or more superchains"),
        ((6, 2), [0, 1], r"one label a chain, shape \(6,\); got shape \(2,\)"),
        ((6, 1), 6, "two chains a superchain or two draws a chain"),
        ((6,), 2, "need axes"),
    ],
)
def test_superchains_that_say_nothing_are_refused(shape, superchains, words):
    with pytest.raises(ValueError, match=words):
        nested_r_hat(np.arange(np.prod(shape), dtype=float).reshape(shape), superchains)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_bfmi_is_the_share_of_the_spread_that_one_step_renews(correlation, rng):
    """Of stationary AR(1) energies it is 2 (1 - a), but for a bias of order tau / n from the estimated mean."""
    chains, draws = 400, 4000
    e = rng.normal(size=(chains, draws))
    for t in range(1, draws):
        e[:, t] = correlation * e[:, t - 1] + np.sqrt(1 - correlation**2) * e[:, t]
    tau = (1 + correlation) / (1 - correlation)
    expected = 2 * (1 - correlation) * (1 + tau / draws)
    # What the first-order bias leaves, of order (tau/n)^2, is below the standard error of 400 chains.
    assert_mean(bfmi(e), expected)
    assert_not_mean(bfmi(np.cumsum(e, axis=1)), expected)


@pytest.mark.skipif(not arviz.__version__.startswith("0."), reason="ArviZ 1.x takes no plain dict of energies")
def test_bfmi_is_arvizs(rng):
    e = rng.normal(size=(4, 100)).cumsum(axis=1)
    np.testing.assert_allclose(bfmi(e), np.asarray(arviz.bfmi({"energy": e})), rtol=1e-12)


def test_bfmi_needs_energies_by_chain():
    assert np.isnan(bfmi(np.ones((2, 5)))).all()
    for shape in [(5,), (2, 1)]:
        with pytest.raises(ValueError, match="BFMI needs energies"):
            bfmi(np.zeros(shape))


def mean_distance(mean, variance):
    """E|z| of a normal."""
    sd = np.sqrt(variance)
    return sd * np.sqrt(2 / np.pi) * np.exp(-(mean**2) / (2 * variance)) + mean * erf(mean / (sd * np.sqrt(2)))


def test_energy_distance_is_the_hand_computed_one():
    """Between: 0, 3, 1, 2; within: 1 and 3."""
    assert energy_distance([0.0, 1.0], [0.0, 3.0]) == pytest.approx(2 * 1.5 - 1 - 3, abs=1e-15)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_energy_distance_of_normals_is_unbiased(shift, rng):
    """In one dimension all differences are normal; the V-statistic, with each point's distance to itself, is not."""
    n, m = 20, 30
    expected = 2 * mean_distance(shift, 3.0) - mean_distance(0, 2.0) - mean_distance(0, 4.0)
    x, y = rng.normal(size=(2000, n, 1)), shift + np.sqrt(2) * rng.normal(size=(2000, m, 1))
    found = np.array([energy_distance(a, b) for a, b in zip(x, y, strict=True)])
    assert_mean(found, expected)
    assert_not_mean(found + mean_distance(0, 2.0) / n + mean_distance(0, 4.0) / m, expected)


def test_energy_distance_flattens_points_and_works_in_blocks(rng):
    x, y = rng.normal(size=(4000, 2, 3)), rng.normal(size=(3000, 6))
    assert abs(energy_distance(x, y)) < 0.01 < energy_distance(x, y + 0.2)
    z = x.reshape(-1, 6)
    gaps = [
        np.sqrt(np.square(a[:, None] - b[None]).sum(-1))
        for a, b in ((z[:300], y[:200]), (z[:300],) * 2, (y[:200],) * 2)
    ]
    expected = 2 * gaps[0].mean() - gaps[1].sum() / 300 / 299 - gaps[2].sum() / 200 / 199
    assert energy_distance(x[:300], y[:200]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.zeros((1, 2)), np.zeros((3, 2)), "two points or more"),
        (np.zeros((3, 2)), np.zeros((3, 3)), "of one dimension"),
        (np.full((3, 2), np.nan), np.zeros((3, 2)), "finite"),
    ],
)
def test_energy_distance_refuses_what_has_none(x, y, words):
    with pytest.raises(ValueError, match=words):
        energy_distance(x, y)
