"""Laws of fields: what they return, the gradients of the energies made of them, and sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

import energyflow as ef
from energyflow.energies.fields import gradient_field, slopes
from energyflow.energies.nets import MLP
from energyflow.energy import partition

pytestmark = pytest.mark.core


def mix(x):
    """A field on a pytree that is no gradient."""
    return {"a": jnp.sin(x["b"]) * x["a"], "b": x["b"] ** 2 + jnp.sum(x["a"])}


def norm4(x):
    return jnp.sum(x**4) / 4


POINT = {"a": jnp.array([0.3, -1.0, 2.0]), "b": jnp.float32(0.7)}


def close(a, b):
    return all(np.allclose(x, y, rtol=1e-5, atol=1e-6) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_the_gradients_of_both_heads_are_those_of_the_product_rule():
    """grad(x . f) = f + J^T x and grad(-|f|^2 / 2) = -J^T f."""
    value, pull = jax.vjp(mix, POINT)
    assert close(jax.grad(ef.dot_energy(mix))(POINT), jax.tree.map(jnp.add, value, pull(POINT)[0]))
    assert close(jax.grad(ef.norm_energy(mix))(POINT), jax.tree.map(jnp.negative, pull(value)[0]))
    squares = sum(float(jnp.sum(v**2)) for v in jax.tree.leaves(value))
    assert np.isclose(ef.norm_energy(mix)(POINT), -squares / 2, rtol=1e-6)


def test_a_field_is_its_own_descent_and_an_energy_its_gradients():
    field = ef.field(mix)
    for wrapped in (field, ef.frozen(field), ef.landscape(field)):
        assert close(gradient_field(wrapped)(POINT), mix(POINT))
    x = POINT["a"]
    for energy in (norm4, ef.landscape(norm4), ef.frozen(ef.landscape(norm4)), ef.tempered(norm4, 2.0)):
        assert close(gradient_field(energy)(x), x**3)
        assert close(slopes(energy, jnp.stack([x, 2 * x])), jnp.stack([x**3, 8 * x**3]))
    two = jax.tree.map(lambda v: jnp.stack([v, v]), POINT)
    assert close(slopes(field, two), jax.vmap(mix)(two))
    with pytest.raises(ValueError, match="vector field"):
        slopes(lambda x: x, x[None])


def test_a_skip_adds_a_multiple_of_each_coordinate():
    """At first nothing; then noise goes even where the network, two units wide, cannot pass it."""
    x = jnp.arange(6.0)
    plain, skip = (ef.residual_mlp_field(0, 6, 2, 1, skip=skip) for skip in (False, True))
    np.testing.assert_allclose(skip(x), plain(x), rtol=1e-6)
    gained = jax.tree.map(lambda leaf: leaf + 1 if leaf.shape == (6,) else leaf, skip)
    span = jnp.linalg.matrix_rank(jax.jacobian(gained)(x)), jnp.linalg.matrix_rank(jax.jacobian(plain)(x))
    assert span[0] == 6 and span[1] <= 2


def test_a_velocity_sees_the_point_and_both_times():
    velocity, x = ef.mlp_velocity(0, 1, (8,)), jnp.ones(1)
    times = [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5)]
    assert len({float(velocity(x, jnp.float32(r), jnp.float32(t))[0]) for r, t in times}) == 3
    with pytest.raises(ValueError, match="landscape"):
        ef.logdensity(velocity)


def test_the_work_along_a_line_is_the_energy_whose_gradient_the_field_is():
    """Of a cubic field two nodes see the work whole; one does not, and a field that is no gradient is not recovered."""
    with jax.enable_x64(True):
        x = jnp.asarray([0.3, -1.2, 2.0])
        potential = lambda x: jnp.sum(x**4) / 4 + x[0] * x[1]  # noqa: E731
        energy = ef.line_energy(ef.field(jax.grad(potential)))
        np.testing.assert_allclose(energy(x), potential(x) - potential(0 * x), rtol=1e-12)
        np.testing.assert_allclose(jax.grad(energy)(x), jax.grad(potential)(x), rtol=1e-12)
        assert abs(ef.line_energy(jax.grad(potential), 1)(x) - potential(x)) > 0.1
        turning = lambda x: jnp.array([-x[1], x[0], 0.0])  # noqa: E731
        np.testing.assert_allclose(jax.grad(ef.line_energy(turning))(x), 0.0, atol=1e-12)
    square = ef.line_energy(ef.field(lambda p: p))
    assert np.isclose(square(POINT), sum(float(jnp.sum(v**2)) for v in jax.tree.leaves(POINT)) / 2)
    assert ef.kind(ef.tempered(square, 0.1)) == "tempered" and not jax.tree.leaves(partition(square)[0])
    with pytest.raises(ValueError, match="num_nodes"):
        ef.line_energy(turning, 0)


def test_sums_weigh_energies_and_fields_alike():
    x = POINT["a"]
    energies = ef.sum_landscapes(norm4, ef.landscape(lambda x: jnp.sum(x)), weights=(2.0, -1.0))
    assert close(energies(x), 2 * norm4(x) - jnp.sum(x))
    mixed = ef.sum_landscapes(ef.landscape(norm4), ef.field(lambda x: x[::-1]), weights=(2.0, -1.0))
    assert close(mixed(x), 2 * x**3 - x[::-1])
    assert partition(ef.sum_landscapes(norm4))[0] is not None and not jax.tree.leaves(partition(energies)[0])
    with pytest.raises(ValueError, match="one weight per landscape"):
        ef.sum_landscapes(norm4, weights=(1.0, 2.0))
    with pytest.raises(ValueError, match="at least one"):
        ef.sum_landscapes()


def test_all_of_them_are_landscapes():
    field = ef.mlp_field(0, 2, (4,))
    scalar = ef.landscape(ef.mlp(0, 2, (4,)))
    made = [field, ef.residual_mlp_field(0, 2, 4, 1), ef.dot_energy(field), ef.norm_energy(field), scalar]
    for landscape in [*made, ef.sum_landscapes(*made), ef.sum_landscapes(scalar), gradient_field(norm4)]:
        assert ef.kind(landscape) == ef.kind(ef.frozen(landscape)) == "landscape"


@pytest.mark.parametrize("dim", [1, 5])
@pytest.mark.parametrize("build", [ef.mlp_field, ef.residual_mlp_field])
def test_the_builders_make_fields_of_the_points_shape(build, dim):
    by_seed, by_key, other = build(3, dim), build(jax.random.key(3), dim), build(4, dim)
    x = jnp.linspace(-1.0, 1.0, dim) + 0.5
    assert by_seed(x).shape == (dim,)
    assert jnp.array_equal(by_seed(x), by_key(x)) and not jnp.array_equal(by_seed(x), other(x))
    assert jax.tree.structure(by_seed) == jax.tree.structure(other)
    with pytest.raises(ValueError, match="unknown activation"):
        build(0, dim, activation="sigmoid")


def test_every_block_of_the_residual_network_is_active():
    field = ef.residual_mlp_field(0, 3, 16, 3)
    slopes = jax.grad(lambda f: jnp.sum(f(POINT["a"]) ** 2))(field)
    leaves = jax.tree.leaves(slopes)
    assert len(leaves) == 2 * (1 + 3 + 1) and all(jnp.abs(leaf).max() > 0 for leaf in leaves)


def test_what_is_no_field_is_refused():
    with pytest.raises(ValueError, match="of its point's shape"):
        ef.field(MLPOnce := ef.from_nnx(MLP(3, (4,), num_outputs=2, rngs=nnx.Rngs(0))))(POINT["a"])
    assert MLPOnce(POINT["a"]).shape == (2,)
    with pytest.raises(ValueError, match="of its point's shape"):
        ef.field(norm4)(POINT["a"])
    with pytest.raises(ValueError, match=r"wrap it by ef\.field"):
        gradient_field(lambda x: x)(POINT["a"])
    with pytest.raises(TypeError, match="must be callable"):
        ef.dot_energy(3.0)


def test_new_weights_compile_nothing(count_compilations):
    def total(scale, x):
        return scale * x

    slopes = jax.jit(jax.vmap(jax.grad(lambda e, x: e(x), argnums=1), in_axes=(None, 0)))
    x = jnp.ones((4, 2))
    for head in (ef.dot_energy, ef.norm_energy):
        first, second = (head(Partial(total, jnp.float32(s))) for s in (1.0, 2.0))
        slopes(first, x)
        with count_compilations() as made:
            slopes(second, x)
        assert made.count == 0
