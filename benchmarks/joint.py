"""A classifier as a density, and what it tells from other images: `python benchmarks/joint.py FASHION OTHER...`.

FASHION holds x_train, y_train, x_test, y_test; the others an array x of images of the same size (or of their bits).
Rows are the leading principal components of the training images, whitened. The twin is the same network by cross
entropy alone; JEM is trained by Langevin at T = 5e-5 and by MALA at T = 1, and for the likelihood ratio once more by
MALA on mutated images.
"""

import argparse
import json
import time
from collections import deque
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.decomposition import PCA

import energyflow as ef
from energyflow.energies.nets import MLP
from energyflow.evaluation import (
    class_probability_score,
    classification,
    energy_score,
    gradient_norm_score,
    likelihood_ratio,
    mutated,
    ood_report,
    ood_table,
)

FRESH = ef.from_normal()
PHASES = {  # negative phase and the weight of the density
    "twin": (ef.cd(ef.ula(1e-3), 1), 0.0),
    "langevin": (ef.replay(ef.langevin(1.0, 0.01), 20, capacity=10_000, num_chains=128, start=FRESH), 0.1),
    "mala": (ef.pcd(ef.mala(1e-2), 20, capacity=1024, num_chains=128, start=FRESH, tuner=ef.by_acceptance()), 0.1),
}


def images(file, name="x"):
    with np.load(file) as held:
        x = held[name]
    if x.ndim == 2 and x.shape[1] == 98:
        x = 255 * np.unpackbits(x, axis=1)
    return x.reshape(len(x), -1).astype(np.float32) / 255


def train(phase, x, y, options):
    """Return the averaged energy, its last metrics and the seconds it took."""
    negatives, generative = PHASES[phase]
    net = MLP(x.shape[1], tuple(options.hidden), num_outputs=10, rngs=nnx.Rngs(options.seed))
    energy = ef.classifier_energy(net, 0.5)
    objective = ef.joint(negatives, generative=generative, noise=0.03)
    schedule = optax.cosine_decay_schedule(options.rate, options.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule))
    rng = np.random.default_rng(options.seed)
    picks = [jnp.asarray(rng.integers(0, len(x), 128)) for _ in range(options.steps)]
    start = ef.init(options.seed, energy, objective, optimizer, (x[:1024], y[:1024]))
    began, step = time.perf_counter(), ef.make_step(objective, optimizer, ema_decay=0.99)
    [(state, metrics)] = deque(ef.train(start, step, ((x[i], y[i]) for i in picks)), maxlen=1)
    jax.block_until_ready(state)
    return state.ema, {name: float(value) for name, value in metrics.items()}, time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("others", nargs="+")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 256])
    parser.add_argument("--features", type=int, default=64, help="principal components")
    parser.add_argument("--rows", type=int, default=2000, help="of each set, to be scored")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    train_images = images(options.data, "x_train")
    components = PCA(options.features, whiten=True, random_state=options.seed).fit(train_images)

    def features(rows):
        return jnp.asarray(components.transform(rows), jnp.float32)

    x, test = features(train_images), features(images(options.data, "x_test"))
    with np.load(options.data) as held:
        y, truth = jnp.asarray(held["y_train"], jnp.int32), held["y_test"].astype(int)
    others = {Path(file).stem: features(images(file)[: options.rows]) for file in options.others}
    blurred = features(np.asarray(mutated(7, train_images, 0.2, 0.0, 1.0)))
    background, _, seconds = train("mala", blurred, jnp.full(len(x), -1, jnp.int32), options)
    print(f"background: {seconds:.0f} s", flush=True)
    found = {}
    for phase in PHASES:
        energy, metrics, seconds = train(phase, x, y, options)
        logits = np.concatenate(
            [np.asarray(jax.vmap(energy.logits)(test[i : i + 1000])) for i in range(0, 10000, 1000)]
        )
        judged = classification(logits, truth)
        print(f"\n{phase}: {judged}; {seconds:.0f} s", flush=True)
        print({name: round(value, 4) for name, value in metrics.items()}, flush=True)
        scores = {"energy": energy_score, "gradient norm": gradient_norm_score, "max p": class_probability_score}
        if phase == "mala":
            scores["ratio"] = lambda energy, x: likelihood_ratio(energy, background, x)
        inside = {name: score(energy, test[: options.rows]) for name, score in scores.items()}
        found[phase] = {"accuracy": judged.accuracy, "calibration_error": judged.calibration_error, "metrics": metrics}
        for other, rows in others.items():
            reports = {name: ood_report(inside[name], score(energy, rows)) for name, score in scores.items()}
            print(other, ood_table(reports), sep="\n", flush=True)
            found[phase][other] = {name: list(report.auroc) for name, report in reports.items()}
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
