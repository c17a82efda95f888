"""Train a convolutional field on images and judge its draws: `python benchmarks/images.py fashion_mnist.npz`.

The file holds x_train, y_train, x_test. A classifier trained on the labels gives the features of the Frechet distance;
its figures are beside those of as many training images, and mean nothing beside figures in other features.
"""

import argparse
import json
import time
from collections import deque
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import energyflow as ef
from energyflow.energies.nets import ResidualCNN
from energyflow.energies.unet import unet_field
from energyflow.evaluation.quality import frechet_distance, memorisation, precision_recall
from energyflow.loaders import load_dataset
from energyflow.stats import energy_distance

TIMES = (1.0, 1.7, 2.0, 2.5, 3.0, 5.0)
SCALE = 4.0


def batches(rows, size, steps, seed):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        yield rows[jnp.asarray(rng.integers(len(rows), size=size))]


def classifier(images, labels, steps, seed=0):
    """Return the jitted features of a residual network trained to tell the labels, and its logits."""
    net = ResidualCNN(images.shape[1:], depth=4, num_outputs=int(labels.max()) + 1, rngs=nnx.Rngs(seed))

    def loss(module, batch, key):
        x, y = batch
        logits = jax.vmap(module)(x)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y)), {}

    objective, optimizer = ef.stateless(loss), optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    rng = np.random.default_rng(seed)
    picks = [jnp.asarray(rng.integers(len(images), size=256)) for _ in range(steps)]
    stream = ((images[i], labels[i]) for i in picks)
    state = ef.init(seed, ef.from_nnx(net), objective, optimizer, (images[:2], labels[:2]))
    [(state, _)] = deque(ef.train(state, ef.make_step(objective, optimizer), stream), maxlen=1)
    trained = ef.to_nnx(state.energy)
    graph, weights = nnx.split(trained)

    @jax.jit
    def both(weights, x):
        module = nnx.merge(graph, weights)
        h = module.features(x)
        return h, module.out(h)

    def apply(x):
        parts = [both(weights, x[i : i + 500]) for i in range(0, len(x), 500)]
        return [np.concatenate([np.asarray(part[j]) for part in parts]) for j in (0, 1)]

    return apply


def draws(field, num, step, shape, seed):
    """Return {time: draws}, points of the same descents."""
    counts = [round(time / (SCALE * step)) for time in TIMES]
    every = int(np.gcd.reduce(counts))
    blocks = []
    for i in range(0, num, 1000):
        start = jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), (min(1000, num - i), *shape))
        path = ef.descend(field, start, step, max(counts), keep_every=every).path
        blocks.append(np.asarray(path[:, np.array(counts) // every]))
    return dict(zip(TIMES, np.concatenate(blocks).swapaxes(0, 1), strict=True))


def grid(images, file):
    side = int(len(images) ** 0.5)
    height, width = images.shape[1:3]
    tiles = np.asarray(images[: side * side, :, :, 0]).reshape(side, side, height, width)
    plt.imsave(file, tiles.transpose(0, 2, 1, 3).reshape(side * height, side * width), cmap="gray", vmin=-1, vmax=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128, 128])
    parser.add_argument("--draws", type=int, default=10000)
    parser.add_argument("--features-steps", type=int, default=2000)
    parser.add_argument("--step", type=float, default=0.005, help="of the descent")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop training after this long")
    parser.add_argument("--out", default="runs/images")
    options = parser.parse_args()
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    data = load_dataset(options.data, 0, whiten="none")
    shape = (*data.shape, 1)
    train, test = (jnp.asarray(data.part_x(p, 0), jnp.float32).reshape(-1, *shape) for p in ("train", "test"))
    with np.load(options.data) as file:
        images = jnp.asarray(2 * file["x_train"] / 255.0 - 1, jnp.float32)[..., None]
        labels = jnp.asarray(file["y_train"], jnp.int32)
        test_labels = file["y_test"]
    apply = classifier(images, labels, options.features_steps)
    features, logits = apply(test)
    accuracy = float((logits.argmax(axis=1) == test_labels).mean())
    floor = frechet_distance(apply(train[: len(test)])[0], features)
    print(f"classifier of the features: test accuracy {accuracy:.3f}; FID of training images {floor:.3f}", flush=True)

    field = unet_field(0, shape, tuple(options.channels))
    objective = ef.equilibrium_matching(scale=SCALE)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 5e-4, options.steps // 40, options.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    state = ef.init(0, field, objective, optimizer, train[: options.batch])
    step, began = ef.make_step(objective, optimizer, ema_decay=0.999), time.perf_counter()
    stream = ef.train(state, step, batches(train, options.batch, options.steps, 1))
    losses = []
    for reached, metrics in ef.training.guarded(stream, every=100):
        state = reached
        losses.append(metrics["loss"])
        if len(losses) % 500 == 0:
            spent = time.perf_counter() - began
            print(f"step {len(losses)}: loss {float(metrics['loss']):.4f}, {spent:.0f} s", flush=True)
            if spent > options.seconds:
                break
    jax.block_until_ready(state)
    spent = time.perf_counter() - began
    ef.save(str(folder / "field"), state.ema)
    rows = []
    for horizon, x in draws(state.ema, options.draws, options.step, shape, 2).items():
        h = apply(x)[0]
        near = [np.asarray(z[:2000]).reshape(2000, -1) for z in (x, test)] if len(x) >= 2000 else [x, test[: len(x)]]
        precision, recall = precision_recall(h[:5000], features[:5000])
        rows.append(
            {
                "time": horizon,
                "energy_distance": energy_distance(*near),
                "fid": frechet_distance(h, features[: len(h)]),
                "precision": precision,
                "recall": recall,
                "memorisation": memorisation(x[:300], train[: len(test)], test),
            }
        )
        print({key: round(value, 4) for key, value in rows[-1].items()}, flush=True)
        grid(x[:100], folder / f"draws-{horizon}.png")
    grid(test[:100], folder / "test.png")
    summary = {
        "device": str(jax.devices()[0].device_kind),
        "steps": len(losses),
        "seconds": spent,
        "accuracy": accuracy,
        "floor_fid": floor,
        "floor_energy_distance": energy_distance(*[np.asarray(z[:2000]).reshape(2000, -1) for z in (train, test)]),
        "loss": float(np.mean(losses[-200:])),
        "rows": rows,
    }
    print(json.dumps(summary | {"rows": len(rows)}))
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
