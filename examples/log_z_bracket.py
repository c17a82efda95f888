"""One direction of annealing can be sure and wrong; two directions show it.

Neal's funnel in 10 dimensions has a known log Z. A forward run (annealed importance sampling) reports a small error
bar and many effective chains, and misses: no chain ever enters the narrow neck. The reverse run starts at exact draws
of the target, so it knows the neck, and the gap between the two is what neither could say alone.
Run: python examples/log_z_bracket.py [--plot FILE]
"""

import argparse

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

import energyflow as ef


def main(plot: str | None) -> None:
    funnel = ef.energies.funnel(10)
    base = dist.Normal(jnp.zeros(10), 2.0).to_event(1)
    settings = {"num_temperatures": 500, "num_chains": 256}

    forward = ef.bracket(0, funnel, base, reverse=False, **settings)
    print("forward alone:", forward, sep="\n")
    off = (forward.log_z - funnel.log_z) / forward.stderr
    print(f"exact log Z {funnel.log_z:.3f}: the forward run is off by {off:.1f} of its standard errors\n")

    both = ef.bracket(0, funnel, base, exact=funnel.sample(jax.random.key(1), 256), **settings)
    print("both directions:", both, sep="\n")
    print(f"the bracket contains the exact log Z: {both.lower <= funnel.log_z <= both.upper}")
    if plot:
        ef.plots.annealing_plot(both).savefig(plot)
        print(f"picture: {plot}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", metavar="FILE", help="save a picture of the annealing path and of both directions")
    main(parser.parse_args().plot)
