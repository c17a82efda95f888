"""Laws of the contrastive objective: with exact negatives its gradient is that of the likelihood, and no other."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial, register_dataclass

import energyflow as ef
from energyflow.types import Negatives
from laws import assert_mean, assert_not_mean


@register_dataclass
@dataclass(frozen=True, eq=False)
class DoubleWell:
    """`E(x) = quartic x^4 - quadratic x^2 + tilt x`, on the line."""

    quartic: Any
    quadratic: Any
    tilt: Any

    def __call__(self, x):
        return self.quartic * x**4 - self.quadratic * x**2 + self.tilt * x


def fixed(points, log_weights=None, metrics=None):
    """Negatives that are always these points, with these log weights."""
    return Negatives(lambda *_: None, lambda *_: (points, log_weights, None, dict(metrics or {})))


def on_a_grid(low, high, num=400):
    """Negatives that are exact: quadrature nodes weighted by the density (float64)."""
    nodes, weights = np.polynomial.legendre.leggauss(num)
    nodes = jnp.asarray((low + high) / 2 + (high - low) / 2 * nodes)

    def draw(key, energy, batch, state):
        return nodes, jnp.log(jnp.asarray(weights)) + jax.vmap(ef.logdensity(energy))(nodes), state, {}

    return Negatives(lambda *_: None, draw)


def gradient_of(objective, energy, batch, key=None):
    return jax.jit(jax.grad(lambda e: objective.loss(e, batch, key, None)[0]))(energy)


@pytest.mark.core
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_gradient_with_exact_negatives_is_that_of_the_negative_log_likelihood(temperature, seed):
    """Against differences of `mean E/T + log Z`, log Z by quadrature."""
    with jax.enable_x64(True):
        data = jnp.asarray(np.random.default_rng(seed).normal(0.8, 0.6, size=50))
        weights = np.array([0.5, 1.2, 0.3])

        def build(weights):
            return ef.tempered(DoubleWell(*map(jnp.asarray, weights)), temperature)

        def negative_log_likelihood(weights):
            energy = build(weights)
            return np.mean(jax.vmap(energy)(data)) / temperature + ef.log_z_quadrature(energy, -6.0, 6.0, 400)

        def central(step):
            return (negative_log_likelihood(weights + step) - negative_log_likelihood(weights - step)) / 2e-3

        ours = gradient_of(ef.contrastive(on_a_grid(-6.0, 6.0)), build(weights), data).energy
        # Of the fourth order: the truncation h^4/30 times a fifth derivative and the rounding 1e-16/h are under 1e-9.
        truth = [(8 * central(1e-3 * e) - central(2e-3 * e)) / 6 for e in np.eye(3)]
        assert np.allclose(jax.tree.leaves(ours), truth, rtol=0, atol=1e-9)


def test_gradient_with_exact_draws_is_unbiased(key):
    """A Gaussian's likelihood gradient in closed form; the wrong density's draws are the control."""
    precision, mean = 3.0, 0.4
    data_key, draw_key = jax.random.split(key)
    data = 1 + 0.5 * jax.random.normal(data_key, (64,))
    energy = Partial(lambda precision, mean, x: precision * (x - mean) ** 2 / 2, jnp.array(precision), jnp.array(mean))

    def exact(scale, key, energy, batch, state):
        fake = mean + scale * precision**-0.5 * jax.random.normal(key, (16,))
        return fake, None, state, {}

    @jax.jit
    def gradients(scale, key):
        loss = ef.contrastive(Negatives(lambda *_: None, Partial(exact, scale))).loss
        keys = jax.random.split(key, 4096)
        found = jax.vmap(lambda key: jax.grad(lambda e: loss(e, data, key, None)[0])(energy).args)(keys)
        return jnp.stack(found, axis=1)

    truth = [np.mean((data - mean) ** 2) / 2 - 1 / (2 * precision), -precision * (np.mean(data) - mean)]
    assert_mean(gradients(1.0, jax.random.clone(draw_key)), truth)
    assert_not_mean(gradients(1.1, jax.random.clone(draw_key)), truth)


@pytest.mark.core
def test_gap_is_model_minus_data_and_the_loss_its_negative_over_the_temperature():
    energy = DoubleWell(jnp.array(0.0), jnp.array(-1.0), jnp.array(0.0))  # E = x^2
    negatives = fixed(jnp.array([2.0, 4.0]), metrics={"travel": 7.0})
    for temperature in (1.0, 0.5):
        objective = ef.contrastive(negatives)
        loss, (state, metrics) = objective.loss(ef.tempered(energy, temperature), jnp.array([1.0, 3.0]), None, None)
        assert (metrics["energy_data"], metrics["energy_model"], metrics["gap"], metrics["travel"]) == (5, 10, 5, 7)
        assert loss == -5 / temperature
        assert state is None


def test_temperature_divides_the_gradient(key):
    energy = ef.mlp(0, 2, (8,))
    data, fake = jax.random.normal(key, (2, 16, 2))
    plain = gradient_of(ef.contrastive(fixed(fake)), energy, data)
    cold = gradient_of(ef.contrastive(fixed(fake)), ef.tempered(energy, 0.25), data).energy
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(cold), strict=True):
        assert np.allclose(4 * a, b, rtol=1e-5, atol=1e-6)


def test_weighted_negatives_count_by_their_weights_whatever_the_scale():
    energy = DoubleWell(jnp.array(0.1), jnp.array(0.4), jnp.array(0.2))
    data, fake = jnp.array([0.5, -0.2]), jnp.array([1.0, -1.0, 2.0])
    copies = fake[jnp.array([0, 1, 1, 2, 2, 2])]
    counts = jnp.log(jnp.array([1.0, 2.0, 3.0]))
    expected = gradient_of(ef.contrastive(fixed(copies), l2=0.3), energy, data)
    for shift in (0.0, 50.0, -200.0):
        ours = gradient_of(ef.contrastive(fixed(fake, counts + shift), l2=0.3), energy, data)
        # exp(-200) and exp(50) of unnormalised weights round in float32; their softmax keeps 1e-5.
        assert np.allclose(jax.tree.leaves(ours), jax.tree.leaves(expected), rtol=1e-4)


def test_no_gradient_flows_through_the_weights():
    """The grid's weights depend on the energy; differentiating them too would add a covariance."""
    with jax.enable_x64(True):
        energy = DoubleWell(jnp.array(0.5), jnp.array(1.2), jnp.array(0.3))
        data = jnp.array([0.5, -0.2])
        grid = on_a_grid(-6.0, 6.0)
        fake, log_weights, _, _ = grid.draw(None, energy, data, None)
        through, held = (
            gradient_of(ef.contrastive(negatives), energy, data) for negatives in (grid, fixed(fake, log_weights))
        )
        assert np.allclose(jax.tree.leaves(through), jax.tree.leaves(held), rtol=1e-12)


@pytest.mark.core
@pytest.mark.parametrize("weighted", [False, True])
def test_regulariser_pulls_a_constant_energy_to_zero(weighted):
    """For `E = c` the contrast vanishes, and the gradient of `l2 (c^2 + c^2)` is `4 l2 c`."""
    log_weights = jnp.array([-1.0, 2.0, 0.5]) if weighted else None
    for l2, c in ((0.25, 3.0), (1.0, -0.5), (0.0, 8.0)):
        energy = Partial(lambda c, x: c, jnp.array(c))
        objective = ef.contrastive(fixed(jnp.zeros((3, 2)), log_weights), l2=l2)
        assert np.isclose(gradient_of(objective, energy, jnp.ones((4, 2))).args[0], 4 * l2 * c, rtol=1e-6, atol=1e-6)


def test_offset_has_no_gradient_without_the_regulariser_and_is_no_part_of_the_others():
    data, fake = jnp.array([1.0, 3.0]), jnp.array([0.5, 2.0])

    def energy(c):
        return ef.sum_energies(DoubleWell(*map(jnp.array, (0.5, 1.0, 0.25))), Partial(lambda c, x: c, jnp.array(c)))

    plain, shifted = (gradient_of(ef.contrastive(fixed(fake)), energy(c), data) for c in (0.0, 8.0))
    assert jax.tree.leaves(plain.energies) == jax.tree.leaves(shifted.energies)
    assert shifted.energies[1].args[0] == 0


def test_a_landscape_is_refused(key):
    valley = ef.landscape(DoubleWell(jnp.ones(()), jnp.ones(()), jnp.zeros(())))
    with pytest.raises(ValueError, match="contrastive training needs a density"):
        ef.init(key, valley, ef.contrastive(ef.cd(ef.mala(0.1), 1)), optax.sgd(0.1), jnp.zeros(3))
