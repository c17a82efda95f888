"""Laws of Barker's move: it leaves its target alone, scales are coordinates, steep energies do not stop it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax import barker as blackjax_barker
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from energyflow.chains import advance_chains
from energyflow.kernels import adapt, barker
from energyflow.types import Algorithm, Stats
from invariance import TARGETS, assert_invariant, assert_not_invariant

KERNELS = {
    "barker": barker(0.8),
    "barker_scale": barker(0.8, np.array([1.2, 0.7], np.float32)),
    "blackjax": Partial(blackjax_barker, step_size=0.8),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("barker", marks=pytest.mark.core),
        pytest.param("barker_scale", marks=pytest.mark.slow),
        pytest.param("blackjax", marks=pytest.mark.blackjax_promotes("barker")),
    ],
)
def test_exact_draws_stay_exact(name, target, key):
    moves = assert_invariant(key, KERNELS[name], TARGETS[target])
    assert moves["jump_distance"] > 0.1
    assert (moves["divergent"] > 0) == TARGETS[target].walled


@pytest.mark.core
def test_a_step_of_a_thousand_is_rejected_and_leaves_the_target_alone(key):
    moves = assert_invariant(key, barker(1000.0), TARGETS["gaussian"])
    assert moves["acceptance_rate"] < 0.01


def broken(logdensity, step_size, skew_in_ratio, accept):
    """Barker's move with its two corrections switched on and off by leaves, 1 or 0."""
    value_and_grad = jax.value_and_grad(logdensity)
    inner = barker(step_size)(logdensity)

    def step(key, state):
        noise_key, sign_key, accept_key = jax.random.split(key, 3)
        x, unravel = ravel_pytree(state.position)
        gradient = ravel_pytree(state.logdensity_grad)[0]
        z = step_size * jax.random.normal(noise_key, x.shape)
        move = jnp.where(jax.random.uniform(sign_key, x.shape) < jax.nn.sigmoid(z * gradient), z, -z)
        proposal = type(state)(unravel(x + move), *value_and_grad(unravel(x + move)))
        back = jax.nn.log_sigmoid(-move * ravel_pytree(proposal.logdensity_grad)[0])
        skew = jnp.sum(back - jax.nn.log_sigmoid(move * gradient))
        log_ratio = accept * (proposal.logdensity - state.logdensity + skew_in_ratio * skew)
        rate = jnp.exp(jnp.minimum(log_ratio, 0.0))
        taken = jax.random.uniform(accept_key) < rate
        new = jax.tree.map(lambda p, s: jnp.where(taken, p, s), proposal, state)
        return new, Stats(rate, jnp.zeros(()), jnp.asarray(False), jnp.asarray(1))

    return Algorithm(inner.init, step)


@pytest.mark.parametrize("target", ["gaussian", "mixture"])
def test_broken_kernels_are_caught(target, key):
    for skew_in_ratio, accept in ((0.0, 1.0), (1.0, 0.0)):
        kernel = Partial(broken, step_size=0.8, skew_in_ratio=skew_in_ratio, accept=accept)
        assert_not_invariant(jax.random.clone(key), kernel, TARGETS[target])
    whole = Partial(broken, step_size=0.8, skew_in_ratio=1.0, accept=1.0)
    assert_invariant(jax.random.clone(key), whole, TARGETS[target])


def quartic(scale, x):
    y = x / scale
    return -jnp.sum(y**4) / 4 + 0.3 * y[0] * y[1]


def test_scales_are_a_change_of_coordinates_draw_for_draw(key):
    scale = np.array([0.5, 4.0], np.float32)  # powers of two: exact in floating point
    start = np.random.default_rng(1).normal(size=(32, 2)).astype(np.float32)
    plain, _ = advance_chains(
        jax.random.clone(key), barker(0.7, np.ones(2, "f")), Partial(quartic, np.ones(2, "f")), start, 40
    )
    scaled, _ = advance_chains(jax.random.clone(key), barker(0.7, scale), Partial(quartic, scale), start * scale, 40)
    np.testing.assert_array_equal(scaled, np.asarray(plain) * scale)


def steep(stiffness, x):
    return -stiffness * jnp.sum(x**2) / 2


@pytest.mark.core
@pytest.mark.blackjax_promotes("barker")
def test_steep_energies_stop_blackjaxs_barker_and_not_this_one(key):
    """In 16 dimensions at stiffness 1e4 the moves back have exponents near 1e3, and exp overflows float32 at 88.

    A move of d towards 0 gains k d (x - d/2) in log density and loses k d (x - d) to the skew: it is always accepted.
    """
    logdensity = Partial(steep, jnp.float32(1e4))
    start = jnp.ones((256, 16))
    (their_end, theirs), (our_end, ours) = (
        advance_chains(jax.random.clone(key), kernel, logdensity, start, 2)
        for kernel in (Partial(blackjax_barker, step_size=0.1), barker(0.1))
    )
    assert theirs["acceptance_rate"] == 0.0 and jnp.array_equal(their_end, start)
    assert ours["acceptance_rate"] == 1.0 and jnp.all(jnp.sum(our_end**2, axis=1) < 16.0)


@pytest.mark.blackjax_promotes("barker")
def test_blackjaxs_nan_acceptance_is_reported_as_a_rejection(key):
    """A step of 1e30 makes its acceptance rate inf - inf: adapted, that is 0, divergent, and the chain stays."""
    logdensity = Partial(steep, jnp.float32(1.0))
    raw = blackjax_barker(logdensity, step_size=1e30)
    state = raw.init(jnp.ones(2))
    (_, raw_info), (new, info) = jax.jit(
        lambda key: (raw.step(key, state), adapt(raw).step(jax.random.clone(key), state))
    )(key)
    assert jnp.isnan(raw_info.acceptance_rate)
    assert info.acceptance_rate == 0.0 and info.is_divergent
    assert jnp.array_equal(new.position, state.position)
