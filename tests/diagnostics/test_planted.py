"""The planted cases that `check` owes its users, each by name and place, and twenty healthy runs left alone.

"All chains in one mode" is in test_probe.py, with the probe that finds the other.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import energyflow as ef
from energyflow.chains import Trace
from energyflow.diagnostics import check
from energyflow.types import Stats

pytestmark = pytest.mark.core


def autoregressive(rng, chains, draws, dims, correlation):
    """Stationary standard normal AR(1) chains."""
    x = rng.normal(size=(chains, draws, dims))
    for t in range(1, draws):
        x[:, t] = correlation * x[:, t - 1] + np.sqrt(1 - correlation**2) * x[:, t]
    return x


def planted(rng):
    """{case: (draws, verdict, words of the first problem)}."""
    z = rng.normal(size=(4, 400, 3))
    one_frozen, one_nan, split = z.copy(), z.copy(), z.copy()
    one_frozen[2] = one_frozen[2, :1]
    one_nan[3, 120, 1] = np.nan
    split[1, :, 2] += 8
    starts = 5 * rng.normal(size=(256, 1, 2))
    improper = z + 0.02 * np.arange(400)[:, None] * np.array([0, 1, 0])
    return {
        "frozen at one value": (np.ones((4, 100, 2)), "frozen chains", "4 of 4 chains never moved (chain 0 first)"),
        "frozen apart": (np.repeat(z[:, :1], 100, 1), "frozen chains", "4 of 4 chains never moved (chain 0 first)"),
        "one of four frozen": (one_frozen, "frozen chains", "1 of 4 chains never moved (chain 2 first)"),
        "one NaN draw": (one_nan, "non-finite draws", "first in chain 3, draw 120, x[1]"),
        "256 x 4 unmixed": (starts + 0.1 * rng.normal(size=(256, 4, 2)), "chains disagree", "in x["),
        "256 x 2 unmixed": (starts + 0.1 * rng.normal(size=(256, 2, 2)), "chains disagree", "in x["),
        "improper energy": (improper, "drifting chains", "from the first in x[1], in all chains alike"),
        "split over two modes": (split, "chains disagree", "in x[2], chain 1 furthest from the others"),
    }


@pytest.mark.parametrize("case", planted(np.random.default_rng(0)))
def test_a_planted_case_is_named_and_located(case, seed):
    draws, verdict, words = planted(np.random.default_rng([seed, 40]))[case]
    found = check(draws)
    assert found.verdict == verdict and words in found.problems[0], found
    assert not found.notes


@pytest.mark.parametrize("rises", [1, -1])
def test_chains_that_come_home_from_all_sides_are_known_by_their_energy(rises, seed):
    """Means do not move, the log density does: by two of its standard deviations over the run."""
    rng = np.random.default_rng([seed, 41])
    way = rises * np.linspace(-1, 1, 200) + 0.3 * rng.normal(size=(16, 200))
    shape = way.shape
    stats = Stats(np.full(shape, 0.7), np.ones(shape), np.zeros(shape, bool), np.ones(shape, int))
    found = check(Trace(rng.normal(size=(16, 200, 2)), way, stats, None))
    assert found.verdict == "energy drifts" and ("higher" if rises > 0 else "lower") in found.problems[0]
    assert check(Trace(rng.normal(size=(16, 200, 2)), rng.normal(size=shape), stats, None)).verdict == "healthy"


@pytest.mark.parametrize(
    ("chains", "draws", "dims", "correlation"),
    [
        *[(chains, draws, 3, a) for chains, draws in [(4, 1000), (16, 400), (64, 400)] for a in (0.0, 0.3, 0.6)],
        *[(256, draws, 2, 0.0) for draws in (2, 3, 8)],
        *[(chains, 400, 61, 0.3) for chains in (4, 16)],
    ],
)
def test_healthy_chains_raise_no_alarm(chains, draws, dims, correlation, seed):
    """R-hat^2 - 1 is near tau / n for half chains of n draws, tau = 4 for a = 0.6: at most 4/500, where 0.02 is allowed
    of four chains, and 4/200 where 0.08 is of sixteen; the drift test has a level of 1e-5.
    """
    found = check(autoregressive(np.random.default_rng([seed, 42, chains, draws]), chains, draws, dims, correlation))
    assert found.verdict == "healthy", found


@pytest.mark.parametrize("dims", [2, 61])
def test_healthy_runs_of_mala_raise_no_alarm(dims, key, seed):
    """Exact starts, three runs: correlation e^-0.25 a move (step 0.25), twenty moves a draw, so all but independent."""
    density = ef.logdensity(lambda x: 0.5 * jnp.sum(x**2))
    for i in range(3):
        start = np.random.default_rng([seed, i]).normal(size=(16, dims)).astype(np.float32)
        trace = ef.sample_chains(jax.random.fold_in(key, i), ef.mala(0.25), density, start, 200, thin=20)
        found = check(trace)
        assert found.verdict == "healthy", found
