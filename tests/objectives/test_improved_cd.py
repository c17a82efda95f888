"""Laws of improved contrastive divergence: what is differentiated and with which sign, in closed forms of Gaussians."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial, register_dataclass
from scipy.optimize import brentq, root

import energyflow as ef
from energyflow.kernels import bind
from energyflow.objectives.improved_cd import improved_contrastive, mean_log_nearest, nearest_neighbour_entropy
from energyflow.types import Negatives
from laws import assert_mean, assert_not_mean

ETA = 0.045  # of the toy below: noise .3 = sqrt(2 eta)


@register_dataclass
@dataclass(frozen=True, eq=False)
class Gaussian:
    """`E(x) = precision (x - mean)^2 / 2`, both trained."""

    precision: Any
    mean: Any

    def __call__(self, x, *cond):
        return self.precision * jnp.sum((x - self.mean - sum(cond)) ** 2) / 2


def fixed(points, log_weights=None):
    return Negatives(lambda *_: None, lambda *_: (points, log_weights, None, {}))


def gradient_of(objective, energy, batch, key, state=None):
    return jax.tree.leaves(jax.jit(jax.grad(lambda e: objective.loss(e, batch, key, state)[0]))(energy))


def terms_of(fake, energy, key, *, batch=None, **settings):
    """Return the gradient of what improved_contrastive adds to contrastive at the same negatives."""
    batch = fake if batch is None else batch
    ours = gradient_of(improved_contrastive(fixed(fake), **settings), energy, batch, key)
    plain = gradient_of(ef.contrastive(fixed(fake)), energy, batch, jax.random.clone(key))
    return np.subtract(ours, plain)


def standardised(rng, num, mean, variance):
    x = rng.normal(size=num)
    return jnp.asarray(mean + variance**0.5 * (x - x.mean()) / x.std())


# The sign


def test_the_exact_derivative_takes_the_term_away_that_the_method_adds(key, seed):
    """J = KL(p_D|p) - KL(q|p), q the push-forward of held points by one step: all three gradients to rounding.

    In one dimension the step scales all distances alike, so even the entropy's gradient has no error.
    """
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        data, before = standardised(rng, 64, 0.7, 0.25), standardised(rng, 64, -0.3, 0.4)
        energy = Gaussian(jnp.array(2.0), jnp.array(0.1))

        def relative(mean, variance, precision, centre):  # KL(N(mean, variance) | N(centre, 1 / precision))
            ratio = precision * variance
            return 0.5 * (ratio + precision * (mean - centre) ** 2 - 1 - jnp.log(ratio))

        def divergence(energy):
            shrink = 1 - ETA * energy.precision
            mean = energy.mean + shrink * (-0.3 - energy.mean)
            to_data = relative(0.7, 0.25, energy.precision, energy.mean)
            return to_data - relative(mean, 0.4 * shrink**2, energy.precision, energy.mean)

        exact = np.asarray(jax.tree.leaves(jax.grad(divergence)(energy)))
        ends = before - ETA * energy.precision * (before - energy.mean)
        contrast = np.asarray(gradient_of(ef.contrastive(fixed(ends)), energy, data, jax.random.clone(key)))
        term = terms_of(before, energy, key, step_size=ETA, kl=1.0, entropy=1.0, in_nats=True, floor=1e-12)
        assert np.abs(exact - (contrast - term)).max() < 1e-12
        assert np.abs(exact - (contrast + term)).max() > 0.05


def test_where_the_toy_of_five_steps_ends_with_either_sign():
    """From N(-1, .5), five steps of noise .3; data (.7, .25), whose likelihood is greatest at (4, .7).

    Without the term the chains' ends have the data's moments and the energy does not; with it neither has.
    """
    with jax.enable_x64(True):

        def ends(precision, mean, steps=5):
            shrink = 1 - ETA * precision
            noise = 2 * ETA * (1 - shrink ** (2 * steps)) / (1 - shrink**2)
            return mean + (-1 - mean) * shrink**steps, 0.5 * shrink ** (2 * steps) + noise

        def energy(theta, mean, variance):
            return theta[0] / 2 * ((mean - theta[1]) ** 2 + variance)

        def gradient(sign, theta):
            held = jax.lax.stop_gradient

            def loss(theta):
                mean, variance = ends(*theta)
                term = energy(held(theta), mean, variance) - 0.5 * jnp.log(variance)
                return energy(theta, 0.7, 0.25) - energy(theta, held(mean), held(variance)) + sign * term

            return jax.grad(loss)(jnp.asarray(theta))

        published = {0.0: ((4.94, 1.38), (0.70, 0.25)), 1.0: ((9.09, 0.97), (0.83, 0.14))}
        for sign, (weights, moments) in published.items():
            found = root(lambda theta, sign=sign: np.asarray(gradient(sign, theta)), weights, tol=1e-12)
            assert found.success
            assert np.allclose(found.x, weights, rtol=0, atol=5.1e-3)
            assert np.allclose(ends(*found.x), moments, rtol=0, atol=5.1e-3)


# What is differentiated


@pytest.mark.core
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_gradient_is_that_of_the_last_step_alone(temperature, key):
    """d/dmu of E'(x_K) is `lambda (x_K - mu) eta lambda`, d/dlambda `-lambda (x_K - mu) eta (x - mu)`; E/T alike."""
    with jax.enable_x64(True):
        precision, mean, x = 3.0, 0.4, 1.7
        energy = Gaussian(jnp.array(precision), jnp.array(mean))
        term = terms_of(jnp.array([x, x]), ef.tempered(energy, temperature), key, step_size=0.1, entropy=0.0)[:2]
        cold = precision / temperature
        end = x - 0.1 * cold * (x - mean)
        pull = cold * (end - mean)
        expected = np.array([-pull * 0.1 * (x - mean) / temperature, pull * 0.1 * cold])
        assert np.allclose(term, expected, rtol=1e-13)
        judged = np.array([(end - mean) ** 2 / 2, -precision * (end - mean)]) / temperature
        assert np.abs(term - (expected + judged)).max() > 0.1  # had the judging energy not been held


def test_no_gradient_where_the_gradient_is_clipped_or_the_step_ends_at_a_wall(key):
    with jax.enable_x64(True):
        energy, points = Gaussian(jnp.array(3.0), jnp.array(0.0)), jnp.array([0.2, 1.0])
        free = terms_of(points[:1].repeat(2), energy, jax.random.clone(key), step_size=0.1, entropy=0.0)
        clipped = terms_of(points, energy, jax.random.clone(key), step_size=0.1, entropy=0.0, gradient_clip=1.0)
        assert np.allclose(clipped, free / 2, rtol=1e-13) and np.all(free != 0)
        walled = terms_of(points, energy, key, step_size=0.1, entropy=0.0, low=0.0, high=0.5)  # ends .14 and .7
        assert np.allclose(walled, free / 2, rtol=1e-13)


def test_a_conditional_step_is_that_of_the_shifted_energy(key):
    with jax.enable_x64(True):
        energy, x, shift = Gaussian(jnp.array(3.0), jnp.array(0.4)), jnp.array([[1.7], [0.2]]), jnp.array([1.0, -2.0])
        settings = {"step_size": 0.1, "in_nats": True}
        objective = improved_contrastive(fixed((x, shift)), conditional=True, **settings)
        plain = ef.contrastive(fixed((x, shift)), conditional=True)
        ours = np.subtract(
            gradient_of(objective, energy, (x, shift), jax.random.clone(key)),
            gradient_of(plain, energy, (x, shift), None),
        )

        def expected(energy):
            end = x - 0.1 * energy.precision * (x - energy.mean - shift[:, None])
            judged = 1.5 * jnp.mean((end - 0.4 - shift[:, None]) ** 2)
            return judged - 0.3 * jnp.log(jnp.abs(end[0, 0] - end[1, 0]))

        assert np.allclose(ours, jax.tree.leaves(jax.grad(expected)(energy)), rtol=1e-12)


def test_without_its_terms_it_is_the_contrastive_objective(key):
    """Same negatives, hence the same loss, gradient, state and metrics, bit for bit."""
    negatives = ef.replay(ef.ula(0.1), 3, capacity=64, policy="reservoir", augment=_mirrored)
    energy, batch = Gaussian(jnp.array(2.0), jnp.ones(2)), jax.random.normal(jax.random.key(1), (32, 2))
    ours = improved_contrastive(negatives, step_size=0.1, kl=0.0, entropy=0.0, l2=0.3)
    plain = ef.contrastive(negatives, l2=0.3)
    state = plain.init(jax.random.key(2), energy, batch)
    draw_key = jax.random.split(key, 3)[0]
    run = jax.jit(lambda loss, key: jax.value_and_grad(loss, has_aux=True)(energy, batch, key, state))
    (value, (after, metrics)), gradient = run(Partial(ours.loss), jax.random.clone(key))
    (expected, (other, fewer)), plain_gradient = run(Partial(plain.loss), draw_key)
    assert value == expected
    shared = {name: metrics[name] for name in fewer}
    pairs = ((gradient, plain_gradient), (after, other), (shared, fewer))
    for a, b in pairs:
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert np.array_equal(x, y)
    assert metrics.keys() - fewer.keys() == {"energy_ahead", "entropy"}


def _mirrored(key, x):
    return jnp.where(jax.random.bernoulli(key, 0.5, (len(x), 1)), x, -x)


# The entropy


@pytest.mark.core
def test_the_entropy_of_a_normal_law_in_two_dimensions_is_in_nats(key):
    """Mean of 64 estimates from 1000 points, each known to about .05; the bias of curvature is of the order 1/N."""
    num = 1000

    @jax.jit
    @jax.vmap
    def estimates(key):
        x = jax.random.normal(key, (num, 2))
        return nearest_neighbour_entropy(x), mean_log_nearest(x)

    entropy, spread = (np.asarray(x, np.float64) for x in estimates(jax.random.split(key, 64)))
    exact = 1 + np.log(2 * np.pi)
    assert exact == pytest.approx(2.838, abs=5e-4)
    assert abs(entropy.mean() - exact) < 4.5 * entropy.std(ddof=1) / 8 + 5 / num
    without_dims = spread + np.log(num) + np.log(2) + np.euler_gamma  # right on a line alone
    assert_not_mean(without_dims, exact)
    assert without_dims.mean() == pytest.approx(5.27, abs=0.1)


def test_the_entropy_on_a_line_and_against_another_law(key):
    """N(0, 1): `log(2 pi e)/2`, and the cross-entropy with rows of N(1, 4), `log(8 pi)/2 + (1 + 1)/8`."""

    @jax.jit
    @jax.vmap
    def estimates(key):
        keys = jax.random.split(key)
        x, rows = jax.random.normal(keys[0], (500,)), 1 + 2 * jax.random.normal(keys[1], (700,))
        return nearest_neighbour_entropy(x), nearest_neighbour_entropy(x, rows)

    own, cross = (np.asarray(x, np.float64) for x in estimates(jax.random.split(key, 64)))
    for found, exact in ((own, np.log(2 * np.pi * np.e) / 2), (cross, np.log(8 * np.pi) / 2 + 0.25)):
        assert abs(found.mean() - exact) < 4.5 * found.std(ddof=1) / 8 + 5 / 500


def test_the_entropy_has_the_gradient_of_its_scale_exactly(seed):
    """Points scaled by s have D log s more, whatever their law: the gradient is D/s without noise."""
    with jax.enable_x64(True):
        points = {"a": jnp.asarray(np.random.default_rng(seed).normal(size=(40, 2, 2)))}

        def scaled(s, others=None):
            return nearest_neighbour_entropy({"a": s * points["a"]}, others)

        assert jax.grad(scaled)(2.0) == pytest.approx(4 / 2.0, rel=1e-12)
        shift = scaled(2.0) - scaled(1.0)
        assert shift == pytest.approx(4 * np.log(2), rel=1e-12)
        assert abs(jax.grad(scaled)(2.0, {"a": points["a"] + 1.0}) - 2.0) > 0.1  # rows that are held do not scale


def test_duplicates_cost_the_log_of_the_floor_and_push_nothing():
    twins = jnp.array([[1.0, 2.0], [1.0, 2.0], [5.0, 2.0]])
    value, slope = jax.value_and_grad(lambda x: mean_log_nearest(x, floor=1e-3))(twins)
    assert value == pytest.approx((2 * np.log(1e-3) + np.log(4.0)) / 3, rel=1e-5)
    assert np.allclose(slope[2], [1 / 12, 0], rtol=1e-5) and np.allclose(slope.sum(axis=0), 0, atol=1e-6)
    assert np.isfinite(slope).all()
    with pytest.raises(ValueError, match="needs others"):
        mean_log_nearest(twins[:1])


def test_a_larger_buffer_is_what_chains_are_held_against_and_its_rows_do_not_move(key):
    """On a line, with one reference: the gradient of -log|x_K - r| is that of x_K alone."""
    with jax.enable_x64(True):
        negatives = ef.replay(ef.langevin(0.1, noise_scale=0.0), 1, capacity=2, num_chains=1, reinit=0.0)
        energy, batch = Gaussian(jnp.array(3.0), jnp.array(0.4)), jnp.array([1.7])
        state = negatives.init(jax.random.key(0), energy, batch)._replace(position=jnp.array([2.0, 2.0]))
        settings = {"step_size": 0.1, "kl": 0.0, "entropy": 1.0}
        ours = gradient_of(improved_contrastive(negatives, **settings), energy, batch, jax.random.clone(key), state)
        plain = gradient_of(
            improved_contrastive(negatives, step_size=0.1, kl=0.0, entropy=0.0), energy, batch, key, state
        )
        x = 2.0 - 0.3 * 1.6
        end = x - 0.3 * (x - 0.4)
        # -d log|x_K - 2|/d mu = -(1/(x_K - 2)) eta lambda, and with respect to lambda +(1/(x_K - 2)) eta (x - mu)
        expected = np.array([0.1 * (x - 0.4), -0.3]) / (end - 2.0)
        assert np.allclose(np.subtract(ours, plain), expected, rtol=1e-12)


# Temperatures of the recipes


@pytest.mark.parametrize(("eta", "sigma", "published"), [(10.0, 0.005, 5.0001e-6), (1.0, 0.01, 2.0002e-4)])
def test_decoupled_steps_learn_the_temperature_times_the_precision(eta, sigma, published, key):
    """Where the chains' stationary variance is the data's: `(1 - sqrt(1 - sigma^2/s^2))/eta`, about T/s^2.

    The factor a = 1 - eta lambda is measured on the kernel without its noise.
    """
    with jax.enable_x64(True):

        def variance(precision):
            algorithm = bind(ef.langevin(eta, 0.0), ef.logdensity(Gaussian(precision, 0.0)))
            state = algorithm.init(jnp.array(1.0), None)
            factor = float(algorithm.step(jax.random.clone(key), state)[0].position)
            return sigma**2 / (1 - factor**2)

        found = brentq(lambda log: np.log(variance(np.exp(log)) / 0.25), np.log(1e-8), np.log(0.1 / eta), xtol=1e-13)
        precision = np.exp(found)
        assert precision == pytest.approx((1 - np.sqrt(1 - sigma**2 / 0.25)) / eta, rel=1e-9)
        assert precision == pytest.approx(published, rel=5e-5)
        temperature = bind(ef.langevin(eta, sigma), ef.logdensity(Gaussian(1.0, 0.0))).temperature
        # (1 - sqrt(1 - u))/u = 1/2 + u/8 + ...
        assert precision / temperature == pytest.approx(1 / 0.25, rel=sigma**2 / 0.25)
        assert abs(precision - 4.0) > 3.9  # the energy itself is not that of the data


# In training


@pytest.mark.lenient("optax")
def test_it_trains_with_a_reservoir_and_new_settings_compile_nothing(count_compilations):
    rows = ef.energies.eight_gaussians().sample(jax.random.key(0), 64)
    energy, optimizer = (
        ef.mlp(0, 2, (8,), confinement=0.05),
        optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-3)),
    )

    def trained(kl, entropy):
        negatives = ef.replay(
            ef.langevin(0.1, low=-6.0, high=6.0), 5, capacity=256, policy="reservoir", augment=_mirrored, reinit=0.001
        )
        settings = {"low": -6.0, "high": 6.0, "num_kl": 32}
        objective = improved_contrastive(negatives, step_size=0.1, kl=kl, entropy=entropy, l2=0.1, **settings)
        start = ef.init(0, energy, objective, optimizer, rows)
        *_, (state, metrics) = ef.train(start, ef.make_step(objective, optimizer), [rows] * 20)
        assert all(np.isfinite(value) for value in metrics.values())
        return state.energy, metrics

    first, metrics = trained(1.0, 0.3)
    assert {"gap", "entropy", "energy_ahead", "lineages"} <= metrics.keys()
    with count_compilations() as made:
        second, _ = trained(0.5, 0.1)
    assert made.count == 0
    assert not np.array_equal(first.params["net"]["layers"][0]["kernel"], second.params["net"]["layers"][0]["kernel"])


def test_what_has_no_such_term_is_refused(key):
    energy, x = Gaussian(jnp.array(1.0), jnp.array(0.0)), jnp.array([0.3, 1.0])
    with pytest.raises(ValueError, match="without weights"):
        improved_contrastive(fixed(x, jnp.zeros(2)), step_size=0.1).loss(energy, x, key, None)
    with pytest.raises(ValueError, match="both low and high"):
        improved_contrastive(fixed(x), step_size=0.1, low=0.0)
    with pytest.raises(ValueError, match="step_size must be positive"):
        improved_contrastive(fixed(x), step_size=0.0)
    with pytest.raises(ValueError, match="num_kl must be positive"):
        improved_contrastive(fixed(x), step_size=0.1, num_kl=0)
    with pytest.raises(ValueError, match="contrastive training needs a density"):
        objective = improved_contrastive(ef.cd(ef.mala(0.1), 1), step_size=0.1)
        ef.init(0, ef.landscape(energy), objective, optax.sgd(0.1), x)


def test_the_random_rows_of_the_step_are_without_replacement(key):
    """Each row in half of the draws when half are taken: the step's energies, 2^row here, tell which."""
    with jax.enable_x64(True):
        energy = Partial(lambda scale, x: scale * x, jnp.array(1.0))
        x = 2.0 ** jnp.arange(8.0)
        objective = improved_contrastive(fixed(x), step_size=1e-12, entropy=0.0, num_kl=4)
        ahead = jax.jit(jax.vmap(lambda key: objective.loss(energy, x, key, None)[1][1]["energy_ahead"]))
        found = np.round(4 * np.asarray(ahead(jax.random.split(key, 2048)))).astype(int)
        taken = found[:, None] >> np.arange(8) & 1
        assert np.all(taken.sum(axis=1) == 4)
        assert_mean(taken, 0.5)
