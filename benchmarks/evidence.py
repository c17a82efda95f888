"""Print the squared error of log evidence beside BlackJAX's adaptive SMC: `python benchmarks/evidence.py`.

`ef.log_z` runs as it comes, its sampling and tuning counted. BlackJAX's tempered SMC starts from draws of the prior,
keeps half of its effective sample size from one temperature to the next, and moves by HMC with the scale and step that
our warm-up found, which it is not charged for; it gets as many particles as the gradients that `log_z` spent allow, and
so does `ef.smc` with the same moves. The interval of the ratio is a bootstrap over seeds.
"""

import argparse
import sys
from pathlib import Path

import blackjax
import blackjax.smc.resampling as resampling
import jax
import numpy as np
from blackjax.smc import extend_params

import energyflow as ef

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import posteriors

MODELS = ("eight_schools_noncentered", "sblri", "arK", "GLM_Binomial", "sonar")
MOVES, LEAPFROGS = 5, 3
TRIAL, GROUPS = 256, 8


def target_and_truth(name):
    if name == "sonar":
        return posteriors.sonar_target(), posteriors.SONAR_LOG_Z
    return posteriors.published(name), posteriors.PUBLISHED[name]["log_z"]


def tempered(target, kernel):
    """Return `(key, num_particles) -> (log Z, gradients spent)`."""
    settings = {
        "step_size": kernel.keywords["step_size"],
        "inverse_mass_matrix": kernel.keywords["inverse_mass_matrix"],
        "num_integration_steps": LEAPFROGS,
    }
    sampler = blackjax.adaptive_tempered_smc(
        target.base.log_prob,
        lambda x: -target(x) - target.base.log_prob(x),
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        extend_params(settings),
        resampling.systematic,
        0.5,
        num_mcmc_steps=MOVES,
    )
    step = jax.jit(sampler.step)

    def run(key, num_particles):
        key, start_key = jax.random.split(key)
        state = sampler.init(target.base.sample(start_key, (num_particles,)))
        log_z, stages = 0.0, 0
        while float(state.tempering_param) < 1:
            key, step_key = jax.random.split(key)
            state, info = step(step_key, state)
            log_z, stages = log_z + float(info.log_likelihood_increment), stages + 1
        return log_z, stages * num_particles * (MOVES * LEAPFROGS + 1)

    return run


def measure(name, seeds):
    """Return errors of log Z and gradients spent, both (seed, 3): of `log_z`, `smc` and BlackJAX."""
    target, truth = target_and_truth(name)
    kernel = ef.run(0, target, "auto", chains=64, draws=100).kernel
    theirs = tempered(target, kernel)
    moves = ef.hmc(kernel.keywords["step_size"], LEAPFROGS, kernel.keywords["inverse_mass_matrix"])

    def ours(key, num_particles):
        found = ef.smc(
            key, target, target.base, moves, num_particles=num_particles // GROUPS, num_groups=GROUPS, num_steps=MOVES
        )
        return found.log_z, found.num_gradients

    rows, sizes = [], None
    for seed in range(seeds):
        found = ef.log_z(seed, target)
        if sizes is None:
            sizes = [affordable(method, found.num_gradients) for method in (ours, theirs)]
        pairs = [method(jax.random.key(seed), size) for method, size in zip((ours, theirs), sizes, strict=True)]
        rows.append([(found.log_z, found.num_gradients), *pairs])
    values = np.array(rows)
    return values[..., 0] - truth, values[..., 1]


def affordable(method, num_gradients):
    """Return the number of particles that spends about so many gradients, some of them whatever the number."""
    few, many = (method(jax.random.key(0), size)[1] for size in (TRIAL, 4 * TRIAL))
    return max(TRIAL, TRIAL + round(3 * TRIAL * (num_gradients - few) / (many - few)))


def bootstrap(errors, num=10_000):
    """Return the ratio of mean squared errors of two columns, with its 95 % interval over resampled seeds."""
    rows = np.random.default_rng(0).integers(len(errors), size=(num, len(errors)))
    mean = np.square(errors).mean(axis=0)
    means = np.square(errors)[rows].mean(axis=1)
    return mean[0] / mean[1], *np.quantile(means[:, 0] / means[:, 1], [0.025, 0.975])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("--seeds", type=int, default=30)
    options = parser.parse_args()
    print(f"{'model':<26} {'method':<9} {'rmse':>8} {'gradients':>9}  ratio of mse to BlackJAX's, 95 % interval")
    for name in options.models:
        errors, spent = measure(name, options.seeds)
        for i, method in enumerate(("log_z", "smc", "BlackJAX")):
            rmse = np.sqrt(np.square(errors[:, i]).mean())
            ratio, low, high = bootstrap(errors[:, [i, 2]])
            compared = "" if i == 2 else f"{ratio:.3g}, {low:.2g} to {high:.2g}"
            print(f"{name:<26} {method:<9} {rmse:8.4f} {spent[:, i].mean():9.3g}  {compared}", flush=True)
        jax.clear_caches()  # a process may hold 65530 memory maps, and every stage of SMC adds some


if __name__ == "__main__":
    main()
