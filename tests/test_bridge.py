"""NumPyro models as energies: the log density is the model's own, Jacobian included; what cannot be one says why."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import potential_energy
from scipy import stats

import energyflow as ef

pytestmark = [pytest.mark.lenient("numpyro_models")]

Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32)
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], np.float32)


def schools(sigma, y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def shares(counts):
    """A simplex, an ordered pair and an interval: bijections whose Jacobians couple coordinates."""
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
    numpyro.sample("u", dist.Uniform(-1.0, 3.0))
    numpyro.sample("counts", dist.Multinomial(10, p), obs=counts)


def walk(y):
    def step(previous, value):
        x = numpyro.sample("x", dist.Normal(previous, 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=value)
        return x, x

    scan(step, jnp.zeros(()), y)


def plates(hits):
    """Bijections inside plates, alone and over events: each Jacobian counts once a row."""
    with numpyro.plate("group", 3):
        rate = numpyro.sample("rate", dist.Beta(2.0, 3.0))
        numpyro.sample("scale", dist.HalfNormal(1.0).expand([2]).to_event(1))
        numpyro.sample("part", dist.Dirichlet(jnp.ones(4)))
        numpyro.sample("hits", dist.Binomial(10, rate), obs=hits)


CASES = {
    "plates": (plates, (np.array([1, 4, 6]),)),
    "schools": (schools, (SIGMA, Y)),
    "shares": (shares, (np.array([2, 3, 5]),)),
    "scan": (walk, (np.array([0.3, 1.0, -0.2], np.float32),)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_energy_is_numpyros_potential_and_splits_into_prior_and_likelihood(name, key):
    model, args = CASES[name]
    target = ef.from_numpyro(model, *args)
    starts = target.initial(key, 3)
    for chain in range(3):
        point = jax.tree.map(lambda x: x[chain], starts)  # noqa: B023
        energy = float(target(point))
        assert energy == pytest.approx(float(potential_energy(model, args, {}, point)), rel=1e-5)
        assert float(target.energy(point)) - float(target.base.log_prob(point)) == pytest.approx(energy, rel=1e-5)


def test_the_prior_is_normalised_and_sampled_in_unconstrained_space(key):
    """log tau of a half-Cauchy: its unconstrained density integrates to 1, and its draws follow it."""
    base = ef.from_numpyro(schools, SIGMA, Y).base
    grid = jnp.linspace(-20.0, 20.0, 4001)
    rest = {"mu": jnp.zeros(()), "z": jnp.zeros(8)}
    density = jnp.exp(jax.vmap(lambda u: base.log_prob(rest | {"tau": u}))(grid))
    others = dist.Normal(0, 5).log_prob(0.0) + 8 * dist.Normal(0, 1).log_prob(0.0)
    assert float(jnp.trapezoid(density, grid) / jnp.exp(others)) == pytest.approx(1.0, abs=1e-3)
    tau = np.exp(np.asarray(base.sample(key, (2000,))["tau"]))
    assert stats.kstest(tau, stats.halfcauchy(scale=5.0).cdf).pvalue > 1e-5


def test_constrain_maps_any_leading_axes_back_to_named_parameters(key):
    target = ef.from_numpyro(schools, SIGMA, Y)
    starts = target.initial(key, 6)
    named = target.constrain(jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), starts))
    assert {name: x.shape for name, x in named.items()} == {
        "mu": (2, 3),
        "tau": (2, 3),
        "z": (2, 3, 8),
        "theta": (2, 3, 8),
    }
    np.testing.assert_allclose(named["tau"].ravel(), np.exp(starts["tau"]), rtol=1e-6)
    np.testing.assert_allclose(
        named["theta"],
        (named["mu"] + named["tau"])[..., None] * 0 + (named["mu"][..., None] + named["tau"][..., None] * named["z"]),
        rtol=1e-5,
    )
    assert set(target.constrain(starts, deterministic=False)) == {"mu", "tau", "z"}


def test_other_data_compile_nothing(key, count_compilations):
    score = jax.jit(lambda target, x: target(x))
    first = ef.from_numpyro(schools, SIGMA, Y)
    start = jax.tree.map(lambda x: x[0], first.initial(key, 1))
    score(first, start)
    second = ef.from_numpyro(schools, SIGMA, Y + 1)
    with count_compilations() as made:
        value = score(second, start)
    assert made.count == 0 and float(value) != float(score(first, start))


def test_a_model_that_looks_at_its_data_keeps_them_as_constants(key):
    def grouped(group, y):
        size = len(np.unique(group))
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
        numpyro.sample("y", dist.Normal(mean[jnp.asarray(group)], 1.0).to_event(1), obs=y)

    target = ef.from_numpyro(grouped, np.array([0, 1, 1]), np.array([1.0, 2.0, 3.0], np.float32))
    assert target.initial(key, 2)["mean"].shape == (2, 2)
    assert float(jax.jit(target)({"mean": jnp.zeros(2)})) == pytest.approx(5 * 0.5 * np.log(2 * np.pi) + 7.0, rel=1e-6)


def discrete():
    numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.sample("x", dist.Normal(0.0, 1.0))


def subsampled(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(y), subsample_size=2):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=numpyro.subsample(y, 0))


def with_param():
    numpyro.sample("x", dist.Normal(numpyro.param("loc", 0.0), 1.0))


def without_latent(y):
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def under_an_energy(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    numpyro.sample("y", ef.as_distribution(lambda x: jnp.sum((x - mean) ** 2), (3,)), obs=y)


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        (discrete, (), "discrete latent variable 'k'"),
        (subsampled, (Y,), "subsamples 2 of 8 rows in plate 'rows'"),
        (with_param, (), "numpyro.param 'loc'"),
        (without_latent, (Y[0],), "no latent variable"),
        (under_an_energy, (Y[:3],), "observes 'y' under an energy whose log Z is unknown"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_models_without_a_log_density_are_refused_by_name(model, args, message):
    with pytest.raises(ValueError, match=message):
        ef.from_numpyro(model, *args)


def improper(y):
    mean = numpyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_an_improper_prior_is_a_density_but_no_base():
    target = ef.from_numpyro(improper, Y[0])
    assert float(target({"mean": jnp.asarray(28.0)})) == pytest.approx(0.5 * np.log(2 * np.pi), rel=1e-5)
    assert target.base is None
    with pytest.raises(ValueError, match="the prior of 'mean' cannot be sampled"):
        ef.bracket(0, target, num_temperatures=10)


@pytest.mark.filterwarnings("ignore:Out-of-support")
def test_data_that_have_no_density_are_named():
    with pytest.raises(
        ValueError, match="no start with a finite log density and gradient was found for the model 'schools'"
    ):
        ef.from_numpyro(schools, SIGMA, np.float32(np.nan) * Y).initial(0, 2)


def ring(x):
    return 2.0 * (jnp.sqrt(jnp.sum(x**2)) - 1.0) ** 2


def test_an_energy_as_a_prior_keeps_its_density_and_refuses_to_be_simulated(key):
    def model(y):
        x = numpyro.sample("x", ef.as_distribution(ring, (2,)))
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    target = ef.from_numpyro(model, Y[:2])
    x = jnp.array([0.3, -0.8])
    by_hand = ring(x) - dist.Normal(x, 1.0).to_event(1).log_prob(Y[:2])
    assert float(target({"x": x})) == pytest.approx(float(by_hand), rel=1e-6)
    assert target.base is None
    with pytest.raises(NotImplementedError, match="no exact draws"):
        numpyro.infer.Predictive(model, num_samples=2)(key, Y[:2])


def test_an_energy_with_its_log_z_and_draws_is_a_whole_distribution(key):
    energy = ef.energies.gaussian([1.0, -1.0], precision=np.diag([4.0, 1.0]))
    law = ef.as_distribution(energy, (2,), log_z=energy.log_z)
    x = law.sample(key, (5,))
    exact = dist.Normal(jnp.array([1.0, -1.0]), jnp.array([0.5, 1.0])).to_event(1).log_prob(x)
    np.testing.assert_allclose(law.log_prob(x), exact, rtol=1e-5)
