"""Print every training objective side by side on four data sets: `python benchmarks/objectives.py`.

One network and optimiser a data set. Rows are scaled to a standard deviation of 1 over all their values. Densities of
the digits are trained on rows whitened besides, as `energyflow train` does; all figures are brought back from there.
Densities: test log-likelihood in nats; log Z by quadrature in two dimensions and by a bracket for the digits, whose
conservative side stands. All: the energy distance of draws to the test rows, beside that of training rows; energy
gradients a row and step in training, and a draw in sampling; and the time of a training step in units of one loss
gradient of the same network and batch.
"""

import argparse
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from sklearn.datasets import make_moons
from timing import interleaved

import energyflow as ef
from energyflow.energies import dot_energy, eight_gaussians, mlp_field, residual_mlp_field, rings
from energyflow.loaders import Scaling, load_dataset
from energyflow.stats import energy_distance, log_mean_exp

BATCH, NUM_DRAWS = 256, 1024
SIGMAS = tuple(np.geomspace(4.0, 0.1, 12))


class Data(NamedTuple):
    """Rows to train and to test on, and the scaling that brings points back to the units of the figures."""

    name: str
    train: jax.Array
    test: jax.Array
    hidden: tuple[int, ...]
    steps: int
    scaling: Scaling

    @property
    def dim(self):
        return self.train.shape[1]

    @property
    def base(self):
        return dist.Normal(jnp.zeros(self.dim), jnp.ones(self.dim)).to_event(1)


def load(name, steps):
    """Return the rows as landscapes and as densities are trained on."""
    if name == "digits":
        data = load_dataset("digits", 0, whiten="none")
        rows = [data.part_x("train", 0), data.part_x("test", 0)]
        hidden, steps = (256, 256), steps or 1000
    else:
        key = jax.random.key(0)
        sources = {
            "8 gaussians": lambda: eight_gaussians().sample(key, 6000),
            "moons": lambda: make_moons(6000, noise=0.07, random_state=0)[0],
            "rings": lambda: rings([0.5, 1.0, 1.5], 0.08).sample(key, 6000),
        }
        both = np.asarray(sources[name](), np.float64)
        rows, hidden, steps = [both[:5000], both[5000:]], (128, 128), steps or 2000
    mean, spread = rows[0].mean(axis=0), rows[0].std()
    rows = [(x - mean) / spread for x in rows]
    dim = len(mean)
    covariance = np.cov(rows[0].T) if name == "digits" else np.eye(dim)

    def data(factor):
        scaling = Scaling(0, -1.0, 1.0, np.zeros(dim), factor)
        return Data(name, *(jnp.asarray(scaling.to_z(x)) for x in rows), hidden, steps, scaling)

    return data(np.ones(dim)), data(np.linalg.cholesky(covariance))


class Entry(NamedTuple):
    """energy: data -> what is trained. phases: data -> [(share of the steps, objective)]. gradients: of the energy with
    respect to x, a row and step, besides those that a negative phase counts itself. whiten: as densities are."""

    energy: Any
    phases: Any
    gradients: float = 0.0
    whiten: bool = True


def tilted(data):
    return ef.tilt(ef.mlp(0, data.dim, data.hidden), data.base)


def with_log_z(data):
    energy = tilted(data)
    draws = data.base.sample(jax.random.key(0), (1024,))
    return ef.normalised(energy, log_mean_exp(-jax.vmap(energy.energy)(draws)).value)


def against_flow(data):
    return ef.with_noise(with_log_z(data), ef.flow(0, data.train, (max(64, data.dim),), 2))


def noisy(data):
    return ef.energies.noise_conditional_mlp(0, data.dim, data.hidden)


def potential(data):
    return ef.tempered(ef.mlp(0, data.dim, data.hidden), 0.05)


def field(data):
    return residual_mlp_field(0, data.dim, 256, 2) if data.dim > 2 else mlp_field(0, data.dim, data.hidden)


def one(objective, gradients=0.0, energy=tilted, whiten=True):
    """An entry of one phase; `objective` is a function of the data."""
    return Entry(energy, lambda data: [(1.0, objective(data))], gradients, whiten)


def contrast(negatives):
    return one(lambda data: ef.contrastive(negatives))


def mixture(data):
    """Ten components in two dimensions; in 64 each fits its few rows, so two."""
    return ef.mixture_base(data.train, 10 if data.dim == 2 else 2)


def transport(data):
    return [(0.9, ef.transport_matching(data.base)), (0.1, ef.energy_matching(data.base))]


MALA, TUNER = ef.mala(0.05), ef.by_acceptance(0.6)
ENTRIES = {
    "CD, 10 MALA": contrast(ef.cd(MALA, 10, tuner=TUNER)),
    "PCD, 10 MALA": contrast(ef.pcd(MALA, 10, num_chains=1024, start=ef.from_base(), tuner=TUNER)),
    "short run, 50 ULA": contrast(ef.short_run(ef.ula(0.01), 50)),
    "Jarzynski, 10 MALA": contrast(ef.jarzynski(MALA, 10, num_walkers=1024, tuner=TUNER)),
    "exact score matching": one(lambda data: ef.score_matching(), 1),
    "sliced score matching": one(lambda data: ef.sliced_score_matching(), 1),
    "finite differences": one(lambda data: ef.finite_difference_score_matching()),
    "denoising, .1": one(lambda data: ef.denoising_score_matching(0.1), 1),
    "NCE, mixture noise": one(lambda data: ef.nce(mixture(data), 4), 0, with_log_z),
    "ranking NCE": one(lambda data: ef.ranking_nce(mixture(data), 16)),
    "conditional NCE": one(lambda data: ef.conditional_nce(10)),
    "flow-contrastive": one(lambda data: ef.flow_contrastive(), 0, against_flow),
    "dual score matching": one(lambda data: ef.dual_score_matching(SIGMAS[-1], SIGMAS[0]), 1, noisy),
    "noise levels": one(lambda data: ef.noise_level_classification(SIGMAS, num_levels=2), 1, noisy),
    "Energy Matching": Entry(potential, transport, 1, whiten=False),
    "EqM, field": one(lambda data: ef.equilibrium_matching(), 0, field, whiten=False),
    "EqM, dot energy": one(lambda data: ef.equilibrium_matching(), 1, lambda data: dot_energy(field(data)), False),
}


def train(entry, data, seed):
    """Return the averaged weights, gradients a row and step, and the last step with its state and batch."""
    energy, spent, last = entry.energy(data), [], None
    for share, objective in entry.phases(data):
        num = max(2, round(share * data.steps))
        optimizer = optax.adam(optax.cosine_decay_schedule(1e-3 if share > 0.5 else 1e-4, num))
        state = ef.init(seed, energy, objective, optimizer, data.train[:BATCH])
        step = ef.make_step(objective, optimizer, ema_decay=0.999)

        @jax.jit
        def run(state, rows, step=step, num=num):
            def body(state, i):
                picked = jax.random.randint(jax.random.fold_in(jax.random.key(1), i), (BATCH,), 0, len(rows))
                return step(state, rows[picked])

            return jax.lax.scan(body, state, jnp.arange(num))

        state, metrics = run(state, data.train)
        energy = state.ema
        spent.append(share * (entry.gradients + float(np.mean(metrics.get("num_gradients", 0))) / BATCH))
        last = last or (step, state, data.train[:BATCH])
    return energy, sum(spent), last


def draw(energy, data, key):
    """Return draws and energy gradients a draw; SMC for densities, descent for landscapes, transport for potentials."""
    start = data.base.sample(key, (NUM_DRAWS,))
    if ef.kind(energy) == "landscape":
        found = ef.descend(energy, start, 0.005, 85)
        return found.position, float(np.mean(found.num_gradients))
    if ef.kind(energy) == "tempered":
        found = ef.transport_langevin(1, energy, [2.0], start)
        return found.position[-1], found.num_gradients / NUM_DRAWS
    found = ef.smc(2, energy, data.base, ef.mala(0.1), num_particles=NUM_DRAWS // 8)
    return found.position, found.num_gradients / NUM_DRAWS


def likelihood(energy, data):
    """Return the mean log density of the test rows, with log Z at its upper side."""
    if data.dim == 2:
        log_z = ef.log_z_quadrature(energy, (-7.0, -7.0), (7.0, 7.0), num=400)
    else:
        log_z = ef.bracket(3, energy, data.base, num_temperatures=1000, num_chains=256).upper
    return float(jnp.mean(jax.vmap(ef.logdensity(energy))(data.test))) - log_z - data.scaling.log_det


def one_gradient(data):
    """Return the step of the cheapest loss there is on the network: the mean energy of the batch."""
    objective = ef.stateless(lambda energy, batch, key: (jnp.mean(jax.vmap(energy)(batch)), {}))
    optimizer = optax.adam(1e-3)
    state = ef.init(0, tilted(data), objective, optimizer, data.train[:BATCH])
    step = ef.make_step(objective, optimizer, ema_decay=0.999)
    return lambda: step(state, data.train[:BATCH])


def measure(name, both, seed):
    entry, began = ENTRIES[name], time.perf_counter()
    data = both[entry.whiten]
    energy, gradients, (step, state, batch) = train(entry, data, seed)
    seconds = interleaved({"step": lambda: step(state, batch), "bound": one_gradient(data)}, 10)
    wall = float(np.median(seconds["step"] / seconds["bound"]))
    if entry.energy is noisy:
        energy = ef.condition(energy, SIGMAS[-1])
    if entry.energy is against_flow:
        energy = energy.energy
    nats = likelihood(energy, data) if ef.kind(energy) == "density" else np.nan
    draws, cost = draw(energy, data, jax.random.key(5))
    distance = energy_distance(*map(data.scaling.from_z, (draws, data.test)))
    text = "" if np.isnan(nats) else f"{nats:.2f}"
    print(
        f"{data.name:<12} {name:<24} {text:>8} {distance:9.4f} {gradients:9.1f} {cost:9.0f} {wall:7.1f} "
        f"{time.perf_counter() - began:7.0f}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="*", default=["8 gaussians", "moons", "rings", "digits"])
    parser.add_argument("--objectives", nargs="*", default=list(ENTRIES), choices=list(ENTRIES))
    parser.add_argument("--steps", type=int, default=0, help="of training; 2000 in two dimensions, 1000 for the digits")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(
        f"{'data':<12} {'objective':<24} {'nats':>8} {'distance':>9} {'training':>9} {'a draw':>9} {'wall':>7} {'s':>7}"
    )
    for name in options.data:
        data = load(name, options.steps)
        floor = energy_distance(data[0].train[:NUM_DRAWS], data[0].test)
        print(f"{name:<12} {'(training rows)':<24} {'':>8} {floor:9.4f}", flush=True)
        for objective in options.objectives:
            measure(objective, data, options.seed)
        jax.clear_caches()  # a process may hold 65530 memory maps


if __name__ == "__main__":
    main()
