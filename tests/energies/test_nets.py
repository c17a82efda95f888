"""Laws of the networks: points are scored alone, contrast counts, every block works, Z is finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from energyflow.energies import nets
from energyflow.energies.classifiers import classifier_energy
from energyflow.energies.modules import from_nnx, to_nnx
from energyflow.energies.noisy import noise_conditional_mlp
from energyflow.energy import partition

BUILDERS = {
    "mlp": (lambda key, **k: nets.mlp(key, 2, (16, 16), **k), (2,)),
    "cnn": (lambda key, **k: nets.cnn(key, (9, 8, 1), (4, 8), **k), (9, 8, 1)),
    "residual_cnn": (lambda key, **k: nets.residual_cnn(key, (9, 8, 3), 8, 8, **k), (9, 8, 3)),
}
each_net = pytest.mark.parametrize("name", list(BUILDERS))


def build(name, key=0, **options):
    builder, shape = BUILDERS[name]
    return builder(key, **options), shape


def batch_of(shape, size, seed=1):
    return jax.random.normal(jax.random.key(seed), (size, *shape))


@pytest.mark.core
@each_net
def test_energy_of_a_point_does_not_depend_on_its_batch_mates_bitwise(name):
    energy, shape = build(name, confinement=0.1)
    score = jax.jit(jax.vmap(energy))
    batch = np.array(batch_of(shape, 32))
    energies = np.array(score(batch))
    for mates in (np.nan, 0.0, 1e30):
        ours = np.arange(32) % 5 == 1
        spoiled = np.where(ours.reshape(-1, *[1] * len(shape)), batch, np.float32(mates))
        assert np.array_equal(score(spoiled)[ours], energies[ours])
    order = np.concatenate([[0], np.random.default_rng(2).permutation(31) + 1])
    permuted = np.array(score(batch[order]))
    assert permuted[0] == energies[0]
    # XLA's CPU kernels treat other places and sizes of a batch by other instructions: equal up to the last bits.
    assert np.allclose(permuted, energies[order], rtol=1e-5, atol=1e-6)
    assert np.allclose(score(batch[:5]), energies[:5], rtol=1e-5, atol=1e-6)


@each_net
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_contrast_changes_the_energy(name, activation):
    energy, shape = build(name, activation=activation)
    batch = batch_of(shape, 16)
    score = jax.jit(jax.vmap(energy))
    spread = jnp.std(score(batch))
    for factor in (0.5, 2.0):
        change = jnp.abs(score(factor * batch) - score(batch))
        assert jnp.sqrt(jnp.mean(change**2)) > 0.05 * spread


@pytest.mark.core
def test_every_residual_block_is_active_at_initialisation():
    energy, shape = build("residual_cnn")
    batch = batch_of(shape, 4)
    gradients = jax.jit(jax.grad(lambda e: jnp.sum(jax.vmap(e)(batch))))(energy).params["net"]["blocks"]
    score = jax.jit(lambda e: jax.vmap(e)(batch))
    before = score(energy)
    assert len(gradients) == 4
    for i, block in gradients.items():
        assert all(jnp.max(jnp.abs(g)) > 0 for g in jax.tree.leaves(block))
        blocks = energy.params["net"]["blocks"]
        without = {**blocks, i: jax.tree.map(jnp.zeros_like, blocks[i])}
        net = {**energy.params["net"], "blocks": without}
        after = score(dataclasses.replace(energy, params={**energy.params, "net": net}))
        assert jnp.min(jnp.abs(after - before)) > 1e-3


@pytest.mark.core
@each_net
def test_confined_energies_grow_along_rays_so_that_z_is_finite(name):
    energy, shape = build(name, confinement=0.1)
    directions = batch_of(shape, 20)
    norms = jnp.sqrt(jnp.sum(directions**2, axis=range(1, directions.ndim), keepdims=True))
    radii = jnp.array([0.0, 10.0, 100.0, 1000.0])
    rays = radii.reshape(-1, *[1] * directions.ndim) * (directions / norms)[None]
    energies = jax.jit(jax.vmap(jax.vmap(energy)))(rays)
    assert jnp.all(jnp.diff(energies[1:], axis=0) > 0)
    assert jnp.all(energies[-1] > 0.05 * radii[-1] ** 2)


def test_without_confinement_an_energy_falls_without_bound_somewhere():
    energy, shape = build("mlp")
    directions = batch_of(shape, 20)
    assert jnp.min(jax.vmap(energy)(1000 * directions) - jax.vmap(energy)(100 * directions)) < 0


def test_confinement_is_frozen_and_new_values_compile_nothing():
    weak, _ = build("mlp", confinement=0.1)
    strong, _ = build("mlp", confinement=0.3)
    assert jax.tree.structure(weak) == jax.tree.structure(strong)
    assert len(jax.tree.leaves(partition(weak)[0])) == 6
    x = jnp.array([3.0, 4.0])
    assert jnp.allclose(strong(x) - weak(x), 0.2 * 25.0, rtol=1e-5)
    assert jnp.allclose(to_nnx(strong)(x[None])[0], strong(x), rtol=1e-5)


@each_net
def test_scores_are_finite_and_moderate_on_blank_images(name):
    energy, shape = build(name)
    images = jnp.stack([jnp.zeros(shape), jnp.ones(shape), 1e-3 * batch_of(shape, 1)[0]])
    assert jnp.max(jnp.abs(jax.jit(jax.vmap(jax.grad(energy)))(images))) < 100


def test_seeds_and_keys_build_the_same_energy_twice():
    by_seed, by_key, other = nets.mlp(3, 2), nets.mlp(jax.random.key(3), 2), nets.mlp(4, 2)
    x = jnp.array([0.5, -1.0])
    assert jnp.array_equal(by_seed(x), by_key(x))
    assert not jnp.array_equal(by_seed(x), other(x))


@pytest.mark.parametrize("activation", list(nets.ACTIVATIONS))
def test_only_relu_energies_have_a_zero_laplacian(activation):
    energy = nets.mlp(0, 2, (16, 16), activation=activation)
    laplacian = jnp.trace(jax.jit(jax.hessian(energy))(jnp.array([0.4, -0.7])))
    assert (laplacian == 0) == (activation == "relu")


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="unknown activation 'swish'; choose from silu, gelu"):
        nets.mlp(0, 2, activation="swish")
    with pytest.raises(ValueError, match="confinement must be at least 0"):
        nets.cnn(0, (8, 8, 1), (4,), confinement=-1.0)
    with pytest.raises(ValueError, match="at least 4 channels; got 3"):
        nets.cnn(0, (8, 8, 1), (3,))
    with pytest.raises(ValueError, match="an even number; got 7"):
        nets.residual_cnn(0, depth=7)
    for energy, shape in (nets.mlp(0, 2), r"\(2,\)"), (nets.cnn(0, (8, 8, 1), (4,)), r"\(8, 8, 1\)"):
        with pytest.raises(ValueError, match=f"points of shape {shape}; got .*vmap"):
            energy(jnp.zeros((5, 2)))


@pytest.mark.parametrize("channels", [4, 6, 8, 12, 30, 32, 64, 100])
def test_groups_have_at_least_four_channels(channels):
    norm = nets.group_norm(channels, rngs=nnx.Rngs(0))
    assert channels % norm.num_groups == 0
    assert channels // norm.num_groups >= 4


@pytest.mark.core
@pytest.mark.parametrize("confinement", [0.0, 0.2])
def test_classifier_energies_are_a_joint_density(confinement):
    net = nets.MLP(2, (8,), num_outputs=3, rngs=nnx.Rngs(0))
    energy = classifier_energy(net, confinement)
    x = jnp.array([0.4, -1.3])
    labels = jnp.arange(3)
    joint = jax.vmap(energy, in_axes=(None, 0))(x, labels)
    assert jnp.allclose(energy(x), -jax.nn.logsumexp(-joint), rtol=1e-6)
    assert jnp.allclose(jax.nn.softmax(energy.logits(x)), jnp.exp(energy(x) - joint), rtol=1e-5)
    assert jnp.allclose(energy.logits(x), net(x[None])[0])
    assert jnp.allclose(joint, confinement * jnp.sum(x**2) - net(x[None])[0], rtol=1e-5)
    assert jax.tree.structure(partition(energy)[0].net.params) == jax.tree.structure(from_nnx(net).params)
    assert partition(energy)[0].confinement is None


@pytest.mark.core
def test_a_noise_conditional_energy_is_the_gaussian_of_large_noise():
    """The network counts for scale/sigma of what it does without noise: 1e-3 of it is left at a thousand times."""
    energy = noise_conditional_mlp(0, 3, (16, 16), scale=2.0)
    u = batch_of((3,), 32)

    def beyond_gaussian(sigma):
        spread = np.hypot(2.0, sigma)
        gaussian = jnp.sum(u**2, axis=1) / 2 + 1.5 * np.log(2 * np.pi * spread**2)
        return jax.vmap(energy, in_axes=(0, None))(spread * u, jnp.asarray(sigma, float)) - gaussian

    near, far = (float(jnp.abs(beyond_gaussian(sigma)).max()) for sigma in (0.02, 2000.0))
    assert near > 0.1 and far < 0.02


@pytest.mark.core
def test_a_noise_conditional_energy_has_a_finite_z_at_every_level():
    """Along rays it grows as the square: the network grows at most linearly."""
    energy = noise_conditional_mlp(0, 2, (16, 16))
    directions = batch_of((2,), 20)
    for sigma in (1e-3, 1.0, 50.0):
        sigma = jnp.asarray(sigma, float)
        near, far = (jax.vmap(energy, in_axes=(0, None))(r * directions, sigma) for r in (1e2, 1e3))
        squares = jnp.sum(directions**2, axis=1) / (2 * (1 + sigma**2))
        assert jnp.all(far - near > 0.9 * (1e6 - 1e4) * squares - 1.0)


def test_the_scale_of_a_noise_conditional_energy_is_the_unit_of_x_and_sigma():
    """In d dimensions a change of units adds d log(scale): scaled points of a scaled energy are as likely."""
    one, ten = (noise_conditional_mlp(0, 2, (8,), scale=scale) for scale in (1.0, 10.0))
    x, sigma = jnp.array([0.3, -1.2]), jnp.asarray(0.7)
    assert jnp.allclose(ten(10 * x, 10 * sigma), one(x, sigma) + 2 * np.log(10.0), rtol=1e-5)
    assert jax.tree.structure(one) == jax.tree.structure(ten)  # another scale compiles nothing
    assert len(jax.tree.leaves(partition(one)[0])) == 4  # and is not trained


def test_bad_arguments_of_a_noise_conditional_energy_are_refused():
    with pytest.raises(ValueError, match="scale must be positive; got 0"):
        noise_conditional_mlp(0, 2, scale=0.0)
    with pytest.raises(ValueError, match="unknown activation"):
        noise_conditional_mlp(0, 2, activation="swish")
    with pytest.raises(ValueError, match=r"points of shape \(2,\); got \(3,\)"):
        noise_conditional_mlp(0, 2, (4,))(jnp.zeros(3), jnp.ones(()))
