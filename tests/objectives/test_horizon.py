"""How long to descend: landscapes trained on moons and on digits are best after a time of 1 to 6, and worse past it.

Published runs stop at 1.7 to 3 (Wang and Du 2025). The bounds are twice the energy distances that a first
implementation of the same equations had at its best, .009 on the moons, .014 and .011 on the digits.
"""

from collections import deque

import jax
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits, make_moons
from sklearn.neighbors import KNeighborsClassifier

import energyflow as ef
from energyflow.stats import energy_distance

pytestmark = [pytest.mark.slow, pytest.mark.lenient("optax")]

SCALE, STEP = 4.0, 0.005


def trained(field, data, decay, rate, num_steps, seed):
    rng = np.random.default_rng(seed)
    objective = ef.equilibrium_matching(decay, scale=SCALE)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, num_steps))
    batches = (data[rng.integers(len(data), size=256)] for _ in range(num_steps))
    state = ef.init(seed, field, objective, optimizer, data[:256])
    state, _ = deque(ef.train(state, ef.make_step(objective, optimizer), batches), maxlen=1).pop()
    return state.energy


def drawn(field, times, num, dim, key):
    """Return samples (num, dim) after each of `times`, from one descent of noise."""
    every = round(0.1 / (SCALE * STEP))
    noise = jax.random.normal(key, (num, dim))
    path = ef.descend(field, noise, STEP, round(max(times) * 10) * every, keep_every=every).path
    return {time: np.asarray(path[:, round(time * 10)]) for time in times}


def test_on_two_moons_a_short_descent_is_best(seed, key):
    x, upper = make_moons(40_000, noise=0.05, random_state=seed)
    x = (0.5 * (x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)
    field = trained(ef.mlp_field(seed, 2), x[::2], "truncated", 2e-3, 6000, seed)
    samples = drawn(field, (0.5, 1.0, 1.5, 2.0, 5.0, 10.0), 2000, 2, key)
    fresh = x[1::2][np.random.default_rng(seed).choice(20_000, 2000, replace=False)]
    found = {time: energy_distance(y, fresh) for time, y in samples.items()}
    best = min(found, key=found.__getitem__)
    assert best in (1.0, 1.5) and found[best] < 2 * 0.009, found
    assert found[10.0] > 5 * found[best], found
    moon = KNeighborsClassifier(1).fit(x[::20], upper[::20]).predict(samples[best])
    assert abs(moon.mean() - 0.5) < 4.5 * 0.5 / 2000**0.5 + 0.03


@pytest.mark.parametrize(
    ("decay", "times", "good", "bound"),
    [("truncated", (1.0, 1.7, 3.0, 6.0, 20.0), (1.7, 3.0), 0.028), ("linear", (1.7, 3.0, 6.0, 20.0), (6.0,), 0.022)],
)
def test_on_digits_each_decay_has_its_time(decay, times, good, bound, seed, key):
    """Judged by the mean over two trainings on other splits: against 360 rows one of them is .015 to .022 at best."""
    pixels, labels = load_digits(return_X_y=True)
    x = (pixels / 8 - 1).astype(np.float32)

    def one(seed, key):
        order = np.random.default_rng(seed).permutation(len(x))
        data, held_out = x[order[:1437]], x[order[1437:]]
        field = trained(ef.residual_mlp_field(seed, 64), data, decay, 1e-3, 5000, seed)
        samples = drawn(field, times, 1000, 64, key)
        return samples, np.array([energy_distance(y, held_out) for y in samples.values()])

    runs = [one(2 * seed + i, k) for i, k in enumerate(jax.random.split(key))]
    found = dict(zip(times, np.mean([distances for _, distances in runs], axis=0), strict=True))
    best = min(found, key=found.__getitem__)
    print(f"{decay}: {found}")
    assert best in good and found[best] < bound, found
    assert found[20.0] > 5 * found[best], found
    for samples, _ in runs:
        digits = KNeighborsClassifier(1).fit(x, labels).predict(samples[best])
        assert np.abs(np.bincount(digits, minlength=10) / 1000 - 0.1).max() < 4.5 * (0.1 * 0.9 / 1000) ** 0.5 + 0.02
