"""Laws of the unadjusted kernels: the law each samples instead of its target, known in closed form or by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.sgmcmc.diffusions import overdamped_langevin
from jax.tree_util import Partial

from energyflow.chains import advance_chains
from energyflow.kernels import bind, langevin, langevin_temperature, mclmc, sgld, ula
from invariance import NUM_CHAINS, NUM_STEPS, TARGETS, assert_invariant, assert_not_invariant
from laws import assert_mean, assert_not_mean

PRECISION, STEP, NOISE = 3.0, 0.1, 0.2
SHRINK = 1 - STEP * PRECISION  # what a step multiplies the position with, a = 1 - eta lambda


def gaussian(precision, x):
    return -precision * jnp.sum(x**2) / 2


def flat(x):
    return 0.0 * jnp.sum(x)


@pytest.mark.core
@pytest.mark.parametrize(
    ("kernel", "variance"),
    [
        (ula(STEP), 1 / (PRECISION * (1 - STEP * PRECISION / 2))),
        (sgld(STEP, 0.25), 0.25 / (PRECISION * (1 - STEP * PRECISION / 2))),
        (langevin(STEP, NOISE), NOISE**2 / (1 - SHRINK**2)),  # 0.0784
        (langevin(STEP, NOISE, noise_first=True), SHRINK**2 * NOISE**2 / (1 - SHRINK**2)),  # 0.0384
    ],
    ids=["ula", "sgld", "decoupled", "noise_first"],
)
def test_stationary_variance_on_a_gaussian(kernel, variance, key):
    """The chain is linear, x' = a x + s z, so from N(0, v) it stays at N(0, v) for v = s^2/(1 - a^2) and no other."""
    start_key, move_key = jax.random.split(key)
    noise = jax.random.normal(start_key, (NUM_CHAINS, 1))
    for size, check in ((variance, assert_mean), (2 * variance, assert_not_mean)):
        start = size**0.5 * noise
        end, metrics = advance_chains(
            jax.random.clone(move_key), kernel, Partial(gaussian, PRECISION), start, NUM_STEPS
        )
        check(np.asarray(end) ** 2, size)
    assert "acceptance_rate" not in metrics
    assert not metrics["divergent"]


@pytest.mark.core
def test_temperature_is_half_the_squared_noise_over_the_step():
    for kernel, expected in (
        (ula(0.03), 1.0),
        (sgld(0.03, 0.25), 0.25),
        (langevin(0.01, 0.005), 0.00125),  # the literature's usual pair, a thousandth of the temperature it claims
        (langevin(10.0, 0.005), 1.25e-6),  # IGEBM on CIFAR-10
        (langevin(0.5, gradient_clip=0.1), 1.0),
    ):
        assert bind(kernel, flat).temperature == pytest.approx(expected, rel=1e-6)
    assert langevin_temperature(0.01, 0.005) == pytest.approx(0.00125)


def clipped_chain_density(step, noise, clip, precision) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and stationary probabilities of x' = x - eta clip(lambda x) + sigma z, by power iteration on a grid."""
    bend, scale = clip / precision, noise**2 / (2 * step * clip)
    x = np.linspace(-1, 1, 301) * (bend + 25 * scale)
    mean = x - step * np.clip(precision * x, -clip, clip)
    kernel = np.exp(-0.5 * ((x[None, :] - mean[:, None]) / noise) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    for _ in range(14):  # the kernel to the power 2^14
        kernel = kernel @ kernel
        kernel /= kernel.sum(axis=1, keepdims=True)
    return x, kernel[0]


def huber_variance(temperature, clip, precision) -> float:
    """The variance of exp(-E/T) with E quadratic where |lambda x| < c and linear beyond, by the trapezoid rule."""
    x = np.linspace(-1, 1, 200_001) * (clip / precision + 60 * temperature / clip)
    bend = clip / precision
    energy = np.where(np.abs(x) < bend, precision * x**2 / 2, clip * np.abs(x) - clip * bend / 2)
    weight = np.exp(-energy / temperature)
    return float(np.sum(weight * x**2) / np.sum(weight))


def test_a_clipped_gradient_samples_the_huberised_energy(key):
    """At T = 5e-4 and lambda = 3 the target's variance is 1.67e-4; clipped at .01 it is thirty times as large."""
    temperature, clip, step = 5e-4, 0.01, 0.05
    noise = np.sqrt(2 * step * temperature)
    x, density = clipped_chain_density(step, noise, clip, PRECISION)
    variance = density @ x**2
    assert temperature / PRECISION == pytest.approx(1.67e-4, rel=2e-3)
    assert variance == pytest.approx(huber_variance(temperature, clip, PRECISION), rel=0.01)
    assert variance > 5 * temperature / PRECISION
    start_key, move_key = jax.random.split(key)
    uniform = np.asarray(jax.random.uniform(start_key, (NUM_CHAINS,)))
    start = jnp.asarray(np.interp(uniform, np.cumsum(density) - density / 2, x), jnp.float32)[:, None]
    kernel = langevin(step, noise, gradient_clip=clip)
    end, _ = advance_chains(jax.random.clone(move_key), kernel, Partial(gaussian, PRECISION), start, NUM_STEPS)
    assert_mean(np.asarray(end) ** 2, variance)
    unclipped = langevin(step, noise, gradient_clip=1e9)
    end, _ = advance_chains(jax.random.clone(move_key), unclipped, Partial(gaussian, PRECISION), start, NUM_STEPS)
    assert_not_mean(np.asarray(end) ** 2, variance)


@pytest.mark.core
def test_reflection_keeps_a_flat_energy_uniform_and_clipping_piles_it_up(key):
    """A reflected random walk leaves the uniform law alone, however large its steps; a clipped one sits on walls."""
    low, high = -1.0, 3.0
    start_key, move_key = jax.random.split(key)
    start = jax.random.uniform(start_key, (NUM_CHAINS, 1), minval=low, maxval=high)
    variance = (high - low) ** 2 / 12
    for noise in (0.5, 30.0):
        ends = {}
        for boundary in ("reflect", "clip"):
            kernel = langevin(0.1, noise, low=low, high=high, boundary=boundary)
            end, _ = advance_chains(jax.random.clone(move_key), kernel, Partial(flat), start, NUM_STEPS)
            ends[boundary] = np.asarray(end, np.float64)
            assert low <= ends[boundary].min() and ends[boundary].max() <= high
        assert_mean(ends["reflect"], (low + high) / 2)
        assert_mean((ends["reflect"] - 1) ** 2, variance)
        assert_not_mean((ends["clip"] - 1) ** 2, variance)
        assert np.mean(np.abs(ends["clip"] - 1) == 2.0) > 0.1 > np.mean(np.abs(ends["reflect"] - 1) == 2.0)


def test_a_range_may_differ_by_coordinate():
    kernel = langevin(0.1, 5.0, low=jnp.array([0.0, -2.0]), high=jnp.array([1.0, -1.0]), boundary="reflect")
    end, _ = advance_chains(jax.random.key(0), kernel, Partial(flat), jnp.array([[0.5, -1.5]]).repeat(256, 0), 3)
    assert np.all((end > jnp.array([[0.0, -2.0]])) & (end < jnp.array([[1.0, -1.0]])))


@pytest.mark.core
def test_sgld_is_blackjaxs_overdamped_langevin_bit_for_bit():
    """At h = 1/8 and T = 1/4 sqrt(2hT) is exact and the two updates round alike; the noise is theirs."""
    step, temperature, key = 0.125, 0.25, jax.random.key(5)
    x = jnp.array([0.3, -1.7, 2.2])
    logdensity = Partial(gaussian, PRECISION)
    algorithm = bind(sgld(step, temperature), logdensity)
    new, info = algorithm.step(key, algorithm.init(x, None))
    expected = overdamped_langevin()(jax.random.clone(key), x, jax.grad(logdensity)(x), step, temperature)
    assert np.array_equal(new.position, expected)
    assert info.acceptance_rate is None


def test_mclmc_has_little_bias_at_a_small_step_and_much_at_a_large_one(key):
    """No accept step: at a step of .05 the drift of 4096 chains is below its error, at 3 it is many times that."""
    moves = assert_invariant(jax.random.clone(key), mclmc(0.05), TARGETS["gaussian"])
    assert moves["jump_distance"] > 0.04 and "acceptance_rate" not in moves
    assert_not_invariant(jax.random.clone(key), mclmc(3.0), TARGETS["gaussian"])


@pytest.mark.core
def test_an_unknown_boundary_and_half_a_range_are_refused():
    with pytest.raises(ValueError, match='must be "clip" or "reflect"; got \'wrap\''):
        langevin(0.1, boundary="wrap")
    with pytest.raises(ValueError, match="both low and high, or neither"):
        langevin(0.1, low=0.0)
