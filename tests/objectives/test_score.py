"""Laws of score matching: averages over all probes, closed forms of Gaussians, and constants between the forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import energyflow as ef
from energyflow.objectives import score
from laws import assert_mean, assert_not_mean

pytestmark = pytest.mark.core


def value(objective, energy, batch, key=None):
    return objective.loss(energy, batch, jax.random.key(0) if key is None else key, None)[0]


def values(objective, energy, batch, key, num=4000):
    """Return the loss under `num` keys."""
    return jax.jit(jax.vmap(lambda k: value(objective, energy, batch, k)))(jax.random.split(key, num))


def normal(key, *shape):
    return jax.random.normal(jax.random.clone(key), shape, float)


def quadratic(mean, precision):
    """`E(x) = 1/2 (x - m)^T L (x - m)` with both trained."""
    return Partial(lambda m, L, x: 0.5 * (x - m) @ L @ (x - m), mean, precision)


def net(seed, dim):
    """A smooth energy without symmetries."""
    keys = jax.random.split(jax.random.key(seed), 3)
    weights = [jax.random.normal(k, shape, float) / 2 for k, shape in zip(keys, [(8, dim), (8,), (dim,)], strict=True)]
    return Partial(lambda W, b, a, x: jnp.sum(jnp.tanh(W @ x + b) ** 2) + 0.3 * jnp.sum(jnp.cos(a * x)), *weights)


def with_probes(monkeypatch, probes):
    """Make the random directions these, (num, d), the same for every row."""
    fixed = lambda key, probe, shape, dtype: jnp.broadcast_to(probes[:, None], shape)  # noqa: E731
    monkeypatch.setattr(score, "_directions", fixed)


@pytest.mark.parametrize("variance_reduction", [True, False])
def test_the_average_over_all_signs_is_exact(variance_reduction, monkeypatch, key):
    with jax.enable_x64(True):
        signs = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=4)))
        energy, batch = net(1, 4), normal(key, 7, 4)
        with_probes(monkeypatch, signs)
        sliced = ef.sliced_score_matching(num_probes=16, variance_reduction=variance_reduction)
        pairs = [jax.value_and_grad(lambda e, o=o: value(o, e, batch))(energy) for o in (ef.score_matching(), sliced)]
        for exact, average in zip(*map(jax.tree.leaves, pairs), strict=True):
            np.testing.assert_allclose(average, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian", "sphere"])
@pytest.mark.parametrize("variance_reduction", [True, False])
def test_every_probe_law_has_the_exact_mean(probe, variance_reduction, key):
    batch = normal(key, 3, 4)
    sliced = ef.sliced_score_matching(probe, variance_reduction=variance_reduction)
    found = values(sliced, net(2, 4), batch, key)
    exact = float(value(ef.score_matching(), net(2, 4), batch))
    assert_mean(found, exact)
    assert_not_mean(found / 4, exact)  # probes of unit length


def test_variance_reduction_reduces_the_variance(key):
    losses = [ef.sliced_score_matching(variance_reduction=reduced) for reduced in (True, False)]
    less, more = (jnp.var(values(o, net(3, 4), normal(key, 1, 4), jax.random.clone(key))) for o in losses)
    assert less < more


def test_a_gaussian_at_its_maximum_likelihood_is_stationary(seed):
    """The value there is -1/2 tr S^-1, and the gradient in mean and precision vanishes."""
    with jax.enable_x64(True):
        data = np.random.default_rng(seed).normal(size=(40, 4)) @ np.diag([1.0, 2.0, 0.5, 1.0]) + 1.0
        precision = np.linalg.inv(np.cov(data.T, bias=True))
        energy, batch = quadratic(jnp.asarray(data.mean(0)), jnp.asarray(precision)), jnp.asarray(data)
        loss, slope = jax.value_and_grad(lambda e: value(ef.score_matching(), e, batch))(energy)
        assert abs(loss + 0.5 * np.trace(precision)) < 1e-10
        assert max(jnp.abs(x).max() for x in jax.tree.leaves(slope)) < 1e-10


def test_temperature_divides_the_score(seed):
    """At temperature T the Gaussian of the data has the precision times T."""
    with jax.enable_x64(True):
        data = jnp.asarray(np.random.default_rng(seed).normal(size=(30, 2)))
        precision = jnp.linalg.inv(jnp.cov(data.T, bias=True))
        warm = ef.tempered(quadratic(data.mean(0), 0.4 * precision), 0.4)
        assert abs(value(ef.score_matching(), warm, data) + 0.5 * jnp.trace(precision)) < 1e-10


def test_the_error_of_finite_differences_falls_as_the_square_of_the_step(monkeypatch, key):
    """Against the sliced loss with the same direction: a hundredfold per decade, within a tenth."""
    with jax.enable_x64(True):
        u = normal(key, 1, 4)
        u = 2 * u / jnp.linalg.norm(u)
        monkeypatch.setattr(score, "_directions", lambda key, probe, shape, dtype: jnp.broadcast_to(u[0], shape))
        batch = normal(key, 5, 4)
        exact = value(ef.sliced_score_matching(variance_reduction=False), net(4, 4), batch)
        errors = [
            abs(value(ef.finite_difference_score_matching(e), net(4, 4), batch) - exact) for e in (1e-1, 1e-2, 1e-3)
        ]
        ratios = np.array(errors[:-1]) / np.array(errors[1:])
        assert (np.abs(ratios - 100) < 10).all(), ratios


def test_finite_differences_have_the_exact_mean(key):
    batch = normal(key, 3, 4)
    exact = float(value(ef.score_matching(), net(5, 4), batch))
    found = values(ef.finite_difference_score_matching(), net(5, 4), batch, key)
    assert_mean(found, exact)
    assert_not_mean(found / 4, exact)  # directions of length one, uncorrected


def test_a_step_below_the_reach_of_float32_is_refused():
    energy, batch = net(0, 2), jnp.ones((4, 2))
    with pytest.raises(ValueError, match="below float32's reach"):
        ef.init(0, energy, ef.finite_difference_score_matching(1e-3), optax.sgd(0.1), batch)
    with pytest.raises(ValueError, match="positive"):
        ef.finite_difference_score_matching(0.0)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 5.0])
def test_a_zero_score_costs_half_the_dimension_at_every_level(sigma, key):
    """With the default weight; z is all the loss sees, so its mean is d / 2."""
    flat = Partial(lambda c, x: 0.0 * c * jnp.sum(x), jnp.ones(()))
    batch = normal(key, 1, 6)
    assert_mean(values(ef.denoising_score_matching(sigma), flat, batch, jax.random.clone(key)), 3.0)
    assert_mean(values(ef.denoising_score_matching(sigma, power=4.0), flat, batch, key), 3.0 * sigma**2)


def test_denoising_is_score_matching_of_the_noised_data_and_a_constant():
    """Three points on a line: the difference is d / (2 sigma^2) for any energy, both integrated on a grid."""
    with jax.enable_x64(True):
        points, sigma = jnp.array([-1.0, 0.2, 1.5]), 0.7
        z = jnp.linspace(-12, 12, 4001)
        weights = jnp.exp(-0.5 * z**2) / jnp.exp(-0.5 * z**2).sum()
        nodes = (points[:, None] + sigma * z[None]).reshape(-1, 1)
        mass = jnp.tile(weights / 3, 3)
        for seed in range(3):
            energy = net(seed, 1)
            slope = jax.vmap(jax.grad(ef.logdensity(energy)))(nodes)[:, 0]
            bend = jax.vmap(jax.hessian(ef.logdensity(energy)))(nodes)[:, 0, 0]
            matching = mass @ (0.5 * slope**2 + bend)
            denoising = mass @ (0.5 * (slope + jnp.tile(z, 3) / sigma) ** 2)  # the target at x + sigma z is -z / sigma
            assert abs(denoising - matching - 1 / (2 * sigma**2)) < 1e-6


def test_denoising_learns_the_precision_of_the_noised_data(key):
    """Data of variance 1.3 with noise .7: the gradient vanishes at 1 / 1.79, and not at the data's own 1 / 1.3."""
    data = jnp.sqrt(1.3) * normal(key, 400_000, 1)
    keys = jax.random.split(key, 400)
    objective = ef.denoising_score_matching(0.7)

    def slopes(precision):
        energy = quadratic(jnp.zeros(1), jnp.full((1, 1), precision))
        slope = lambda k, x: jax.grad(lambda e: value(objective, e, x, k))(energy).args[1][0, 0]  # noqa: E731
        return jax.vmap(slope)(jax.random.clone(keys), data.reshape(400, 1000, 1))

    assert_mean(slopes(1 / 1.79), 0.0)
    assert_not_mean(slopes(1 / 1.3), 0.0)


def test_a_ladder_gives_every_level_its_own_optimum(key):
    """`E(x, sigma) = x^2 / (2 (v + sigma^2))` is stationary in v at the variance of the data."""
    energy = Partial(lambda v, x, sigma: 0.5 * jnp.sum(x**2) / (v + sigma**2), jnp.asarray(1.3))
    objective = ef.denoising_score_matching([2.0, 1.0, 0.5])

    def slope(k):
        data_key, loss_key = jax.random.split(k)
        data = jnp.sqrt(1.3) * jax.random.normal(data_key, (500, 1))
        return jax.grad(lambda e: value(objective, e, data, loss_key))(energy).args[0]

    assert_mean(jax.vmap(slope)(jax.random.split(key, 400)), 0.0)


def relu_net(x):
    return jnp.sum(jax.nn.relu(jnp.array([[1.0, 0.5], [-0.3, 1.0], [0.8, -1.0]]) @ x))


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("build", [ef.score_matching, ef.sliced_score_matching])
def test_piecewise_linear_networks_are_refused_with_and_without_a_quadratic(build, base, key):
    energy = Partial(lambda c, x: c * relu_net(x) + 0.5 * base * jnp.sum(x**2), jnp.ones(()))
    batch = normal(key, 32, 2)
    with pytest.raises(ValueError, match="piecewise linear"):
        ef.init(0, energy, build(), optax.sgd(0.1), batch)
    ef.init(0, energy, ef.denoising_score_matching(0.1), optax.sgd(0.1), batch)


def test_gaussians_and_smooth_networks_are_not_refused(key):
    batch = normal(key, 32, 4)
    for energy in (quadratic(jnp.zeros(4), jnp.eye(4)), net(0, 4), ef.energies.mlp(0, 4, (16, 16))):
        ef.init(0, energy, ef.score_matching(), optax.sgd(0.1), batch)


def test_a_landscape_is_refused_and_bad_settings_too(key):
    energy = ef.landscape(net(0, 2))
    for objective in (ef.score_matching(), ef.denoising_score_matching(0.1)):
        with pytest.raises(ValueError, match="landscape"):
            ef.init(0, energy, objective, optax.sgd(0.1), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="probe"):
        ef.sliced_score_matching("uniform")
    with pytest.raises(ValueError, match="num_probes"):
        ef.sliced_score_matching(num_probes=0)
    for sigmas in (0.0, [1.0, -1.0], [], np.ones((2, 2))):
        with pytest.raises(ValueError, match="sigmas"):
            ef.denoising_score_matching(sigmas)


def test_positions_may_be_any_pytree(key):
    """A position in parts has the loss of the flat one."""
    flat = normal(key, 6, 4)
    parts = {"a": flat[:, :1], "b": flat[:, 1:].reshape(6, 3)}
    energy = net(6, 4)
    split = Partial(lambda e, x: e(jnp.concatenate([x["a"], x["b"]])), energy)
    for build in (ef.score_matching, ef.sliced_score_matching, ef.finite_difference_score_matching):
        np.testing.assert_allclose(value(build(), split, parts), value(build(), energy, flat), rtol=1e-6)


def test_new_weights_and_settings_compile_nothing(count_compilations, key):
    batch, optimizer = normal(key, 8, 2), optax.sgd(0.1)
    for build in (
        ef.score_matching,
        ef.sliced_score_matching,
        lambda: ef.finite_difference_score_matching(0.05),
        lambda: ef.denoising_score_matching([1.0, 0.1]),
    ):
        energy = Partial(lambda e, x, *sigma: e(x), net(0, 2))
        objective = build()
        state = ef.init(0, energy, objective, optimizer, batch)
        state, _ = ef.make_step(objective, optimizer)(state, batch)
        other = batch + 1
        with count_compilations() as made:
            state, metrics = ef.make_step(build(), optimizer)(state, other)
        assert made.count == 0 and np.isfinite(metrics["loss"])
