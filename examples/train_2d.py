"""Train a 2-D density by persistent contrastive divergence, with the sampler named on the command line.

The sampler is one token here too: `ef.pcd(SAMPLERS[name], ...)`. The fit is judged by the Kullback-Leibler divergence
from the data's density to the model's, computed by quadrature, so nothing sampled enters the verdict.
Run: python examples/train_2d.py [SAMPLER] [--steps N] [--plot FILE]
"""

import argparse

import jax
import numpy as np
import optax

import energyflow as ef
from energyflow.logz.oracles import expectation_quadrature

SAMPLERS = {
    "mala": ef.mala(0.05),
    "hmc": ef.hmc(0.2, 3),
    "nuts": ef.nuts(0.2, max_num_doublings=3),
    "barker": ef.barker(0.3),
    "dynamic_hmc": ef.dynamic_hmc(0.2, 5),
    "adjusted_mclmc": ef.adjusted_mclmc(0.2, 3),
    "rmh": ef.rmh(0.3),
    "ula": ef.ula(0.002),
    "mclmc": ef.mclmc(0.1),
}
BOX = (-3.0, -3.0), (3.0, 3.0)


def main(sampler: str, steps: int, plot: str | None) -> None:
    angles = np.arange(8) * np.pi / 4
    data = ef.energies.gaussian_mixture(np.stack([np.cos(angles), np.sin(angles)], axis=1), 0.15)
    energy = ef.mlp(0, 2, (64, 64), confinement=0.05)
    tuner = None if sampler in ("ula", "mclmc") else ef.by_jump()  # those two have no accept step to tune by
    objective = ef.contrastive(ef.pcd(SAMPLERS[sampler], 10, num_chains=512, tuner=tuner))
    # Without momentum (b1 = 0): persistent chains lag behind weights that keep going.
    optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, steps), b1=0.0)

    state = ef.init(0, energy, objective, optimizer, data.sample(jax.random.key(0), 256))
    step = ef.make_step(objective, optimizer, ema_decay=0.99)
    batches = (data.sample(jax.random.key(i), 256) for i in range(1, steps + 1))
    for state, metrics in ef.guarded(ef.train(state, step, batches)):
        if metrics["step"] % 500 == 0:
            print({name: round(float(metrics[name]), 3) for name in ("step", "gap", "jump_distance", "travel")})

    log_z = ef.log_z_quadrature(state.ema, *BOX, num=400)
    gap = expectation_quadrature(data, lambda x: state.ema(x) - data(x), *BOX, num=400)
    print(f"{sampler}: KL(data || model) = {float(gap) + log_z - data.log_z:.4f} nats after {steps} steps")
    if plot:
        ef.plots.landscape(state.ema, (-2, -2), (2, 2), points=data.sample(jax.random.key(0), 256)).savefig(plot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sampler", nargs="?", default="mala", choices=SAMPLERS)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--plot", metavar="FILE", help="save a picture of the trained energy and the data")
    main(**vars(parser.parse_args()))
