"""Laws of tuning over many chains: the acceptance asked for at any scale, then the step that buys the most."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import energyflow as ef
from energyflow.tuning import MULTIPLES

CHAINS = 32


def gaussian(scale, x):
    """A Gaussian's log density; scale: () or the shape of x."""
    return -jnp.sum((x / scale) ** 2) / 2


SPREAD = np.geomspace(0.01, 100, 8).astype(np.float32)  # standard deviations that differ by 1e4
KERNELS = {"mala": (partial(ef.mala, 1e-2), 0.574), "hmc": (partial(ef.hmc, 1e-2, 3), 0.8)}


def tune(key, kernel, scale, target, **options):
    """Tune `kernel` on a Gaussian from exact draws."""
    start = scale[None] * jax.random.normal(jax.random.fold_in(key, 0), (CHAINS, 8))
    density = Partial(gaussian, jnp.asarray(scale))
    return ef.tune(jax.random.fold_in(key, 1), kernel, density, start, target_acceptance=target, **options)


def acceptance_at_target(tuned):
    """The acceptance rate, over all draws, at the step that dual averaging settled on."""
    return tuned.candidates[MULTIPLES.index(1.0)].acceptance_rate


@pytest.mark.parametrize("name", KERNELS)
def test_target_acceptance_is_reached_over_scales_that_differ_by_ten_thousand(name, key):
    """Once within one target, its variances as inverse mass matrix; once between targets, without."""
    make, target = KERNELS[name]
    tuned = tune(jax.random.fold_in(key, 0), make(inverse_mass_matrix=SPREAD**2), SPREAD, target)
    assert abs(acceptance_at_target(tuned) - target) < 0.05
    for i, scale in enumerate((0.01, 100.0)):
        tuned = tune(jax.random.fold_in(key, i + 1), make(), np.full(8, scale, np.float32), target, num_draws=50)
        assert abs(acceptance_at_target(tuned) - target) < 0.05
