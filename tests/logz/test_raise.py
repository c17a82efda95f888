"""RAISE is unbiased for the annealing model, a law of mass 1 that matrices give exactly, and near the model's own."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import norm

import energyflow as ef
from energyflow.logz import hidden_units, linear_schedule
from laws import assert_mean, assert_not_mean, z_score

pytestmark = pytest.mark.core

NV, NH = 4, 3


def small_rbm(scale=1.5):
    rng = np.random.default_rng(7)
    return ef.rbm(*(jnp.asarray(scale * rng.normal(size=shape), float) for shape in ((NV, NH), NV, NH)))


def states(num):
    """All 2^num binary states, (2^num, num)."""
    return ((np.arange(2**num)[:, None] >> np.arange(num)) & 1).astype(float)


def log_tables(rbm, beta):
    """log f_beta(v, h) of the geometric path from the biases alone, base normalised: (2^nv, 2^nh), float64."""
    W, b, c = (np.asarray(leaf, np.float64) for leaf in (rbm.W, rbm.b, rbm.c))
    v, h = states(NV), states(NH)
    base = (v @ b)[:, None] + (h @ c)[None, :] - np.logaddexp(0, b).sum() - np.logaddexp(0, c).sum()
    slope = v @ W @ h.T + np.logaddexp(0, b).sum() + np.logaddexp(0, c).sum()
    return base + beta * slope


def exact_annealing_law(rbm, betas):
    """p_ann over visible states (2^nv,): the base, then block Gibbs h, v, h at every temperature, as matrices."""
    law = np.exp(log_tables(rbm, 0.0))
    for beta in betas[1:]:
        f = np.exp(log_tables(rbm, beta))
        h_of_v, v_of_h = f / f.sum(axis=1, keepdims=True), f / f.sum(axis=0, keepdims=True)
        hidden = law.sum(axis=1) @ h_of_v
        law = (v_of_h @ hidden)[:, None] * h_of_v
    return law.sum(axis=1)


def exact_law(rbm):
    f = np.exp(log_tables(rbm, 1.0))
    return f.sum(axis=1) / f.sum()


def single_chains(key, num, betas, kernel=None, energy=None, **settings):
    """exp(values) of one chain each, (num, 2^nv), every state in turn: estimates of p_ann."""
    rbm = small_rbm()
    points = np.tile(states(NV), (num, 1))
    if energy is None:
        energy, kernel, settings = rbm, ef.block_gibbs(rbm.blocks), {"complete": hidden_units(rbm)}
    found = ef.raise_log_likelihood(
        key, energy, energy.base, points, kernel, num_chains=1, betas=betas, tune=False, **settings
    )
    return np.exp(found.values).reshape(num, -1)


def test_the_mean_is_the_annealing_law_of_transition_matrices(key):
    """E exp(value) = p_ann(v) at every state. p_ann is not p here, and exceeds it at some states: no bound on log p."""
    rbm, betas = small_rbm(), linear_schedule(2)
    law, model = exact_annealing_law(rbm, betas), exact_law(rbm)
    assert law.sum() == pytest.approx(1.0, abs=1e-12)
    estimates = single_chains(key, 2000, betas)
    assert_mean(estimates, law)
    assert_not_mean(estimates, model)
    assert (np.log(law) - np.log(model)).max() > 0.01


def test_the_annealing_law_has_mass_one(key):
    """Over the visible states, by block Gibbs on the joint and by single flips on the marginal energy."""
    joint_key, marginal_key = jax.random.split(key)
    betas, energy = linear_schedule(3), small_rbm().marginal
    joint = single_chains(joint_key, 1000, betas)
    marginal = single_chains(marginal_key, 1000, betas, ef.gibbs(), energy)
    assert_mean(joint.sum(axis=1), 1.0)
    assert_mean(marginal.sum(axis=1), 1.0)


def test_wrong_weights_are_caught_by_the_mass(key):
    """The negative control: an inverted weight, and hidden units drawn but not accounted for."""
    betas, rbm = linear_schedule(3), small_rbm()
    right = single_chains(jax.random.clone(key), 1000, betas)
    # The base is normalised, so the density at beta 1 is exp(-F(v)).
    unnormalised = np.exp(-np.asarray(jax.vmap(rbm.marginal)(jnp.asarray(states(NV), float)), np.float64))
    assert_not_mean((unnormalised**2 / right).sum(axis=1), 1.0)
    drawn = hidden_units(rbm)
    forgetful = {"complete": lambda key, v: (drawn(key, v)[0], 0.0)}
    wrong = single_chains(key, 1000, betas, ef.block_gibbs(rbm.blocks), rbm, **forgetful)
    assert_not_mean(wrong.sum(axis=1), 1.0)


def two_bumps(x):
    """Gaussians of scale 0.7 at -1.5 and 1.5, weights e^0.5 to 1."""
    left, right = 0.5 - ((x + 1.5) / 0.7) ** 2 / 2, -(((x - 1.5) / 0.7) ** 2) / 2
    return -jnp.logaddexp(left, right)


@pytest.mark.parametrize("kernel", [ef.mala(0.5), ef.rmh(1.0)], ids=["mala", "rmh"])
def test_the_annealing_density_integrates_to_one_on_the_line(kernel, key):
    """By the trapezoid rule: p_ann is as smooth as accept steps are, with kinks, so the rule errs by some h^2/12, 1e-3.

    A tenth of the standard error. Tails much thinner than the base's would do badly here, though the law holds: forward
    chains that fall from the base's tail bring mass that the reverse weights see once in a million chains.
    """
    grid, num = np.linspace(-8.0, 8.0, 161), 100
    base = dist.Normal(0.0, 1.5)
    points, betas = np.tile(grid, num), linear_schedule(4)
    found = ef.raise_log_likelihood(key, two_bumps, base, points, kernel, num_chains=1, betas=betas, tune=False)
    masses = np.exp(found.values).reshape(num, -1).sum(axis=1) * (grid[1] - grid[0])
    assert_mean(masses, 1.0)
    assert np.isinf(found.errors).all() and (found.ess == 1).all()  # one chain says nothing of its own error


DIM, SCALE, SHIFT, WIDE = 3, 0.7, 0.4, 2.0


def gaussian(x):
    return jnp.sum(((x - SHIFT) / SCALE) ** 2) / 2


def gaussian_raise(key, rows, num_temperatures, **settings):
    base = dist.Normal(SHIFT * jnp.ones(DIM), WIDE).to_event(1)
    settings = {"num_chains": 8, "num_temperatures": num_temperatures} | settings
    return ef.raise_log_likelihood(key, gaussian, base, rows, ef.mala(0.3), **settings)


@pytest.mark.lenient("numpyro")
def test_on_draws_of_the_model_it_lies_below_the_truth_and_closes_in(key, seed):
    """E_p values <= E_p log p, and one chain a point falls short by the divergence of the two path measures.

    With perfect mixing and the pilot's schedule that is L^2 / (2K), L = sqrt(d / 2) log(variance ratio) the
    thermodynamic length; moves that remember their start multiply it by their autocorrelation time, some 4 here (one
    chain a point measures 0.16 against 0.07 at K = 50), and eight chains a point take most of it back.
    """
    short_key, long_key = jax.random.split(key)
    rows = np.random.default_rng([seed, 60]).normal(SHIFT, SCALE, size=(400, DIM)).astype(np.float32)
    exact = norm(SHIFT, SCALE).logpdf(rows.astype(float)).sum(axis=1)
    length = np.sqrt(DIM / 2) * np.log((WIDE / SCALE) ** 2)
    gaps = []
    for run_key, num in ((short_key, 10), (long_key, 200)):
        found = gaussian_raise(run_key, rows, num)
        gap = exact - found.values
        error = gap.std(ddof=1) / np.sqrt(gap.size)
        assert -4 * error < gap.mean() < 6 * length**2 / (2 * num) + 4 * error
        gaps.append((gap.mean(), error))
    assert gaps[1][0] < 0.03 and gaps[0][0] > gaps[1][0] + 4 * np.hypot(gaps[0][1], gaps[1][1])


@pytest.mark.lenient("numpyro")
def test_its_errors_are_those_of_its_chains(key):
    """The values of 300 repeats of one point scatter as their errors say: mean square z within 4.5 s.e. of 1.

    About their own mean; with 32 chains of small weights a studentised mean square is 31/29 (Student's t).
    """
    rows = np.full((300, DIM), 0.8, np.float32)
    found = gaussian_raise(key, rows, 100, num_chains=32)
    assert found.annealing_error == pytest.approx(np.sqrt(np.sum(found.errors**2)) / 300)
    z = (found.values - found.values.mean()) / found.errors
    assert abs(z_score(z**2, 31 / 29)) < 4.5
    assert found.stderr == pytest.approx(found.values.std(ddof=1) / np.sqrt(300))
    assert (found.ess > 1).all() and (found.ess <= 32 + 1e-9).all()


def test_it_agrees_with_the_bracket_of_an_rbm(key):
    """Three ways to the log-likelihood of the same states: enumeration, a bracket of log Z, RAISE.

    A log of a mean lies half its squared error below the log of the expectation; twice that is allowed.
    """
    rbm = small_rbm(0.8)
    draw_key, bracket_key, exact_key, raise_key = jax.random.split(key, 4)
    points = rbm.sample(draw_key, 200)["v"]
    kernel = ef.block_gibbs(rbm.blocks)
    betas, exact_draws = linear_schedule(100), rbm.sample(exact_key, 256)
    log_z = ef.bracket(bracket_key, rbm, rbm.base, kernel, exact=exact_draws, schedule=betas, tune=False)
    bracketed = ef.log_likelihood(rbm.marginal, points, log_z)
    exact = bracketed.unnormalised - rbm.log_z
    settings = {"num_chains": 8, "betas": betas, "complete": hidden_units(rbm)}
    found = ef.raise_log_likelihood(raise_key, rbm, rbm.base, points, kernel, **settings)
    difference = found.values - exact
    error = difference.std(ddof=1) / np.sqrt(difference.size)
    short = np.mean(found.errors**2)
    assert -short - 4 * error < difference.mean() < 4 * error
    assert bracketed.lower - short - 4 * error < found.mean < bracketed.upper + 4 * error


def test_counts_and_shapes(key):
    rbm = small_rbm()
    points = states(NV)
    found = ef.raise_log_likelihood(
        key, rbm, rbm.base, points, ef.block_gibbs(rbm.blocks), num_chains=3, betas=linear_schedule(5),
        complete=hidden_units(rbm),
    )  # fmt: skip
    assert found.values.shape == found.errors.shape == found.ess.shape == (16,)
    assert found.values.dtype == np.float64 and found.acceptance.shape == (5,)
    assert found.num_gradients == 16 * 3 * (1 + 5 * 3)  # three half sweeps a move, and the start
    assert "16 points, 5 annealing moves" in str(found)


def test_new_weights_cost_no_compilation(key, count_compilations):
    keys = jax.random.split(key, 2)
    rbms = [small_rbm(), small_rbm(0.5)]

    def run(key, rbm):
        kernel, complete = ef.block_gibbs(rbm.blocks), hidden_units(rbm)
        ef.raise_log_likelihood(
            key, rbm, rbm.base, states(NV), kernel, num_temperatures=5, num_chains=2, complete=complete
        )

    run(keys[0], rbms[0])
    second = keys[1]
    with count_compilations() as made:
        run(second, rbms[1])
    assert made.count == 0


@pytest.mark.blackjax_promotes("ghmc")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": ef.ula(0.1)}, "needs a kernel with an accept step"),
        ({"kernel": ef.ghmc(0.1)}, "needs a reversible kernel"),
        ({"kernel": ef.parallel_tempering(ef.mala(0.1), [1.0, 0.5])}, "temperatures of its own"),
        ({"energy": ef.landscape(two_bumps)}, "landscape"),
        ({"base": None}, "needs a base distribution"),
        ({"betas": [0.0, 0.5]}, "must rise strictly from exactly 0 to exactly 1"),
        ({"num_chains": 0}, "num_chains must be at least 1"),
        ({"points": np.array([0.0, np.nan])}, "log density of point 1 is not finite"),
        ({"points": np.float32(1.0)}, r"leading axis \[chain\]"),
    ],
)
def test_what_raise_cannot_weigh_is_refused(changes, message):
    arguments = {
        "energy": two_bumps,
        "base": dist.Normal(0.0, 1.5),
        "points": np.zeros(2),
        "kernel": ef.mala(0.1),
        "betas": [0.0, 1.0],
        "tune": False,
    }
    with pytest.raises(ValueError, match=message):
        ef.raise_log_likelihood(0, **(arguments | changes))


def test_an_irreversible_scan_is_refused():
    rbm = small_rbm()
    kernel = ef.block_gibbs(rbm.blocks, palindrome=False)
    with pytest.raises(ValueError, match="block Gibbs in a palindrome"):
        ef.raise_log_likelihood(0, rbm, rbm.base, states(NV), kernel, complete=hidden_units(rbm))
