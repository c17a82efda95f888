"""Laws of the negative phases: what CD and PCD learn, which chain goes where, and that no gradient follows it."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax.tree_util import register_dataclass

import energyflow as ef
from energyflow.chains import chain_keys
from energyflow.kernels import bind
from energyflow.kernels.transitions import evolve, step_keys
from energyflow.types import Negatives
from laws import assert_mean, assert_not_mean


@register_dataclass
@dataclass(frozen=True, eq=False)
class Gaussian:
    """`E(x) = precision (x - mean)^2 / 2 + offset` for points of any shape; all three are trainable."""

    precision: Any
    mean: Any
    offset: Any = 0.0

    def __call__(self, x):
        return self.precision * jnp.sum((x - self.mean) ** 2) / 2 + self.offset


def slope(x):
    """An energy on which noiseless Langevin of step 1 moves by exactly +1: positions count transitions."""
    return -jnp.sum(x)


COUNTING = ef.langevin(1.0, noise_scale=0.0)
FAR = 1000.0  # between starts: exact in float32, and no chain counts that far


def numbered(key, num):
    """Starts 0, 1000, 2000, ...: a position names the chain it descends from."""
    return FAR * jnp.arange(0.0, num)


def standardised(rng, num, mean, variance):
    """Return `num` points with exactly this mean and variance (of the sample, up to rounding)."""
    x = rng.normal(size=num)
    return mean + variance**0.5 * (x - x.mean()) / x.std()


def draw_many(negatives, key, energy, batch, num_draws):
    """Draw `num_draws` times in one scan; returns the last state and everything drawn, leading axis [draw]."""

    @jax.jit
    def run(key):
        def body(state, i):
            fake, _, state, metrics = negatives.draw(jax.random.fold_in(key, i), energy, batch, state)
            return state, (fake, state, metrics)

        state = negatives.init(jax.random.fold_in(key, 0), energy, batch)
        return jax.lax.scan(body, state, jnp.arange(1, num_draws + 1))

    return jax.device_get(run(key))


# What CD learns


@pytest.mark.core
@pytest.mark.parametrize(("k", "shrunk"), [(1, 0.0150), (5, 0.0728), (100, 0.7794)])
def test_cd_gradient_is_the_exact_one_times_one_minus_a_to_the_k(k, shrunk, key, seed):
    """On a Gaussian the unadjusted chain is affine, so mirroring the data about the mean cancels its noise exactly."""
    with jax.enable_x64(True):
        step_size, precision, mean = 0.005, 3.0, 0.4
        a = 1 - step_size * precision
        data = np.random.default_rng(seed).normal(1.3, 0.5, size=64)
        energy = Gaussian(jnp.array(precision), jnp.array(mean))
        objective = ef.contrastive(ef.cd(ef.ula(step_size), k))

        @jax.jit
        def gradient(batch, key):
            return jax.grad(lambda e: objective.loss(e, batch, key, None)[0])(energy).mean

        ours, mirrored = (gradient(x, jax.random.clone(key)) for x in (jnp.array(data), jnp.array(2 * mean - data)))
        exact = -precision * (data.mean() - mean)
        assert abs((ours - mirrored) / 2 / exact - (1 - a**k)) < 1e-10
        assert abs(1 - a**k - shrunk) < 1e-4
        assert abs(ours / exact - (1 - a**k)) > 1e-10  # one draw alone is noisy


@pytest.mark.parametrize("k", [1, 7])
def test_fixed_point_of_cd_does_not_depend_on_k(k, key):
    """Where the mean gradient is zero: at 1/s^2 with an accept step, at (1 - sqrt(1 - 2h/s^2))/h without."""
    variance, h = 0.25, 0.08
    biased = (1 - np.sqrt(1 - 2 * h / variance)) / h
    assert abs(biased - 5.0) < 1e-12
    data_key, draw_key = jax.random.split(key)
    data = variance**0.5 * jax.random.normal(data_key, (2**14,))

    @partial(jax.jit, static_argnames="kernel")
    def pairs(kernel, precision, key):
        energy = Gaussian(precision, jnp.zeros(()))
        fake = ef.cd(kernel(h), k).draw(key, energy, data, None)[0]
        return (data**2 - fake**2) / 2  # gradient in the precision, chain i having started at row i

    for kernel, right, wrong in ((ef.mala, 1 / variance, biased), (ef.ula, biased, 1 / variance)):
        assert_mean(pairs(kernel, right, jax.random.clone(draw_key)), 0.0)
        assert_not_mean(pairs(kernel, wrong, jax.random.clone(draw_key)), 0.0)


# What PCD learns


def train_gaussian(key, negatives, data, num_steps, rates=(3.0, 0.05), energy=None):
    """Return the precisions and means after each of `num_steps` plain gradient steps at constant `rates`."""
    optimizer = optax.stateless(
        lambda g, _: replace(g, precision=-rates[0] * g.precision, mean=-rates[1] * g.mean, offset=0 * g.offset)
    )
    objective = ef.contrastive(negatives)
    start = Gaussian(jnp.array(1.0), jnp.array(0.0), jnp.array(0.0)) if energy is None else energy
    state = ef.init(key, start, objective, optimizer, data)
    step = ef.make_step(objective, optimizer)

    def body(state, _):
        state, metrics = step(state, data)
        return state, (state.energy.precision, state.energy.mean, metrics)

    return jax.device_get(jax.jit(lambda s: jax.lax.scan(body, s, length=num_steps)[1])(state))


def check_pcd_fixed_point(key, rng, kernel, expected, num_chains, num_steps, tolerance):
    data = jnp.asarray(standardised(rng, num_chains, 0.7, 0.25), jnp.float32)
    precision, mean, _ = train_gaussian(key, ef.pcd(kernel, 3), data, num_steps)
    half = num_steps // 2
    assert abs(precision[half:].mean() / expected - 1) < tolerance
    # Chains of the learned density have standard deviation 1/2, and a mean of `half` correlated steps.
    assert abs(mean[half:].mean() - 0.7) < tolerance / 2


# 512 chains, 750 averaged steps of about 5 correlated ones each: sqrt(2 * 5 / 512 / 750) = .5 % of the precision.
ULA_FIXED_POINTS = [(0.2, 4.174), (0.4, 5.000)]  # epsilon, the precision learned for s^2 = .25


@pytest.mark.core
def test_pcd_with_an_accept_step_learns_the_data_precision(key, seed):
    check_pcd_fixed_point(key, np.random.default_rng(seed), ef.mala(0.08), 4.0, 512, 1500, 0.02)


@pytest.mark.parametrize(("epsilon", "published"), ULA_FIXED_POINTS[1:])
def test_pcd_without_an_accept_step_learns_a_precision_biased_as_predicted(epsilon, published, key, seed):
    expected = 2 / epsilon**2 * (1 - np.sqrt(1 - epsilon**2 / 0.25))
    assert abs(expected - published) < 1e-3
    check_pcd_fixed_point(key, np.random.default_rng(seed), ef.ula(epsilon**2 / 2), expected, 512, 1500, 0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("epsilon", "published"), ULA_FIXED_POINTS)
@pytest.mark.parametrize("kernel", [ef.mala, ef.ula])
def test_pcd_fixed_points_to_half_a_percent(kernel, epsilon, published, key, seed):
    expected = published if kernel is ef.ula else 4.0
    check_pcd_fixed_point(key, np.random.default_rng(seed), kernel(epsilon**2 / 2), expected, 2048, 10000, 0.005)


@register_dataclass
@dataclass(frozen=True, eq=False)
class Hanging:
    """A Gaussian whose offset moves with its precision, as a network's does with its weights: no law depends on it."""

    precision: Any
    mean: Any
    offset: Any

    def __call__(self, x):
        return self.precision * (x**2 - 100.0) / 2


def stale_pcd(kernel, num_chains):
    """The bug that re-initialisation prevents: kernel states, log densities and all, carried across updates."""

    def init(key, energy, batch):
        return jax.vmap(bind(kernel, ef.logdensity(energy)).init)(batch, chain_keys(key, num_chains))

    def draw(key, energy, batch, state):
        algorithm = bind(kernel, ef.logdensity(energy))
        state, stats = jax.vmap(lambda k, s: evolve(step_keys(k, 1), algorithm, s))(chain_keys(key, num_chains), state)
        return state.position, None, state, {"acceptance_rate": jnp.mean(stats.acceptance_rate)}

    return Negatives(init, draw)


def test_caches_carried_across_updates_ruin_pcd_and_ours_are_not(key, seed):
    variance, num = 0.7, 1024
    data = jnp.asarray(standardised(np.random.default_rng(seed), num, 0.0, variance), jnp.float32)
    learned = {}
    for name, negatives in (("pcd", ef.pcd(ef.mala(0.3), 1)), ("stale", stale_pcd(ef.mala(0.3), num))):
        energy = Hanging(jnp.array(1.0), jnp.array(0.0), jnp.array(0.0))
        precision, _, metrics = train_gaussian(jax.random.clone(key), negatives, data, 1200, (0.5, 0.0), energy)
        learned[name] = 1 / precision[400:].mean(), metrics["acceptance_rate"][400:].mean()
    assert abs(learned["pcd"][0] / variance - 1) < 0.015
    assert abs(learned["stale"][0] / variance - 1) > 0.2
    assert learned["pcd"][1] > 0.9 and learned["stale"][1] < 0.5


# What no negative phase may depend on


def test_no_gradient_flows_through_the_chains(key):
    with jax.enable_x64(True):
        data_key, draw_key = jax.random.split(key)
        data = 1 + jax.random.normal(data_key, (32, 2), jnp.float64)
        energy = Gaussian(jnp.array(3.0), jnp.array(0.4))
        kernel = ef.langevin(0.05, noise_scale=0.0)

        def gap(energy, fake):
            return jnp.mean(jax.vmap(energy)(data)) - jnp.mean(jax.vmap(energy)(fake))

        @jax.jit
        def gradients(key):
            negatives = ef.pcd(kernel, 4)
            state = negatives.init(jax.random.fold_in(key, 0), energy, data)
            again = jax.random.fold_in(key, 1)
            ours = jax.grad(lambda e: ef.contrastive(negatives).loss(e, data, again, state)[0])(energy)
            fake = negatives.draw(jax.random.clone(again), energy, data, state)[0]
            return ours, jax.grad(gap)(energy, fake), jax.grad(through)(energy)

        def through(energy):  # the control: what it would have been
            moved = data
            for _ in range(4):
                moved += 0.05 * jax.grad(lambda x: -jnp.sum(jax.vmap(energy)(x)))(moved)
            return gap(energy, moved)

        ours, fixed, control = gradients(draw_key)
        assert np.allclose(jax.tree.leaves(ours), jax.tree.leaves(fixed), rtol=1e-13, atol=0)
        assert abs(control.mean / ours.mean - 1) > 0.1


@pytest.mark.parametrize("kernel", [ef.mala, ef.ula])
def test_a_constant_added_to_the_energy_changes_no_sample_and_no_gradient(kernel, key):
    """In float64: a rate rounded at 1e-15 flips no accept step of these few hundred."""
    with jax.enable_x64(True):
        negatives = ef.pcd(kernel(0.2), 3)
        objective = ef.contrastive(negatives)
        data_key, draw_key = jax.random.split(key)
        data = jax.random.normal(data_key, (64,), jnp.float64)

        @jax.jit
        def run(energy, key):
            state = negatives.init(jax.random.fold_in(key, 0), energy, data)
            fake = negatives.draw(jax.random.fold_in(key, 1), energy, data, state)[0]
            return fake, jax.grad(lambda e: objective.loss(e, data, jax.random.fold_in(key, 1), state)[0])(energy)

        (plain, gradient), (shifted, other) = (
            run(Gaussian(jnp.array(2.0), jnp.array(0.3), jnp.array(c)), jax.random.clone(draw_key)) for c in (0.0, 8.0)
        )
        assert np.array_equal(plain, shifted)
        assert (gradient.precision, gradient.mean) == (other.precision, other.mean)
        assert abs(other.offset) < 1e-15


# Which chain goes where


@pytest.mark.core
def test_all_chains_return_to_their_own_slots_and_advance_every_draw(key):
    negatives = ef.pcd(COUNTING, 3, num_chains=64, start=ef.from_sampler(numbered))
    state, (fake, states, metrics) = draw_many(negatives, key, slope, jnp.zeros(16), 50)
    starts = np.asarray(numbered(None, 64))
    for n in (1, 2, 50):
        assert np.array_equal(states.position[n - 1], starts + 3 * n)
        assert np.array_equal(fake[n - 1], states.position[n - 1])
    assert np.array_equal(state.lineage, np.arange(64))
    assert np.all(metrics["lineages"] == 64)
    assert np.all(metrics["num_gradients"] == 3 * 64)
    assert np.all(metrics["travel"] == 3)


def test_a_subset_moves_in_place_without_replacement_and_equally_often(key):
    capacity, num, draws = 48, 16, 2000
    negatives = ef.pcd(COUNTING, 1, capacity=capacity, num_chains=num, start=ef.from_sampler(numbered))
    state, (fake, states, metrics) = draw_many(negatives, key, slope, jnp.zeros(4), draws)
    starts = np.asarray(numbered(None, capacity))
    before = np.concatenate([starts[None], states.position[:-1]])
    moved = states.position - before
    assert np.all((moved == 0) | (moved == 1)) and np.all(moved.sum(axis=1) == num)
    assert np.array_equal(np.sort(fake, axis=1), np.sort(states.position[moved == 1].reshape(draws, num), axis=1))
    assert np.array_equal(state.lineage, np.arange(capacity))
    assert np.all(metrics["lineages"] == capacity)
    assert_mean(moved, num / capacity)  # per row: draws are independent of one another


def test_fifo_appends_copies_at_its_pointer_and_lineages_die_out(key):
    capacity, num, draws = 32, 12, 400
    negatives = ef.replay(
        COUNTING, 2, capacity=capacity, num_chains=num, policy="fifo", start=ef.from_sampler(numbered), reinit=0.0
    )
    state, (fake, states, metrics) = draw_many(negatives, key, slope, jnp.zeros(4), draws)
    expected = np.array(numbered(None, capacity))
    for n in range(draws):
        assert np.isin(fake[n] - 2, expected).all()  # copies of rows that were there
        expected[(num * n + np.arange(num)) % capacity] = fake[n]
        assert np.array_equal(states.position[n], expected)
        assert states.pointer[n] == num * (n + 1) % capacity
    assert np.array_equal(state.lineage, state.position // FAR)
    assert metrics["lineages"][-1] == len(np.unique(state.lineage))
    assert np.all(np.diff(metrics["lineages"]) <= 0)
    # 400 draws are 150 generations of 32 rows; two lineages meet within about 32 of them.
    assert metrics["lineages"][0] > 12 and metrics["lineages"][-1] <= 3


def test_reservoir_keeps_every_sample_ever_made_with_equal_chance(key):
    """With re-initialisation 1 each sample is a lineage of its own, numbered in the order they were made."""
    capacity, num, draws, repetitions = 8, 6, 5, 2048
    negatives = ef.replay(COUNTING, 1, capacity=capacity, num_chains=num, policy="reservoir", reinit=1.0)

    @jax.jit
    @jax.vmap
    def run(key):
        batch = jnp.zeros(num)
        state = negatives.init(jax.random.fold_in(key, 0), slope, batch)
        draw = lambda n, state: negatives.draw(jax.random.fold_in(key, n), slope, batch, state)[2]  # noqa: E731
        return jax.lax.fori_loop(1, draws + 1, draw, state)

    state = run(jax.random.split(key, repetitions))
    seen = capacity + num * draws
    assert np.all(state.seen == seen)
    kept = np.any(np.asarray(state.lineage)[:, :, None] == np.arange(seen), axis=1)
    assert np.all(kept.sum(axis=1) == capacity)
    assert_mean(kept, capacity / seen)


def test_rows_begin_again_with_the_probability_asked_for(key):
    num, chance = 4096, 0.05

    def energy(x):
        return slope(x["a"]) + slope(x["b"])

    def restart(key, n):
        return {"a": -50 * jnp.ones((n, 2)), "b": -50 * jnp.ones(n)}

    negatives = ef.pcd(COUNTING, 1, start=ef.from_sampler(restart), reinit=chance)
    batch = {"a": jnp.zeros((num, 2)), "b": jnp.zeros(num)}
    state, (_, states, _) = draw_many(negatives, key, energy, batch, 3)
    fresh = states.position["b"] == -49
    fresh[0] = states.lineage[0] >= num  # in the first draw everyone is one move from the start
    assert_mean(fresh.ravel(), chance)
    assert np.array_equal(states.position["a"], np.stack([states.position["b"]] * 2, axis=-1))
    for before, after, again in zip(states.lineage[:-1], states.lineage[1:], fresh[1:], strict=True):
        assert np.array_equal(before[~again], after[~again])
        assert not np.isin(after[again], before).any()
    assert np.array_equal(states.position["b"][1][~fresh[1]], states.position["b"][0][~fresh[1]] + 1)


def flat(x):
    return 0.0 * jnp.sum(x)


CARRIED = {
    "ghmc": (ef.ghmc(0.1, alpha=0.0), {"momentum", "slice"}),
    "mclmc": (ef.mclmc(0.1, decoherence_length=1e9), {"momentum"}),
}


@pytest.mark.blackjax_promotes("ghmc")
@pytest.mark.parametrize("name", CARRIED)
def test_a_carried_momentum_goes_straight_on_across_draws(name, key):
    """On a flat energy and never refreshed it moves a chain by step * momentum, draw after draw."""
    kernel, fields = CARRIED[name]
    state, (_, states, _) = draw_many(ef.pcd(kernel, 5), key, flat, jnp.zeros((8, 3)), 6)
    assert state.carry.keys() == fields  # and neither log density nor gradient
    path = np.concatenate([np.zeros((1, 8, 3)), states.position])
    assert np.allclose(np.diff(path, axis=0), 0.5 * states.carry["momentum"][0], rtol=1e-4, atol=1e-5)
    assert np.allclose(states.carry["momentum"], states.carry["momentum"][0], rtol=1e-5, atol=1e-6)


@pytest.mark.blackjax_promotes("dynamic_hmc")
def test_the_random_generator_of_dynamic_hmc_is_carried(key):
    """It is folded with 1 at every transition, whatever the keys of the draws."""
    state, (_, states, _) = draw_many(ef.pcd(ef.dynamic_hmc(0.1, 4), 3), key, flat, jnp.ones((8, 2)), 2)
    assert state.carry.keys() == {"random_generator_arg"}
    generator = states.carry["random_generator_arg"]
    expected = generator[0]
    for _ in range(3):
        expected = jax.vmap(jax.random.fold_in, (0, None))(expected, 1)
    assert np.array_equal(jax.random.key_data(generator[1]), jax.random.key_data(expected))


@pytest.mark.blackjax_promotes()
def test_no_kernel_carries_what_belongs_to_one_energy(key):
    for kernel in (ef.mala(0.1), ef.hmc(0.1, 2), ef.barker(0.1), ef.rmh(0.1), ef.ula(0.1), ef.slice_sampling()):
        carry = ef.pcd(kernel, 1).init(jax.random.clone(key), Gaussian(1.0, 0.0), jnp.ones((4, 2))).carry
        assert not carry.keys() & {"logdensity", "logdensity_grad"}


# Where chains begin


def start_at(key, start, num, energy=slope, batch=None):
    batch = jnp.arange(10.0) if batch is None else batch
    return jax.jit(lambda key: start(key, energy, batch, num))(key)


@pytest.mark.core
def test_from_data_is_the_batch_or_rows_of_it(key):
    assert np.array_equal(start_at(jax.random.clone(key), ef.from_data(), 10), np.arange(10.0))
    rows = np.asarray(start_at(jax.random.clone(key), ef.from_data(), 10000))
    assert_mean(rows[:, None] == np.arange(10.0), 0.1)
    noise = start_at(jax.random.clone(key), ef.from_data(0.5), 4096, batch=jnp.full(10, 3.0)) - 3.0
    assert_mean(np.stack([noise, noise**2], axis=1), [0.0, 0.25])


def test_from_normal_and_from_uniform_have_their_moments_and_the_batch_shape(key):
    batch = {"a": jnp.zeros((4, 3)), "b": jnp.zeros(4)}
    normal = start_at(jax.random.clone(key), ef.from_normal(2.0), 4096, batch=batch)
    uniform = start_at(jax.random.clone(key), ef.from_uniform(-1.0, 3.0), 4096, batch=batch)
    for start, mean, variance in ((normal, 0.0, 4.0), (uniform, 1.0, 16 / 12)):
        assert (start["a"].shape, start["b"].shape) == ((4096, 3), (4096,))
        for leaf in start.values():
            assert_mean(leaf, mean)
            assert_mean((leaf - mean) ** 2, variance)
        assert abs(np.corrcoef(start["a"][:, 0], start["b"])[0, 1]) < 4.5 / 64  # leaves do not share their noise
    for leaf in uniform.values():
        assert np.all((leaf >= -1) & (leaf < 3))


@pytest.mark.lenient("numpyro")
def test_from_base_draws_from_the_base_of_a_tilt_and_needs_one(key):
    base = dist.Normal(jnp.array([1.0, -2.0]), jnp.array([0.5, 2.0])).to_event(1)
    draws = start_at(jax.random.clone(key), ef.from_base(), 4096, energy=ef.tilt(slope, base))
    assert_mean(draws, [1.0, -2.0])
    assert_mean((draws - jnp.array([[1.0, -2.0]])) ** 2, [0.25, 4.0])
    with pytest.raises(ValueError, match=r"from_base needs a tilted energy, .*see energyflow\.tilt"):
        start_at(jax.random.clone(key), ef.from_base(), 8)


def test_short_run_starts_afresh_at_every_draw_and_cd_at_the_batch(key):
    negatives = ef.short_run(COUNTING, 7, start=ef.from_sampler(numbered), num_chains=24)
    state, (fake, _, metrics) = draw_many(negatives, key, slope, jnp.zeros(16), 3)
    assert state is None
    assert np.array_equal(fake, np.stack([np.asarray(numbered(None, 24)) + 7] * 3))
    assert np.all(metrics["num_gradients"] == 7 * 24)
    batch = jnp.arange(16.0)
    fake = draw_many(ef.cd(COUNTING, 7), jax.random.clone(key), slope, batch, 2)[1][0]
    assert np.array_equal(fake, np.stack([batch + 7] * 2))


# What the metrics say


@pytest.mark.parametrize(
    ("kernel", "temperature"),
    [(ef.ula(0.02), 1.0), (ef.langevin(0.1, noise_scale=0.05), 0.0125), (ef.mala(0.02), 1.0)],
)
def test_temperature_sampled_at_and_acceptance_are_reported(kernel, temperature, key):
    batch = jnp.ones((8, 2))
    metrics = jax.jit(lambda key: ef.cd(kernel, 2).draw(key, Gaussian(1.0, 0.0), batch, None)[3])(key)
    assert abs(metrics["sampler_temperature"] - temperature) < 1e-6
    assert ("acceptance_rate" in metrics) == (kernel.func is ef.mala(0.1).func)
    gradients = 8 * (3 if "acceptance_rate" in metrics else 2)  # an accept step needs the gradient of its start
    assert metrics["num_gradients"] == gradients


def test_an_unrolled_draw_is_the_looped_one(key):
    batch = jnp.ones((16, 2))
    looped, unrolled = (
        draw_many(ef.cd(ef.ula(0.1), 3, unroll=u), jax.random.clone(key), Gaussian(1.0, 0.0), batch, 1)[1][0]
        for u in (False, True)
    )
    assert np.allclose(looped, unrolled, rtol=1e-5, atol=1e-6)


def test_starts_and_negative_phases_may_be_plain_functions():
    """Through the jitted training step, whose arguments they are."""

    def corner(key, energy, batch, num):
        return jnp.full((num, *batch.shape[1:]), 9.0)

    def draw(key, energy, batch, state):
        fake = batch + 1 if state is None else state
        return fake, None, state, {}

    batch, optimizer = jnp.ones((4, 2)), optax.sgd(0.1)
    hand_made = Negatives(lambda key, energy, batch: None, draw)
    for negatives in (ef.pcd(COUNTING, 1, start=corner), ef.short_run(COUNTING, 1, start=corner), hand_made):
        objective = ef.contrastive(negatives)
        state = ef.init(0, Gaussian(1.0, 0.0), objective, optimizer, batch)
        state, metrics = ef.make_step(objective, optimizer)(state, batch)
        # The counting kernel goes down the Gaussian's slope at step 1, which is to its mean.
        assert metrics["energy_model"] == (4.0 if negatives is hand_made else 0.0)


# What is refused


@pytest.mark.core
def test_what_cannot_be_drawn_is_refused(key):
    batch, energy = jnp.ones((8, 2)), Gaussian(1.0, 0.0)
    with pytest.raises(ValueError, match='policy must be "in_place", "fifo" or "reservoir"; got \'lifo\''):
        ef.replay(ef.mala(0.1), 1, policy="lifo")
    with pytest.raises(ValueError, match="a buffer of 4 rows cannot lend 8 chains"):
        ef.pcd(ef.mala(0.1), 1, capacity=4, num_chains=8).init(jax.random.clone(key), energy, batch)
    unadjusted = ef.cd(ef.ula(0.1), 1, tuner=ef.by_acceptance())
    with pytest.raises(ValueError, match="a step tuner needs a kernel with an accept step"):
        unadjusted.draw(jax.random.clone(key), energy, batch, unadjusted.init(None, energy, batch))
    with pytest.raises(ValueError, match="no step size to read or tune"):
        ef.cd(ef.slice_sampling(), 1, tuner=ef.by_acceptance()).init(None, energy, batch)


# Step sizes that adapt inside a negative phase


def test_a_tuner_inside_pcd_reaches_its_acceptance(key):
    """From a step 100 times too small, on a Gaussian in 10 dimensions; the tuners' own laws are in test_stepsize."""
    negatives = ef.pcd(ef.mala(3e-3), 1, tuner=ef.by_acceptance(0.574))
    data = jax.random.normal(jax.random.fold_in(key, 1000), (256, 10))
    metrics = draw_many(negatives, key, Gaussian(1.0, 0.0), data, 250)[1][2]
    # Of 100 draws and 256 chains the mean rate has a standard error of .3/sqrt(25600) = .002, were they independent.
    assert abs(metrics["acceptance_rate"][-100:].mean() - 0.574) < 0.02
    assert metrics["step_size"][-1] > 0.1


def _around(x, center):
    return 0.5 * jnp.sum((x - center) ** 2)


@pytest.mark.parametrize("phase", ["cd", "pcd", "short_run", "replay"])
def test_conditional_chains_sample_each_their_own_density(phase):
    """N(c, 1) for c = -5, 5: after 60 MALA moves each chain is a draw under its condition, z-scores of the mean."""
    rows = jnp.where(jnp.arange(512)[:, None] % 2 == 0, -5.0, 5.0) + jnp.zeros((512, 2))
    settings = {"replay": {"capacity": 512, "reinit": 0.3}, "short_run": {"start": ef.from_normal()}}.get(phase, {})
    negatives = getattr(ef, phase)(ef.mala(0.5), 60, conditional=True, **settings)
    state = negatives.init(jax.random.key(0), _around, (rows, rows))
    (x, cond), log_weights, state, _ = negatives.draw(jax.random.key(1), _around, (rows, rows), state)
    assert log_weights is None
    assert set(np.unique(np.asarray(cond))) == {-5.0, 5.0}
    z = (x - cond).sum() / x.size**0.5
    assert abs(float(z)) < 4.5
    assert 0.8 < float(jnp.var(x - cond)) < 1.2
    if phase == "pcd":  # conditions stay in their slots
        np.testing.assert_array_equal(state.cond[0], cond)


def test_an_augmentation_is_a_transition_of_the_rows_drawn():
    """No move, one reflection a draw: the buffer changes its sign and nothing else."""
    negatives = ef.replay(ef.mala(1e-12), 1, reinit=0.0, augment=_reflected)
    rows = jnp.arange(1.0, 9.0)[:, None] * jnp.ones((8, 2))
    state = negatives.init(jax.random.key(0), _around_origin, rows)
    found, _, state, _ = negatives.draw(jax.random.key(1), _around_origin, rows, state)
    np.testing.assert_allclose(sorted(found[:, 0]), sorted(-state_rows(negatives, rows)), rtol=1e-4)


def state_rows(negatives, rows):
    return negatives.init(jax.random.key(0), _around_origin, rows).position[:, 0]


def _reflected(key, x):
    return -x


def _around_origin(x):
    return 0.5 * jnp.sum(x**2)
