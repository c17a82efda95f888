"""Laws of the coupled chains: each alone is exact, they meet as often as possible, and their estimate has no bias.

The truth is the gradient of log Z by enumeration of an RBM of 6 x 4 units.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import energyflow as ef
from energyflow.chains import advance_chains
from energyflow.energies.discrete import rbm
from energyflow.kernels.conditionals import block_gibbs
from energyflow.unbiased import coupled_gibbs, sufficient_statistics, unbiased_gradient
from laws import assert_mean, assert_not_mean, z_score

RNG = np.random.default_rng(11)
WEIGHTS = 1.8 * RNG.normal(size=(6, 4))
# Nearly symmetric under turning all units over: two modes, between which chains go slowly.
MACHINE = rbm(WEIGHTS, 0.1 - WEIGHTS.sum(axis=1) / 2, -WEIGHTS.sum(axis=0) / 2)
VISIBLE = np.array(list(itertools.product([0.0, 1.0], repeat=6)))
START = np.array([1, 0, 1, 0, 1, 1], np.float32)
NUM = 20_000


def exact_gradient() -> np.ndarray:
    """E_p of v h', v and h, flattened: the law of v by enumeration, h by its conditional mean."""
    activation = MACHINE.c + VISIBLE @ MACHINE.W
    logs = VISIBLE @ MACHINE.b + np.logaddexp(0, activation).sum(axis=1)
    law, means = np.exp(logs - MACHINE.log_z), 1 / (1 + np.exp(-activation))
    return np.concatenate([np.einsum("s,sv,sh->vh", law, VISIBLE, means).ravel(), law @ VISIBLE, law @ means])


def flat(gradient) -> np.ndarray:
    leaves = (gradient.W, gradient.b, gradient.c)
    return np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in leaves], axis=1)


def estimates(key, min_steps, max_steps=1000, num=NUM):
    one = lambda key: unbiased_gradient(key, MACHINE, START, min_steps, max_steps)  # noqa: E731
    return jax.jit(jax.vmap(one))(jax.random.split(key, num))


@pytest.mark.core
def test_the_truth_is_the_gradient_of_log_z():
    step = 1e-5
    raised = rbm(MACHINE.W, MACHINE.b, MACHINE.c + step * np.eye(4)[2]).log_z
    lowered = rbm(MACHINE.W, MACHINE.b, MACHINE.c - step * np.eye(4)[2]).log_z
    # Central differences: an error of step^2 / 24, and rounding of 1e-15 / step.
    assert abs((raised - lowered) / (2 * step) - exact_gradient()[24 + 6 + 2]) < 1e-9


@pytest.mark.core
@pytest.mark.parametrize("min_steps", [1, 3])
def test_the_estimate_has_no_bias(min_steps, key):
    found = estimates(key, min_steps)
    assert not found.truncated.any()
    assert (found.meeting_time >= 2).all()
    assert_mean(flat(found.gradient), exact_gradient())


@pytest.mark.core
@pytest.mark.parametrize("num_steps", [1, 3])
def test_contrastive_divergence_from_the_same_start_is_biased(num_steps, key):
    start = {"v": np.tile(START, (NUM, 1)), "h": np.zeros((NUM, 4), np.float32)}
    kernel = block_gibbs(MACHINE.blocks)
    moved, _ = advance_chains(key, kernel, ef.logdensity(MACHINE), start, num_steps)
    assert_not_mean(flat(jax.vmap(lambda v: sufficient_statistics(MACHINE, v))(moved["v"])), exact_gradient())


def test_giving_up_early_is_flagged_and_biased(key):
    found = estimates(key, 1, 3)
    assert 0.01 < found.truncated.mean() < 0.99
    assert (found.meeting_time[found.truncated] == 3).all()
    assert_not_mean(flat(found.gradient), exact_gradient())
    kept = flat(found.gradient)[~np.asarray(found.truncated)]
    assert np.abs(z_score(kept, exact_gradient())).max() > 4.5  # dropping them is no way out


def test_later_first_terms_vary_less(key):
    early, late = (flat(estimates(jax.random.fold_in(key, k), k).gradient) for k in (1, 5))
    assert late.var(axis=0).sum() < early.var(axis=0).sum()


def conditional(h) -> np.ndarray:
    """The law of the 64 visible states given hidden ones."""
    logits = MACHINE.b + MACHINE.W @ h
    return np.exp(VISIBLE @ logits - np.logaddexp(0, logits).sum())


def moves_of_a_pair(key, max_tries=1000):
    pair = [{"v": START, "h": np.array(h, np.float32)} for h in ([1, 0, 0, 1], [0, 1, 1, 1])]
    one = lambda key: coupled_gibbs(key, MACHINE, *pair, max_tries=max_tries)  # noqa: E731
    return *jax.jit(jax.vmap(one))(jax.random.split(key, NUM)), *(conditional(x["h"]) for x in pair)


@pytest.mark.core
def test_coupled_chains_are_each_exact_and_meet_as_often_as_they_can(key):
    first, second, exhausted, law_first, law_second = moves_of_a_pair(key)
    assert not exhausted.any()
    bits = 2.0 ** np.arange(5, -1, -1)
    for moved, law in ((first, law_first), (second, law_second)):
        seen = (np.asarray(moved["v"]) @ bits)[:, None] == np.arange(64)[None, :]
        often = law * NUM >= 20  # fewer expected counts are not nearly normal
        assert_mean(seen[:, often], law[often])
        means = jax.vmap(MACHINE.hidden_mean)(jnp.asarray(moved["v"]))
        assert_mean(moved["h"] - means, 0.0)
    equal = (first["v"] == second["v"]).all(axis=1)
    assert_mean(equal, np.minimum(law_first, law_second).sum())
    assert (first["h"][equal] == second["h"][equal]).all()


def test_a_rejection_loop_cut_short_is_flagged_and_wrong(key):
    first, second, exhausted, law_first, law_second = moves_of_a_pair(key, max_tries=1)
    assert exhausted.any()
    assert_mean(first["v"], law_first @ VISIBLE)
    assert_not_mean(second["v"], law_second @ VISIBLE)


def test_steps_that_make_no_estimate_are_refused():
    for steps in ((0, 10), (5, 5)):
        with pytest.raises(ValueError, match="1 <= min_steps < max_steps"):
            unbiased_gradient(jax.random.key(0), MACHINE, START, *steps)
