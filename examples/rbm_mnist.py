"""Train a restricted Boltzmann machine on binarised digits, and know its likelihood exactly.

With at most 20 hidden units log Z is a sum over 2^20 states, so that contrastive divergence and persistent chains are
judged by the exact log-likelihood of the test set, and annealing by the exact log Z. Both phases of the gradient have
their hidden units summed out: the difference of free energies.
Run: python examples/rbm_mnist.py mnist.npz [--hidden N] [--steps N] [--plot FILE], the file with arrays x_train and
x_test of grey levels 0..255, the first axis counting images.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import energyflow as ef
from energyflow.energies.discrete import RBM, rbm
from energyflow.kernels.conditionals import block_gibbs
from energyflow.types import Negatives, Objective

BATCH = 256


def free_energy_contrast(negatives: Negatives) -> Objective:
    """The contrastive objective on the visible units alone; the chains move both layers."""

    def joint(machine: RBM, v: Any) -> Any:
        return {"v": v, "h": jnp.zeros((len(v), len(machine.c)))}  # chains draw their hidden units first

    def init(key: Any, machine: RBM, v: Any) -> Any:
        return negatives.init(key, machine, joint(machine, v))

    def loss(machine: RBM, v: Any, key: Any, state: Any) -> Any:
        fake, _, state, metrics = negatives.draw(key, jax.lax.stop_gradient(machine), joint(machine, v), state)
        data, model = (jnp.mean(jax.vmap(machine.marginal)(x)) for x in (v, fake["v"]))
        return data - model, (state, metrics | {"gap": model - data})

    return Objective(init, loss)


def load(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Return training and test images as zeros and ones, (n, pixels)."""
    with np.load(path) as file:
        images = file["x_train"], file["x_test"]
    return tuple((x.reshape(len(x), -1) > 127).astype(np.float32) for x in images)


def train(machine: RBM, negatives: Negatives, images: np.ndarray, steps: int) -> RBM:
    objective = free_energy_contrast(negatives)
    optimizer = optax.adam(optax.linear_schedule(1e-2, 0.0, steps), b1=0.0)
    rng = np.random.default_rng(0)
    state = ef.init(0, machine, objective, optimizer, images[:BATCH])
    batches = (images[rng.integers(0, len(images), BATCH)] for _ in range(steps))
    for state, _ in ef.train(state, ef.make_step(objective, optimizer), batches):
        pass
    return state.energy


def main(data: str, hidden: int, steps: int, plot: str | None) -> None:
    images, held_out = load(data)
    mean = np.clip(images.mean(axis=0), 0.01, 0.99)
    weights = 0.01 * np.random.default_rng(1).normal(size=(len(mean), hidden)).astype(np.float32)
    start = rbm(weights, np.log(mean / (1 - mean)), np.zeros(hidden, np.float32))

    # Hidden, then visible units: one sweep a transition. Training needs no reversible move.
    sweep = block_gibbs(start.blocks, palindrome=False)
    tempered = ef.parallel_tempering(sweep, np.linspace(1.0, 0.1, 10))
    ways = {"no weights": None, "CD-1": ef.cd(sweep, 1), "PCD-1": ef.pcd(sweep, 1), "PCD-10": ef.pcd(sweep, 10)}
    ways["PT-PCD-1"] = ef.pcd(tempered, 1)  # ten rungs move for each step of PCD-1
    print(f"{'':10} {'test':>9} {'training':>9} {'log Z':>9} {'seconds':>8}   exact log-likelihoods in nats an image")
    machine, log_z = start, 0.0
    for name, negatives in ways.items():
        begun = time.perf_counter()
        machine = start if negatives is None else train(start, negatives, images, steps)
        seconds, log_z = time.perf_counter() - begun, machine.log_z
        score = jax.jit(jax.vmap(machine.marginal))
        test, training = (-np.asarray(score(x), np.float64).mean() - log_z for x in (held_out, images[:10_000]))
        print(f"{name:10} {test:9.2f} {training:9.2f} {log_z:9.2f} {seconds:8.1f}")

    # Forward and reverse annealing, the reverse from exact draws, do not know the enumeration.
    exact = machine.sample(jax.random.key(2), 64)
    kernel = block_gibbs(machine.blocks)
    found = ef.bracket(3, machine, machine.base, kernel, num_temperatures=500, num_chains=64, exact=exact)
    inside = found.lower <= log_z <= found.upper
    print(f"annealing: log Z = {found.log_z:.2f} in [{found.lower:.2f}, {found.upper:.2f}]; exact inside: {inside}")
    if plot:
        side = round(len(mean) ** 0.5)
        tiles = np.reshape(machine.W.T, (hidden, side, side))
        figure, axes = plt.subplots(2, -(-hidden // 2), figsize=(hidden / 2, 2.2), squeeze=False)
        for axis in axes.ravel():
            axis.axis("off")
        for axis, tile in zip(axes.ravel(), tiles, strict=False):
            axis.imshow(tile, cmap="RdBu", vmin=-3, vmax=3)
        figure.savefig(plot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="an npz file with x_train and x_test")
    parser.add_argument("--hidden", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--plot", metavar="FILE", help="save a picture of the weights of every hidden unit")
    main(**vars(parser.parse_args()))
