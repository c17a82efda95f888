"""Laws of the oracles: closed forms to rounding, in every dimension they accept, and refusals in one sentence."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from energyflow.energies.analytic import gaussian
from energyflow.energies.mixtures import gaussian_mixture
from energyflow.energies.nets import mlp
from energyflow.energy import landscape, tempered
from energyflow.logz.oracles import edge_share, expectation_quadrature, log_z_enumeration, log_z_quadrature

LOG_2PI = math.log(2 * math.pi)


def square(x):
    return jnp.sum(x**2) / 2


@pytest.mark.core
@pytest.mark.parametrize(("dim", "num"), [(1, 200), (2, 200), (3, 120)])
def test_a_gaussian_has_its_closed_form(dim, num):
    log_z, error = log_z_quadrature(square, [-10.0] * dim, [10.0] * dim, num, return_error=True)
    assert abs(log_z - dim / 2 * LOG_2PI) < 1e-12
    assert error < 1e-5


@pytest.mark.core
def test_a_point_without_axes_is_integrated_too():
    assert abs(log_z_quadrature(lambda x: x**2 / 2, -10.0, 10.0) - LOG_2PI / 2) < 1e-13


def test_a_correlated_gaussian_and_its_moments():
    energy = gaussian([1.0, -2.0], covariance=[[2.0, 1.2], [1.2, 1.0]], offset=3.0)
    assert abs(log_z_quadrature(energy, [-14, -12], [16, 8], 400) - energy.log_z) < 1e-12
    moments = expectation_quadrature(
        energy, lambda x: {"mean": x, "outer": x[:, None] * x[None, :]}, [-14, -12], [16, 8], 400
    )
    np.testing.assert_allclose(moments["mean"], [1, -2], atol=1e-11)
    np.testing.assert_allclose(moments["outer"] - np.outer([1, -2], [1, -2]), [[2, 1.2], [1.2, 1]], atol=1e-11)


def test_a_density_that_its_box_cuts_converges_as_fast():
    """Beta(2, 3) on [0, 1] and a half Gaussian: an end-point rule of 200 nodes would be wrong by 1e-5."""
    beta = log_z_quadrature(lambda x: -jnp.log(x) - 2 * jnp.log1p(-x), 0.0, 1.0, 200)
    assert abs(beta - math.log(1 / 12)) < 1e-12
    assert abs(log_z_quadrature(lambda x: x**2 / 2, 0.0, 10.0, 200) - LOG_2PI / 2 + math.log(2)) < 1e-12


def test_the_temperature_counts():
    expected = LOG_2PI + math.log(5.0)
    assert abs(log_z_quadrature(tempered(square, 5.0), [-25, -25], [25, 25], 400) - expected) < 1e-12


def test_extreme_constants_neither_overflow_nor_vanish():
    for offset in (-1e5, 1e5):
        log_z = log_z_quadrature(lambda x, offset=offset: square(x) + offset, [-10, -10], [10, 10], 200)
        assert abs(log_z + offset - LOG_2PI) < 1e-9


def test_a_hard_wall_contributes_nothing():
    log_z = log_z_quadrature(lambda x: jnp.where(x[0] > 0, square(x), jnp.inf), [-10, -10], [10, 10], 400)
    assert abs(log_z - LOG_2PI + math.log(2)) < 1e-12
    assert log_z_quadrature(lambda x: jnp.inf * (1 + x**2), -1.0, 1.0) == -math.inf


@pytest.mark.core
def test_the_error_estimate_covers_the_error_and_flags_a_coarse_grid():
    def spike(x):
        return square(x / 1e-3)

    truth = LOG_2PI + 2 * math.log(1e-3)
    log_z, error = log_z_quadrature(spike, [-10, -10], [11, 11], 100, return_error=True)
    assert error > 0.1 and abs(log_z - truth) > 0.1
    errors = []
    for num in (200, 400, 800):
        log_z, error = log_z_quadrature(lambda x: square(x / 0.1), [-10, -10], [11, 11], num, return_error=True)
        errors.append(error)
        assert abs(log_z - LOG_2PI - 2 * math.log(0.1)) <= error + 1e-12
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.core
def test_a_box_that_cuts_the_mass_is_flagged():
    assert edge_share(square, [-9, -9], [9, 9]) < 1e-12
    assert edge_share(square, [-9, -9], [2, 9]) > 1e-3
    assert edge_share(lambda x: x**2 / 2, -9.0, 2.0) > 1e-3


def test_a_network_in_single_precision_is_integrated_in_double():
    _, error = log_z_quadrature(mlp(3, 2, (8,), confinement=0.5), [-9, -9], [9, 9], 200, return_error=True)
    assert error < 1e-10


@pytest.mark.core
def test_parameters_that_were_constants_of_a_jitted_function_are_still_double(key):
    energy = gaussian_mixture([[-1.0, 0.3], [1.0, 0.0]], 0.5)
    draw = jax.jit(lambda key: energy.sample(key, 4))
    draw(key), draw(jax.random.clone(key))
    assert abs(log_z_quadrature(energy, [-6, -6], [6, 6], 200) - energy.log_z) < 1e-10


@pytest.mark.core
def test_new_parameters_cost_no_compilation(count_compilations):
    log_z_quadrature(gaussian([0.0, 0.0], precision=np.eye(2)), [-9, -9], [9, 9], 100)
    with count_compilations() as made:
        log_z_quadrature(gaussian([1.0, 0.0], precision=2 * np.eye(2)), [-9, -8], [9, 9], 100)
    assert made.count == 0


@pytest.mark.core
def test_a_chain_of_spins_has_its_transfer_matrix():
    """Ising chain of 8 spins in a ring: Z = (2 cosh J)^8 + (2 sinh J)^8."""
    coupling = 0.7
    log_z = log_z_enumeration(lambda s: -coupling * jnp.sum(s * jnp.roll(s, 1)), (-1.0, 1.0), 8)
    assert abs(log_z - math.log((2 * math.cosh(coupling)) ** 8 + (2 * math.sinh(coupling)) ** 8)) < 1e-13


def test_enumeration_counts_every_state_once_whatever_the_values():
    field = np.linspace(-1, 1, 5)
    expected = sum(math.log(sum(math.exp(h * v) for v in (0, 1, 3))) for h in field)
    log_z = log_z_enumeration(lambda s: -jnp.sum(s.astype(float) * field), (0, 1, 3), 5)
    assert abs(log_z - expected) < 1e-13
    assert abs(log_z_enumeration(lambda s: jnp.zeros(()), (0, 1), 16) - 16 * math.log(2)) < 1e-13


def test_enumeration_agrees_with_a_sum_in_python():
    couplings = np.random.default_rng(0).normal(size=(6, 6))
    states = itertools.product((-1.0, 1.0), repeat=6)
    total = sum(math.exp(np.array(s) @ couplings @ np.array(s) / 2) for s in states)
    log_z = log_z_enumeration(tempered(lambda s: -s @ jnp.asarray(couplings) @ s, 2.0), (-1.0, 1.0), 6)
    assert abs(log_z - math.log(total)) < 1e-12


@pytest.mark.core
@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: log_z_quadrature(landscape(square), [-1, -1], [1, 1]), "landscape"),
        (lambda: expectation_quadrature(landscape(square), square, [-1, -1], [1, 1]), "landscape"),
        (lambda: log_z_enumeration(landscape(square), (0.0, 1.0), 2), "landscape"),
        (lambda: log_z_quadrature(square, [-math.inf, -1], [1, 1]), "finite"),
        (lambda: log_z_quadrature(square, [1, -1], [-1, 1]), "low < high"),
        (lambda: log_z_quadrature(square, [-1, -1], [1, 1, 1]), "one shape"),
        (lambda: log_z_quadrature(square, [-1] * 4, [1] * 4), "one to three dimensions"),
        (lambda: log_z_quadrature(square, [-1] * 3, [1] * 3), "2\\^26"),
        (lambda: log_z_quadrature(lambda x: jnp.log(x), -1.0, 1.0), "NaN"),
        (lambda: log_z_quadrature(lambda x: x, [-1, -1], [1, 1]), "scalar"),
        (lambda: log_z_enumeration(square, (0.0, 1.0), 23), "2\\^22"),
        (lambda: log_z_enumeration(square, (), 3), "list of values"),
    ],
)
def test_what_has_no_answer_is_refused(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()
