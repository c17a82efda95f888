"""The probe finds the mode that no chain visited, and nothing where there is none."""

import jax.numpy as jnp
import numpy as np
import pytest

import energyflow as ef
from energyflow.diagnostics import by_chain, check, probe_modes
from energyflow.diagnostics.checks import UNSEEN
from energyflow.diagnostics.probe import Probe
from energyflow.energies.analytic import funnel, gaussian
from energyflow.energies.mixtures import gaussian_mixture

pytestmark = pytest.mark.core
APART = 6.0
CHEAP = {"num_restarts": 32, "num_moves": 100}


def two_modes(dim, weight=0.5):
    means = np.zeros((2, dim))
    means[:, 0] = -APART, APART
    return gaussian_mixture(means, weights=[weight, 1 - weight])


def draws_at_home(key, dim, kernel, weight=0.5, start=APART):
    """Chains of the right one of two modes: over a barrier of 18 nats none of their 3200 moves gets."""
    density = ef.logdensity(two_modes(dim, weight))
    points = np.random.default_rng(0).normal(size=(8, dim)).astype(np.float32)
    points[:, 0] += start
    return density, ef.sample_chains(key, kernel, density, points, 200, warmup=100, thin=2)


def one_elsewhere(key):
    """Chain 3 of the eight in the left mode."""
    density, trace = draws_at_home(key, 2, ef.mala(0.7))
    moved = np.array(trace.position)
    moved[3, :, 0] -= 2 * APART
    return density, trace._replace(position=moved)


def skewed(x):
    """A log-gamma density in every dim, of shape 1/2: a tail that falls like e^(x/2) on the left, a wall at right."""
    return jnp.sum(jnp.exp(x) - 0.5 * x)


def test_chains_all_in_one_of_two_modes_look_healthy_and_the_probe_finds_the_other(key):
    kernel = ef.mala(0.7)
    density, trace = draws_at_home(key, 2, kernel)
    found = check(trace)
    assert (found.verdict, found.problems, list(found.notes)) == ("healthy", [], [UNSEEN])
    assert str(found).endswith("\nnote: " + UNSEEN)
    assert (trace.position[..., 0] > 0).all()
    probe = probe_modes(key, kernel, density, trace)
    assert probe.found == 1 and probe.positions.shape == (1, 2)
    # The best of some dozens of points of a unit normal around the other mode.
    assert np.linalg.norm(probe.positions[0] - [-APART, 0]) < 3
    # Both sides average a log density of sd 1, over 8 snapshots or more and over correlated draws.
    assert abs(probe.logdensity_gap[0]) < 1.5
    assert "1 mode that no chain visited" in str(probe) and "start chains there as well" in str(probe)


def test_a_mode_that_chains_did_visit_is_not_news(key):
    """One chain of eight in the other mode: no restart finds anything that it has not seen."""
    density, trace = one_elsewhere(key)
    assert probe_modes(key, ef.mala(0.7), density, trace).found == 0


@pytest.mark.slow
def test_a_mode_of_sixty_one_dims_is_seen_through_the_noise(key):
    """Straight ways between typical points of 61 dims rise by 15 nats half-way: it takes cooling to see a barrier."""
    density, trace = draws_at_home(key, 61, ef.mala(0.2))
    probe = probe_modes(key, ef.mala(0.2), density, trace)
    assert probe.found == 1 and probe.positions[0, 0] < 0


def test_a_mode_of_next_to_no_mass_is_not_worth_a_word(key):
    """Weight e^-16 beside a limit of e^-7: nine nats more than what a crude volume can be wrong by."""
    density, trace = draws_at_home(key, 2, ef.mala(0.7), weight=np.exp(-16.0))
    assert probe_modes(key, ef.mala(0.7), density, trace).found == 0


@pytest.mark.parametrize(
    ("energy", "step"),
    [(gaussian(np.zeros(2), covariance=np.eye(2)), 0.7), (funnel(3), 0.2), (skewed, 0.5)],
    ids=["gaussian", "funnel", "skewed"],
)
def test_nothing_is_found_where_there_is_one_mode(energy, step, key, seed):
    """Twenty seeds each; under the log-concave two it is a theorem, since no straight way dips."""
    density, kernel = ef.logdensity(energy), ef.mala(step)
    for i in range(20):
        points = np.random.default_rng([seed, i]).normal(size=(8, 3 if step == 0.2 else 2)).astype(np.float32)
        trace = ef.sample_chains(i, kernel, density, points, 50, warmup=50, fields=("position",))
        assert probe_modes(1000 + i, kernel, density, trace, **CHEAP).found == 0, f"seed {i}"


def test_positions_may_be_pytrees_and_kernels_without_gradients(key):
    def energy(x):
        return two_modes(2)(jnp.stack([x["a"], x["b"][0]]))

    rng = np.random.default_rng(0)
    draws = {"a": APART + rng.normal(size=(4, 300)), "b": rng.normal(size=(4, 300, 1))}
    draws = {name: x.astype(np.float32) for name, x in draws.items()}
    probe = probe_modes(key, ef.rmh(1.0), ef.logdensity(energy), draws)
    assert probe.found == 1 and probe.positions["a"].shape == (1,) and probe.positions["b"].shape == (1, 1)
    assert probe.num_gradients == 0 and probe.positions["a"][0] < 0


def test_it_says_that_nothing_found_proves_nothing():
    text = str(Probe(0, np.zeros((0, 2)), np.zeros(0), 120))
    assert text == (
        "no restart found a mode that the chains had not visited (120 gradients); modes farther away may still exist"
    )


@pytest.mark.parametrize(
    ("draws", "settings", "words"),
    [
        (np.zeros((2, 9, 1), int), {}, "finite floating-point draws; 'x'"),
        (np.full((2, 9, 1), np.nan), {}, "finite floating-point draws"),
        (np.zeros((2, 9, 1)), {"num_moves": 5}, "2 restarts and 20 moves; got 64 and 5"),
    ],
)
def test_what_cannot_be_probed_is_refused(draws, settings, words):
    with pytest.raises(ValueError, match=words):
        probe_modes(0, ef.mala(0.1), lambda x: -jnp.sum(x**2), draws, **settings)


def test_results_by_chain_show_the_odd_one(key):
    _, trace = one_elsewhere(key)
    table = by_chain(trace)
    assert table.shape == (8, 8) and table["mean x[0]"].idxmin() == 3
    np.testing.assert_allclose(table["sd x[1]"], trace.position[..., 1].std(axis=1, dtype=float))
    np.testing.assert_allclose(table["acceptance_rate"], trace.stats.acceptance_rate.mean(axis=1, dtype=float))
    assert (table["divergences"] == 0).all()
