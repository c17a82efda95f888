"""Laws of the change of variables: the same Z, the same temperature and kind, finite in float32 everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import biject_to, constraints

from energyflow.energies.nets import mlp
from energyflow.energies.transforms import bounded, transformed
from energyflow.energy import kind, landscape, logdensity, partition, tempered

LOW, HIGH = -1.0, 2.5


def double_well(x):
    return x**4 - 2 * x**2 + x


def quadratic(x):
    return jnp.sum((x - 1) ** 2)


def integral_over_box(log_density, low=LOW, high=HIGH):
    """The integral of exp(log_density) by Gauss and Legendre's rule (80 points: exact to rounding here)."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    values = jax.vmap(log_density)(jnp.asarray(low + (high - low) * (nodes + 1) / 2))
    return (high - low) / 2 * jnp.sum(jnp.asarray(weights) * jnp.exp(values))


def integral_over_line(log_density, reach=40.0):
    """The integral of exp(log_density) over the real line by the trapezoidal rule (tails below exp(-40))."""
    grid = jnp.linspace(-reach, reach, 4001)
    return jnp.sum(jnp.exp(jax.vmap(log_density)(grid))) * (grid[1] - grid[0])


@pytest.mark.core
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_the_change_of_variables_keeps_z(temperature):
    with jax.enable_x64(True):
        energy = tempered(double_well, temperature)
        expected = integral_over_box(logdensity(energy))
        found = integral_over_line(logdensity(bounded(energy, LOW, HIGH)))
        assert abs(found / expected - 1) < 1e-6


@pytest.mark.core
def test_negative_control_without_the_jacobian_z_is_another():
    with jax.enable_x64(True):
        box = bounded(double_well, LOW, HIGH)
        expected = integral_over_box(logdensity(double_well))
        found = integral_over_line(lambda u: logdensity(double_well)(box.constrain(u)))
        assert abs(found / expected - 1) > 0.1


def test_half_lines_keep_z():
    with jax.enable_x64(True):
        energy = transformed(lambda x: 3 * x - 2 * jnp.log(x), biject_to(constraints.positive))
        assert abs(integral_over_line(logdensity(energy)) / (2 / 27) - 1) < 1e-6


def test_simplex_keeps_a_dirichlet_normalised():
    with jax.enable_x64(True):
        base = dist.Dirichlet(jnp.array([2.0, 3.0]))
        energy = transformed(lambda x: -base.log_prob(x), biject_to(base.support))
        total = integral_over_line(lambda u: logdensity(energy)(u[None]))
        assert abs(total - 1) < 1e-6


def test_log_determinants_of_a_point_add_up():
    low, high = jnp.array([-1.0, 0.0, 2.0]), jnp.array([1.0, 5.0, 2.5])
    energy = bounded(lambda x: jnp.sum(x**2), low, high)
    u = jnp.array([0.3, -2.0, 1.0])
    jacobian = jax.jacobian(energy.constrain)(u)
    assert jnp.allclose(energy(u), jnp.sum(energy.constrain(u) ** 2) - jnp.linalg.slogdet(jacobian)[1], rtol=1e-5)


@pytest.mark.core
def test_adding_a_constant_shifts_the_energy_by_exactly_this():
    with jax.enable_x64(True):
        u = jnp.linspace(-5, 5, 11)
        plain = jax.vmap(bounded(tempered(double_well, 0.5), LOW, HIGH))(u)
        shifted = jax.vmap(bounded(tempered(lambda x: double_well(x) + 3.0, 0.5), LOW, HIGH))(u)
        assert jnp.allclose(shifted - plain, 3.0, rtol=1e-14)


@pytest.mark.core
@pytest.mark.parametrize("u", [80.0, -80.0, 1e4, -1e4, 0.0])
def test_values_and_gradients_are_finite_far_out_in_float32(u):
    box = bounded(quadratic, jnp.full(2, LOW), HIGH)
    value, gradient = jax.value_and_grad(logdensity(box))(jnp.full(2, u))
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(gradient))
    # Far out the density falls like exp(-|u|), towards the box.
    assert jnp.all(gradient * jnp.sign(u) <= 0)
    x = box.constrain(jnp.full(2, u))
    assert jnp.all((x >= LOW) & (x <= HIGH))


def test_constrain_and_unconstrain_are_inverse():
    box = bounded(quadratic, jnp.array([-1.0, 0.0]), jnp.array([1.0, 5.0]))
    u = jnp.array([3.0, -2.0])
    assert jnp.allclose(box.unconstrain(box.constrain(u)), u, rtol=1e-4)


def test_temperature_and_kind_are_those_of_the_energy():
    assert bounded(quadratic, 0.0, 1.0).temperature == 1.0
    assert bounded(tempered(quadratic, 0.25), 0.0, 1.0).temperature == 0.25
    assert kind(bounded(tempered(quadratic, 0.25), 0.0, 1.0)) == "tempered"
    assert kind(bounded(quadratic, 0.0, 1.0)) == "density"


def test_a_landscape_keeps_its_minimum():
    valley = bounded(landscape(quadratic), -1.0, 2.0)
    assert kind(valley) == "landscape"
    u = valley.unconstrain(jnp.ones(2))
    assert jnp.max(jnp.abs(jax.grad(valley)(u))) < 1e-5
    assert jnp.max(jnp.abs(jax.grad(bounded(quadratic, -1.0, 2.0))(u))) > 0.1


def test_the_transform_is_frozen_and_other_boxes_compile_nothing():
    traces = []

    @jax.jit
    def evaluate(energy, u):
        traces.append(1)
        return jax.grad(energy)(u)

    net = mlp(0, 2, (4,))
    for seed, low in ((0, -1.0), (1, -2.0)):
        evaluate(bounded(mlp(seed, 2, (4,)), low, 2.0), jnp.zeros(2))
    assert len(traces) == 1
    trainable, _ = partition(bounded(net, -1.0, 2.0))
    assert len(jax.tree.leaves(trainable)) == len(jax.tree.leaves(net.params))


def test_conditions_pass_through():
    energy = bounded(lambda x, centre: jnp.sum((x - centre) ** 2), 0.0, 1.0)
    u = jnp.array([0.2, 0.4])
    change = energy(u, jnp.ones(2)) - energy(u, jnp.zeros(2))
    assert jnp.allclose(change, jnp.sum(1 - 2 * energy.constrain(u)), rtol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_boxes_that_are_none_are_refused(low, high):
    with pytest.raises(ValueError, match="finite low < high"):
        bounded(quadratic, low, high)


def test_things_that_are_no_transform_are_refused():
    with pytest.raises(TypeError, match="log_abs_det_jacobian"):
        transformed(quadratic, jnp.exp)
