"""Laws of energies over resolutions: what pooling is, and that one sum is sampled and trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import energyflow as ef
from energyflow.energies.multiscale import average_pool, multiscale, multiscale_cnn, pooled_shapes
from energyflow.types import Negatives
from laws import assert_mean, assert_not_mean


def quadratic(precision, x):
    return precision * jnp.sum(x**2) / 2


def pooled_by_hand(x, window, stride):
    height, width, channels = x.shape
    out = np.zeros((-(-height // stride), -(-width // stride), channels))
    for i, j in np.ndindex(out.shape[:2]):
        rows, columns = (
            [at for at in range(c * stride - (window - 1) // 2, c * stride + window // 2 + 1) if 0 <= at < size]
            for c, size in ((i, height), (j, width))
        )
        out[i, j] = x[np.ix_(rows, columns)].mean(axis=(0, 1))
    return out


@pytest.mark.core
@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 5, 3), (1, 2, 2)])
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2), (3, 1), (1, 3)])
def test_pooling_is_the_mean_over_the_pixels_that_are_there(shape, window, stride, seed):
    with jax.enable_x64(True):
        x = np.random.default_rng(seed).normal(size=shape)
        found = average_pool(jnp.asarray(x), window, stride)
        assert np.allclose(found, pooled_by_hand(x, window, stride), rtol=0, atol=1e-14)
        assert np.allclose(average_pool(jnp.ones(shape), window, stride), 1.0, rtol=0, atol=1e-15)
        assert found.shape == pooled_shapes(shape, 2, stride)[1]


def test_the_energy_is_the_sum_over_resolutions_each_at_its_temperature(seed):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(seed).normal(size=(7, 5, 2)))
        cold = ef.tempered(Partial(quadratic, jnp.array(3.0)), 0.5)
        energy = multiscale(Partial(quadratic, jnp.array(1.0)), cold, Partial(quadratic, jnp.array(5.0)))
        half, quarter = average_pool(x), average_pool(average_pool(x))
        expected = sum(p * np.sum(np.square(y)) / 2 for p, y in ((1.0, x), (6.0, half), (5.0, quarter)))
        assert energy(x) == pytest.approx(expected, rel=1e-13)
        assert ef.energy.temperature(energy) == 1.0 and ef.kind(energy) == "density"
        alone = multiscale(Partial(quadratic, jnp.array(1.0)))
        assert alone(x) == quadratic(1.0, x)


def test_chains_sample_the_density_whose_likelihood_the_contrast_climbs(key):
    """Quadratic at two resolutions: a Gaussian of precision `A + 2 P'P`, known exactly; the mean energy's is half that.

    Chains from exact draws keep the covariance, and the contrast with exact draws has the likelihood's gradient.
    """
    shape, precisions = (3, 3, 1), (1.0, 8.0)
    pool = np.stack([np.ravel(average_pool(jnp.asarray(e.reshape(shape), jnp.float32))) for e in np.eye(9)], axis=1)
    inverse = precisions[0] * np.eye(9) + precisions[1] * pool.T @ pool
    covariance = np.linalg.inv(inverse)
    energy = multiscale(*(Partial(quadratic, jnp.array(p)) for p in precisions))
    start_key, move_key = jax.random.split(key)
    noise = jax.random.normal(start_key, (4096, 9)) @ jnp.asarray(np.linalg.cholesky(covariance).T, jnp.float32)
    starts = noise.reshape(-1, *shape)
    for beta, check in ((1.0, assert_mean), (0.5, assert_not_mean)):
        target = ef.logdensity(energy, beta=beta)
        end, metrics = ef.advance_chains(jax.random.clone(move_key), ef.mala(0.15), target, starts, 20)
        flat = np.asarray(end, np.float64).reshape(-1, 9)
        check(flat[:, :, None] * flat[:, None, :], covariance)
    assert 0.3 < metrics["acceptance_rate"] < 0.98
    # d/dp of the log likelihood at data of covariance I: half of tr(P'P cov) less tr(P'P), for both resolutions.
    halves = [np.eye(9), pool.T @ pool]
    exact = [np.trace(m @ (np.eye(9) - covariance)) / 2 for m in halves]
    data = 3.0 * jnp.asarray(np.concatenate([np.eye(9), -np.eye(9)]), jnp.float32).reshape(-1, *shape) / 2**0.5
    scale = float(np.mean(np.asarray(data).reshape(-1, 9) ** 2))  # its covariance is this times I
    exact = [np.trace(m @ (scale * np.eye(9) - covariance)) / 2 for m in halves]

    def draws(fake):
        negatives = Negatives(lambda *_: None, lambda *_: (fake, None, None, {}))
        return jax.grad(lambda e: ef.contrastive(negatives).loss(e, data, None, None)[0])(energy)

    batches = noise.reshape(64, 64, *shape)
    assert_mean(np.stack(jax.tree.leaves(jax.jit(jax.vmap(draws))(batches)), axis=1), exact)


def test_networks_of_every_resolution_matter_and_are_trained():
    energy = multiscale_cnn(0, (6, 6, 1), 2, (4,), confinement=0.1)
    x = jax.random.normal(jax.random.key(1), (6, 6, 1))
    slopes = jax.jit(jax.grad(lambda energy, x: energy(x)))(energy, x)
    trained, _ = ef.energy.partition(slopes)
    for part in trained.energies:
        assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(part))
    weights = [jax.tree.leaves(part)[0] for part in energy.energies]
    assert not np.array_equal(weights[0], weights[1])
    shifted = x + 100.0
    gap = 0.1 * float(jnp.sum(shifted**2) - jnp.sum(x**2))
    values = jax.jit(jax.vmap(energy))(jnp.stack([x, shifted]))
    assert float(values[1] - values[0]) > gap / 2  # one confinement, and networks that grow linearly at most


def test_what_is_no_sum_of_densities_is_refused():
    with pytest.raises(ValueError, match="need an energy"):
        multiscale()
    with pytest.raises(ValueError, match="need an energy, a window and a stride; got 1, 0 and 2"):
        multiscale(Partial(quadratic, 1.0), window=0)
    with pytest.raises(ValueError, match="needs a density"):
        multiscale(Partial(quadratic, 1.0), ef.landscape(Partial(quadratic, 1.0)))
    with pytest.raises(ValueError, match="need a resolution or more"):
        pooled_shapes((8, 8, 1), 0)
