"""Score matching cannot tell how much mass a far mode has. Going through the noise levels can.

Two Gaussians ten standard deviations apart hold a quarter and three quarters of the data. Denoising fits the slope in x
of E(x, sigma) at every noise level, and each seed ends with weights of its own. Dual score matching fits the slope in
sigma too, and classification asks which level a point is from: both carry the weights down from the largest noise.
Run: python examples/mode_weights.py [--steps N] [--plot FILE]
"""

import argparse

import jax
import numpy as np
import optax

import energyflow as ef
from energyflow.logz.oracles import expectation_quadrature
from energyflow.plots.style import label, legend, new_axes

DATA, EVEN = (ef.energies.gaussian_mixture([[-5.0], [5.0]], 1.0, weights) for weights in ([1, 3], [1, 1]))
LEVELS, LEFT, RIGHT = np.geomspace(30.0, 0.1, 10), ([-15.0], [0.0]), ([0.0], [15.0])
OBJECTIVES = {
    "denoising score matching": ef.denoising_score_matching(LEVELS),
    "dual score matching": ef.dual_score_matching(LEVELS[-1], LEVELS[0]),
    "noise-level classification": ef.noise_level_classification(LEVELS),
}


def train(objective, seed, steps):
    batches = [DATA.sample(jax.random.key(i), 256) for i in range(steps)]
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, steps))
    state = ef.init(seed, ef.noise_conditional_mlp(seed, 1, (64, 64), scale=5.0), objective, optimizer, batches[0])
    *_, (state, _) = ef.train(state, ef.make_step(objective, optimizer, ema_decay=0.99), batches)
    return ef.condition(ef.normalise_at(seed, state.ema, np.concatenate(batches), LEVELS[0]).energy, LEVELS[-1])


def main(steps: int, plot: str | None) -> None:
    gap = expectation_quadrature(DATA, lambda x: EVEN(x) - DATA(x), LEFT[0], RIGHT[1])
    miss = expectation_quadrature(DATA, lambda x: (jax.grad(EVEN)(x) - jax.grad(DATA)(x)) ** 2 / 2, LEFT[0], RIGHT[1])
    print(f"equal weights: {gap:.3f} nats from the data, Fisher divergence {miss[0]:.1e}")
    grid, (figure, axes) = np.linspace(-9, 9, 400)[:, None], new_axes(1, 3, 3.0, sharey=True)
    for ax, (name, objective) in zip(axes[0], OBJECTIVES.items(), strict=True):
        for seed in (0, 1):
            density = train(objective, seed, steps)
            sides = [ef.log_z_quadrature(density, *side) for side in (LEFT, RIGHT)]
            mass = np.logaddexp(*sides)
            print(f"{name:26} seed {seed}: left mode {np.exp(sides[0] - mass):.3f}, log of all mass {mass:.2f}")
            ax.plot(grid, np.exp(-jax.vmap(density)(grid) - mass), label=f"seed {seed}")
        ax.plot(grid, np.exp(-jax.vmap(DATA)(grid) - DATA.log_z), "k:", label="data")
        label(ax, "x", "density" if ax is axes[0, 0] else "", name)
    legend(axes[0, 0], loc="upper left")
    if plot:
        figure.savefig(plot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--plot", metavar="FILE", help="save a picture of the trained densities")
    main(**vars(parser.parse_args()))
