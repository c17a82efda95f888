"""Which model do the data prefer, and how surely? The evidence of two NumPyro models, each as a bracket.

Eight schools: either every school has its own effect, or all share one. `compare` ranks the two only where their
brackets are apart; here the shared effect has the closed form log p(y) = log N(y; 0, diag(sigma^2) + 25), which its
bracket must hold.
Run: python examples/evidence.py [--plot FILE]
"""

import argparse

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.stats import multivariate_normal

import energyflow as ef

Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def own_effects(sigma, y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    z = numpyro.sample("z", dist.Normal(jnp.zeros(8), 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(mu + tau * z, sigma).to_event(1), obs=y)


def one_effect(sigma, y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    numpyro.sample("y", dist.Normal(mu, sigma).to_event(1), obs=y)


def main(plot: str | None) -> None:
    results = {model.__name__: ef.log_z(0, ef.from_numpyro(model, SIGMA, Y)) for model in (own_effects, one_effect)}
    for name, result in results.items():
        print(f"{name}: {result}\n")
    print(ef.compare(results))
    exact = multivariate_normal(np.zeros(8), np.diag(SIGMA**2) + 25.0).logpdf(Y)
    shared = results["one_effect"]
    print(f"closed form of one_effect {exact:.4f}, inside {shared.lower <= exact <= shared.upper}")
    if plot:
        ef.plots.annealing_plot(results["own_effects"].bracket).savefig(plot)
        print(f"picture: {plot}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", metavar="FILE", help="save a picture of the annealing path and of both directions")
    main(parser.parse_args().plot)
