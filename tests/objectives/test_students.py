"""Laws of one-step samplers: identities of the mean flow on Gaussians and on one datum, and the reverse divergence."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial, register_dataclass

import energyflow as ef
from laws import assert_mean, assert_not_mean

pytestmark = [pytest.mark.core, pytest.mark.lenient("optax", "numpyro")]

SD = 0.6


def spread(t):
    """The standard deviation of `(1 - t) x + t e` for data of standard deviation .6."""
    return jnp.sqrt((1 - t) ** 2 * SD**2 + t**2)


def exact(z, r, t):
    """The average velocity of N(0, .6^2): noise shrinks along straight quantiles."""
    return z * (1 - spread(r) / spread(t)) / (t - r)


def test_the_average_velocity_of_a_gaussian_satisfies_the_identity():
    """`u = E[v | z] - (t - r) du/dt` with the velocity `z d log(spread) / dt`."""
    with jax.enable_x64(True):
        for z, r, t in ((0.7, 0.1, 0.9), (-1.3, 0.0, 1.0), (2.0, 0.4, 0.5)):
            z, r, t = (jnp.asarray(a) for a in (z, r, t))
            v = z * jax.grad(lambda t: jnp.log(spread(t)))(t)
            u, change = jax.jvp(exact, (z, r, t), (v, jnp.zeros_like(r), jnp.ones_like(t)))
            assert abs(u - (v - (t - r) * change)) < 1e-12


def test_the_gaussian_is_a_fixed_point_of_the_loss(key):
    """At the exact velocity, scaled by 1 + a, the expected gradient in a is 0; at another spread it is not."""
    data = SD * jax.random.normal(key, (40_000,))
    objective = ef.mean_flow(share_equal=0.0, power=0.0)

    def gradients(data):
        def one(x, key):
            scaled = lambda a: Partial(lambda a, z, r, t: (1 + a) * exact(z, r, t), a)  # noqa: E731
            return jax.grad(lambda a: objective.loss(scaled(a), x[None], key, None)[0])(0.0)

        return jax.vmap(one)(data, jax.random.split(jax.random.key(1), len(data)))

    assert_mean(jax.jit(gradients)(data), 0.0)
    assert_not_mean(jax.jit(gradients)(1.5 * data), 0.0)


def test_one_step_of_the_exact_velocity_draws_the_gaussian(key):
    draws = ef.one_step(key, exact, jnp.zeros(50_000))
    assert_mean(draws, 0.0)
    assert_mean(draws**2, SD**2)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_one_datum_costs_nothing(key, power):
    """Every path ends at x*: u = (z - x*) / t whatever r, and the loss is 0."""
    datum = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}

    def velocity(z, r, t):
        return jax.tree.map(lambda z, x: (z - x) / t, z, datum)

    batch = jax.tree.map(lambda x: jnp.broadcast_to(x, (64, *x.shape)), datum)
    loss, (_, metrics) = ef.mean_flow(share_equal=0.5, power=power).loss(velocity, batch, key, None)
    assert loss < 1e-6 and metrics["velocity_error"] < 1e-8
    drawn = ef.one_step(jax.random.clone(key), velocity, batch)
    np.testing.assert_allclose(drawn["a"], batch["a"], atol=1e-6)


def test_no_gradient_reaches_the_target(key):
    """With the velocity a constant c, du/dt is 0 and the loss least squares: its gradient is 2 (c - mean v)."""
    batch = jax.random.normal(key, (500,))
    loss = lambda c: ef.mean_flow(power=0.0).loss(  # noqa: E731
        Partial(lambda c, z, r, t: c + 0 * z, c), batch, jax.random.key(3), None
    )[0]
    values = [float(loss(jnp.float32(c))) for c in (-1.0, 0.0, 1.0)]
    slope = float(jax.grad(loss)(jnp.float32(0)))
    assert abs(slope - (values[2] - values[0]) / 2) < 1e-3
    sloped = lambda a: ef.mean_flow(share_equal=0.0, power=0.0).loss(  # noqa: E731
        Partial(lambda a, z, r, t: a * t, a), batch, jax.random.key(3), None
    )[0]
    full = float((sloped(1.01) - sloped(0.99)) / 0.02)  # du/dt depends on a: held still, the slope is another one
    assert abs(float(jax.grad(sloped)(1.0)) - full) > 0.05


@register_dataclass
@dataclass(frozen=True)
class Linear:
    """N(shift, A A') by its draws: a trainable affine sampler."""

    matrix: Any
    shift: Any

    def __call__(self, x):
        return -self.log_prob(x)

    def sample(self, key, shape):
        return jax.random.normal(key, (*shape, 2)) @ self.matrix.T + self.shift

    def log_prob(self, x):
        z = jnp.linalg.solve(self.matrix, x - self.shift)
        return -0.5 * jnp.sum(z**2) - jnp.linalg.slogdet(self.matrix)[1] - jnp.log(2 * jnp.pi)


def learned(temperature):
    covariance = jnp.array([[1.0, 0.6], [0.6, 0.8]])
    energy = ef.energies.gaussian(jnp.array([1.0, -1.0]), precision=jnp.linalg.inv(covariance))
    objective = ef.reverse_kl(ef.tempered(energy, temperature))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-2, 800))
    state = ef.init(0, Linear(jnp.eye(2), jnp.zeros(2)), objective, optimizer, jnp.zeros((1, 2)))
    step = ef.make_step(objective, optimizer)
    state, metrics = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, jnp.zeros((1, 2))), s, None, 800))(state)
    return covariance, state.energy, metrics


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_an_affine_sampler_learns_a_gaussian_energy_at_its_temperature(temperature):
    """Covariance T Sigma and no noise left at the optimum, where the integrand is the constant -log Z."""
    covariance, student, metrics = learned(temperature)
    np.testing.assert_allclose(student.matrix @ student.matrix.T, temperature * covariance, atol=0.01 * temperature)
    np.testing.assert_allclose(student.shift, [1, -1], atol=0.01)
    log_z = float(jnp.log(2 * jnp.pi) + 0.5 * jnp.linalg.slogdet(temperature * covariance)[1])
    assert abs(metrics["loss"][-1] + log_z) < 1e-3 and metrics["ess"][-1] > 0.999


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="landscape"):
        ef.reverse_kl(ef.landscape(lambda x: jnp.sum(x)))
    with pytest.raises(TypeError, match="a student must have sample"):
        ef.init(0, Partial(lambda a, x: a, 0.1), ef.reverse_kl(lambda x: 0.0), optax.sgd(0.1), jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match="share_equal"):
        ef.mean_flow(share_equal=2.0)
