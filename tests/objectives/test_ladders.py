"""Ladders trained whole and judged by draws: their energy distance to test rows, biased, beside that of other rows."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.spatial.distance import cdist

import energyflow as ef
from energyflow.energies import eight_gaussians
from energyflow.loaders import load_dataset

pytestmark = [pytest.mark.slow, pytest.mark.lenient("optax")]


def distance(x, y):
    return 2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean()


def drawn(train, energy, diffusion, moves, steps, num, seed, shared_noise=False):
    """Train with batches of 256 rows and draw by the steps that training found."""
    objective = ef.recovery_likelihood(diffusion, moves, shared_noise=shared_noise)
    schedule = optax.cosine_decay_schedule(2e-3 if train.shape[1] == 2 else 1e-3, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule))
    rng = np.random.default_rng(seed)
    batches = (train[rng.integers(len(train), size=256)] for _ in range(steps))
    start = ef.init(seed, energy, objective, optimizer, train[:256])
    [(state, _)] = deque(ef.train(start, ef.make_step(objective, optimizer, ema_decay=0.995), batches), maxlen=1)
    noise = jax.random.normal(jax.random.key(seed + 1), (num, train.shape[1]))
    sizes = np.asarray(state.objective_state.step_sizes)
    draws = ef.recovery_sample(seed, state.ema, diffusion, noise, num_steps=moves, step_size=sizes)
    return np.asarray(draws.position, np.float64) / diffusion.alphas[0]


@pytest.mark.parametrize("cooperative", [False, True])
def test_digits_are_drawn_within_three_times_the_distance_of_others(cooperative, seed):
    data = load_dataset("digits", 0, whiten="none")
    train, test = data.part_x("train", 0), data.part_x("test", 0)
    center, scale = train.mean(axis=0), train.std()
    rows = ((train - center) / scale).astype(np.float32)
    energy = ef.level_mlp(seed, 64, 6, (256, 256))
    if cooperative:
        guess = ef.level_mlp_field(seed + 1, 64, 6, (256, 256))
        draws = drawn(rows, ef.with_initialiser(energy, guess), ef.log_snr_diffusion(6), 15, 1500, 450, seed, True)
    else:
        draws = drawn(rows, energy, ef.linear_diffusion(6), 20, 1500, 450, seed)
    assert distance(draws * scale + center, test) < 3 * distance(train[:450], test)


def test_eight_gaussians_are_drawn_within_twice_the_distance_of_others(seed):
    """Means over three sets of 2000: one alone scatters from half to twice the distance of the law itself."""
    source = eight_gaussians()
    sets = [np.asarray(source.sample(jax.random.key(100 * seed + i), 2000)) / 2.87 for i in range(7)]
    train = np.asarray(source.sample(jax.random.key(100 * seed + 9), 50000)) / 2.87
    energy = ef.level_mlp(seed, 2, 6, (128, 128, 128))
    draws = drawn(jnp.asarray(train), energy, ef.linear_diffusion(6), 15, 12000, 6000, seed)
    found = [distance(part, other) for part, other in zip(np.split(draws, 3), sets[:3], strict=True)]
    floor = [distance(one, other) for one, other in zip(sets[3:6], sets[:3], strict=True)]
    assert np.mean(found) < 2 * np.mean(floor)
