"""Laws of dual score matching: exact energies are stationary, the constant is log Z, far modes get their weights."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import energyflow as ef
from energyflow.objectives import dual_score
from laws import assert_mean, assert_not_mean

pytestmark = pytest.mark.core

S2 = 1.3
"""Variance of the Gaussian data."""


def value(objective, energy, batch, key):
    return objective.loss(energy, batch, key, None)[0]


def misses(energy, points, sigma, noise):
    """Return the two errors at points and noise (n, d), all with noise of scale sigma."""
    sigmas = jnp.full(len(points), sigma)
    return jax.vmap(Partial(dual_score._misses, energy, lambda y: y))(points, sigmas, noise)


def normal_nodes(num, dim):
    """Return Gauss-Hermite nodes (num^dim, dim) of N(0, I) and their weights: exact for degree 2 num - 1."""
    x, w = np.polynomial.hermite_e.hermegauss(num)
    nodes = np.array(list(itertools.product(x, repeat=dim)))
    weights = np.array([np.prod(c) for c in itertools.product(w / w.sum(), repeat=dim)])
    return jnp.asarray(nodes), jnp.asarray(weights)


def gaussian_energy(variance, logs, y, sigma):
    """-log density of N(0, variance I) with noise of scale sigma added, up to a constant, where logs = d/2."""
    total = variance + sigma**2
    return jnp.sum(y**2) / (2 * total) + logs * jnp.log(total)


def mixture_energy(weight, y, sigma):
    """-log density of `weight N(-2, 1) + (1 - weight) N(2, 1)` with noise of scale sigma added."""
    total = 1 + sigma**2
    logits = jnp.stack([jnp.log(weight), jnp.log(1 - weight)]) - (y[0] + jnp.array([2.0, -2.0])) ** 2 / (2 * total)
    return 0.5 * jnp.log(2 * jnp.pi * total) - jax.nn.logsumexp(logits)


def time_losses(space, time, noise):
    """Return the time loss as it is, and with each of four faults planted."""
    dim = noise.shape[1]
    target = (1 - jnp.mean(noise**2, axis=1)) / 2
    slope = target - time  # (t/d) dU/dt
    return {
        "right": time**2,
        "wrong sign": (target + slope) ** 2,
        "sigma d/dsigma for t d/dt": (target - 2 * slope) ** 2,
        "not divided by d": (target - dim * slope) ** 2,
        "target not halved": (2 * target - slope) ** 2,
    }


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("sigma", [0.1, 1.0, 7.0])
def test_a_gaussian_is_stationary_under_both_losses(dim, sigma):
    """Expectations over data and noise by quadrature that is exact for the losses' polynomials of degree four."""
    with jax.enable_x64(True):
        nodes, weights = normal_nodes(4, 2 * dim)
        x, z = jnp.sqrt(S2) * nodes[:, :dim], nodes[:, dim:]

        def losses(energy):
            space, time = misses(energy, x, sigma, z)
            return {"space": weights @ jnp.mean(space**2, axis=1)} | {
                name: weights @ loss for name, loss in time_losses(space, time, z).items()
            }

        slopes = jax.jit(jax.jacrev(losses))(Partial(gaussian_energy, jnp.asarray(S2), jnp.asarray(dim / 2)))
        size = {name: max(abs(leaf) for leaf in jax.tree.leaves(slope)) for name, slope in slopes.items()}
        assert max(size.pop("space"), size.pop("right")) < 1e-10
        assert min(size.values()) > 1e-5, size  # they go as (t / (s^2 + t))^2, which is 6e-5 at the least noise


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_any_density_is_stationary_in_any_direction(sigma, seed):
    """A mixture plus a small multiple of a network without its symmetry; with a wrong weight it is not stationary."""
    with jax.enable_x64(True):
        nodes, weights = normal_nodes(90, 2)
        x, z = jnp.concatenate([nodes[:, :1] - 2, nodes[:, :1] + 2]), jnp.tile(nodes[:, 1:], (2, 1))
        weights = jnp.concatenate([0.3 * weights, 0.7 * weights])
        a, b = jax.random.normal(jax.random.key(seed), (2, 6), float)

        def energy(weight, size, y, sigma):
            bump = jnp.sum(jnp.tanh(a * y[0] / 3 + b * jnp.log(sigma)) * b) + jnp.log(sigma) ** 2
            return mixture_energy(weight, y, sigma) + size * bump

        @jax.jit
        @functools.partial(jax.jacrev, argnums=(0, 1))
        def slopes(weight, size):
            space, time = misses(Partial(energy, weight, size), x, sigma, z)
            return jnp.stack([weights @ space[:, 0] ** 2, weights @ time**2])

        right, wrong = (slopes(jnp.asarray(weight), jnp.asarray(0.0)) for weight in (0.3, 0.5))
        assert max(jnp.abs(slope).max() for slope in right) < 1e-8
        assert jnp.abs(wrong[0]).min() > 1e-5  # along the weight, of both losses


def test_the_time_derivative_is_the_mean_of_its_target(seed):
    """Of a Gaussian: given y, the noise y - x has mean `t y / (s^2 + t)` and variance `s^2 t / (s^2 + t)` per axis."""
    with jax.enable_x64(True):
        nodes, weights = normal_nodes(4, 2)
        energy = Partial(gaussian_energy, jnp.asarray(S2), jnp.asarray(1.0))
        for sigma, y in zip((0.2, 1.0, 5.0), jax.random.normal(jax.random.key(seed), (3, 2), float), strict=True):
            t = sigma**2
            noise = (t / (S2 + t) * y[None] + jnp.sqrt(S2 * t / (S2 + t)) * nodes) / sigma
            _, time = misses(energy, y[None] - sigma * noise, sigma, noise)
            assert abs(weights @ time) < 1e-12
            assert np.ptp(time) > 0.1  # one draw has not the mean


def curve(precision, y, sigma):
    """An energy of four dimensions that no network is compiled for."""
    return y @ precision @ y / (1 + sigma**2) + jnp.log1p(sigma)


def flat(c, x, sigma):
    return 0.0 * c * jnp.sum(x)


def values(objective, energy, batch, key, num=2000):
    loss = lambda k: objective.loss(energy, batch, k, None)[1][1]  # noqa: E731
    return jax.jit(jax.vmap(loss))(jax.random.split(key, num))


def test_a_zero_score_costs_one_and_a_flat_time_half_over_the_dimension(key):
    metrics = values(ef.dual_score_matching(0.1, 9.0), Partial(flat, jnp.ones(())), jnp.ones((4, 5)), key)
    assert_mean(metrics["space"], 1.0)
    assert_mean(metrics["time"], 1 / 10)


def test_the_two_losses_are_summed_with_the_weight_given(key):
    energy, batch = Partial(curve, jnp.eye(4)), jax.random.normal(key, (6, 4))
    for weight in (1.0, 0.25):
        loss, (_, m) = ef.dual_score_matching(0.1, 9.0, time_weight=weight).loss(energy, batch, jax.random.key(1), None)
        np.testing.assert_allclose(loss, m["space"] + weight * m["time"], rtol=1e-6)


def test_noise_scales_are_log_uniform(key):
    """The energy d log(sigma)^2 has the time error `target - log(sigma)`: with log(sigma) uniform on [a, b] the loss is
    1 / (2d) + (b^3 - a^3) / (3 (b - a))."""
    energy = Partial(lambda c, x, sigma: c * jnp.log(sigma) ** 2 + 0.0 * jnp.sum(x), jnp.asarray(3.0))
    low, high = np.log(0.1), np.log(20.0)
    found = values(ef.dual_score_matching(0.1, 20.0), energy, jnp.ones((4, 3)), key)["time"]
    assert_mean(found, 1 / 6 + (high**3 - low**3) / (3 * (high - low)))
    u = np.log(np.linspace(0.1, 20.0, 100_001))
    assert_not_mean(found, 1 / 6 + np.mean(u**2))  # uniform in sigma


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_the_normaliser_of_a_gaussian_is_exact_within_its_error(temperature, key):
    """-log p(x) of every level, from an energy with an offset of 2.5 and a temperature.

    Beside the Monte Carlo error stands the Kullback-Leibler divergence to the Gaussian fitted to n rows, at most
    d^2 / n (s^2 / t)^2 or 2e-6 nats here; float32 adds 1e-5.
    """
    dim, sigma, num = 3, 8.0, 4000
    data = jnp.sqrt(S2) * jax.random.normal(key, (num, dim))

    def energy(logs, y, sigma):
        return temperature * (gaussian_energy(S2, logs, y, sigma) + 2.5)

    energy = ef.tempered(Partial(energy, jnp.asarray(dim / 2)), temperature)
    exact = dim / 2 * np.log(2 * np.pi) - 2.5
    found = ef.normalise_at(jax.random.clone(key), energy, data, sigma)
    assert abs(found.log_z - exact) < 4.5 * found.stderr + 2e-5
    assert found.stderr < 1e-3
    # The Gaussian of the noise alone: off by d/2 log(1 + s^2 / t), 0.03, and with the noise's own spread as its error.
    noisy = data + sigma * jax.random.normal(jax.random.fold_in(key, 1), data.shape)
    alone = dim / 2 * np.log(2 * np.pi * np.e * sigma**2) - jax.vmap(lambda y: energy(y, sigma) / temperature)(noisy)
    assert float(jnp.std(alone)) / num**0.5 > 10 * found.stderr
    assert_mean(alone, exact - dim / 2 * np.log(1 + S2 / sigma**2))
    y = jnp.array([0.3, -1.0, 2.0])
    for level in (0.1, 1.0, 8.0):
        total = S2 + level**2
        log_prob = -jnp.sum(y**2) / (2 * total) - dim / 2 * np.log(2 * np.pi * total)
        at_level = ef.logdensity(ef.condition(found.energy, level))
        assert abs(at_level(y) - log_prob) < 4.5 * found.stderr + 2e-5


def trained(objective, energy, sample, steps, seed, batch=256):
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, steps))
    state = ef.init(seed, energy, objective, optimizer, sample(jax.random.key(0), batch))
    step = ef.make_step(objective, optimizer, ema_decay=0.99)
    keys = jax.random.split(jax.random.key(seed + 1), steps)
    for k in keys:
        state, _ = step(state, sample(k, batch))
    return state.ema


@pytest.mark.lenient("optax")
def test_a_trained_network_has_the_log_density_of_a_gaussian(seed):
    """To 0.2 nats a point, on average; of six runs the worst had 0.1. One variance for both axes costs 0.43 or more."""
    covariance = np.array([[2.0, 0.6], [0.6, 0.8]])
    truth = ef.energies.gaussian(np.zeros(2), covariance=covariance)
    energy = trained(
        ef.dual_score_matching(0.1, 20.0), ef.noise_conditional_mlp(seed, 2, (32, 32)), truth.sample, 700, seed
    )
    points = truth.sample(jax.random.key(seed + 2), 4000)
    density = ef.condition(ef.normalise_at(seed, energy, points, 20.0).energy, 0.1)
    noisy = ef.energies.gaussian(np.zeros(2), covariance=covariance + 0.01 * np.eye(2))
    exact = jax.vmap(noisy)(points) + noisy.log_z
    assert jnp.mean(jnp.abs(jax.vmap(density)(points) - exact)) < 0.2
    round_one = jnp.sum(points**2, axis=1) / 2.82 + jnp.log(2 * jnp.pi * 1.41)
    assert jnp.mean(jnp.abs(round_one - exact)) > 0.35


MODES = ef.energies.gaussian_mixture([[-5.0], [5.0]], 1.0, [0.25, 0.75])


def left_share(density):
    sides = [ef.log_z_quadrature(density, *box, 400) for box in (([-30.0], [0.0]), ([0.0], [30.0]))]
    return float(np.exp(sides[0] - np.logaddexp(*sides)))


@pytest.mark.lenient("optax")
def test_far_modes_get_their_weights(seed):
    """A quarter and three quarters, ten standard deviations apart; of six runs the worst was off by 0.032."""
    start = ef.noise_conditional_mlp(seed, 1, (64, 64), scale=5.0)
    energy = trained(ef.dual_score_matching(0.1, 30.0), start, MODES.sample, 1500, seed)
    result = ef.normalise_at(seed, energy, MODES.sample(jax.random.key(seed), 4000), 30.0)
    density = ef.condition(result.energy, 0.1)
    assert abs(left_share(density) - 0.25) < 0.1
    assert abs(ef.log_z_quadrature(density, [-30.0], [30.0], 400)) < 0.2  # it integrates to one


@pytest.mark.lenient("optax")
@pytest.mark.slow
def test_annealed_langevin_samples_a_trained_network(seed):
    """Chains keep the shares of the level where the modes part; the network's own differ a little between levels, in
    the worst of three runs by 0.024."""
    start = ef.noise_conditional_mlp(seed, 1, (64, 64), scale=5.0)
    energy = trained(ef.dual_score_matching(0.1, 30.0), start, MODES.sample, 1500, seed)
    starts = 30.0 * jax.random.normal(jax.random.key(seed), (4096, 1))
    draws = ef.annealed_langevin(seed, energy, np.geomspace(30.0, 0.1, 24), starts, kernel=ef.mala).position
    share = np.mean(np.asarray(draws)[:, 0] < 0)
    assert abs(share - 0.25) < 0.1
    assert abs(share - left_share(ef.condition(energy, 0.1))) < 0.1


@pytest.mark.lenient("optax")
@pytest.mark.slow
def test_denoising_alone_gives_far_modes_any_weights(seed):
    """The negative control: same network, data, steps and noise scales, space loss alone."""
    shares = []
    for i in range(seed, seed + 4):
        start = ef.noise_conditional_mlp(i, 1, (64, 64), scale=5.0)
        ladder = np.geomspace(30.0, 0.1, 24)
        energy = trained(ef.denoising_score_matching(ladder), start, MODES.sample, 1500, i)
        shares.append(left_share(ef.condition(energy, 0.1)))
    assert max(abs(share - 0.25) for share in shares) > 0.1, shares


def test_positions_may_be_any_pytree(key):
    parts = {"a": jax.random.normal(key, (6, 1)), "b": jax.random.normal(jax.random.fold_in(key, 1), (6, 3))}
    whole = jnp.concatenate([parts["a"], parts["b"]], axis=1)
    energy = Partial(curve, jnp.diag(jnp.arange(1.0, 5.0)) + 0.3)
    split = Partial(lambda e, x, sigma: e(jnp.concatenate([x["a"], x["b"]]), sigma), energy)
    objective, k = ef.dual_score_matching(0.1, 9.0), jax.random.key(2)
    np.testing.assert_allclose(
        value(objective, split, parts, k), value(objective, energy, whole, jax.random.clone(k)), rtol=1e-5
    )
    pair = ef.normalise_at(3, split, parts, 9.0), ef.normalise_at(3, energy, whole, 9.0)
    assert abs(pair[0].log_z - pair[1].log_z) < 1e-5


def test_new_weights_and_settings_compile_nothing(count_compilations, key):
    batch, optimizer = jax.random.normal(key, (8, 4)), optax.sgd(0.1)
    other = batch + 1
    state = ef.init(0, Partial(curve, jnp.eye(4)), ef.dual_score_matching(0.1, 9.0), optimizer, batch)
    state, _ = ef.make_step(ef.dual_score_matching(0.1, 9.0), optimizer)(state, batch)
    with count_compilations() as made:
        state, metrics = ef.make_step(ef.dual_score_matching(0.2, 7.0, time_weight=0.5), optimizer)(state, other)
    assert made.count == 0 and np.isfinite(metrics["loss"])


def test_bad_settings_and_landscapes_are_refused():
    for low, high in ((0.0, 1.0), (2.0, 1.0), (1.0, np.inf), (np.nan, 1.0)):
        with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
            ef.dual_score_matching(low, high)
    energy = Partial(curve, jnp.eye(2))
    with pytest.raises(ValueError, match="landscape"):
        ef.init(0, ef.landscape(energy), ef.dual_score_matching(0.1, 1.0), optax.sgd(0.1), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="landscape"):
        ef.normalise_at(0, ef.landscape(energy), jnp.ones((3, 2)), 1.0)
    with pytest.raises(ValueError, match="two or more"):
        ef.normalise_at(0, energy, jnp.ones((1, 2)), 1.0)
    with pytest.raises(ValueError, match="sigma_max must be positive"):
        ef.normalise_at(0, energy, jnp.ones((3, 2)), 0.0)
    with pytest.raises(ValueError, match="float32 or float64"):
        ef.init(0, energy, ef.dual_score_matching(0.1, 1.0), optax.sgd(0.1), jnp.ones((3, 2), int))
