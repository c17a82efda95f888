"""The temperature that a Langevin step samples at is set by its noise, whatever the energy says.

Many implementations of energy-based models move by `x - eta grad E(x) + sigma z` with eta and sigma chosen apart. For
small eta that samples exp(-E/T) with T = sigma^2 / (2 eta): far below 1 for the usual settings. On a Gaussian of
variance 1 the sampled variance is T, so it can be measured.
Run: python examples/temperature.py [--plot FILE]
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import energyflow as ef

# eta, sigma; None is sqrt(2 eta), the noise that belongs to temperature 1.
SETTINGS = [(0.01, None), (0.01, 0.005), (0.01, 0.05), (0.1, None)]


def energy(x):
    return jnp.sum(x**2) / 2


def main(plot: str | None) -> None:
    start = jax.random.normal(jax.random.key(0), (512, 2))
    draws = {}
    for eta, sigma in SETTINGS:
        kernel = ef.langevin(eta, sigma)
        noise = (2 * eta) ** 0.5 if sigma is None else sigma
        trace = ef.sample_chains(1, kernel, ef.logdensity(energy), start, 50, warmup=1000, thin=20)
        draws[f"eta {eta}, sigma {noise:.3f}"] = trace.position.reshape(-1, 2)
        claimed, measured = ef.kernels.langevin_temperature(eta, noise), np.var(trace.position)
        print(f"eta {eta}, sigma {noise:.3f}: T = sigma^2 / (2 eta) = {claimed:.5f}, measured variance {measured:.5f}")
    # An accept step needs no small eta: MALA's variance is 1 at a step where unadjusted Langevin's is 1 / (1 - eta/2).
    trace = ef.sample_chains(1, ef.mala(0.5), ef.logdensity(energy), start, 50, warmup=200, thin=20)
    print(f"mala(0.5): temperature 1, measured variance {np.var(trace.position):.5f}")
    trace = ef.sample_chains(1, ef.ula(0.5), ef.logdensity(energy), start, 50, warmup=200, thin=20)
    print(f"ula(0.5): biased to 1 / (1 - 0.25) = 1.33333, measured variance {np.var(trace.position):.5f}")
    if plot:
        ef.plots.energy_histogram({name: np.sum(x**2, axis=1) / 2 for name, x in draws.items()}).savefig(plot)
        print(f"picture: {plot}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", metavar="FILE", help="save a picture of the energies that each setting samples")
    main(parser.parse_args().plot)
