"""MALA, HMC and NUTS on one posterior, each tuned, each given the same number of gradients of the energy.

Draws are cheap to count and gradients are what they cost: a kernel is worth its effective draws per gradient. Eight
schools, written so that no region is much narrower than the rest; the sd between schools, tau, mixes worst.
Run: python examples/equal_gradients.py [--plot FILE]
"""

import argparse

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import energyflow as ef

Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
CHAINS, BUDGET = 8, 10_000  # gradients a chain


def schools(sigma, y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    z = numpyro.sample("z", dist.Normal(jnp.zeros(8), 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(mu + tau * z, sigma).to_event(1), obs=y)


def main(plot: str | None) -> None:
    target = ef.from_numpyro(schools, SIGMA, Y)
    density, start = ef.logdensity(target), target.initial(0, CHAINS)
    figure, axis = plt.subplots()
    print("kernel  draws/chain  gradients  acceptance  ESS of log tau  ESS per 1000 gradients")
    for name, kernel in {"MALA": ef.mala(0.1), "HMC": ef.hmc(0.1, 5), "NUTS": ef.nuts(0.1)}.items():
        tuned = ef.warm_up(1, kernel, density, start)
        pilot = ef.sample_chains(2, tuned.kernel, density, tuned.position, 50)
        draws = int(BUDGET / pilot.stats.num_gradients.mean())
        trace = ef.sample_chains(3, tuned.kernel, density, tuned.position, draws)
        log_tau, cost = trace.position["tau"], trace.stats.num_gradients
        ess, total = ef.summary(log_tau).ess_bulk.iloc[0], int(cost.sum())
        rate = trace.stats.acceptance_rate.mean()
        print(f"{name:6} {draws:12} {total:10} {rate:11.2f} {ess:15.0f} {1000 * ess / total:23.1f}")
        running = np.cumsum(np.exp(log_tau).mean(axis=0)) / np.arange(1, draws + 1)
        axis.plot(np.cumsum(cost.sum(axis=0)), running, label=name)
    axis.axhline(3.5977, color="black", linewidth=0.8, label="by quadrature")
    axis.set(xscale="log", xlabel="gradients, all chains", ylabel="estimate of the mean of tau")
    axis.legend()
    if plot:
        figure.savefig(plot)
        print(f"picture: {plot}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", metavar="FILE", help="save a picture of the three running estimates")
    main(parser.parse_args().plot)
