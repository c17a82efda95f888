"""A classifier that is a density too (JEM): what it costs in accuracy, and what it tells from digits.

The energy -logsumexp(logits) of a classifier of 8x8 digits is trained as a density too: by usual Langevin moves, at
T = 5e-5, or by MALA, at T = 1. Run: python examples/jem_digits.py [--steps N] [--seed N] [--plot FILE]
"""

import argparse

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import energyflow as ef
from energyflow.energies.nets import MLP
from energyflow.evaluation import classification

ROWS, LABELS = load_digits(return_X_y=True)
ORDER = np.random.default_rng(0).permutation(1797)
(X, TEST), (Y, TRUTH) = (np.split(a[ORDER], [1347]) for a in ((ROWS / 8 - 1).astype(np.float32), LABELS))
GAUSSIANS, BOX = ef.from_class_gaussians(X, Y, -1.0, 1.0), ef.from_uniform(-1.0, 1.0)
USUAL = ef.replay(ef.langevin(1.0, 0.01), 20, capacity=2000, num_chains=64, start=BOX, reinit=0.05)
MALA = ef.replay(ef.mala(1e-3), 20, capacity=512, num_chains=64, start=GAUSSIANS, tuner=ef.by_acceptance())
PHASES = {"cross entropy": None, "JEM, Langevin": USUAL, "JEM, MALA": MALA}


def train(phase, seed, steps):
    net = MLP(64, (128, 128), num_outputs=10, rngs=nnx.Rngs(seed))
    objective = ef.joint(phase or ef.cd(ef.ula(1e-3), 1), generative=0.1 if phase else 0.0, noise=0.1)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps), b1=0.0)
    batches = ((X[i], Y[i]) for i in np.random.default_rng(seed).integers(0, len(X), (steps, 128)))
    state = ef.init(seed, ef.classifier_energy(net, 0.5), objective, optimizer, (X[:128], Y[:128]))
    *_, last = ef.train(state, ef.make_step(objective, optimizer), batches)
    return last[0].energy, last[1]


def main(steps: int, seed: int, plot: str | None) -> None:
    rng, energies = np.random.default_rng(seed), {}
    others = {"noise": rng.uniform(-1, 1, TEST.shape), "inverted": -TEST, "shuffled": rng.permuted(TEST, axis=1)}
    for name, phase in PHASES.items():
        energy, metrics = train(phase, seed, steps)
        found, energies[name] = classification(jax.vmap(energy.logits)(TEST), TRUTH), np.asarray(jax.vmap(energy)(TEST))
        told = {k: np.mean(energies[name][:, None] < np.asarray(jax.vmap(energy)(x))) for k, x in others.items()}
        text = f"accuracy {found.accuracy:.3f}, calibration error {found.calibration_error:.3f}, told from "
        text += ", ".join(f"{what} {share:.2f}" for what, share in told.items())
        text += f"; gap {metrics['gap']:.1f}, T {metrics['sampler_temperature']:.0e}" if phase else "; no density"
        print(f"{name:14} {text}")
    if plot:
        ef.plots.energy_histogram(energies).savefig(plot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="FILE", help="save a picture of the energies of test digits")
    main(**vars(parser.parse_args()))
