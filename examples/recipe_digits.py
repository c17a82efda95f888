"""A recipe: regress a field on straight paths, take its work as an energy, correct it by short chains, draw by descent.

1. A field learns the way from noise to digits: a plain regression, without chains or second derivatives.
2. The work against it along lines from the origin is an energy of nearly the same slopes (`line_energy`).
3. Energy Matching goes on from there: the regression, and contrast with short Langevin chains at a low temperature.
4. An optimiser with momentum draws from noise in a third of the gradients that Langevin takes.
Persistent contrastive divergence with an adjusted sampler is given twice the time of all of it.
Run: python examples/recipe_digits.py [--steps N] [--plot FILE]
"""

import argparse
import itertools
import time

import jax
import numpy as np
import numpyro.distributions as dist
import optax
from sklearn.datasets import load_digits

import energyflow as ef
from energyflow.plots import sample_grid
from energyflow.stats import energy_distance

RNG = np.random.default_rng(0)
PIXELS = RNG.permutation(load_digits().data + RNG.uniform(size=(1797, 64)))
MEAN = PIXELS[:1347].mean(axis=0)
TRAIN, TEST = np.split(((PIXELS - MEAN) / 12).astype(np.float32), [1347])
NOISE = dist.Normal(np.zeros(64), 1.0).to_event(1)
BEGAN = time.perf_counter()


def train(energy, objective, optimizer, steps=None, until=np.inf):
    """Return the averaged weights after so many steps or seconds."""
    state = ef.init(0, energy, objective, optimizer, TRAIN[:256])
    batches = (RNG.choice(TRAIN, 256) for _ in (range(steps) if steps else itertools.count()))
    for state, _ in ef.train(state, ef.make_step(objective, optimizer, ema_decay=0.98), batches):
        if time.perf_counter() - BEGAN > until:
            break
    return state.ema


def tell(name, draws):
    seconds, distance = time.perf_counter() - BEGAN, energy_distance(draws, TEST)
    print(f"{name:34} {seconds:6.1f} s   distance to test digits {distance:.4f}")
    return draws


def main(steps: int, plot: str | None) -> None:
    starts, pairs = NOISE.sample(jax.random.key(0), (1000,)), ef.couplings.independent
    flow, rate = ef.transport_matching(NOISE, pairs), optax.cosine_decay_schedule(1e-3, steps)
    field = train(ef.residual_mlp_field(0, 64, 256, 2), flow, optax.adam(rate), steps)
    tell("field, 50 steps", ef.descend(field, starts, 0.02, 50).position)
    energy = ef.tempered(ef.line_energy(field), 0.02)
    tell("its work, 50 steps", ef.descend(energy, starts, 0.02, 50).position)
    short = ef.energy_matching(NOISE, pairs, negatives=ef.transport_run(NOISE, 40, step_size=0.04))
    energy = train(energy, short, optax.adam(optax.cosine_decay_schedule(2e-4, steps // 8)), steps // 8)
    tell("corrected, Langevin, 60 steps", ef.transport_langevin(0, energy, 1.5, starts, step_size=0.025).position[0])
    momentum = optax.sgd(0.03, momentum=0.5, nesterov=True)
    ours = tell("corrected, momentum, 20 steps", ef.descend(energy, starts, momentum, 20).position)
    rival = ef.contrastive(ef.pcd(ef.mala(0.01), 10, start=ef.from_base(), tuner=ef.by_acceptance(0.6)))
    energy = ef.tilt(ef.mlp(0, 64, (256, 256)), dist.Normal(np.zeros(64), 0.5).to_event(1))
    energy = train(energy, rival, optax.adamw(1e-3, weight_decay=1.0), until=2 * (time.perf_counter() - BEGAN))
    theirs = tell("PCD in twice the time, SMC draws", ef.smc(1, energy, energy.base, ef.mala(0.02)).position)
    if plot:
        images = [np.asarray(x[:64]) * 12 + MEAN for x in (TEST, ours, theirs)]
        sample_grid(images, (8, 8), ["data", "recipe", "PCD"], limits=(0, 17)).savefig(plot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--plot", metavar="FILE", help="save a picture of digits and of draws")
    main(**vars(parser.parse_args()))
