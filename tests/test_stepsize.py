"""Laws of the tuners: where the step size settles, against the target rate and against quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from energyflow.chains import evolve_from
from energyflow.kernels import mala, rmh, with_step_size
from energyflow.stepsize import by_acceptance, by_jump


def tune(key, tuner, kernel, logdensity, start, first_steps, num_updates):
    """One transition of every chain an update; per first step, the steps after each update and the mean acceptance."""
    num_chains = len(start)

    def update(carry, i):
        state, x = carry

        def one(chain, step, x):
            chain_key = jax.random.fold_in(jax.random.fold_in(key, i), chain)
            end, stats = evolve_from(chain_key, with_step_size(kernel, step), logdensity, x, 1)
            return end.position, stats.acceptance_rate[0], jnp.sum((end.position - x) ** 2)

        steps = tuner.propose(state, num_chains)
        x, acceptance, squared_jump = jax.vmap(one)(jnp.arange(num_chains), steps, x)
        state = tuner.update(state, steps, acceptance, squared_jump)
        return (state, x), (tuner.value(state), jnp.mean(acceptance))

    run = jax.jit(lambda step: jax.lax.scan(update, (tuner.init(step), start), jnp.arange(num_updates))[1])
    return [jax.tree.map(np.asarray, run(step)) for step in first_steps]


def stretched(scales, x):
    return -jnp.sum((x / scales) ** 2) / 2


def log_normal_pair(distance, width, x):
    """Two equal Gaussians at -distance and distance; one standard Gaussian where both numbers are 0 and 1."""
    return jnp.sum(jnp.logaddexp(-(((x - distance) / width) ** 2) / 2, -(((x + distance) / width) ** 2) / 2))


@pytest.mark.core
def test_by_acceptance_settles_at_its_target_from_far_below_and_far_above(key):
    """MALA with a diagonal scale in 10 dimensions, standard deviations from 1 to 100: 64 chains, .574 within .03.

    The pooled rate of the last 100 of 200 updates has a standard error under 0.4/sqrt(6400/10) = .016 with an
    autocorrelation time of 10; .03 is the band asked for, and the target moves the mean inside it.
    """
    scales = np.geomspace(1.0, 100.0, 10).astype(np.float32)
    start = scales * np.asarray(jax.random.normal(jax.random.clone(key), (64, 10)))
    kernel, logdensity = mala(1.0, scales**2), Partial(stretched, scales)
    for steps, rates in tune(key, by_acceptance(0.574), kernel, logdensity, start, [1e-3, 30.0], 200):
        assert abs(rates[-100:].mean() - 0.574) < 0.03
        assert steps[-1] == pytest.approx(steps[-100:].mean(), rel=0.25)


@pytest.mark.core
def test_by_acceptance_is_robbins_and_monros_recursion():
    """log h + gain (mean - target)/sqrt(count), the gain falling no lower than a twentieth."""
    tuner = by_acceptance(0.6, gain=2.0)
    state = tuner.init(0.1)
    expected = np.log(0.1)
    for count in range(1, 500):
        rate = 0.3 + 0.6 * (count % 2)
        state = tuner.update(state, tuner.propose(state, 4), jnp.full(4, rate), jnp.zeros(4))
        expected += 2.0 * max(count**-0.5, 0.05) * (rate - 0.6)
    assert state.log_step == pytest.approx(expected, abs=1e-4)
    assert tuner.value(state) == pytest.approx(np.exp(expected), rel=1e-4)
    assert np.array_equal(tuner.propose(state, 3), np.full(3, tuner.value(state)))


def squared_jump_and_acceptance(distance, width, steps) -> tuple[np.ndarray, np.ndarray]:
    """Expected, for random walks with Gaussian proposals of those standard deviations, by quadrature in x and z."""

    def log_density(x):
        return np.logaddexp(-(((x - distance) / width) ** 2) / 2, -(((x + distance) / width) ** 2) / 2)

    x = np.linspace(-1, 1, 301) * (distance + 6 * width)
    z = np.linspace(-6, 6, 241)
    density, noise = np.exp(log_density(x)), np.exp(-(z**2) / 2)
    density, noise = density / density.sum(), noise / noise.sum()
    means = []
    for step in steps:
        accept = np.exp(np.minimum(log_density(x[:, None] + step * z) - log_density(x)[:, None], 0))
        means.append((density @ (accept * (step * z) ** 2) @ noise, density @ accept @ noise))
    return tuple(np.array(means).T)


@pytest.mark.parametrize(
    ("distance", "width", "first_steps"), [(0.0, 1.0, [0.05, 60.0]), (2.0, 0.5, [0.1])], ids=["one", "two"]
)
def test_by_jump_settles_where_chains_travel_furthest(distance, width, first_steps, key):
    """Within 2 % of the best expected squared jump on a grid: 2.4 on one Gaussian, across the gap on two at +-2.

    There the step accepted 57 % of the time travels less than half as far: acceptance alone is the wrong judge.
    """
    signs = np.where(np.arange(1024) % 4 < 2, 1.0, -1.0)[:, None]
    start = distance * signs + width * np.asarray(jax.random.normal(jax.random.clone(key), (1024, 1)))
    logdensity = Partial(log_normal_pair, np.float32(distance), np.float32(width))
    grid = np.geomspace(0.05, 30, 40)
    for steps, rates in tune(key, by_jump(0.02), rmh(1.0), logdensity, jnp.asarray(start), first_steps, 300):
        settled = np.exp(np.log(steps[-100:]).mean())
        jumps, expected_rates = squared_jump_and_acceptance(distance, width, [*grid, settled])
        assert jumps[-1] > 0.98 * jumps[:-1].max()
        assert rates[-100:].mean() == pytest.approx(expected_rates[-1], abs=0.02)
    if distance:
        usual = np.argmin(np.abs(expected_rates[:-1] - 0.574))
        assert jumps[usual] < 0.5 * jumps[-1]


@pytest.mark.core
def test_by_jump_compares_two_halves_and_moves_to_the_further():
    tuner = by_jump(min_acceptance=0.1, spread=0.25)
    state = tuner.init(0.5)
    steps = tuner.propose(state, 5)
    np.testing.assert_allclose(steps, 0.5 * np.exp([0.25, -0.25, 0.25, -0.25, 0.25]), rtol=1e-6)
    accepted, refused = jnp.full(5, 0.5), jnp.full(5, 0.05)
    longer_wins = jnp.where(steps > 0.5, 3.0, 1.0)
    assert tuner.update(state, steps, accepted, longer_wins).log_step == pytest.approx(np.log(0.5) + 0.5)
    assert tuner.update(state, steps, accepted, 4.0 - longer_wins).log_step == pytest.approx(np.log(0.5) - 0.5)
    assert tuner.update(state, steps, accepted, jnp.ones(5)).log_step == pytest.approx(np.log(0.5))
    assert tuner.update(state, steps, refused, longer_wins).log_step == pytest.approx(np.log(0.5) - 0.5)
    frozen = tuner.update(state, steps, accepted, jnp.zeros(5))
    assert frozen.log_step == pytest.approx(np.log(0.5))


@pytest.mark.parametrize("tuner", [by_acceptance(), by_jump()], ids=["by_acceptance", "by_jump"])
def test_the_state_keeps_its_shapes_and_dtypes_under_scan(tuner):
    """Also with steps and gains as leaves: another target or first step compiles nothing."""

    def body(state, rate):
        steps = tuner.propose(state, 4)
        return tuner.update(state, steps, jnp.full(4, rate), steps**2), tuner.value(state)

    final, steps = jax.lax.scan(body, tuner.init(0.1), jnp.linspace(0, 1, 6))
    assert final.count == 6 and steps.shape == (6,) and steps.dtype == jnp.float32
    assert jax.tree.map(lambda x: (x.shape, x.dtype), final) == jax.tree.map(
        lambda x: (x.shape, x.dtype), tuner.init(0.1)
    )
