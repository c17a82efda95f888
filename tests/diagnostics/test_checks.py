"""`check` names the planted cases of bad draws, where they are, and leaves healthy draws alone."""

import warnings

import arviz
import numpy as np
import pytest

import energyflow as ef
from energyflow.chains import ChainState, Trace
from energyflow.diagnostics import Check, check
from energyflow.types import Stats

pytestmark = pytest.mark.core


def autoregressive(rng, chains, draws, dims, correlation=0.0, scale=1.0):
    """Stationary standard normal chains, worth (1 - correlation) / (1 + correlation) of independent draws each."""
    x = rng.normal(size=(chains, draws, dims))
    for t in range(1, draws):
        x[:, t] = correlation * x[:, t - 1] + np.sqrt(1 - correlation**2) * x[:, t]
    return scale * x


def trace_of(x, **stats):
    shape = x.shape[:2]
    known = {
        "acceptance_rate": np.full(shape, 0.7),
        "jump_distance": np.ones(shape),
        "is_divergent": np.zeros(shape, bool),
        "num_gradients": np.full(shape, 2),
    }
    return Trace(x, np.zeros(shape), Stats(**known | stats), ChainState(None, shape[1]))


@pytest.fixture
def rng(seed):
    return np.random.default_rng([seed, 20])


@pytest.fixture
def healthy(rng):
    return rng.normal(size=(4, 400, 3))


@pytest.mark.parametrize(
    ("chains", "draws", "correlation"),
    [(4, 400, 0.0), (4, 400, 0.2), (256, 4, 0.0), (256, 2, 0.0), (64, 40, 0.0), (64, 200, 0.8)],
)
def test_healthy_draws_raise_no_alarm_in_twenty_seeds(seed, chains, draws, correlation):
    """The drift test has a level of 1e-5 a check, the others allow far more than chance gives.

    R-hat^2 - 1 has mean tau/n and standard deviation tau/n sqrt(2/C) for C (half) chains of n draws and a correlation
    time tau = (1 + a)/(1 - a): the largest mean here is 9/100 (64 chains of 200, a = 0.8), where 0.21 is allowed.
    """
    for i in range(20):
        x = autoregressive(np.random.default_rng([seed, i, chains, draws]), chains, draws, 3, correlation)
        found = check(x)
        assert (found.verdict, found.problems) == ("healthy", []), f"seed {i}: {found}"


def planted(rng):
    """Cases of bad draws: {name: (draws, verdict, what the first problem says)}."""
    z = rng.normal(size=(4, 400, 3))
    apart = 5 * rng.normal(size=(256, 1, 2))
    one_frozen, nan, drifting, shared, two_modes, one_stuck = (z.copy() for _ in range(6))
    one_frozen[2] = one_frozen[2, :1]
    nan[1, 77, 2] = np.nan
    drifting += np.cumsum(np.full((4, 400, 3), 0.01), axis=1)
    shared[..., 1] = np.arange(4)[:, None]
    two_modes[2:, :, 0] += 8
    one_stuck[3, :, 2] = 4 + 0.1 * one_stuck[3, :, 2]
    short_drift = rng.normal(size=(256, 8, 2)) + np.arange(8)[:, None]
    return {
        "frozen at one value": (np.ones((4, 100, 2)), "frozen chains", "4 of 4 chains never moved (chain 0 first)"),
        "frozen apart": (np.repeat(z[:, :1], 99, 1), "frozen chains", "4 of 4 chains never moved (chain 0 first)"),
        "one of four frozen": (one_frozen, "frozen chains", "1 of 4 chains never moved (chain 2 first)"),
        "one NaN": (nan, "non-finite draws", "1 of 4800 values, first in chain 1, draw 77, x[2]"),
        "infinite": (np.where(z > z.max() - 1e-12, np.inf, z), "non-finite draws", "1 of 4800 values"),
        "256 x 4 unmixed": (apart + 0.1 * rng.normal(size=(256, 4, 2)), "chains disagree", "look for separated modes"),
        "256 x 2 unmixed": (apart + 0.1 * rng.normal(size=(256, 2, 2)), "chains disagree", "look for separated modes"),
        "64 x 40 sticky": (autoregressive(rng, 64, 40, 3, 0.95), "chains disagree", "run longer"),
        "drifting": (drifting, "drifting chains", "in all chains alike; discard more draws as warmup"),
        "drifting short chains": (short_drift, "drifting chains", "standard deviations from the first"),
        "two modes": (two_modes, "chains disagree", "in x[0], chain"),
        "one chain elsewhere": (one_stuck, "chains disagree", "in x[2], chain 3 furthest from the others"),
        "a dimension that never moves": (
            shared,
            "frozen dimensions",
            "1 of 3 dimensions never move in any chain (x[1] f",
        ),
        "slow": (autoregressive(rng, 4, 400, 3, 0.98), None, "effective draws in x["),
        "five draws": (z[:1, :5], "too few draws", "1 chains of 5 draws cannot be judged"),
        "no draws": (z[:, :0], "too few draws", "4 chains of 0 draws"),
        "one chain": (z[:1], "one chain", "run four or more from dispersed starts"),
    }


@pytest.mark.parametrize("name", planted(np.random.default_rng(0)))
def test_a_planted_case_gets_its_name(name, rng):
    draws, verdict, words = planted(rng)[name]
    found = check(draws)
    assert found.verdict != "healthy" and found.verdict == (verdict or found.verdict)
    assert any(words in problem for problem in found.problems), found


def test_an_ess_under_a_hundred_is_low_even_where_chains_agree():
    """Four chains of 20 draws with a = 0.2 are worth 53 independent ones."""
    found = check(autoregressive(np.random.default_rng(0), 4, 20, 1, 0.2))
    assert found.verdict == "low ESS" and found.numbers["ess"] < 100


def test_the_worst_problem_comes_first_and_the_rest_are_kept(healthy):
    x = healthy + 0.02 * np.arange(400)[:, None] + 30 * np.array([1, 0, 0, 0])[:, None, None]
    found = check(trace_of(x, acceptance_rate=np.full((4, 400), 0.01)))
    names = [problem.split(":")[0] for problem in found.problems]
    assert names == ["drifting chains", "chains disagree", "low ESS", "low acceptance"]
    assert found.verdict == names[0]


def test_r_hat_and_ess_are_arvizs(rng):
    """Computed here in float32 on standardised draws, there in float64: 1e-3 is what ranks that tie may cost."""
    x = autoregressive(rng, 4, 400, 3, 0.6) + 0.1 * rng.normal(size=(4, 1, 3))
    numbers = check(x).numbers
    r_hat = [float(arviz.rhat(x[..., i])) for i in range(3)]
    ess = [float(arviz.ess(x[..., i], method="bulk")) for i in range(3)]
    assert numbers["r_hat"] == pytest.approx(max(r_hat), rel=1e-3)
    assert numbers["ess"] == pytest.approx(min(ess), rel=1e-3)
    assert (numbers["r_hat_dim"], numbers["ess_dim"]) == (np.argmax(r_hat), np.argmin(ess))


def test_neither_scale_nor_offset_changes_a_verdict(healthy):
    """In float32 the draws 1e6 + x would keep one or two digits."""
    near, far = check(healthy).numbers, check(1e6 + 1e-3 * healthy).numbers
    assert far["r_hat"] == pytest.approx(near["r_hat"], rel=1e-4) and far["ess"] == pytest.approx(near["ess"], rel=1e-3)


def test_many_chains_may_each_be_worth_less():
    """R-hat of 1.05 says ten draws a half chain: 80 in all for four chains, 1280 for 64."""
    limits = {}
    for chains in (4, 64):
        x = np.random.default_rng(chains).normal(size=(chains, 200, 3))
        x -= x.mean(axis=1, keepdims=True)
        apart = np.linspace(-1, 1, chains)[:, None, None]
        limits[chains] = check(x + np.sqrt(0.1) * apart / apart.std(ddof=1))
    assert limits[4].numbers["r_hat"] == pytest.approx(limits[64].numbers["r_hat"], abs=0.02)
    assert limits[4].verdict == "chains disagree" and limits[64].verdict == "healthy"


def test_divergences_of_a_trace_are_counted(healthy):
    wild = np.zeros((4, 400), bool)
    wild[:, ::50] = True
    found = check(trace_of(healthy, is_divergent=wild))
    assert found.verdict == "divergences" and found.numbers["divergent"] == 0.02
    assert "2 % of transitions diverged" in found.problems[0]


def test_low_acceptance_is_named_with_its_rate(healthy):
    found = check(trace_of(healthy, acceptance_rate=np.full((4, 400), 0.03)))
    assert found.verdict == "low acceptance" and "0.030 of proposals accepted" in found.problems[0]


def test_a_kernel_without_an_accept_step_has_no_acceptance(healthy):
    found = check(trace_of(healthy, acceptance_rate=None))
    assert found.verdict == "healthy" and "acceptance_rate" not in found.numbers


def test_ess_is_stated_per_gradient(healthy):
    numbers = check(trace_of(healthy)).numbers
    assert numbers["ess_per_gradient"] == pytest.approx(numbers["ess"] / (4 * 400 * 2))


def test_draws_of_a_pytree_are_called_by_their_path(healthy):
    healthy[3, 5, 1] = np.inf
    found = check({"layer": {"w": healthy}, "b": healthy[..., 0]})
    assert "chain 3, draw 5, layer.w[1]" in found.problems[0]


def test_a_trace_of_one_chain_is_called_one_chain(healthy):
    found = check(trace_of(healthy[0][None]))
    one = Trace(healthy[0], np.zeros(400), Stats(None, np.ones(400), None, None), None)
    assert check(one).verdict == found.verdict == "one chain"


def test_it_reads_as_sentences(healthy):
    healthy[2] = healthy[2, :1]
    text = str(check(healthy))
    assert text == (
        "frozen chains\n- frozen chains: 1 of 4 chains never moved (chain 2 first); every proposal was rejected, or "
        "smaller than float32 resolves: lower the step size, check the energy at the start, and that it does not fall "
        "without bound"
    )
    good = str(Check("healthy", [], {"r_hat": 1.001, "r_hat_dim": 2.0, "ess": 3665.2, "ess_dim": 0.0}))
    assert good == "healthy: r_hat 1.001, ess 3665"


def test_draws_without_axes_are_refused():
    with pytest.raises(ValueError, match="need axes"):
        check(np.zeros(100))


def test_sampled_chains_are_healthy_and_stuck_ones_are_not(key):
    """An energy, a kernel, a trace, a verdict; then the same kernel with a step a thousand times larger."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density = ef.logdensity(lambda x: 0.5 * (x**2).sum())
        start = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
        good = ef.sample_chains(key, ef.mala(0.5), density, start, 200, warmup=50, thin=2)
        bad = ef.sample_chains(key, ef.mala(500.0), density, start, 200)
    assert ef.check(good).verdict == "healthy"
    stuck = ef.check(bad)
    assert stuck.verdict == "frozen chains" and "low acceptance" in stuck.problems[-1]
