"""Two samplers on the same banana: one explores it, one barely moves with an acceptance rate of one.

The acceptance rate cannot tell a step that is far too small from a good one. `ef.check` reads the draws instead.
Run: python examples/sample_and_check.py [--plot FILE]
"""

import argparse

import jax
import numpy as np

import energyflow as ef


def banana(x):
    """The energy of x ~ N(0, 25), y | x ~ N(3 - 0.03 x^2, 1), so the mean of x^2 is 25."""
    return x[0] ** 2 / 50 + (x[1] + 0.03 * x[0] ** 2 - 3) ** 2 / 2


def main(plot: str | None) -> None:
    start = 3.0 * jax.random.normal(jax.random.key(1), (16, 2))
    kernels = {"nuts(0.5)": ef.nuts(0.5), "mala(0.001)": ef.mala(0.001)}
    traces = {}
    for name, kernel in kernels.items():
        trace = ef.sample_chains(0, kernel, ef.logdensity(banana), start, 1000, warmup=200)
        verdict = ef.check(trace)
        print(f"{name}: {verdict.verdict}")
        print(
            f"  acceptance {trace.stats.acceptance_rate.mean():.3f}, mean jump {trace.stats.jump_distance.mean():.3f}"
        )
        print(f"  mean of x^2: {np.mean(trace.position[..., 0] ** 2):.1f} (exact: 25)")
        for problem in verdict.problems:
            print(f"  - {problem}")
        traces[name] = trace
    if plot:
        paths = traces["nuts(0.5)"].position[:3, :30]
        ef.plots.landscape(banana, (-16, -7), (16, 7), paths).savefig(plot)
        print(f"picture: {plot}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", metavar="FILE", help="save a picture of the energy and of three NUTS chains")
    main(parser.parse_args().plot)
