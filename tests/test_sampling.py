"""Warm-up finds scales that differ by 1e4, for every kernel that has one; `run` draws, judges and names."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.tree_util import Partial

import energyflow as ef
from energyflow.warmup import _estimate, warm_up

pytestmark = [
    pytest.mark.lenient("numpyro_models"),
    pytest.mark.blackjax_promotes("nuts", "dual_averaging"),
]

SCALES = np.array([1e-2, 1.0, 1e2], np.float32)


def badly_scaled(x):
    """A Gaussian with standard deviations from .01 to 100, the two large ones correlated at .9."""
    z = x / SCALES
    return 0.5 * z[0] ** 2 + 0.5 * (z[1] ** 2 - 1.8 * z[1] * z[2] + z[2] ** 2) / 0.19


KERNELS = {
    "mala": (ef.mala(0.1), 0.574, 0.1),
    # Steps that add up to half a period conserve the energy, so HMC's rate is not monotone in the step.
    "hmc": (ef.hmc(0.1, 2), 0.8, 0.2),
    "nuts": (ef.nuts(0.1), 0.8, 0.1),
}


@pytest.mark.parametrize("name", ["mala", "nuts", pytest.param("hmc", marks=pytest.mark.slow)])
def test_warm_up_reaches_its_acceptance_on_scales_that_differ_by_1e4(name, key):
    """Over seeds the rate after 20 rounds of dual averaging is within .03 of what was asked for MALA and NUTS."""
    kernel, target, tolerance = KERNELS[name]
    warm_key, draw_key = jax.random.split(key)
    tuned = warm_up(warm_key, kernel, ef.logdensity(badly_scaled), jax.random.normal(draw_key, (24, 3)))
    covariance = np.asarray(tuned.kernel.keywords["inverse_mass_matrix"])
    assert np.abs(np.log(np.sqrt(np.diag(covariance)) / SCALES)).max() < 0.4
    assert 0.6 < covariance[1, 2] / np.sqrt(covariance[1, 1] * covariance[2, 2]) < 0.99
    trace = ef.sample_chains(jax.random.clone(draw_key), tuned.kernel, ef.logdensity(badly_scaled), tuned.position, 300)
    assert abs(trace.stats.acceptance_rate.mean() - target) < tolerance
    assert ef.check(trace).verdict == "healthy"


@pytest.mark.parametrize("dense", [True, False])
def test_the_scale_of_a_gaussian_is_learnt_far_from_it(dense):
    """Gradients are linear there, so any points tell the covariance, up to a shrinkage; draws alone do not."""
    rng = np.random.default_rng(0)
    root = np.diag(SCALES) @ (rng.normal(size=(3, 3)) if dense else np.eye(3))
    covariance = root @ root.T
    x = 1e3 * SCALES + SCALES * rng.gamma(1.0, size=(200, 3))
    found = _estimate(x, -x @ np.linalg.inv(covariance), dense=dense)
    np.testing.assert_allclose(found, covariance if dense else np.diag(covariance), rtol=2e-3)
    assert np.abs(np.log(x.var(axis=0) / np.diag(covariance))).max() > (0.4 if dense else -1)


def test_warm_up_brings_home_chains_that_start_where_gradients_are_huge(key):
    """Incomes of a thousand people, their mean and spread started near 0 and 1: gradients of 1e9 on the way."""
    income = 5e4 + 1e3 * np.random.default_rng(0).normal(size=1000).astype(np.float32)

    def energy(x):
        return 0.5 * jnp.sum(((income - x[0]) / jnp.exp(x[1])) ** 2) + 1000 * x[1]

    tuned = warm_up(key, ef.nuts(0.1), ef.logdensity(energy), jax.random.uniform(jax.random.key(1), (8, 2)) * 4 - 2)
    spread = np.sqrt(np.diag(tuned.kernel.keywords["inverse_mass_matrix"]))
    np.testing.assert_allclose(spread, [1e3 / np.sqrt(1000), 1 / np.sqrt(2000)], rtol=0.1)
    assert np.abs(np.asarray(tuned.position)[:, 0] - income.mean()).max() < 6 * spread[0]


def test_warm_up_without_a_scale_tunes_the_step_alone(key):
    tuned = warm_up(key, ef.rmh(0.01), ef.logdensity(lambda x: 0.5 * jnp.sum(x**2)), jnp.zeros((20, 2)), max_windows=4)
    assert 0.8 < float(tuned.kernel.keywords["step_size"]) < 3.5  # 2.38/sqrt(2) = 1.7 is optimal


def test_warm_up_refuses_what_it_cannot_tune(key):
    density, start = ef.logdensity(badly_scaled), jnp.zeros((4, 3))
    with pytest.raises(ValueError, match="without an accept step"):
        warm_up(jax.random.clone(key), ef.ula(0.1), density, start)
    with pytest.raises(ValueError, match="scale must be"):
        warm_up(key, ef.mala(0.1), density, start, scale="full")


def regression(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 10.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    numpyro.sample("y", dist.Normal(slope * x, sigma), obs=y)


@pytest.fixture(scope="module")
def line():
    x = np.linspace(-1, 1, 50).astype(np.float32)
    noise = np.random.default_rng(0).normal(size=50)
    return x, (2.0 * x + 0.3 * noise).astype(np.float32)


def test_run_draws_named_parameters_and_judges_them(line, key):
    """The slope's posterior, with sigma integrated out on a grid: mean within 4.5 Monte Carlo errors."""
    x, y = line
    result = ef.run(key, ef.from_numpyro(regression, x, y), draws=500)
    grid = np.linspace(0.15, 0.8, 400)
    precision = (x @ x) / grid**2 + 1e-2
    centre = (x @ y) / grid**2 / precision
    log_weight = -0.5 * (grid / 5) ** 2 - len(y) * np.log(grid) - 0.5 * np.log(precision)
    log_weight += -0.5 * (y @ y) / grid**2 + 0.5 * precision * centre**2
    weight = np.exp(log_weight - log_weight.max())
    exact = weight @ centre / weight.sum()
    row = result.summary().loc["slope"]
    assert abs(row["mean"] - exact) < 4.5 * row["mcse_mean"]
    assert result.verdict == "healthy" and set(result.parameters) == {"slope", "sigma"}
    assert "healthy" in str(result) and "slope" in str(result)
    assert set(result.to_arviz()["posterior"].data_vars) == {"slope", "sigma"}


def test_run_of_many_chains_takes_a_quarter_period_of_hmc(key):
    result = ef.run(
        key, ef.tilt(lambda x: 0.1 * jnp.sum(x**4), dist.Normal(jnp.zeros(2), 2.0).to_event(1)), chains=32, draws=200
    )
    step, num = (float(result.kernel.keywords[name]) for name in ("step_size", "num_integration_steps"))
    assert abs(step * num - np.pi / 2) <= step / 2 + 1e-6
    assert result.verdict == "healthy"


def test_run_says_what_is_missing(key):
    with pytest.raises(ValueError, match="give position="):
        ef.run(key, badly_scaled)
    with pytest.raises(ValueError, match='must be "auto" or a kernel'):
        ef.run(jax.random.clone(key), badly_scaled, "hmc", position=jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match="landscape"):
        ef.run(jax.random.clone(key), ef.landscape(badly_scaled), position=jnp.zeros((4, 3)))


def test_a_raw_blackjax_kernel_is_tuned_and_drawn_from(key):
    raw = Partial(blackjax.hmc, step_size=0.3, inverse_mass_matrix=jnp.ones(3), num_integration_steps=3)
    start = jax.random.normal(jax.random.clone(key), (8, 3))
    found = ef.run(key, badly_scaled, raw, position=start, draws=20)
    assert found.warmup_gradients > 0 and "GenerateSamplingAPI" in str(found)
