"""Laws of noise-level classification: at its optimum every level has its log density, and far modes their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import energyflow as ef
from energyflow.objectives import level_classification
from laws import assert_mean, assert_not_mean

pytestmark = pytest.mark.core

Z = np.linspace(-12.0, 12.0, 2001)
"""A grid of the noise: the trapezoid rule on it is exact to rounding for smooth functions of a Gaussian."""


def parts(energy, points, shares, sigmas):
    """Return the denoising loss and the cross-entropy of each level, (L,), for 1-d data: points with their shares."""
    weights = np.exp(-(Z**2) / 2)
    mass = jnp.asarray(np.outer(shares, weights / weights.sum()).ravel())
    x, z = jnp.asarray(np.repeat(points, Z.size)[:, None]), jnp.asarray(np.tile(Z, len(points))[:, None])
    ladder = jnp.broadcast_to(jnp.asarray(sigmas), (len(x), len(sigmas)))

    def level(own):
        owns = jnp.broadcast_to(own, len(x))
        misses, log_shares = level_classification._rows(energy, lambda y: y, x, ladder, owns, z)
        return mass @ misses[:, 0] ** 2 / 2, -mass @ log_shares[:, own]

    return jax.vmap(level)(jnp.arange(len(sigmas)))


def modes(weights, levels, x, sigma):
    """-log density of two Gaussians at -5 and 5 with variance sigma^2; `weights` of the first, one per level."""
    left = weights[jnp.argmin(jnp.abs(levels - sigma))]
    squares = (x[0] + jnp.array([5.0, -5.0])) ** 2 / (2 * sigma**2)
    return jnp.log(sigma) - jax.nn.logsumexp(jnp.log(jnp.stack([left, 1 - left])) - squares)


def modes_at(weights, sigmas):
    return Partial(modes, jnp.asarray(weights), jnp.asarray(sigmas))


def excesses(right, wrong, sigmas):
    """Return by how much wrong weights cost more: of both parts, the sum over levels and the mean over levels."""
    costs = [parts(modes_at(w, sigmas), [-5.0, 5.0], [0.25, 0.75], sigmas) for w in (right, wrong)]
    denoising, entropy = (np.asarray(b) - np.asarray(a) for a, b in zip(*costs, strict=True))
    return denoising.sum(), entropy.mean()


def test_the_score_is_blind_to_the_weights_of_far_modes_and_the_classifier_is_not():
    """Two points ten apart, weights .25 and .75 against .5 and .5 at the variance v, told from twice that variance.

    The divergence is .25 log .5 + .75 log 1.5 = 0.13 nats at v = 1. What the wrong weight costs there is eighteen
    thousand times more in cross-entropy than in denoising; where modes overlap, at v = 16, both see it.
    """
    with jax.enable_x64(True):
        found = {}
        for variance in (1.0, 4.0, 16.0):
            sigmas = np.sqrt([2 * variance, variance])
            found[variance] = excesses([0.25, 0.25], [0.25, 0.5], sigmas)
        denoising, entropy = np.transpose(list(found.values()))
        np.testing.assert_allclose(denoising, [1.55e-6, 8.87e-3, 4.18e-2], rtol=5e-3)
        np.testing.assert_allclose(entropy, [2.85e-2, 2.80e-2, 2.11e-2], rtol=5e-3)
        _, both = excesses([0.25, 0.25], [0.5, 0.5], np.sqrt([2.0, 1.0]))
        assert both < 1e-6  # wrong alike at both levels: it is the change between levels that is seen


def test_levels_too_far_apart_see_next_to_nothing():
    """A level of variance 10 000 is told apart with an accuracy of .98: a wrong weight costs a ninth of the above."""
    with jax.enable_x64(True):
        _, near = excesses([0.25, 0.25], [0.25, 0.5], np.sqrt([2.0, 1.0]))
        _, far = excesses([0.25, 0.25], [0.25, 0.5], np.sqrt([1e4, 1.0]))
        np.testing.assert_allclose([near, far], [2.85e-2, 3.04e-3], rtol=5e-3)


def test_neighbours_overlap_up_to_the_ratio_that_the_docstring_names(key):
    """Noise alone in a hundred dimensions at the ratio 1 + 2 / sqrt(d): nine of ten are told apart, at twice it all."""
    energy = Partial(lambda c, x, sigma: c * jnp.sum(x**2) / (2 * sigma**2) + 100 * jnp.log(sigma), jnp.asarray(1.0))
    for ratio, low, high in ((1.2, 0.88, 0.92), (1.4, 0.98, 1.0)):
        objective = ef.noise_level_classification([ratio, 1.0])
        _, (_, metrics) = objective.loss(energy, jnp.zeros((20_000, 100)), jax.random.clone(key), None)
        assert low < metrics["accuracy"] < high


SIGMAS = np.array([4.0, 2.0, 1.0, 0.5])
GRID = np.linspace(-9.0, 9.0, 31)
"""Points that stand for N(0, 1.3): with the shares below their sums with noise are Gaussian to 1e-9."""
SHARES = np.exp(-(GRID**2) / 2.6) / np.exp(-(GRID**2) / 2.6).sum()


def quadratic(variance, x, sigma):
    """The energy of N(0, variance + sigma^2) without its log Z."""
    return jnp.sum(x**2) / (2 * (variance + sigma**2))


def log_z_of(sigmas, variance=1.3):
    return 0.5 * np.log(2 * np.pi * (variance + np.asarray(sigmas) ** 2))


def test_a_density_is_stationary_in_any_direction_and_without_its_log_z_it_is_not(seed):
    with jax.enable_x64(True):
        a, b = jax.random.normal(jax.random.key(seed), (2, 6), float)

        def energy(size, logs, x, sigma):
            bump = jnp.sum(b * jnp.tanh(a * x[0] / 3 + b * jnp.log(sigma))) + jnp.log(sigma) ** 2
            return quadratic(1.3, x, sigma) + logs * jnp.log(1.3 + sigma**2) + size * bump

        def slopes(logs):
            costs = lambda size: jnp.stack(parts(Partial(energy, size, logs), GRID, SHARES, SIGMAS)).mean(axis=1)  # noqa: E731
            return jax.jacfwd(costs)(jnp.asarray(0.0))

        assert jnp.abs(slopes(jnp.asarray(0.5))).max() < 1e-6
        assert abs(slopes(jnp.asarray(0.0))[1]) > 1e-2
        assert abs(slopes(jnp.asarray(1.0))[1]) > 1e-2


def test_trained_constants_are_the_log_z_of_the_levels():
    """Newton's method on the exact loss of a variance and three constants; without constants the variance is wrong."""
    with jax.enable_x64(True):

        def fitted(energy, num=12):
            trainable, rest = ef.energy.partition(energy)
            flat, unravel = jax.flatten_util.ravel_pytree(trainable)
            cost = lambda w: parts(ef.energy.combine(unravel(w), rest), GRID, SHARES, SIGMAS)[1].mean()  # noqa: E731
            newton = jax.jit(lambda w: w - jnp.linalg.solve(jax.hessian(cost)(w), jax.grad(cost)(w)))
            for _ in range(num):
                flat = newton(flat)
            return flat

        start = Partial(quadratic, jnp.asarray(1.2))
        variance, *log_z = fitted(ef.normalised_levels(start, SIGMAS))
        exact = log_z_of(SIGMAS)
        assert abs(variance - 1.3) < 1e-6
        np.testing.assert_allclose(log_z, exact[1:] - exact[0], rtol=0, atol=1e-6)
        # Untrained, every constant is that of the first level.
        slope = jax.grad(lambda e: parts(e, GRID, SHARES, SIGMAS)[1].mean())(Partial(quadratic, jnp.asarray(1.3)))
        assert abs(slope.args[0]) > 1e-2


@pytest.mark.parametrize("num_levels", [None, 2])
def test_the_loss_has_the_exact_mean(num_levels, key):
    """Against the grid, averaged over the windows of neighbouring levels that a row may be told between."""
    sigmas, points, num = np.array([3.0, 1.5, 1.0, 0.4]), np.array([-1.0, 0.2, 1.5]), num_levels or 4
    energy = Partial(lambda a, x, sigma: jnp.sum(jnp.tanh(a * x[0] / sigma)) + x[0] ** 2 / 3, jnp.array([1.0, -0.3]))
    objective = ef.noise_level_classification(sigmas, num_levels=num_levels, denoising=0.5, classification=2.0)

    def draw(k):
        loss, (_, metrics) = objective.loss(energy, jnp.asarray(points, float)[:, None], k, None)
        return metrics["denoising"], metrics["classification"], loss

    found = jax.jit(jax.vmap(draw))(jax.random.split(key, 20_000))
    windows = [sigmas[i : i + num] for i in range(len(sigmas) - num + 1)]
    exact = np.array([[np.mean(p) for p in parts(energy, points, np.full(3, 1 / 3), w)] for w in windows]).mean(axis=0)
    for values, mean in zip(found, [*exact, 0.5 * exact[0] + 2 * exact[1]], strict=True):
        assert_mean(values, mean)
    assert_not_mean(found[1], np.log(num))  # that of guessing


def left_share(density):
    sides = [ef.log_z_quadrature(density, *box, 400) for box in (([-30.0], [0.0]), ([0.0], [30.0]))]
    return float(np.exp(sides[0] - np.logaddexp(*sides)))


@pytest.mark.lenient("optax")
@pytest.mark.parametrize("num_levels", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_a_trained_network_gives_far_modes_their_weights(num_levels, seed):
    """A quarter and three quarters, ten standard deviations apart; of six runs the worst was off by 0.013, of pairs by
    0.05. That denoising alone fails here is a test of dual score matching."""
    steps, data = 1000, ef.energies.gaussian_mixture([[-5.0], [5.0]], 1.0, [0.25, 0.75])
    ladder = np.geomspace(30.0, 0.1, 10)
    objective = ef.noise_level_classification(ladder, num_levels=num_levels)
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, steps))
    energy = ef.noise_conditional_mlp(seed, 1, (32, 32), scale=5.0)
    state = ef.init(seed, energy, objective, optimizer, data.sample(jax.random.key(0), 256))
    step = ef.make_step(objective, optimizer, ema_decay=0.99)
    for k in jax.random.split(jax.random.key(seed + 1), steps):
        state, metrics = step(state, data.sample(k, 256))
    result = ef.normalise_at(seed, state.ema, data.sample(jax.random.key(seed + 2), 4000), ladder[0])
    density = ef.condition(result.energy, ladder[-1])
    assert abs(left_share(density) - 0.25) < 0.1
    assert abs(ef.log_z_quadrature(density, [-30.0], [30.0], 400)) < 0.3
    assert metrics["accuracy"] < 0.8


def test_positions_may_be_any_pytree(key):
    parts = {"a": jax.random.normal(key, (6, 1)), "b": jax.random.normal(jax.random.fold_in(key, 1), (6, 3))}
    whole = jnp.concatenate([parts["a"], parts["b"]], axis=1)
    energy = Partial(lambda c, x, sigma: c * jnp.sum(x**4) / (1 + sigma), jnp.asarray(0.1))
    split = Partial(lambda e, x, sigma: e(jnp.concatenate([x["a"], x["b"]]), sigma), energy)
    objective = ef.noise_level_classification([2.0, 1.0, 0.5])
    pair = [objective.loss(e, x, jax.random.key(2), None)[0] for e, x in ((energy, whole), (split, parts))]
    np.testing.assert_allclose(*pair, rtol=1e-5)


def test_new_weights_and_ladders_compile_nothing(count_compilations, key):
    batch, optimizer = jax.random.normal(key, (8, 2)), optax.sgd(0.1)
    other = batch + 1
    energy = ef.normalised_levels(Partial(quadratic, jnp.asarray(1.0)), [2.0, 1.0, 0.5])
    objective = ef.noise_level_classification([2.0, 1.0, 0.5], num_levels=2)
    state = ef.init(0, energy, objective, optimizer, batch)
    state, _ = ef.make_step(objective, optimizer)(state, batch)
    with count_compilations() as made:
        objective = ef.noise_level_classification([3.0, 1.0, 0.2], num_levels=2, denoising=0.0, classification=3.0)
        state, metrics = ef.make_step(objective, optimizer)(state, other)
    assert made.count == 0 and np.isfinite(metrics["loss"])


def test_bad_settings_and_landscapes_are_refused():
    for sigmas in ([1.0, 2.0], [1.0, 1.0], [1.0, 0.0], np.ones((2, 2))):
        with pytest.raises(ValueError, match="sigmas must be"):
            ef.noise_level_classification(sigmas)
    for sigmas, num in (([1.0], None), ([2.0, 1.0], 3), ([2.0, 1.0], 1)):
        with pytest.raises(ValueError, match="num_levels must be between 2 and"):
            ef.noise_level_classification(sigmas, num_levels=num)
    energy = ef.landscape(Partial(quadratic, jnp.asarray(1.0)))
    with pytest.raises(ValueError, match="landscape"):
        ef.init(0, energy, ef.noise_level_classification([2.0, 1.0]), optax.sgd(0.1), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="float32 or float64"):
        energy = Partial(quadratic, jnp.asarray(1.0))
        ef.init(0, energy, ef.noise_level_classification([2.0, 1.0]), optax.sgd(0.1), jnp.ones((3, 2), int))
