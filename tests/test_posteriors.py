"""Published posteriors: draws of every kernel agree with the reference, and brackets hold the evidence."""

import jax
import numpy as np
import pytest

import energyflow as ef
import posteriors

pytestmark = [pytest.mark.lenient("numpyro", "numpyro_models"), pytest.mark.blackjax_promotes("nuts", "dual_averaging")]
NAMES = [name for name in posteriors.PUBLISHED if name != "eight_schools_centered"]
# Kernel, chains, transitions per draw. MALA moves little in one transition.
KERNELS = {"nuts": ("auto", 8, 1), "hmc": ("auto", 32, 1), "mala": (ef.mala(0.01), 32, 4)}


@pytest.fixture(autouse=True)
def forget_every_model():
    """A model's programs hold about a thousand memory maps, and there are fifty models here."""
    yield
    jax.clear_caches()


def z_scores(parameters, reference):
    """Return |z| of means and sds against the reference, standard errors from 20 batches of every chain."""
    scores = []
    for name, truth in reference.items():
        base, _, index = name.partition("[")
        x = np.asarray(parameters[base], np.float64)
        x = x[..., int(index[:-1]) - 1] if index else x
        batches = x[:, : x.shape[1] // 20 * 20].reshape(len(x), 20, -1)
        for value, parts, key in (
            (x.mean(), batches.mean(axis=2), "mean"),
            (x.std(), np.sqrt(np.square(batches - x.mean()).mean(axis=2)), "sd"),
        ):
            error = np.hypot(parts.std() / np.sqrt(parts.size), truth[f"mcse_{key}"])
            scores.append(abs(value - truth[key]) / error)
    return np.array(scores)


def agree(name, kernel, chains, thin):
    found = ef.run(1, posteriors.published(name), kernel, chains=chains, draws=1000, thin=thin)
    scores = z_scores(found.parameters, posteriors.PUBLISHED[name]["reference"])
    # At most 12 parameters, two scores each, for 8 models and 3 kernels: 4 by chance in 3 % of all.
    assert scores.max() < 4, (scores, str(found.check))
    # MALA is led far astray by the gradients of a funnel; such proposals are rejected, and counted.
    astray = kernel is KERNELS["mala"][0] and name == "eight_schools_noncentered"
    assert found.verdict == ("divergences" if astray else "healthy"), found.check


@pytest.mark.slow
def test_draws_agree_with_a_published_posterior():
    agree("kidscore_momhs", *KERNELS["nuts"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_draws_agree_with_published_posteriors(name, kernel):
    agree(name, *KERNELS[kernel])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_centred_eight_schools_is_not_believed(kernel, seed):
    kernel, chains, thin = KERNELS[kernel]
    found = ef.run(seed, posteriors.published("eight_schools_centered"), kernel, chains=chains, draws=1000, thin=thin)
    assert found.verdict != "healthy"


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["auto", ef.nuts(0.1)])
def test_tuning_costs_less_than_a_tenth_of_what_it_tunes(kernel):
    found = ef.run(0, posteriors.sonar_target(), kernel, chains=64, draws=1000)
    assert found.verdict == "healthy"
    assert found.warmup_gradients < 0.1 * np.sum(found.trace.stats.num_gradients, dtype=np.int64)


def holds(result, truth, gap, error=0.0):
    assert result.lower - 4 * error <= truth <= result.upper + 4 * error, str(result)
    assert result.verdict == "approximate" and result.gap < gap, str(result)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_brackets_hold_the_published_evidence(name):
    error = 0.0025 if name == "garch11" else 0.0
    holds(ef.log_z(0, posteriors.published(name)), posteriors.PUBLISHED[name]["log_z"], 0.2, error)


@pytest.mark.slow
def test_the_evidence_of_sixty_one_weights_is_held():
    holds(ef.log_z(0, posteriors.sonar_target()), posteriors.SONAR_LOG_Z, 0.2, 0.0074)


@pytest.mark.slow
def test_the_evidence_of_a_thousand_and_twenty_four_rates_is_held():
    holds(ef.log_z(0, posteriors.pines_target()), posteriors.PINES_LOG_Z, 0.5, 0.069)
