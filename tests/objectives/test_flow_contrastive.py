"""Laws of noise that learns: the fixed point, each side's sign, flows as densities, noise by fitting."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial, register_dataclass

import energyflow as ef
from laws import assert_mean

pytestmark = pytest.mark.lenient("numpyro", "numpyro_models", "optax")


@register_dataclass
@dataclass(frozen=True)
class Affine:
    """N(loc, exp(log_scale)^2) in one dimension, by its draws; `twice` counts d log q / dy once too often."""

    loc: Any
    log_scale: Any
    twice: Any = 0.0
    batch_shape = ()

    def sample(self, key, shape):
        return self.loc + jnp.exp(self.log_scale) * jax.random.normal(key, shape)

    def log_prob(self, x):
        def at(loc, log_scale):
            return -0.5 * ((x - loc) / jnp.exp(log_scale)) ** 2 - log_scale - 0.5 * jnp.log(2 * jnp.pi)

        again = at(*jax.lax.stop_gradient((self.loc, self.log_scale)))
        return at(self.loc, self.log_scale) + jax.lax.stop_gradient(self.twice) * (again - jax.lax.stop_gradient(again))


def quadratic(log_precision, mean, x):
    return jnp.exp(log_precision) * (x - mean) ** 2 / 2


def compete(key, noise, num_steps):
    """Train a quadratic energy and the noise on rows of N(2, .5^2); returns the pair and the last metrics."""
    rows = 2 + 0.5 * jax.random.normal(key, (20_000,))
    pair = ef.with_noise(ef.normalised(Partial(quadratic, jnp.float32(0), jnp.float32(0))), noise)
    objective, optimizer = ef.flow_contrastive(), optax.adam(optax.cosine_decay_schedule(1e-2, num_steps))
    state, step = ef.init(0, pair, objective, optimizer, rows[:8]), ef.make_step(objective, optimizer)

    @jax.jit
    def run(state):
        def body(state, i):
            return step(state, jax.lax.dynamic_slice_in_dim(rows, 512 * (i % 39), 512))

        return jax.lax.scan(body, state, jnp.arange(num_steps))

    state, metrics = run(state)
    return state.energy, {name: float(x[-500:].mean()) for name, x in metrics.items()}


def test_the_noise_and_the_energy_meet_at_the_data(key):
    """The fixed point is both at N(2, .5^2); 20 000 rows fix the sd to .0025, minibatches to .01."""
    pair, metrics = compete(key, Affine(jnp.float32(0), jnp.float32(0)), 6000)
    sd = float(jnp.exp(pair.noise.log_scale))
    assert abs(float(pair.noise.loc) - 2) < 0.03 and abs(sd - 0.5) < 0.03
    grid = jnp.linspace(-3, 7, 2001)
    assert abs(np.trapezoid(jnp.exp(-jax.vmap(pair)(grid)), grid) - 1) < 0.03
    assert abs(metrics["loss"] - 2 * np.log(2)) < 0.01 and abs(metrics["accuracy"] - 0.5) < 0.02


def test_a_density_counted_twice_along_the_draws_is_caught(key):
    """It converges to sd sqrt(.5) instead, as published code has done."""
    pair, _ = compete(key, Affine(jnp.float32(0), jnp.float32(0), 1.0), 6000)
    assert abs(float(jnp.exp(pair.noise.log_scale)) - 0.5**0.5) < 0.05


def test_each_side_moves_by_its_own_gradient(key):
    with jax.enable_x64(True):
        batch = jax.random.normal(key, (64,), float)
        pair = ef.with_noise(Partial(quadratic, 0.3, 0.1), Affine(jnp.asarray(0.2), jnp.asarray(-0.1)))

        def loss(energy, noise):
            draws = noise.sample(jax.random.key(0), (64, 1))[:, 0]
            ratio = jax.vmap(lambda x: -energy(x) - noise.log_prob(x))
            return jnp.mean(jax.nn.softplus(-ratio(batch)) + jax.nn.softplus(ratio(draws)))

        up, down = jax.grad(loss, (0, 1))(pair.energy, pair.noise)
        value, found = jax.value_and_grad(lambda p: ef.flow_contrastive().loss(p, batch, jax.random.key(0), None)[0])(
            pair
        )
        np.testing.assert_allclose(value, loss(pair.energy, pair.noise), rtol=1e-12)
        np.testing.assert_allclose(jax.tree.leaves(found.energy), jax.tree.leaves(up), rtol=1e-12)
        np.testing.assert_allclose(jax.tree.leaves(found.noise), -np.array(jax.tree.leaves(down)), rtol=1e-12)


def test_a_flow_is_a_density_that_draws_and_fits(key):
    """Mass 1 by quadrature, draws by importance weights, and likelihood beyond the Gaussian's on a bent cloud."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=4000)
    rows = jnp.asarray(np.stack([a, 0.5 * a**2 + 0.3 * rng.normal(size=4000)], 1), jnp.float32)
    flow = ef.flow(0, rows, (32, 32), 3)
    objective, optimizer = ef.maximum_likelihood(), optax.adam(3e-3)
    state, step = ef.init(0, flow, objective, optimizer, rows), ef.make_step(objective, optimizer)
    gaussian = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * np.cov(rows.T))[1]
    for _ in range(300):
        state, metrics = step(state, rows)
    assert metrics["loss"] < gaussian - 0.3
    energy = state.energy
    mass = ef.log_z_quadrature(energy, (-8.0, -6.0), (8.0, 20.0), num=400)
    assert abs(mass) < 1e-3
    draws = energy.sample(key, (4000,))
    box = (np.abs(np.asarray(draws)[:, 0]) < 0.5).astype(float)
    assert_mean(box, np.exp(ef.log_z_quadrature(energy, (-0.5, -6.0), (0.5, 20.0), num=400)))
    np.testing.assert_array_equal(energy.frame.value[0], flow.frame.value[0])


def test_a_fitted_mixture_is_normalised_and_near_its_rows():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(-3, 1, (500, 2)), rng.normal(3, 0.5, (500, 2))])
    base = ef.mixture_base(rows, 2)
    assert abs(ef.log_z_quadrature(lambda x: -base.log_prob(x), (-9.0, -9.0), (9.0, 9.0), num=300)) < 1e-4
    np.testing.assert_allclose(sorted(base.mixing_distribution.probs), [0.5, 0.5], atol=0.01)
    with pytest.raises(ValueError, match="two a component"):
        ef.mixture_base(rows[:3], 2)


def test_a_tempered_energy_as_noise_gives_the_ratio_of_normalisers(key):
    """Noise at T = 2 with its log Z left out: the learned constant is log Z_1 - log Z_2 = -log 2 in two dimensions."""
    energy = ef.energies.gaussian(jnp.zeros(2), precision=jnp.eye(2))
    draw_key, data_key, init_key = jax.random.split(key, 3)
    hot = ef.drawn_noise(2**0.5 * jax.random.normal(draw_key, (50_000, 2)), ef.tempered(energy, 2.0))
    rows = jax.random.normal(data_key, (20_000, 2))
    objective, optimizer = ef.nce(hot, 2), optax.sgd(0.7)
    state = ef.init(init_key, ef.normalised(ef.frozen(energy)), objective, optimizer, rows)
    step = ef.make_step(objective, optimizer)
    for _ in range(25):
        state, _ = step(state, rows)
    assert abs(float(state.energy.log_z) + np.log(2)) < 0.05


def test_bad_input_is_refused_in_one_sentence():
    with pytest.raises(TypeError, match="with_noise"):
        ef.init(0, Partial(quadratic, 0.1, 0.2), ef.flow_contrastive(), optax.sgd(0.1), jnp.ones(4))
    with pytest.raises(ValueError, match="at least as wide as a point, 3"):
        ef.flow(0, np.eye(3), (2,))
    with pytest.raises(ValueError, match="does not vary"):
        ef.flow(0, np.ones((5, 2)))
    with pytest.raises(ValueError, match="landscape"):
        ef.drawn_noise(jnp.ones((3, 1)), ef.landscape(lambda x: 0.0))
    with pytest.raises(ValueError, match="landscape"):
        ef.with_noise(ef.landscape(lambda x: 0.0), Affine(0.0, 0.0))
