"""Laws of the adjusted kernels: they leave their target alone, mass matrices are coordinates, MALA is one-step HMC."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax import ghmc as blackjax_ghmc, hmc as blackjax_hmc, mala as blackjax_mala
from blackjax.mcmc import metrics
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from energyflow.chains import advance_chains
from energyflow.kernels import (
    adjusted_mclmc,
    dynamic_hmc,
    elliptical_slice,
    ghmc,
    hmc,
    mala,
    nuts,
    rmh,
    slice_sampling,
    step_size,
    ula,
    with_step_size,
)
from energyflow.kernels.noise import normal_like
from energyflow.types import Algorithm, Stats
from invariance import COVARIANCE, TARGETS, assert_invariant, assert_not_invariant

DENSE = np.array(COVARIANCE, np.float32)
DIAGONAL = np.diag(DENSE)
WIDE = np.array([3.0, 2.0], np.float32)
KERNELS = {
    "mala": mala(0.3),
    "mala_diagonal": mala(0.3, DIAGONAL),
    "mala_dense": mala(0.3, DENSE),
    "hmc": hmc(0.4, 5),
    "hmc_diagonal": hmc(0.4, 5, DIAGONAL),
    "hmc_dense": hmc(0.4, 5, DENSE),
    "nuts": nuts(0.4, max_num_doublings=5),
    "nuts_dense": nuts(0.4, DENSE, max_num_doublings=5),
    "dynamic_hmc": dynamic_hmc(0.4, 6),
    "dynamic_hmc_dense": dynamic_hmc(0.4, 6, DENSE),
    "ghmc": ghmc(0.4, 0.1),
    "ghmc_diagonal": ghmc(0.4, 0.3, None, DIAGONAL),
    "ghmc_dense": ghmc(0.4, 0.05, None, 4 * DENSE),
    "adjusted_mclmc": adjusted_mclmc(0.8, 3),
    "rmh": rmh(0.8),
    "elliptical_slice": elliptical_slice(0.0, WIDE),
    "elliptical_slice_dense": elliptical_slice(np.array([0.5, -0.5], np.float32), 3 * DENSE),
    "slice_sampling": slice_sampling(1.0),
}
SLOW = {"mala_diagonal", "mala_dense", "hmc_diagonal", "nuts_dense", "dynamic_hmc_dense", "ghmc_diagonal"}
CORE = {"mala", "hmc_dense", "ghmc"}
LENIENT = {"nuts", "dynamic_hmc", "ghmc", "slice_sampling"}
SEE_NO_WALL = {"slice_sampling": ("nan_wall", "high_wall", "deep_wall"), "elliptical_slice": ("high_wall",)}


def marked(names) -> list:
    def marks(name: str) -> list:
        lenient = [pytest.mark.blackjax_promotes(module) for module in LENIENT if name.startswith(module)]
        return lenient + [pytest.mark.slow] * (name in SLOW) + [pytest.mark.core] * (name in CORE)

    return [pytest.param(name, marks=marks(name)) for name in names]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", marked(KERNELS))
def test_exact_draws_stay_exact(name, target, key):
    moves = assert_invariant(key, KERNELS[name], TARGETS[target])
    assert moves["jump_distance"] > 0.1
    # A slice that ends inside the support was never beyond the wall; every other kernel says where it was sent back.
    unseen = SEE_NO_WALL.get(name.removesuffix("_dense"), ())
    assert (moves["divergent"] > 0) == (TARGETS[target].walled and target not in unseen)


@pytest.mark.parametrize("name", marked(name for name in KERNELS if "step_size" in KERNELS[name].keywords))
def test_a_step_of_a_thousand_is_rejected_and_leaves_the_target_alone(name, key):
    kernel = with_step_size(KERNELS[name], 1000.0)
    assert step_size(kernel) == 1000.0
    moves = assert_invariant(key, kernel, TARGETS["gaussian"])
    assert moves["acceptance_rate"] < 0.01


def without_accept_step(logdensity, step_size):
    return ula(step_size)(logdensity)


def with_noise_of_half_the_variance(logdensity, step_size):
    """MALA whose proposal adds sqrt(h) z, while its acceptance believes in sqrt(2h) z."""
    inner = blackjax_mala(logdensity, step_size)

    def surprise(here, there):
        gap = jax.tree.map(lambda x, y, g: y - x - step_size * g, here.position, there.position, here.logdensity_grad)
        return here.logdensity - ravel_pytree(gap)[0] @ ravel_pytree(gap)[0] / (4 * step_size)

    def step(key, state):
        noise_key, accept_key = jax.random.split(key)
        noise = normal_like(noise_key, state.position)
        proposal = inner.init(
            jax.tree.map(
                lambda x, g, z: x + step_size * g + jnp.sqrt(step_size) * z,
                state.position,
                state.logdensity_grad,
                noise,
            )
        )
        rate = jnp.exp(jnp.minimum(surprise(proposal, state) - surprise(state, proposal), 0.0))
        accept = jax.random.uniform(accept_key) < rate
        new = jax.tree.map(lambda p, s: jnp.where(accept, p, s), proposal, state)
        return new, Stats(rate, jnp.zeros(()), jnp.asarray(False), jnp.asarray(1))

    return Algorithm(lambda position, key: inner.init(position), step)


def with_momentum_of_another_mass(logdensity, step_size):
    identity, dense = metrics.default_metric(jnp.ones(2)), metrics.default_metric(jnp.asarray(DENSE))
    return blackjax_hmc(logdensity, step_size, dense._replace(sample_momentum=identity.sample_momentum), 5)


def with_first_momentum_of_another_mass(logdensity, step_size):
    """What BlackJAX's GHMC does: it draws the first momentum for an identity mass matrix."""
    return blackjax_ghmc(logdensity, step_size, jnp.asarray(4 * DENSE), 0.05, 0.025)


def with_momentum_kept_at_a_wall(logdensity, step_size):
    """GHMC whose rejection of a non-finite proposal forgets to turn the momentum around."""
    inner = blackjax_ghmc(logdensity, step_size, jnp.ones(2), 0.1, 0.05)

    def step(key, state):
        new, raw = inner.step(key, state)
        finite = jnp.isfinite(raw.energy)
        kept = jax.tree.map(lambda n, s: jnp.where(finite, n, s), new, state)
        return kept, Stats(raw.acceptance_rate, jnp.zeros(()), ~finite, jnp.asarray(1))

    return Algorithm(inner.init, step)


@pytest.mark.core
@pytest.mark.blackjax_promotes("ghmc")
@pytest.mark.parametrize(
    ("broken", "step", "target"),
    [
        (without_accept_step, 0.5, "gaussian"),
        (without_accept_step, 0.3, "mixture"),
        (with_noise_of_half_the_variance, 0.3, "gaussian"),
        (with_noise_of_half_the_variance, 0.3, "mixture"),
        (with_momentum_of_another_mass, 0.4, "gaussian"),
        (with_first_momentum_of_another_mass, 0.4, "gaussian"),
        (with_momentum_kept_at_a_wall, 0.4, "nan_wall"),
    ],
)
def test_broken_kernels_are_caught(broken, step, target, key):
    assert_not_invariant(key, Partial(broken, step_size=step), TARGETS[target])


def quartic(matrix, x):
    """A log density with a cross term and no symmetry between coordinates, of y = matrix x."""
    y = matrix @ x
    return -(y[0] ** 4) / 4 - (y[1] - y[0] ** 2 / 2) ** 2 + 0.3 * y[0] - y[1] / 2


def ends_of_40(key, kernel, matrix, start) -> np.ndarray:
    """Where chains end after 40 transitions, made in float64."""
    with jax.enable_x64(True):
        return np.asarray(advance_chains(jax.random.clone(key), kernel, Partial(quartic, matrix), start, 40)[0])


@pytest.mark.core
@pytest.mark.parametrize("h", [0.05, 0.4])
def test_mala_is_one_step_of_hmc_and_blackjaxs_mala_draw_for_draw(h, key):
    # In float64: in float32 one draw in 1e5 is accepted by the one and rejected by the other.
    start = np.random.default_rng(1).normal(size=(64, 2))
    ours = ends_of_40(key, mala(h), np.eye(2), start)
    assert ours.dtype == np.float64
    one_step = ends_of_40(key, hmc(np.sqrt(2 * h), 1), np.eye(2), start)
    theirs = ends_of_40(key, Partial(blackjax_mala, step_size=h), np.eye(2), start)
    np.testing.assert_allclose(ours, one_step, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    two_steps = ends_of_40(key, hmc(np.sqrt(2 * h), 2), np.eye(2), start)
    assert np.abs(two_steps - ours).max() > 0.1


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda mass: hmc(0.5, 3, mass), id="hmc"),
        pytest.param(
            lambda mass: ghmc(0.5, 0.3, None, mass),
            id="ghmc",
            marks=[pytest.mark.blackjax_promotes("ghmc"), pytest.mark.slow],
        ),
        pytest.param(
            lambda mass: nuts(0.5, mass, max_num_doublings=4),
            id="nuts",
            marks=[pytest.mark.blackjax_promotes("nuts"), pytest.mark.slow],
        ),
    ],
)
def test_a_mass_matrix_is_a_change_of_coordinates_draw_for_draw(make, key):
    """With inverse mass L L', a chain at x is the identity-mass chain at y = L^-1 x; without one the mass is 1."""
    start = np.random.default_rng(2).normal(size=(32, 2))
    plain = ends_of_40(key, make(None), np.eye(2), start)
    np.testing.assert_allclose(ends_of_40(key, make(np.ones(2)), np.eye(2), start), plain, rtol=0, atol=1e-9)
    scales = np.array([0.3, 1.7])
    scaled = ends_of_40(key, make(scales**2), np.diag(1 / scales), start * scales)
    np.testing.assert_allclose(scaled, plain * scales, rtol=0, atol=1e-8)
    lower = np.array([[1.3, 0.0], [-0.8, 0.6]])
    turned = ends_of_40(key, make(lower @ lower.T), np.linalg.inv(lower), start @ lower.T)
    np.testing.assert_allclose(turned, plain @ lower.T, rtol=0, atol=1e-8)
    wrong = ends_of_40(key, make(lower.T @ lower), np.linalg.inv(lower), start @ lower.T)
    assert np.abs(wrong - turned).max() > 0.1


@pytest.mark.parametrize("make", [mala, lambda h, m: hmc(h, 3, m), nuts, lambda h, m: ghmc(h, inverse_mass_matrix=m)])
def test_a_mass_matrix_of_the_wrong_size_is_refused_with_both_sizes(make):
    for wrong in (np.ones(3), np.eye(3), np.ones((2, 1)), np.ones(())):
        shape = str(wrong.shape).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=f"shape {shape}, but the position has 2 dimensions: give a vector of 2"):
            ends_of_40(jax.random.key(0), make(0.1, wrong), np.eye(2), np.ones((4, 2)))
