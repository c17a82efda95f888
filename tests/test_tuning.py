"""Laws of tuning over many chains: the acceptance asked for at any scale, then the step that buys the most."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import energyflow as ef
from energyflow.kernels import step_size
from energyflow.tuning import MULTIPLES

pytestmark = pytest.mark.blackjax_promotes("dual_averaging")

CHAINS = 32


def gaussian(scale, x):
    """A Gaussian's log density; scale: () or the shape of x."""
    return -jnp.sum((x / scale) ** 2) / 2


SCALES = np.geomspace(0.01, 100, 8).astype(np.float32)  # standard deviations that differ by 1e4
GUESSES = SCALES * np.array([2, 0.5, 1, 0.7, 1.4, 0.6, 1.7, 1], np.float32)  # what a warm-up may know of them
KERNELS = {"mala": (partial(ef.mala, 1e-2), 0.574), "hmc": (partial(ef.hmc, 1e-2, 3), 0.8)}


def tune(key, kernel, scales, target, **options):
    """Tune `kernel` on a Gaussian from exact draws."""
    start = scales[None] * jax.random.normal(jax.random.fold_in(key, 0), (CHAINS, 8))
    density = Partial(gaussian, jnp.asarray(scales))
    return ef.tune(jax.random.fold_in(key, 1), kernel, density, start, target_acceptance=target, **options)


@pytest.mark.parametrize("name", KERNELS)
def test_target_acceptance_is_reached_over_scales_that_differ_by_ten_thousand(name, key):
    """Once within a target, with an inverse mass matrix; once away from the first step, without: by 3e5 for MALA.

    Measured over 4 keys: within .02 of the target.
    """
    make, target = KERNELS[name]
    cases = [(make(inverse_mass_matrix=GUESSES**2), SCALES), (make(), SCALES[-1] * GUESSES / SCALES)]
    for i, (kernel, scales) in enumerate(cases):
        tuned = tune(jax.random.fold_in(key, i), kernel, scales, target, num_draws=50)
        assert abs(tuned.candidates[MULTIPLES.index(1.0)].acceptance_rate - target) < 0.05


@pytest.mark.core
def test_the_step_chosen_buys_the_most_and_the_costs_are_counted(key):
    rounds, moves, draws = 20, 5, 50
    kernel = ef.hmc(1e-2, 3)
    tuned = tune(key, kernel, np.ones(8, np.float32), 0.9, num_rounds=rounds, moves_per_round=moves, num_draws=draws)
    best = max(tuned.candidates, key=lambda c: c.ess_per_1000)
    assert step_size(tuned.kernel) == best.step_size
    assert np.allclose([c.step_size / tuned.candidates[2].step_size for c in tuned.candidates], MULTIPLES)
    # Each round and each candidate starts its chains anew: one gradient more.
    spent = CHAINS * (rounds * (3 * moves + 1) + len(MULTIPLES) * (3 * draws + 1))
    assert tuned.num_gradients == spent
    table = str(tuned).splitlines()
    assert len(table) == 1 + len(MULTIPLES) and table[1 + tuned.candidates.index(best)].startswith("*")


def two_modes(x):
    return jnp.logaddexp(gaussian(1.0, x - 3.5), gaussian(1.0, x + 3.5))


def test_with_separated_modes_a_step_accepted_less_often_is_chosen(key):
    """The classical rate keeps chains in one mode; long steps cross, and only the effective sample size sees it."""
    start_key, tune_key = jax.random.split(key)
    start = jax.random.normal(start_key, (CHAINS, 1)) + 3.5 * jnp.where(jnp.arange(CHAINS) % 2 == 0, 1.0, -1.0)[:, None]
    tuned = ef.tune(tune_key, ef.rmh(0.1), two_modes, start, target_acceptance=0.7)
    at_target, chosen = tuned.candidates[2], max(tuned.candidates, key=lambda c: c.ess_per_1000)
    assert chosen.acceptance_rate < 0.5 and chosen.ess_per_1000 > 2 * at_target.ess_per_1000
    assert tuned.num_gradients == 0


def test_kernels_that_cannot_be_tuned_are_refused(key):
    start = jnp.zeros((4, 2))
    for kernel in (ef.ula(0.1), ef.mclmc(0.1)):
        with pytest.raises(ValueError, match="without an accept step has no acceptance rate to tune by"):
            ef.tune(0, kernel, partial(gaussian, 1.0), start)
    with pytest.raises(ValueError, match="this kernel has no step size to read or tune: .*width=1.0"):
        ef.tune(0, ef.slice_sampling(1.0), partial(gaussian, 1.0), start)
