"""Published posteriors as NumPyro models: their data, reference means and sds, and log evidence.

Nine are posteriordb's (Magnusson, Torgander, Buerkner et al. 2024; BSD-3), with its reference draws' means and sds and
the evidence by quadrature (for garch11 by importance sampling). The other two are a logistic regression of the sonar
returns (Gorman and Sejnowski 1988) and a log-Gaussian Cox process of pines on a 32 x 32 grid (Moller, Syversveen and
Waagepetersen 1998), whose evidence is by importance sampling, with standard errors .0074 and .069.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import energyflow as ef

DATA = Path(__file__).parent / "data"
PUBLISHED = json.loads((DATA / "posteriors.json").read_text())
SONAR_LOG_Z, PINES_LOG_Z = -108.381565, 503.368436


def half_cauchy(name, scale):
    """Return a positive site with the density that the full Cauchy has there."""
    numpyro.factor(f"{name}_halved", -jnp.log(2.0))
    return numpyro.sample(name, dist.HalfCauchy(scale))


def flat(name, shape=(), support=dist.constraints.real):
    return numpyro.sample(name, dist.ImproperUniform(support, (), shape))


def schools(y, sigma, centered):
    mu, tau = numpyro.sample("mu", dist.Normal(0, 5)), half_cauchy("tau", 5.0)
    if centered:
        theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([len(y)]).to_event(1))
    else:
        white = numpyro.sample("white", dist.Normal(0, 1).expand([len(y)]).to_event(1))
        theta = numpyro.deterministic("theta", mu + tau * white)
    numpyro.sample("y", dist.Normal(theta, sigma).to_event(1), obs=y)


def kidscore(mom_hs, kid_score):
    beta, sigma = flat("beta", (2,)), half_cauchy("sigma", 2.5)
    numpyro.sample("y", dist.Normal(beta[0] + beta[1] * mom_hs, sigma), obs=kid_score)


def earn(height, earn):
    beta, sigma = flat("beta", (2,)), flat("sigma", (), dist.constraints.positive)
    numpyro.sample("y", dist.Normal(beta[0] + beta[1] * height, sigma), obs=earn)


def mesquite(covariates, log_weight):
    beta, sigma = flat("beta", (7,)), flat("sigma", (), dist.constraints.positive)
    numpyro.sample("y", dist.Normal(covariates @ beta, sigma), obs=log_weight)


def linear(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([X.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10))
    numpyro.factor("sigma_halved", -jnp.log(2.0))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def autoregression(y, order=5):
    alpha = numpyro.sample("alpha", dist.Normal(0, 10))
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([order]).to_event(1))
    sigma = half_cauchy("sigma", 2.5)
    mean = alpha + sum(beta[k] * y[order - 1 - k : len(y) - 1 - k] for k in range(order))
    numpyro.sample("y", dist.Normal(mean, sigma), obs=y[order:])


def binomial(N, year, C):
    alpha, beta1, beta2 = (numpyro.sample(name, dist.Normal(0, 100)) for name in ("alpha", "beta1", "beta2"))
    numpyro.sample("C", dist.Binomial(N, logits=alpha + beta1 * year + beta2 * year**2), obs=C)


def garch(y, sigma1):
    mu, alpha0 = flat("mu"), flat("alpha0", (), dist.constraints.positive)
    alpha1, share = numpyro.sample("alpha1", dist.Uniform(0, 1)), numpyro.sample("share", dist.Uniform(0, 1))
    beta1 = numpyro.deterministic("beta1", share * (1 - alpha1))
    numpyro.factor("jacobian", jnp.log1p(-alpha1))

    def step(variance, before):
        variance = alpha0 + alpha1 * (before - mu) ** 2 + beta1 * variance
        return variance, variance

    first = jnp.asarray(sigma1**2, float)
    _, rest = jax.lax.scan(step, first, y[:-1])
    numpyro.sample("y", dist.Normal(mu, jnp.sqrt(jnp.append(first, rest))), obs=y)


def sonar(X, is_mine):
    weights = numpyro.sample("weights", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=X @ weights).to_event(1), obs=is_mine)


def pines(factor, counts):
    """The log-Gaussian Cox process; its likelihood leaves out the factorials of the counts."""
    white = numpyro.sample("white", dist.Normal(0, 1).expand([counts.size]).to_event(1))
    log_rate = numpyro.deterministic("log_rate", np.log(126) - 1.91 / 2 + factor @ white)
    numpyro.factor("likelihood", jnp.sum(log_rate * counts - jnp.exp(log_rate) / counts.size))


def published(name):
    """Return the target of one of posteriordb's models."""
    data = {key: np.asarray(value, float) for key, value in PUBLISHED[name]["data"].items()}
    if name == "logmesquite":
        logs = {key: np.log(value) for key, value in data.items() if key != "group"}
        columns = ("diam1", "diam2", "canopy_height", "total_height", "density")
        X = np.stack([np.ones(len(data["group"])), *(logs[c] for c in columns), data["group"]], axis=1)
        return ef.from_numpyro(mesquite, X, logs["weight"])
    models = {
        "eight_schools_noncentered": (schools, False),
        "eight_schools_centered": (schools, True),
        "kidscore_momhs": (kidscore,),
        "earn_height": (earn,),
        "sblri": (linear,),
        "arK": (autoregression,),
        "GLM_Binomial": (binomial,),
        "garch11": (garch,),
    }
    model, *constants = models[name]
    if model is schools:
        return ef.from_numpyro(model, data["y"], data["sigma"], *constants)
    return ef.from_numpyro(model, **data)


def sonar_target():
    with np.load(DATA / "regressions.npz") as data:
        X, is_mine = data["sonar"].astype(float), data["is_mine"].astype(float)
    X = (X - X.mean(axis=0)) / np.where(X.std(axis=0) > 0, X.std(axis=0), 1.0)
    return ef.from_numpyro(sonar, np.column_stack([np.ones(len(X)), X]), is_mine)


def pines_target():
    with np.load(DATA / "regressions.npz") as data:
        counts = data["pines"].astype(float).ravel()
    cells = np.stack(np.meshgrid(np.arange(32), np.arange(32), indexing="ij"), axis=-1).reshape(-1, 2)
    distance = np.linalg.norm(cells[:, None] - cells, axis=-1)
    return ef.from_numpyro(pines, np.linalg.cholesky(1.91 * np.exp(-33 * distance / 32)), counts)
