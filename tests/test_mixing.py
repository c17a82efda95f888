"""R-hat and ESS: ArviZ's values, and no dim that mixes badly goes unlooked at."""

import arviz
import numpy as np
import pytest

from energyflow.mixing import plain_r_hat, rank_statistics, suspect_dims

SHAPES = {"white": (4, 101, 0.0), "slow": (4, 400, 0.95), "unmixed": (8, 250, 0.999), "swinging": (3, 60, -0.6)}
FORMS = {
    "normal": lambda x: x,
    "integer": np.round,
    "apart": lambda x: x + 0.2 * np.arange(len(x))[:, None],
    "heavy": lambda x: np.exp(3 * x),
    "scales apart": lambda x: x * (1 + np.arange(len(x)))[:, None],
}


def autoregression(rng, chains, length, rho, dims=()):
    noise = rng.normal(size=(length, chains, *dims)) * np.sqrt(1 - rho**2)
    x = [rng.normal(size=(chains, *dims))]
    for step in noise[1:]:
        x.append(rho * x[-1] + step)
    return np.stack(x, axis=1)


@pytest.mark.core
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_statistics_are_those_of_arviz(form, shape):
    x = FORMS[form](autoregression(np.random.default_rng(3), *SHAPES[shape]))
    np.testing.assert_allclose(rank_statistics(x), (float(arviz.rhat(x)), float(arviz.ess(x))), rtol=1e-9)


@pytest.mark.core
def test_the_effective_sample_size_is_that_of_the_autocorrelation():
    # An AR(1) chain is worth (1 - rho) / (1 + rho) of its draws: 12800/19 = 674. Its estimate sums about 40
    # autocorrelations, with a relative error near sqrt(2 * 40 / 12800) = .08; four of them here.
    x = autoregression(np.random.default_rng(0), 16, 800, 0.9)
    assert abs(rank_statistics(x)[1] / (x.size / 19) - 1) < 0.32


def test_plain_r_hat_of_two_constant_chains_is_large_and_of_equal_chains_is_below_one():
    x = np.zeros((2, 10, 2))
    x[1, :, 0] = 1
    x[:, :, 1] = np.arange(10)
    r_hat = plain_r_hat(x)
    assert r_hat[0] > 1e6 and abs(r_hat[1] - np.sqrt(0.9)) < 1e-12


PLANTED = {
    "another mean": lambda x: x + 1.0 * (np.arange(len(x)) == 0)[:, None],
    "another scale": lambda x: x * (1 + 2 * (np.arange(len(x)) == 0))[:, None],
    "a trend": lambda x: x + np.linspace(0, 1, x.shape[1]),
    "slow": lambda x: autoregression(np.random.default_rng(9), *x.shape, 0.95),
    "heavy and apart": lambda x: np.tan(np.clip(x, -1.5, 1.5)) + 2.0 * (np.arange(len(x)) == 0)[:, None],
}


@pytest.mark.parametrize("fault", PLANTED)
@pytest.mark.parametrize("seed", range(4))
def test_a_planted_dim_is_among_the_suspects(fault, seed):
    x = autoregression(np.random.default_rng(seed), 16, 200, 0.3, (200,))
    # Other dims are far away and wide: location and scale tell nothing.
    x = x * np.logspace(-4, 4, 200) + np.linspace(-1e5, 1e5, 200)
    x[..., 137] = 1e3 + 1e-2 * PLANTED[fault]((x[..., 137] - x[..., 137].mean()) / x[..., 137].std())
    suspects = suspect_dims(x)
    assert 137 in suspects and len(suspects) <= 3
