"""Laws of chains over points and levels: uniform levels, exact points, log Z for free, modes in their proportions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax.tree_util import Partial

import energyflow as ef
from energyflow.diffusion import Diffusion, cumulative_diffusion
from energyflow.energies.levels import level_mlp
from energyflow.joint_levels import free_log_z, joint_chain, level_scales
from energyflow.kernels.algorithm import adapt, pair
from energyflow.objectives.diffusion_assisted import diffused, diffusion_assisted
from laws import assert_mean, assert_not_mean

DIFFUSION = cumulative_diffusion()
NUM_LEVELS = len(DIFFUSION.alphas)
NUM = 1 << 15


def gaussian_levels(offsets, data, alphas, sigmas, x, t):
    """The energy of N(m, v) at the levels of a diffusion, with log Z = `offsets[t]`."""
    mean, variance = alphas[t] * data[0], alphas[t] ** 2 * data[1] + sigmas[t] ** 2
    return jnp.sum((x - mean) ** 2 / (2 * variance) + jnp.log(2 * jnp.pi * variance) / 2) - offsets[t]


def mixture_levels(offset, weights, means, variance, alphas, sigmas, x, t):
    """The energy of a mixture of Gaussians (k, d) at the levels of a diffusion, with log Z = `offset`."""
    own = alphas[t] ** 2 * variance + sigmas[t] ** 2
    squares = jnp.sum((x[None] - alphas[t] * means) ** 2, axis=1) / own + x.size * jnp.log(2 * jnp.pi * own)
    return -jax.nn.logsumexp(jnp.log(weights) - squares / 2) - offset


def at_levels(function, *settings, diffusion=DIFFUSION):
    return Partial(function, *(jnp.asarray(s, float) for s in (*settings, *diffusion)))


def exact_gaussians(key, num, data=(1.2, 0.3)):
    """Return draws of points and levels, levels uniform."""
    level_key, noise_key = jax.random.split(key)
    level = jax.random.randint(level_key, (num,), 0, NUM_LEVELS)
    mean, sd = (np.asarray(v)[np.asarray(level), None] for v in moments(data))
    return mean + sd * np.asarray(jax.random.normal(noise_key, (num, 1))), np.asarray(level)


def moments(data=(1.2, 0.3)):
    return DIFFUSION.alphas * data[0], np.sqrt(DIFFUSION.alphas**2 * data[1] + DIFFUSION.sigmas**2)


class Position(NamedTuple):
    position: Any


class Report(NamedTuple):
    acceptance_rate: Any


def faulty_mala(step_size):
    """MALA with s^2 / 2 for s / 2 in the noise of the way back."""
    return Partial(_faulty, step_size=step_size)


def _faulty(logdensity, step_size):
    s, slope = jnp.sqrt(2 * step_size), jax.grad(logdensity)

    def step(key, state):
        noise_key, coin_key = jax.random.split(key)
        x, noise = state.position, jax.random.normal(noise_key, state.position.shape)
        new = x + s**2 / 2 * slope(x) + s * noise
        back = -noise - s**2 / 2 * (slope(x) + slope(new))
        log_rate = logdensity(new) - logdensity(x) + jnp.sum(noise**2 - back**2) / 2
        accepted = jnp.log(jax.random.uniform(coin_key)) < log_rate
        return Position(jnp.where(accepted, new, x)), Report(jnp.exp(jnp.minimum(log_rate, 0.0)))

    return adapt(pair(lambda position, key: Position(position), step))


@pytest.mark.parametrize("is_faulty", [False, True])
def test_levels_stay_uniform_and_points_stay_in_their_law(is_faulty, key):
    """32,768 chains start at exact draws of Gaussian levels and make 20 rounds of 5 moves and a draw of the level.

    The averages over the rounds of a chain have standard errors of .0007 in the share of a level, 1/7, and .003 in the
    squared distance from the mean over the variance, 1. With the fault shares go from .152 down to .117, and the
    squared distance is .69, at an acceptance of .94.
    """
    start_key, run_key = jax.random.split(key)
    energy = at_levels(gaussian_levels, np.zeros(NUM_LEVELS), (1.2, 0.3))
    mean, sd = moments()
    make = faulty_mala if is_faulty else ef.mala
    start = exact_gaussians(start_key, NUM)
    trace = joint_chain(run_key, energy, DIFFUSION, *start, make(0.045), 20, num_steps=5, step_scales=sd**2)
    shares = (trace.level[..., None] == np.arange(NUM_LEVELS)).mean(axis=1)
    squares = (((trace.position[..., 0] - mean[trace.level]) / sd[trace.level]) ** 2).mean(axis=1)
    holds = assert_not_mean if is_faulty else assert_mean
    holds(shares, 1 / NUM_LEVELS)
    holds(squares, 1.0)
    error = lambda x: x.std(axis=0).max() / NUM**0.5  # noqa: E731
    assert error(shares) < 1.5e-3 and error(squares) < 5e-3


def test_the_gradient_is_that_of_the_likelihood_of_points_and_levels(key):
    """Where log Z of level t is o_t the levels of the model are softmax(o), and the slope in o is softmax(o) - 1/7.

    The points have their law at each level, so the slope in the mean and the variance of the data is zero.
    """
    offsets, data = np.linspace(-0.6, 0.6, NUM_LEVELS), (0.4, 0.8)
    energy = at_levels(gaussian_levels, offsets, data)
    objective = diffusion_assisted(DIFFUSION, ef.mala(0.3), 3, num_chains=64, num_rounds=2)
    begun = objective.init(jax.random.key(0), energy, jnp.zeros((2, 1)))
    mean, sd = (jnp.asarray(v, float) for v in moments(data))

    def one(key):
        data_key, level_key, noise_key, loss_key = jax.random.split(key, 4)
        batch = data[0] + data[1] ** 0.5 * jax.random.normal(data_key, (32, 1))
        level = jax.random.categorical(level_key, jnp.asarray(offsets, float), shape=(64,)).astype(jnp.int32)
        position = (mean[level] + sd[level] * jax.random.normal(noise_key, (64,)))[:, None]
        state = begun._replace(position=position, level=level)
        return jax.grad(lambda e: objective.loss(e, batch, loss_key, state)[0])(energy).args[:2]

    by_offset, by_data = jax.jit(jax.vmap(one))(jax.random.split(key, 1024))
    shares = np.exp(offsets) / np.exp(offsets).sum()
    assert_mean(by_offset, shares - 1 / NUM_LEVELS)
    assert_mean(by_data, 0.0)
    assert_not_mean(by_offset, 0.0)


def test_data_have_uniform_levels_and_the_moments_of_their_level(key):
    batch = jnp.full((5, 2), 0.7)
    alphas, sigmas = (jnp.asarray(v, float) for v in DIFFUSION)
    points, level = jax.jit(jax.vmap(lambda k: diffused(alphas, sigmas, k, batch)))(jax.random.split(key, 8192))
    shares = np.asarray(level)[:, 2:3] == np.arange(NUM_LEVELS)
    assert_mean(shares, 1 / NUM_LEVELS)  # of one row
    noise = np.asarray(points) - 0.7 * DIFFUSION.alphas[np.asarray(level)][..., None]
    for t in range(1, NUM_LEVELS):
        own = noise[np.asarray(level) == t] / DIFFUSION.sigmas[t]
        assert_mean(own, 0.0)
        assert_mean(own**2, 1.0)
    assert np.abs(noise[np.asarray(level) == 0]).max() < 1e-6  # the clean level is the data


def test_chains_stay_in_their_slots_and_the_same_seed_gives_the_same(key):
    energy = at_levels(gaussian_levels, np.zeros(NUM_LEVELS), (0.0, 1.0))
    objective = diffusion_assisted(DIFFUSION, ef.mala(0.3), 10, num_chains=8, capacity=20)
    batch = jax.random.normal(key, (6, 3))
    before = objective.init(jax.random.key(1), energy, batch)
    assert np.bincount(before.level).max() - np.bincount(before.level).min() <= 1
    loss = jax.jit(lambda *args: objective.loss(*args))
    runs = [loss(energy, batch, jax.random.key(2), before) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *runs)
    value, (after, metrics) = runs[0]
    moved = np.any(np.asarray(after.position != before.position), axis=1)
    assert moved.sum() == 8 and not np.any(np.asarray(after.level != before.level) & ~moved)
    shares = np.bincount(after.level, minlength=NUM_LEVELS) / 20
    np.testing.assert_allclose(metrics["largest_level"], shares.max(), rtol=1e-6)
    entropy = -sum(p * np.log(p) for p in shares if p > 0) / np.log(NUM_LEVELS)
    np.testing.assert_allclose(metrics["level_entropy"], entropy, rtol=1e-5)
    np.testing.assert_allclose(value, -metrics["gap"], rtol=1e-5, atol=1e-6)
    visited = np.bincount(before.level[moved], minlength=NUM_LEVELS) > 0
    np.testing.assert_array_equal(after.steps.counts, visited)  # steps adapt where there was a chain


def test_every_level_adapts_its_step_and_draws_do_not_depend_on_the_chunks(key):
    """Acceptance of each level is at the target within the last gain's wobble; a thinned run is every second draw."""
    start_key, run_key = jax.random.split(key)
    energy = at_levels(gaussian_levels, np.zeros(NUM_LEVELS), (0.0, 0.01))  # levels of very different width
    start = exact_gaussians(start_key, 512, (0.0, 0.01))

    def run(rounds=12, **settings):
        settings = {"num_steps": 2, "warmup": 300, **settings}
        return joint_chain(jax.random.clone(run_key), energy, DIFFUSION, *start, ef.mala(0.3), rounds, **settings)

    trace, thinned = run(chunk_size=12), run(chunk_size=4, thin=2)
    np.testing.assert_allclose(trace.acceptance_rate, 0.574, atol=0.05)
    np.testing.assert_array_equal(thinned.level, trace.level[:, 1::2])
    np.testing.assert_allclose(thinned.position, trace.position[:, 1::2], rtol=1e-4, atol=1e-5)  # two programs
    values = jax.vmap(jax.vmap(energy))(trace.position, jnp.asarray(trace.level))
    np.testing.assert_allclose(trace.energy, values, rtol=1e-4, atol=1e-4)
    assert trace.at(0).shape == ((trace.level == 0).sum(), 1)
    np.testing.assert_allclose(trace.level_moves, thinned.level_moves, rtol=1e-6)


def test_a_temperature_divides_the_energy_of_both_moves(key):
    plain = at_levels(gaussian_levels, np.zeros(NUM_LEVELS), (0.0, 1.0))
    warm = ef.tempered(Partial(lambda e, x, t: 2.5 * e(x, t), plain), 2.5)
    start = exact_gaussians(key, 64, (0.0, 1.0))
    runs = [joint_chain(3, e, DIFFUSION, *start, ef.mala(0.3), 5, num_steps=2) for e in (plain, warm)]
    assert (runs[0].level == runs[1].level).mean() > 0.95  # up to rounding
    np.testing.assert_allclose(runs[0].energy.mean(), runs[1].energy.mean(), atol=0.1)


WEIGHTS, MEANS, VARIANCE = (0.75, 0.25), ((-1.0, 0.0), (1.2, 0.5)), 0.09


def mixture_draws(key, level):
    """Return exact draws of the mixture at levels of any shape."""
    component_key, noise_key = jax.random.split(key)
    component = np.asarray(jax.random.bernoulli(component_key, WEIGHTS[1], level.shape)).astype(int)
    sd = np.sqrt(DIFFUSION.alphas**2 * VARIANCE + DIFFUSION.sigmas**2)
    noise = np.asarray(jax.random.normal(noise_key, (*level.shape, 2)))
    return DIFFUSION.alphas[level][..., None] * np.asarray(MEANS)[component] + sd[level][..., None] * noise


def end_divergence(energy):
    """Return KL(p_T || N(0, I)) of a normalised two-dimensional energy by quadrature."""
    axis = np.linspace(-8, 8, 201)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    log_p = -np.asarray(jax.vmap(lambda x: energy(x, NUM_LEVELS - 1))(jnp.asarray(points, float)), np.float64)
    ratio = log_p + (points**2).sum(axis=1) / 2 + np.log(2 * np.pi)
    return (np.exp(log_p) * ratio).sum() * (axis[1] - axis[0]) ** 2


def test_log_z_comes_for_free(key):
    """Draws of all levels of a mixture: it is exact up to KL(p_T || N(0, I)), and `corrected` entirely."""
    level_key, draw_key, noise_key = jax.random.split(key, 3)
    level = np.asarray(jax.random.randint(level_key, (64, 1000), 0, NUM_LEVELS))
    energy = at_levels(mixture_levels, 1.7, WEIGHTS, MEANS, VARIANCE)
    bias = end_divergence(at_levels(mixture_levels, 0.0, WEIGHTS, MEANS, VARIANCE))
    free = free_log_z(noise_key, energy, DIFFUSION, mixture_draws(draw_key, level), level)
    assert bias > 4 * free.std_error  # it would be seen
    assert abs(free.log_z - bias - 1.7) < 4.5 * free.std_error < 0.01
    assert abs(free.end - 1.7) < 4.5 * free.end_error
    assert abs(free.imbalance) < 4.5 * free.imbalance_error < 0.1
    value, error = free.corrected
    assert abs(value - 1.7) < 4.5 * error


def test_levels_out_of_balance_are_seen_and_corrected(key):
    """Where log Z falls from 1.7 at the clean level to 0.5 at the last, the free one is 1.2 off; the shares say so."""
    level_key, draw_key, noise_key = jax.random.split(key, 3)
    logs = np.linspace(1.7, 0.5, NUM_LEVELS)
    level = np.asarray(jax.random.categorical(level_key, jnp.asarray(logs, float), shape=(64, 1000)))
    plain = at_levels(mixture_levels, 0.0, WEIGHTS, MEANS, VARIANCE)
    energy = Partial(lambda e, logs, x, t: e(x, t) - logs[t], plain, jnp.asarray(logs, float))
    free = free_log_z(noise_key, energy, DIFFUSION, mixture_draws(draw_key, level), level)
    assert abs(free.imbalance - 1.2) < 4.5 * free.imbalance_error < 0.2
    assert abs(free.log_z - 1.7) > 4.5 * free.std_error
    value, error = free.corrected
    assert abs(value - 1.7) < 4.5 * error


def test_the_errors_of_free_log_z_are_those_of_repeated_runs():
    """200 runs of 16 chains whose draws repeat four times; the spread has a relative standard error of .05."""
    energy = at_levels(mixture_levels, 0.0, WEIGHTS, MEANS, VARIANCE)
    found, rng = [], np.random.default_rng(0)
    for i in range(200):
        level = rng.integers(0, NUM_LEVELS, (16, 40))
        position = mixture_draws(jax.random.key(i), level)
        level, position = (np.repeat(v, 4, axis=1) for v in (level, position))  # autocorrelated draws
        found.append(free_log_z(i, energy, DIFFUSION, position, level, num_draws=512)[:6])
    values = np.asarray(found)
    for i in (0, 2, 4):
        assert 0.75 < np.sqrt((values[:, i + 1] ** 2).mean()) / values[:, i].std() < 1.3


def test_positions_may_be_any_pytree(key):
    whole = jax.random.normal(key, (6, 4))
    parts = {"a": whole[:, :1], "b": whole[:, 1:].reshape(6, 3)}
    energy = at_levels(gaussian_levels, np.zeros(NUM_LEVELS), (0.0, 1.0))
    split = Partial(lambda e, x, t: e(jnp.concatenate([x["a"], x["b"]]), t), energy)
    objective = diffusion_assisted(DIFFUSION, ef.mala(0.3), 2, num_chains=7)
    state = objective.init(jax.random.key(0), split, parts)
    assert jax.tree.map(jnp.shape, state.position) == {"a": (7, 1), "b": (7, 3)}
    loss, (state, _) = jax.jit(lambda *args: objective.loss(*args))(split, parts, jax.random.key(1), state)
    trace = joint_chain(0, split, DIFFUSION, state.position, state.level, ef.mala(0.3), 4, num_steps=2)
    assert np.isfinite(loss) and trace.at(0)["b"].shape[1:] == (3,)


@pytest.mark.lenient("optax")
def test_new_weights_levels_and_settings_compile_nothing(count_compilations, key):
    optimizer, batch = optax.adam(0.1), jax.random.normal(key, (8, 2))
    energy = at_levels(gaussian_levels, np.zeros(NUM_LEVELS), (0.0, 1.0))

    def use(state, diffusion, step_size):
        objective = diffusion_assisted(diffusion, ef.mala(step_size), 2, num_chains=8, target_acceptance=0.6)
        if state is None:
            state = ef.init(0, energy, objective, optimizer, batch)
        state, metrics = ef.make_step(objective, optimizer)(state, batch)
        chains = state.objective_state
        start = chains.position, np.asarray(chains.level)
        trace = joint_chain(0, state.energy, diffusion, *start, ef.mala(step_size), 2, warmup=2, num_steps=2)
        return state, metrics["loss"] + trace.energy.mean()

    state, _ = use(None, DIFFUSION, 0.3)
    with count_compilations() as made:
        _, value = use(state, cumulative_diffusion(NUM_LEVELS - 1, 0.02, 0.4), 0.1)
    assert made.count == 0 and np.isfinite(value)


def test_an_unadjusted_kernel_holds_its_steps_and_bad_settings_are_refused():
    energy = at_levels(gaussian_levels, np.zeros(NUM_LEVELS), (0.0, 1.0))
    position, level = np.zeros((4, 1), np.float32), np.arange(4)

    def chain(*, energy=energy, level=level, kernel=None, num_rounds=2, **settings):
        return joint_chain(0, energy, DIFFUSION, position, level, kernel or ef.mala(0.1), num_rounds, **settings)

    trace = chain(kernel=ef.ula(0.05), target_acceptance=None, warmup=1)
    assert trace.acceptance_rate is None
    np.testing.assert_allclose(trace.step_scales, level_scales(DIFFUSION), rtol=1e-6)
    for match, bad in (
        ("accept step", lambda: chain(kernel=ef.ula(0.05), warmup=1)),
        ("landscape", lambda: chain(energy=ef.landscape(energy))),
        ("from 0 to 6", lambda: chain(level=np.full(4, 7))),
        ("from 0 to 6", lambda: chain(level=np.zeros(3, int))),
        ("from 0 to 6", lambda: chain(level=np.zeros(4))),
        ("multiple of thin", lambda: chain(num_rounds=3, thin=2)),
        ("num_steps", lambda: chain(num_steps=0)),
        ("step_scales must be 7", lambda: chain(step_scales=np.ones(6))),
        ("step_scales must be 7", lambda: chain(step_scales=np.zeros(7))),
        ("target_acceptance must lie", lambda: chain(target_acceptance=1.0)),
        ("no step size", lambda: diffusion_assisted(DIFFUSION, Partial(lambda d: d), num_chains=4)),
        ("a capacity for them", lambda: diffusion_assisted(DIFFUSION, ef.mala(0.1), num_chains=4, capacity=3)),
        (
            "alphas of a diffusion",
            lambda: diffusion_assisted(Diffusion([0.5, 1], [0.8, 0]), ef.mala(0.1), num_chains=4),
        ),
        ("two chains or more", lambda: free_log_z(0, energy, DIFFUSION, np.zeros((1, 5, 1)), np.zeros((1, 5), int))),
    ):
        with pytest.raises(ValueError, match=match):
            bad()
    objective = diffusion_assisted(DIFFUSION, ef.mala(0.1), num_chains=4)
    with pytest.raises(ValueError, match="float32 or float64"):
        objective.init(jax.random.key(0), energy, jnp.ones((3, 1), int))
    with pytest.raises(ValueError, match="landscape"):
        objective.init(jax.random.key(0), ef.landscape(energy), jnp.ones((3, 1)))


def trained(draw, energy, objective, num, rate, num_rows=256):
    """Return the state after `num` steps of Adam at a falling rate, on fresh batches."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, num, 0.02))
    state = ef.init(0, energy, objective, optimizer, draw(jax.random.key(0), num_rows))
    step, metrics = ef.make_step(objective, optimizer), {}
    for i in range(num):
        state, metrics = step(state, draw(jax.random.key(i + 1), num_rows))
    return state, metrics


def far_modes(key, num):
    """3/4 N(-2, .1^2) + 1/4 N(2, .1^2), brought to mean 0 and variance 1."""
    side_key, noise_key = jax.random.split(key)
    centre = jnp.where(jax.random.bernoulli(side_key, 0.75, (num, 1)), -2.0, 2.0)
    return (centre + 0.1 * jax.random.normal(noise_key, (num, 1)) + 1) / 3.01**0.5


def preference(energy):
    """Return E(left mode) - E(right mode)."""
    ends = (jnp.array([-2.0, 2.0]) + 1) / 3.01**0.5
    return float(energy(ends[:1]) - energy(ends[1:]))


def at_the_modes(key, energy, batch, num):
    """Start half of the chains in each mode."""
    centre = jnp.where(jnp.arange(num)[:, None] % 2 == 0, -1.0, 3.0)
    return (centre + 0.1 * jax.random.normal(key, (num, 1))) / 3.01**0.5


@pytest.mark.slow
@pytest.mark.lenient("optax")
def test_levels_give_far_modes_their_weights_and_local_chains_do_not():
    """3/4 and 1/4 at -2 and 2: the log of the ratio of masses is log 3 within .25, and the difference of the energies
    at the centres, where the wells of a small network need not be alike, within 1. Persistent chains at one level that
    do not cross leave it undetermined: started half in each mode, the difference runs off by tens of nats."""
    objective = diffusion_assisted(DIFFUSION, ef.mala(0.3), 5, num_chains=256, num_rounds=4)
    state, metrics = trained(far_modes, level_mlp(0, 1, NUM_LEVELS, (64, 64)), objective, 1500, 5e-3)
    clean = ef.condition(state.ema, 0)
    grid = jnp.linspace(-6.0, 6.0, 12001)
    mass = np.exp(-np.asarray(jax.vmap(lambda x: clean(x[None]))(grid), np.float64))
    left = mass[np.asarray(grid) < 1 / 3.01**0.5].sum() / mass.sum()
    assert abs(np.log(left / (1 - left)) - np.log(3)) < 0.25
    assert abs(preference(clean) + np.log(3)) < 1
    assert metrics["level_moves"] > 0.3 and metrics["largest_level"] < 0.3
    local = ef.pcd(ef.mala(1e-3), 20, num_chains=256, start=Partial(at_the_modes))
    one_level = ef.condition(level_mlp(0, 1, 1, (64, 64)), 0)
    state, _ = trained(far_modes, one_level, ef.contrastive(local), 1500, 5e-3)
    assert abs(preference(state.energy) + np.log(3)) > 4


def three_modes(key, num):
    """Three Gaussians of scale 1/4 in two dimensions, with weights .5, .3 and .2."""
    which_key, noise_key = jax.random.split(key)
    which = jax.random.choice(which_key, 3, (num,), p=jnp.array([0.5, 0.3, 0.2]))
    means = jnp.array([[-1.0, -0.8], [1.2, -0.4], [0.2, 1.3]])
    return means[which] + 0.25 * jax.random.normal(noise_key, (num, 2))


@pytest.mark.slow
@pytest.mark.lenient("optax", "numpyro")
def test_a_trained_model_keeps_its_chains_and_its_free_log_z_is_that_of_the_bracket():
    """1500 updates, 1000 rounds of 10 moves: the energy stays, and log Z agrees with quadrature and with annealing."""
    objective = diffusion_assisted(DIFFUSION, ef.mala(0.3), 10, num_chains=256, num_rounds=2)
    state, _ = trained(three_modes, level_mlp(0, 2, NUM_LEVELS, (64, 64)), objective, 1500, 5e-3)
    chains = state.objective_state
    trace = joint_chain(
        7,
        state.ema,
        DIFFUSION,
        chains.position[:128],
        np.asarray(chains.level)[:128],
        ef.mala(0.3),
        1000,
        step_scales=chains.steps.scales,
        warmup=20,
    )
    assert abs(trace.energy_drift) < 0.2 and trace.level_moves > 0.3
    axis = np.linspace(-5, 5, 401)
    points = jnp.asarray(np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2), float)
    mass = [
        np.exp(-np.asarray(jax.vmap(Partial(lambda e, t, x: e(x, t), state.ema, t))(points), np.float64))
        for t in (0, 6)
    ]
    clean, end = (np.log(m.sum() * (axis[1] - axis[0]) ** 2) for m in mass)
    free = free_log_z(3, state.ema, DIFFUSION, trace.position, trace.level)
    value, error = free.corrected
    assert abs(free.end - end) < 4.5 * free.end_error
    assert abs(value - clean) < 4.5 * error < 0.1
    assert abs(free.log_z - clean) < 0.1  # of the shares of the levels after so short a training, and of KL(p_T || N)
    base = dist.Normal(jnp.zeros(2), 1.5).to_event(1)
    bracket = ef.bracket(5, ef.condition(state.ema, 0), base, num_temperatures=200, num_chains=128)
    assert abs(value - bracket.log_z) < 4.5 * np.hypot(error, bracket.stderr)
