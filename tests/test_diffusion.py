"""Levels of diffusions: the published ones to the digits that are known, and the laws that all of them obey."""

import numpy as np
import pytest

from energyflow.diffusion import (
    Diffusion,
    checked_diffusion,
    cumulative_diffusion,
    linear_diffusion,
    log_snr_diffusion,
)


def test_the_six_levels_of_recovery_likelihood():
    diffusion = linear_diffusion(6)
    shrinks, spreads = diffusion.steps
    np.testing.assert_allclose(shrinks, [0.94617, 0.85629, 0.7748, 0.70092, 0.63396, 0.02278], atol=6e-6)
    np.testing.assert_allclose(spreads, [0.3237, 0.5165, 0.6322, 0.7132, 0.7734, 0.9997], atol=6e-5)
    expected = [0.99995, 0.94612, 0.81015, 0.6277, 0.43997, 0.27892, 0.00635]
    np.testing.assert_allclose(diffusion.alphas, expected, atol=6e-6)


def test_the_log_snr_falls_from_high_to_low_as_the_formula_has_it():
    diffusion = log_snr_diffusion(6, -5.1, 9.8)
    ratios = np.log(diffusion.alphas**2 / diffusion.sigmas**2)
    shift = np.arctan(np.exp(-9.8 / 2))
    slope = np.arctan(np.exp(5.1 / 2)) - shift
    np.testing.assert_allclose(ratios, -2 * np.log(np.tan(slope * np.linspace(0, 1, 7) + shift)), rtol=1e-9)


def test_the_cumulative_levels_start_at_clean_data():
    diffusion = cumulative_diffusion(6, 0.01, 0.3)
    betas = np.cumsum(np.linspace(0.01, 0.3, 6)) ** 2
    assert (diffusion.alphas[0], diffusion.sigmas[0]) == (1.0, 0.0)
    np.testing.assert_allclose(diffusion.alphas[1:] ** 2, np.cumprod(1 - np.minimum(betas, 0.999)))


@pytest.mark.parametrize("diffusion", [linear_diffusion(4), log_snr_diffusion(9), cumulative_diffusion(5)])
def test_steps_lead_from_level_to_level(diffusion):
    """Variances: alpha'^2 = a^2 alpha^2 and sigma'^2 = a^2 sigma^2 + s^2."""
    shrinks, spreads = diffusion.steps
    np.testing.assert_allclose(diffusion.alphas[1:], shrinks * diffusion.alphas[:-1])
    np.testing.assert_allclose(diffusion.sigmas[1:] ** 2, shrinks**2 * diffusion.sigmas[:-1] ** 2 + spreads**2)
    np.testing.assert_array_equal(checked_diffusion(diffusion).alphas, diffusion.alphas)


def test_what_is_no_diffusion_is_refused():
    with pytest.raises(ValueError, match="must decrease"):
        checked_diffusion(Diffusion(np.array([0.5, 0.9]), np.sqrt(1 - np.array([0.5, 0.9]) ** 2)))
    with pytest.raises(ValueError, match="must decrease"):
        checked_diffusion(Diffusion(np.array([0.9, 0.5]), np.array([0.9, 0.5])))
    with pytest.raises(ValueError, match="two levels or more"):
        checked_diffusion(Diffusion(np.ones(1), np.zeros(1)))
    for build in (linear_diffusion, log_snr_diffusion):
        with pytest.raises(ValueError, match="two levels or more"):
            build(1)
    with pytest.raises(ValueError, match="0 < first <= last"):
        cumulative_diffusion(3, 0.5, 0.1)
