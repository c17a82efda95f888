"""Langevin along a transport potential: the temperature of its noise, exact laws on Gaussians, BlackJAX's moves."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.diffusions import DiffusionState, overdamped_langevin as diffusion
from blackjax.sgmcmc.diffusions import overdamped_langevin
from jax.tree_util import Partial

import energyflow as ef
from energyflow.chains import advance_chains
from energyflow.kernels import bind
from laws import assert_mean, assert_not_mean

pytestmark = pytest.mark.core

NUM = 4096


def bowl(precision, x):
    return 0.5 * precision * jnp.sum(x**2)


def warm(precision, temperature=0.15):
    return ef.tempered(Partial(bowl, precision), temperature)


class Normal(NamedTuple):
    """A source N(mean, scale^2) of points of one coordinate."""

    mean: float = 0.0
    scale: float = 1.0
    batch_shape = ()

    def sample(self, key, shape):
        return self.mean + self.scale * jax.random.normal(key, (*shape, 1))


def variance_after(precision, temperatures, dt, first):
    """The chain is linear: v <- (1 - dt k)^2 v + 2 dt eps, one eps a move."""
    for eps in temperatures:
        first = (1 - dt * precision) ** 2 * first + 2 * dt * eps
    return first


def ramp(num, dt, temperature=0.15, onset=0.8, begin=0.0):
    return [float(ef.temperature_ramp(begin + k * dt, temperature, onset)) for k in range(num)]


def test_the_temperature_comes_on_with_time():
    with jax.enable_x64(True):
        times = jnp.array([0.0, 0.79, 0.8, 0.9, 1.0, 2.0])
        expected = [0.0, 0.0, 0.0, 0.075, 0.15, 0.15]
        np.testing.assert_allclose(ef.temperature_ramp(times, 0.15, 0.8), expected, rtol=0, atol=1e-15)


def test_an_onset_of_one_is_a_step_with_finite_slopes():
    times = jnp.array([0.0, 0.5, 0.999, 1.0, 3.0])
    np.testing.assert_array_equal(ef.temperature_ramp(times, 2.0, 1.0), [0.0, 0.0, 0.0, 2.0, 2.0])
    for onset in (0.0, 0.5, 1.0):
        slopes = jax.vmap(jax.grad(ef.temperature_ramp, argnums=(0, 1, 2)), (0, None, None))(times, 2.0, onset)
        assert all(np.isfinite(s).all() for s in slopes)


def test_two_moves_from_time_one_are_blackjaxs_overdamped_langevin(key):
    """Bit for bit on -V/T with step dt T; on -V with step dt and temperature T where both round alike, T = 1/4."""
    dt, x = 0.125, jnp.array([0.3, -1.7, 2.2])
    for temperature in (0.15, 0.25):
        density = ef.logdensity(warm(3.0, temperature))
        algorithm = bind(ef.ramped_langevin(dt * temperature, dt), density)
        state = algorithm.init(x, None)._replace(time=jnp.ones(()))
        value_and_slope = jax.value_and_grad(density)
        theirs, cold = DiffusionState(x, *value_and_slope(x)), x
        for i in range(2):
            move_key = jax.random.fold_in(key, i)
            state, stats = algorithm.step(move_key, state)
            theirs = diffusion(value_and_slope)(jax.random.clone(move_key), theirs, dt * temperature)
            slope = -jax.grad(Partial(bowl, 3.0))(cold)
            cold = overdamped_langevin()(jax.random.clone(move_key), cold, slope, dt, temperature)
            np.testing.assert_array_equal(state.position, theirs.position)
            np.testing.assert_allclose(state.position, cold, rtol=0, atol=0 if temperature == 0.25 else 1e-6)
        assert stats.acceptance_rate is None and state.time == 1 + 2 * dt


@pytest.mark.parametrize(("dt", "num"), [(0.01, 300_000), (0.1, NUM)])
def test_it_ends_at_the_law_of_unadjusted_langevin(dt, num, key):
    """`eps / (k (1 - dt k / 2))` on `k x^2 / 2`, told from eps / k, 2 % and a quarter away."""
    precision, temperature = 4.0, 0.15
    result = ef.transport_langevin(key, warm(precision), 3.0, np.zeros((num, 1)), step_size=dt)
    square = np.asarray(result.position[-1]) ** 2
    law = temperature / (precision * (1 - dt * precision / 2))
    assert_mean(square, law)
    assert abs(square.mean() / law - 1) < (0.02 if dt == 0.01 else 0.12)  # over 4.5 sqrt(2 / num)
    assert_not_mean(square, temperature / precision)


def test_every_horizon_has_its_exact_variance(key):
    """The noise and its clock: constant noise, and a clock one half slower, are told apart on the way."""
    dt, precision, horizons = 0.05, 1.5, np.array([0.5, 0.9, 1.0, 1.5])
    start_key, run_key = jax.random.split(key)
    start = 0.2 * jax.random.normal(start_key, (NUM, 1))
    result = ef.transport_langevin(run_key, warm(precision), horizons, start, step_size=dt)
    for x, horizon in zip(np.asarray(result.position), horizons, strict=True):
        num = round(horizon / dt)
        assert_mean(x**2, variance_after(precision, ramp(num, dt), dt, 0.04))
        if horizon > 0.8:
            assert_not_mean(x**2, variance_after(precision, [0.15] * num, dt, 0.04))
            assert_not_mean(x**2, variance_after(precision, ramp(num, dt / 1.5), dt, 0.04))


def test_without_temperature_it_is_gradient_descent():
    start = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    for energy in (warm(2.0), ef.landscape(Partial(bowl, 2.0))):
        result = ef.transport_langevin(0, energy, (0.5, 2.0), start, step_size=0.1, temperature=0.0)
        for x, num in zip(result.position, (5, 20), strict=True):
            np.testing.assert_allclose(x, start * 0.8**num, rtol=1e-4, atol=1e-7)


def test_another_final_temperature_replaces_the_energys_own(key):
    result = ef.transport_langevin(key, warm(1.0, 0.5), 4.0, np.zeros((NUM, 1)), step_size=0.1, temperature=0.2)
    assert_mean(np.asarray(result.position[0]) ** 2, variance_after(1.0, ramp(40, 0.1, 0.2), 0.1, 0.0))


def test_a_horizon_is_passed_as_if_alone_and_gradients_are_counted(key):
    start = {"a": np.ones((6, 2)), "b": np.ones(6)}
    energy = ef.tempered(lambda x: jnp.sum(x["a"] ** 2) + x["b"] ** 2, 0.1)
    both = ef.transport_langevin(jax.random.clone(key), energy, (1.0, 1.5), start)
    alone = ef.transport_langevin(key, energy, 1.5, start)
    assert both.position["a"].shape == (2, 6, 2) and alone.position["b"].shape == (1, 6)
    np.testing.assert_allclose(both.position["a"][1], alone.position["a"][0], rtol=1e-6)
    assert both.num_gradients == alone.num_gradients == 6 * 150
    assert both.jump_distance.shape == both.divergent.shape == (2,)
    assert (both.jump_distance > 0).all() and not both.divergent.any()


def test_moves_off_the_finite_numbers_are_counted():
    """At a step of 3 over the curvature every move doubles the distance; float32 squares end at 1e19."""
    result = ef.transport_langevin(0, warm(1.0), (30.0, 900.0), np.ones((4, 1)), step_size=3.0)
    assert result.divergent[0] == 0 and result.divergent[1] > 0.5 and np.isfinite(result.position).all()


def test_new_weights_temperatures_and_horizons_cost_no_compilation(key, count_compilations):
    start = np.zeros((4, 2), np.float32)
    first, second = jax.random.split(key)
    ef.transport_langevin(first, warm(jnp.asarray(1.0), 0.1), (1.0, 2.0), start)
    with count_compilations() as made:
        ef.transport_langevin(
            second, warm(jnp.asarray(2.0), 0.2), (0.5, 3.0), start, onset=0.5, temperature=0.3, step_size=0.02
        )
    assert made.count == 0


# The same chains as a negative phase


def drawn(negatives, energy, batch, key):
    state = negatives.init(jax.random.clone(key), energy, batch)
    fake, log_weights, state, metrics = negatives.draw(key, energy, batch, state)
    assert log_weights is None
    return np.asarray(fake), metrics


@pytest.mark.parametrize("data_time", [0.0, 1.0])
def test_chains_from_the_data_and_from_the_source_keep_their_own_clocks(data_time, key):
    """A quarter starts at the data, here all 2; both parts have the exact mean and variance of a linear chain."""
    dt, num_steps, precision = 0.05, 21, 1.5
    run = ef.transport_run(Normal(-3.0, 0.2), num_steps, step_size=dt, share=0.25, data_time=data_time)
    fake, metrics = drawn(run, warm(precision), jnp.full((4 * NUM, 1), 2.0), key)
    shrunk = (1 - dt * precision) ** num_steps
    source_variance = variance_after(precision, ramp(num_steps, dt), dt, 0.04)
    data_variance = variance_after(precision, ramp(num_steps, dt, begin=data_time), dt, 0.0)
    for x, mean, variance in ((fake[:NUM], 2.0, data_variance), (fake[NUM:], -3.0, source_variance)):
        assert_mean(x, mean * shrunk)
        assert_mean((x - mean * shrunk) ** 2, variance)
    if data_time:
        assert_not_mean((fake[:NUM] - 2.0 * shrunk) ** 2, variance_after(precision, ramp(num_steps, dt), dt, 0.0))
    assert metrics["num_gradients"] == 4 * NUM * num_steps and metrics["sampler_temperature"] == 1
    assert "acceptance_rate" not in metrics and metrics["divergent"] == 0 and metrics["jump_distance"] > 0


def test_a_persistent_chain_keeps_its_clock(key):
    """PCD by the ramped kernel: two draws of 10 moves are one of 20, the second of them with noise."""
    dt, precision = 0.1, 1.0
    energy = warm(precision)
    kernel = ef.ramped_langevin(0.15 * dt, dt)
    negatives = ef.pcd(kernel, 10, start=ef.from_source(Normal()))
    state = negatives.init(jax.random.fold_in(key, 0), energy, jnp.zeros((NUM, 1)))
    for i, num in enumerate((10, 20)):
        fake, _, state, _ = negatives.draw(jax.random.fold_in(key, i + 1), energy, jnp.zeros((NUM, 1)), state)
        assert_mean(np.asarray(fake) ** 2, variance_after(precision, ramp(num, dt), dt, 1.0))
    assert_not_mean(np.asarray(fake) ** 2, variance_after(precision, 2 * ramp(10, dt), dt, 1.0))


@pytest.mark.parametrize(("share", "num_first"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 9)])
def test_starts_are_shared_out(share, num_first, key):
    start = ef.from_either(ef.from_data(), ef.from_source(Normal(100.0)), share)
    x = start(key, None, jnp.zeros((9, 1)), 9)[:, 0]
    np.testing.assert_array_equal(x < 50, np.arange(9) < num_first)


def test_a_number_of_chains_of_its_own(key):
    fake, _ = drawn(ef.transport_run(Normal(), 2, num_chains=7), warm(1.0), jnp.zeros((3, 1)), key)
    assert fake.shape == (7, 1)


def test_advance_moves_by_it_as_by_any_kernel(key):
    """The clock starts at 0: 20 moves of 0.1 pass the onset."""
    kernel, energy = ef.ramped_langevin(0.015, 0.1), warm(1.0)
    end, metrics = advance_chains(key, kernel, ef.logdensity(energy), jnp.zeros((NUM, 1)), 20)
    assert_mean(np.asarray(end) ** 2, variance_after(1.0, ramp(20, 0.1), 0.1, 0.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"energy": ef.landscape(abs)}, "noise in transport needs a density"),
        ({"horizons": ()}, "one time or"),
        ({"horizons": np.nan}, "one time or"),
        ({"horizons": 0.0}, "must increase"),
        ({"horizons": (1.0, 1.0)}, "must increase"),
        ({"horizons": (1.0, 1.001)}, "each by a step"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"step_size": np.inf}, "step_size must be positive"),
        ({"onset": 1.5}, "onset must be"),
        ({"position": 0.0}, r"leading axis \[chain\]"),
    ],
)
def test_what_cannot_be_followed_is_refused(changes, message):
    arguments = {"energy": warm(1.0), "horizons": 1.0, "position": np.zeros((4, 2))} | changes
    with pytest.raises(ValueError, match=message):
        ef.transport_langevin(0, **arguments)
    with pytest.raises(ValueError, match="onset"):
        ef.transport_run(Normal(), onset=-0.1)
