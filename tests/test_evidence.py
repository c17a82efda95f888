"""Evidence against closed forms; more budget counts alike; overlapping models are not ranked."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.special import betaln, gammaln

import energyflow as ef
from energyflow.logz.result import LogZ
from energyflow.stats import pareto_k

pytestmark = [
    pytest.mark.lenient("numpyro_models"),
    pytest.mark.blackjax_promotes("nuts", "dual_averaging"),
]

GROUPS = np.array([10, 10, 10])
HITS = np.array([2, 7, 5])


def beta_binomial(n, y):
    with numpyro.plate("group", len(n)):
        p = numpyro.sample("p", dist.Beta(1.0, 1.0))
        numpyro.sample("y", dist.Binomial(n, p), obs=y)


EXACT_BETA_BINOMIAL = float(
    np.sum(gammaln(11) - gammaln(HITS + 1) - gammaln(11 - HITS) + betaln(1 + HITS, 11 - HITS) - betaln(1, 1))
)


def regression(X, y, width):
    w = numpyro.sample("w", dist.Normal(0.0, width).expand([X.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Normal(X @ w, 0.5).to_event(1), obs=y)


def data():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(40, 4)).astype(np.float32)
    return X, (X @ np.array([1.0, -2.0, 0.5, 0.0]) + 0.5 * rng.normal(size=40)).astype(np.float32)


def exact_regression(X, y, width):
    covariance = 0.25 * np.eye(len(y)) + width**2 * X.astype(float) @ X.T.astype(float)
    return -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2 * np.pi * covariance)[1])


@pytest.mark.slow
def test_the_evidence_of_a_conjugate_model_is_bracketed_from_its_prior(key):
    result = ef.log_z(key, ef.from_numpyro(beta_binomial, GROUPS, HITS), budget=100_000)
    assert result.base == "prior"
    assert result.lower <= EXACT_BETA_BINOMIAL <= result.upper and result.gap < 0.2
    assert result.verdict == "approximate" and "approximate upper" in str(result) and "upper bound" not in str(result)


COUNTS = np.array([3, 0, 7, 2, 5, 1, 4, 4, 6, 2])


def gamma_poisson(counts):
    rate = numpyro.sample("rate", dist.Gamma(3.0, 1.5))
    numpyro.sample("y", dist.Poisson(rate).expand([len(counts)]).to_event(1), obs=counts)


@pytest.mark.slow
def test_the_evidence_of_counts_is_bracketed(key):
    total, num = COUNTS.sum(), len(COUNTS)
    exact = 3 * np.log(1.5) - gammaln(3) + gammaln(3 + total) - (3 + total) * np.log(1.5 + num)
    exact -= gammaln(COUNTS + 1).sum()
    assert exact == pytest.approx(-23.549963429654202)
    result = ef.log_z(key, ef.from_numpyro(gamma_poisson, COUNTS))
    assert result.lower <= exact <= result.upper and result.gap < 0.2 and result.verdict == "approximate"


@pytest.fixture(scope="module")
def vague():
    """A regression whose prior is 200 times as wide as its posterior."""
    X, y = data()
    return ef.log_z(0, ef.from_numpyro(regression, X, y, np.float32(20.0)), budget=50_000), exact_regression(X, y, 20.0)


def test_a_hopeless_prior_gives_way_to_a_fitted_gaussian(vague):
    result, exact = vague
    assert result.base == "Gaussian fitted to draws"
    assert result.lower <= exact <= result.upper and result.gap < 0.1
    assert result.k_hat < 0.7 and result.group_stderr < 0.02


def test_an_extended_estimate_keeps_its_chains_and_its_truth(vague, key):
    result, exact = vague
    more = result.extend(key, 3.0)
    assert len(more.bracket.forward) == 3 * len(result.bracket.forward)
    np.testing.assert_array_equal(more.bracket.forward[: len(result.bracket.forward)], result.bracket.forward)
    assert more.lower <= exact <= more.upper and more.stderr < result.stderr
    chains = len(result.bracket.forward) + len(result.bracket.reverse)
    assert more.num_gradients - result.num_gradients == 2 * chains * len(result.bracket.betas)
    assert more.setup is result.setup


def test_exact_draws_make_the_upper_side_a_bound(key):
    energy = ef.energies.gaussian(np.zeros(3), precision=np.diag([1.0, 4.0, 9.0]), offset=0.7)
    draws = energy.sample(key, 500)
    result = ef.log_z(1, energy, exact=draws, budget=20_000)
    assert result.check is None and result.verdict == "bracketed" and "upper bound" in str(result)
    assert result.lower <= energy.log_z <= result.upper


@pytest.mark.slow
def test_draws_that_are_not_healthy_support_nothing(vague, key):
    """Chains stuck in one place give ends for the reverse direction; the verdict says that they do."""
    energy = ef.energies.gaussian(np.zeros(2), precision=np.eye(2))
    sampled = ef.run(key, energy, ef.mala(0.1), position=jnp.ones((4, 2)), draws=30)
    assert sampled.verdict != "healthy"
    result = ef.log_z(2, energy, sampled=sampled, budget=20_000)
    assert result.verdict == "unsupported"


def model(lower, upper, verdict="approximate"):
    middle = (lower + upper) / 2
    return LogZ(middle, lower, upper, 0.1, 100.0, 10, verdict, "approximate", None, None, None, np.zeros(2), None, None)


def test_models_are_ranked_only_where_their_brackets_are_apart():
    apart = ef.compare({"a": model(-3.0, -2.0), "b": model(-1.0, 0.0), "c": model(-9.0, -8.0)})
    assert apart.ranking == ["b", "a", "c"]
    assert apart.log_bayes_factor("b", "a") == (1.0, 3.0)
    overlapping = ef.compare({"a": model(-3.0, -1.0), "b": model(-1.5, 0.0)})
    assert overlapping.ranking is None and "not ranked" in str(overlapping)
    unusable = ef.compare({"a": model(-3.0, -2.0, "unusable"), "b": model(-1.0, 0.0)})
    assert unusable.ranking is None and "unusable" in str(unusable)
    with pytest.raises(ValueError, match="at least two"):
        ef.compare({"a": model(-1.0, 0.0)})


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_the_pareto_shape_of_pareto_weights_is_found(shape):
    """The tail has 213 weights, so the fit's error is about (1 + k) / sqrt(213) = .13 at k = .9, plus the shrinkage."""
    weights = np.random.default_rng(5).pareto(1 / shape, 5000) + 1
    assert abs(pareto_k(np.log(weights)) - shape) < 0.25


def test_the_pareto_shape_of_no_tail_and_of_few_weights():
    assert pareto_k(np.zeros(100)) == -np.inf
    assert pareto_k(np.zeros(10)) == np.inf
    assert abs(jax.device_get(pareto_k(np.random.default_rng(0).normal(size=4000)))) < 0.5
