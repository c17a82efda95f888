"""Laws of the curl: exact for linear fields, nothing for gradients, and the same by random signs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import energyflow as ef

pytestmark = pytest.mark.core


def linear(matrix, x):
    return matrix @ x


def ratio(a):
    return np.linalg.norm(a - a.T) / np.linalg.norm(a)


@pytest.mark.parametrize("dim", [1, 2, 64])
def test_a_linear_field_has_the_asymmetry_of_its_matrix(dim, seed):
    matrix = np.random.default_rng(seed).normal(size=(dim, dim)).astype(np.float32)
    found = ef.asymmetry(ef.field(Partial(linear, matrix)), np.ones((3, dim), np.float32))
    np.testing.assert_allclose(found, np.full(3, ratio(matrix)), rtol=1e-5, atol=1e-6)


def test_a_rotation_has_two_and_a_constant_field_nothing():
    turn = jnp.array([[0.0, -3.0], [3.0, 0.0]])
    assert np.allclose(ef.asymmetry(ef.field(Partial(linear, turn)), jnp.ones((2, 2))), 2.0)
    assert np.array_equal(ef.asymmetry(ef.field(lambda x: jnp.ones_like(x)), jnp.ones((2, 2))), np.zeros(2))


def test_many_dimensions_are_judged_by_random_signs(seed):
    """The squares are means of 400 quadratic forms v^T B v over signs, of variance 2 sum_(i != j) B_ij^2 <= 2 |B|^2."""
    dim, probes = 80, 400
    a = np.random.default_rng(seed).normal(size=(dim, dim)).astype(np.float32) + np.diag(np.full(dim, 5, np.float32))
    found = ef.asymmetry(ef.field(Partial(linear, a)), np.ones((1, dim), np.float32), key=seed, num_probes=probes)[0]
    gap = a - a.T
    relative = [np.sqrt(2 / probes) * np.linalg.norm(b.T @ b) / np.trace(b.T @ b) for b in (gap, a)]
    assert abs(found / ratio(a) - 1) < 4.5 * 0.5 * sum(relative)
    half = ef.asymmetry(ef.field(Partial(linear, (a + a.T) / 2)), np.ones((1, dim), np.float32))
    assert half[0] < 1e-5


def nets():
    f = ef.mlp_field(0, 2, (32, 32))
    explicit = {"dot": ef.dot_energy(f), "norm": ef.norm_energy(f), "scalar": ef.landscape(ef.mlp(0, 2, (32, 32)))}
    return f, explicit


@pytest.mark.parametrize(("x64", "rounding"), [(False, 1e-5), (True, 1e-12)])
def test_a_network_has_curl_and_its_energies_have_none(x64, rounding, seed):
    points = np.random.default_rng(seed).normal(size=(20, 2))
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        implicit, explicit = jax.tree.map(lambda w: jnp.asarray(w, dtype), nets())
        assert ef.asymmetry(implicit, jnp.asarray(points, dtype)).mean() > 0.1
        for energy in explicit.values():
            assert ef.asymmetry(energy, jnp.asarray(points, dtype)).max() < rounding


def test_round_a_loop_a_gradient_does_no_work_and_a_network_does():
    """The trapezoid rule is exact to rounding for smooth periodic integrands."""
    with jax.enable_x64(True):
        implicit, explicit = jax.tree.map(lambda w: jnp.asarray(w, float), nets())
        angle = jnp.arange(400.0) * (2 * jnp.pi / 400)
        points = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
        along = jnp.stack([-jnp.sin(angle), jnp.cos(angle)], axis=1)

        def work(field):
            return 2 * jnp.pi * jnp.mean(jnp.sum(jax.vmap(field)(points) * along, axis=1))

        assert abs(work(implicit)) > 0.1
        for energy in explicit.values():
            assert abs(work(jax.grad(energy))) < 1e-12


def test_points_are_pytrees_and_bad_settings_are_refused(count_compilations):
    spin = ef.field(lambda x: {"a": -x["b"], "b": x["a"]})
    points = {"a": jnp.ones((3, 1)), "b": jnp.zeros((3, 1))}
    assert np.allclose(ef.asymmetry(spin, points), 2.0)
    with pytest.raises(ValueError, match="num_probes"):
        ef.asymmetry(spin, points, num_probes=0)
    with pytest.raises(ValueError, match="leading axis"):
        ef.asymmetry(spin, {"a": jnp.ones((3, 1)), "b": jnp.zeros((2, 1))})
    first, second = (ef.field(Partial(linear, s * jnp.eye(2))) for s in (1.0, 2.0))
    ef.asymmetry(first, jnp.ones((4, 2)))
    with count_compilations() as made:
        ef.asymmetry(second, jnp.ones((4, 2)))
    assert made.count == 0
