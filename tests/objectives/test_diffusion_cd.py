"""Laws of diffusion contrastive divergence: score matching in the limit, the fixed point of a Gaussian, its mean."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import energyflow as ef
from energyflow.objectives import diffusion_cd
from energyflow.objectives.diffusion_cd import diffusion_contrastive
from laws import assert_mean, assert_not_mean, z_score

MEAN, VARIANCE = 0.7, 0.25
NODES, MASS = np.polynomial.hermite_e.hermegauss(24)
MASS = MASS / MASS.sum()
"""Gauss-Hermite nodes of N(0, 1): expectations of polynomials up to degree 47 are exact."""


def gaussian(weights, x):
    precision, mean = weights
    return precision * jnp.sum((x - mean) ** 2) / 2


def quartic(weights, x):
    return weights[0] * jnp.sum(x**4) + weights[1] * jnp.sum(x**2) / 2


def expected_loss(energy, weights, tau, *, at_noisy=False, antithetic=True):
    """Return the exact loss on data N(.7, .25) in one dimension; `at_noisy` takes the bracket at the noise."""
    z, x = (jnp.asarray(v.ravel())[:, None] for v in np.meshgrid(NODES, MEAN + VARIANCE**0.5 * NODES))
    mass, axes = jnp.asarray(np.outer(MASS, MASS).ravel()), jnp.ones((1, 1, 1), x.dtype)
    density = Partial(lambda e, w, x: -e(w, x), energy, weights)
    contrast, bracket, _ = diffusion_cd._parts(density, x, z, axes, tau, antithetic)
    if at_noisy:
        bracket = diffusion_cd._parts(density, x + tau**0.5 * z, z, axes, tau, antithetic)[1]
    return mass @ (tau / 2 * bracket - contrast)


def exact_divergence(weights, tau):
    """Return KL(p || q) - KL(p * N(0, tau) || q * N(0, tau)) of N(.7, .25) against a Gaussian."""
    precision, mean = weights

    def kl(v, w):
        return (v / w + (mean - MEAN) ** 2 / w - 1 + jnp.log(w / v)) / 2

    return kl(VARIANCE, 1 / precision) - kl(VARIANCE + tau, 1 / precision + tau)


def fixed_point(loss, weights, num=30):
    newton = jax.jit(lambda w: w - jnp.linalg.solve(jax.hessian(loss)(w), jax.grad(loss)(w)))
    for _ in range(num):
        weights = newton(weights)
    return weights


@pytest.mark.parametrize("tau", [0.01, 0.1, 0.5])
def test_the_fixed_point_of_a_gaussian_is_exact_and_biased_with_the_bracket_at_the_noise(tau):
    """Precision 1/v = 4 at x, as of the exact divergence; 1/(v + tau), 3.846, 2.857 and 1.333, at the noisy points."""
    with jax.enable_x64(True):
        start = jnp.asarray([3.0, 0.6])
        ours = fixed_point(lambda w: expected_loss(gaussian, w, tau), start)
        np.testing.assert_allclose(ours, [1 / VARIANCE, MEAN], rtol=1e-9)
        wrong = fixed_point(lambda w: expected_loss(gaussian, w, tau, at_noisy=True), start)
        np.testing.assert_allclose(wrong, [1 / (VARIANCE + tau), MEAN], rtol=1e-9)
        slope = jax.grad(exact_divergence)(jnp.asarray([1 / VARIANCE, MEAN]), tau)
        np.testing.assert_allclose(slope, 0, atol=1e-12)


def test_divided_by_tau_it_becomes_score_matching():
    """For c x^4 + b x^2/2 the contrast is -6 c tau x^2 - 3 c tau^2 - b tau/2: L/tau is score matching less 3 c tau."""
    with jax.enable_x64(True):
        weights = jnp.asarray([0.3, 0.8])

        def matching(w):
            x = jnp.asarray(MEAN + VARIANCE**0.5 * NODES)
            slope, curvature = 4 * w[0] * x**3 + w[1] * x, 12 * w[0] * x**2 + w[1]
            return jnp.asarray(MASS) @ (slope**2 / 2 - curvature)

        limit = jax.grad(matching)(weights)
        slopes = jax.jit(jax.grad(lambda w, tau: expected_loss(quartic, w, tau)))
        for tau in (0.1, 1e-2, 1e-4):
            slope = slopes(weights, tau) / tau
            np.testing.assert_allclose(slope, limit - jnp.asarray([3 * tau, 0.0]), rtol=1e-7, atol=1e-8)


def test_it_is_the_first_order_of_the_exact_divergence():
    """Away from the optimum both gradients, over tau, tend to one limit at the rate tau."""
    with jax.enable_x64(True):
        weights, errors = jnp.asarray([3.0, 0.2]), []
        slopes = jax.jit(jax.grad(lambda w, tau: expected_loss(gaussian, w, tau)))
        for tau in (1e-3, 1e-4):
            one_step = slopes(weights, tau) / tau
            errors.append(np.abs(one_step - jax.grad(exact_divergence)(weights, tau) / tau))
        assert (errors[1] < 1e-2).all()
        np.testing.assert_allclose(errors[0] / errors[1], 10.0, rtol=0.05)


def mixed(weights, x):
    return jnp.sum(jnp.tanh(weights * x)) + jnp.sum(x**2) * (1 + x[0] / 10) / 2


@pytest.fixture(scope="module")
def losses():
    """Losses of many keys on one batch in three dimensions, by setting."""
    batch = jax.random.normal(jax.random.key(3), (5, 3))
    energy = Partial(mixed, jnp.asarray([0.5, 1.0, -0.7]))

    def of(**settings):
        objective = diffusion_contrastive(0.05, **settings)
        return np.asarray(
            jax.jit(jax.vmap(lambda k: objective.loss(energy, batch, k, None)[0]))(
                jax.random.split(jax.random.key(4), 4000)
            )
        )

    names = {"pairs": {}, "axes": {"num_probes": None}, "single": {"num_probes": None, "antithetic": False}}
    return {name: of(**settings) for name, settings in names.items()}, (energy, batch)


def test_probes_and_axes_pairs_and_single_noise_have_one_mean(losses):
    values, (energy, batch) = losses
    exact = values["axes"].mean()
    spread = values["axes"].std() / len(values["axes"]) ** 0.5
    for name in ("pairs", "single"):
        own = values[name].std() / len(values[name]) ** 0.5
        assert abs(values[name].mean() - exact) < 4.5 * np.hypot(own, spread)
    bracket = 0.05 / 2 * float(jnp.mean(jax.vmap(partial_trace(energy))(batch)))
    assert_not_mean(values["axes"] + bracket, exact)  # the trace is there, with its sign


def partial_trace(energy):
    return lambda x: jnp.trace(jax.hessian(energy)(x))


def test_pairs_of_noise_vary_less(losses):
    """The part of E(x + sqrt(tau) z) - E(x) that is linear in z, of variance tau |grad E|^2, is gone."""
    values, (energy, batch) = losses
    single, pairs = values["single"].var(), values["axes"].var()
    linear = 0.05 * float(jnp.mean(jnp.sum(jax.vmap(jax.grad(energy))(batch) ** 2, axis=1))) / len(batch)
    assert pairs < single / 5
    np.testing.assert_allclose(
        single - pairs, linear, rtol=0.3
    )  # sd of a variance of 4000 draws is 2 %; the rest is cubic


def test_the_mean_over_data_and_noise_is_the_exact_loss(key):
    weights = jnp.asarray([3.0, 0.2])
    energy, objective = Partial(gaussian, weights), diffusion_contrastive(0.1)

    def one(key):
        data_key, loss_key = jax.random.split(key)
        batch = MEAN + VARIANCE**0.5 * jax.random.normal(data_key, (8, 1))
        return jax.grad(lambda e: objective.loss(e, batch, loss_key, None)[0])(energy).args[0]

    slopes = jax.jit(jax.vmap(one))(jax.random.split(key, 4096))
    with jax.enable_x64(True):
        exact = jax.grad(lambda w: expected_loss(gaussian, w, 0.1))(jnp.asarray(weights, float))
        wrong = jax.grad(lambda w: expected_loss(gaussian, w, 0.1, at_noisy=True))(jnp.asarray(weights, float))
    assert_mean(slopes, exact)
    assert np.abs(z_score(slopes, wrong)).max() > 4.5


def test_an_energy_at_a_temperature_is_the_one_divided_by_it(key):
    batch = jax.random.normal(key, (6, 2))
    energy, objective = Partial(mixed, jnp.asarray([0.5, 1.0])), diffusion_contrastive(0.1)
    divided = Partial(lambda e, x: e(x) / 2.5, energy)
    loss = jax.jit(lambda e: objective.loss(e, batch, jax.random.key(1), None)[0])
    pair = [loss(e) for e in (ef.tempered(energy, 2.5), divided)]
    np.testing.assert_allclose(*pair, rtol=1e-5)


def test_positions_may_be_any_pytree(key):
    whole = jax.random.normal(key, (6, 4))
    parts = {"a": whole[:, :1], "b": whole[:, 1:].reshape(6, 3)}
    energy = Partial(lambda c, x: jnp.sum(jnp.tanh(c * x)) + jnp.sum(x**4), jnp.asarray(0.3))
    split = Partial(lambda e, x: e(jnp.concatenate([x["a"], x["b"]])), energy)
    objective = diffusion_contrastive(0.1)
    loss = jax.jit(lambda e, x: objective.loss(e, x, jax.random.key(1), None)[0])
    pair = [loss(e, x) for e, x in ((energy, whole), (split, parts))]
    np.testing.assert_allclose(*pair, rtol=1e-5)


def test_training_finds_a_gaussian_and_new_settings_compile_nothing(count_compilations, key):
    """600 steps of plain descent on batches of 256: the mean of the last 300 is within 5 %, and 1/(v + tau) is 2.86."""
    optimizer, objective = optax.sgd(0.6), diffusion_contrastive(0.1)
    energy = Partial(gaussian, jnp.asarray([2.0, 0.0]))
    data = MEAN + VARIANCE**0.5 * np.asarray(jax.random.normal(key, (600, 256, 1)))
    state, path = ef.init(0, energy, objective, optimizer, jnp.asarray(data[0])), []
    step = ef.make_step(objective, optimizer)
    for batch in data:
        state, _ = step(state, batch)
        path.append(np.asarray(state.energy.args[0]))
    np.testing.assert_allclose(np.mean(path[300:], axis=0), [1 / VARIANCE, MEAN], rtol=0.05)
    with count_compilations() as made:
        state, metrics = ef.make_step(diffusion_contrastive(0.03), optimizer)(state, data[0])
    assert made.count == 0 and np.isfinite(metrics["loss"])


def test_bad_settings_and_energies_are_refused():
    for tau in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="tau must be positive"):
            diffusion_contrastive(tau)
    with pytest.raises(ValueError, match="num_probes must be at least 1"):
        diffusion_contrastive(0.1, num_probes=0)
    energy, batch = Partial(gaussian, jnp.ones(2)), jnp.arange(6.0)[:, None]
    with pytest.raises(ValueError, match="landscape"):
        ef.init(0, ef.landscape(energy), diffusion_contrastive(0.1), optax.sgd(0.1), batch)
    kinked = Partial(lambda w, x: jnp.sum(jax.nn.relu(w * x + jnp.arange(-3.0, 0.0))), jnp.ones(1))
    with pytest.raises(ValueError, match="second derivatives"):
        ef.init(0, kinked, diffusion_contrastive(0.1), optax.sgd(0.1), batch)
