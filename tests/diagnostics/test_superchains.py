"""`check` of superchains by nested R-hat: many short chains that share their starts."""

import jax.numpy as jnp
import numpy as np
import pytest

import energyflow as ef
from energyflow.diagnostics import check, superchain_starts

pytestmark = pytest.mark.core


@pytest.fixture
def rng(seed):
    return np.random.default_rng([seed, 31])


def test_the_chains_of_a_superchain_share_their_start(key, rng):
    points = {"a": rng.normal(size=(40, 2)), "b": np.arange(40.0)}
    position, labels = superchain_starts(key, points, 64)
    assert position["a"].shape == (64, 2) and np.bincount(labels).tolist() == [4] * 16
    starts = np.asarray(position["b"])
    assert all(len(set(starts[labels == label])) == 1 for label in range(16)) and len(set(starts)) == 16
    rows = np.asarray(points["a"], np.float32)[starts.astype(int)]
    assert (np.asarray(position["a"]) == rows).all()


@pytest.mark.parametrize(
    ("starts", "chains", "superchains", "words"),
    [(8, 20, None, "20 chains cannot be split into 8"), (8, 20, 10, "holds 8"), (1, 20, None, "two or more")],
)
def test_starts_that_do_not_make_superchains_are_refused(starts, chains, superchains, words):
    with pytest.raises(ValueError, match=words):
        superchain_starts(0, np.zeros((starts, 2)), chains, num_superchains=superchains)


@pytest.mark.parametrize(("chains", "draws", "superchains"), [(256, 1, 16), (1024, 1, 4), (128, 2, 64), (256, 40, 8)])
def test_stationary_superchains_raise_no_alarm_in_twenty_seeds(chains, draws, superchains, seed):
    """A false alarm has probability 1e-5 a check for each of two tests: 1.6e-3 in all 80; heavy tails are ranked."""
    for i in range(20):
        rng = np.random.default_rng([seed, i, chains, draws])
        x = rng.normal(size=(chains, draws, 3))
        x[..., 2] = rng.standard_cauchy(size=(chains, draws))
        found = check(x, superchains=superchains)
        assert found.verdict == "healthy", f"seed {i}: {found}"
        assert found.numbers["ess"] >= chains


def test_superchains_that_remember_their_starts_disagree(rng):
    """Between-superchain variance 1 beside 1 within: nested R-hat near 1.4, where chance and 1.01 give 1.13."""
    x = rng.normal(size=(256, 1, 3))
    x[..., 1] += np.repeat(3 * np.sign(np.arange(16) - 7.5), 16)[:, None]
    x[16 * 5 : 16 * 6, :, 1] -= 30
    found = check(x, superchains=16)
    assert found.verdict == "chains disagree" and "in x[1], superchain 5 furthest from the others" in found.problems[0]
    assert check(x, superchains=np.arange(256) % 16).verdict == "healthy"  # labels that no start stands behind


def test_superchains_that_never_left_their_start_are_frozen(rng):
    x = np.repeat(rng.normal(size=(16, 1, 2)), 16, axis=0)
    x[:48] += rng.normal(size=(48, 1, 2))
    found = check(x, superchains=16)
    assert found.verdict == "frozen chains" and "208 of 256 chains never moved (chain 48 first)" in found.problems[0]


def test_few_draws_of_superchains_are_worth_little(rng):
    assert check(rng.normal(size=(64, 1, 1)), superchains=4).verdict == "low ESS"


def test_superchains_of_one_chain_are_refused(rng):
    with pytest.raises(ValueError, match="4 superchains of one chain each"):
        check(rng.normal(size=(4, 100, 1)), superchains=4)


def test_many_short_mala_chains_are_told_apart_by_what_they_remember(key, rng):
    """Langevin contracts a start of sd 10 by about e^-0.5 a move: one move leaves all of it, forty e^-20 of it."""
    density = ef.logdensity(lambda x: 0.5 * jnp.sum(x**2))
    position, labels = superchain_starts(key, 10 * rng.normal(size=(16, 2)).astype(np.float32), 512)
    verdicts = {}
    for moves in (1, 40):
        trace = ef.sample_chains(key, ef.mala(0.5), density, position, 1, warmup=moves - 1)
        verdicts[moves] = check(trace, superchains=labels).verdict
    assert verdicts == {1: "chains disagree", 40: "healthy"}
