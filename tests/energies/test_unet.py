"""The field of images: its shapes, its rows, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import energyflow as ef
from energyflow.energies import unet_field
from energyflow.energies.fields import is_field


@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 5, 3)])
def test_a_vector_for_each_pixel_and_of_one_image_alone(shape):
    field = unet_field(0, shape, (4, 8, 8))
    images = jax.random.normal(jax.random.key(1), (3, *shape))
    together = jax.vmap(field)(images)
    assert is_field(field) and ef.kind(field) == "landscape" and together.shape == images.shape
    np.testing.assert_allclose(field(images[1]), together[1], atol=1e-4)
    with pytest.raises(ValueError, match="this network scores points of shape"):
        field(jnp.zeros((9, *shape[1:])))


def test_every_weight_and_every_pixel_matters():
    field = unet_field(0, (8, 8, 1), (4, 8, 8))
    x = jax.random.normal(jax.random.key(1), (8, 8, 1))
    slopes = jax.grad(lambda field, x: jnp.sum(field(x) ** 2), (0, 1))(field, x)
    trained, _ = ef.energy.partition(slopes[0])
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(trained))
    assert bool(jnp.all(slopes[1] != 0))


@pytest.mark.lenient("optax")
def test_equilibrium_matching_trains_it():
    """Rows are two images: the loss of the field 0 is the mean square of the way, which a few steps must undercut."""
    rows = jnp.stack([jnp.ones((8, 8, 1)), -jnp.ones((8, 8, 1))])[jnp.arange(64) % 2]
    objective, optimizer = ef.equilibrium_matching(), optax.adam(3e-3)
    state = ef.init(0, unet_field(0, (8, 8, 1), (8, 8)), objective, optimizer, rows)
    losses = [metrics["loss"] for _, metrics in ef.train(state, ef.make_step(objective, optimizer), [rows] * 80)]
    decay_square = 0.8 + 0.2 / 3
    assert np.mean(losses[-10:]) < 0.5 * 16 * decay_square * 2
