"""Recovery likelihood on Gaussians, where the conditional densities, the chains and their bias are known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import energyflow as ef
from energyflow.chains import chain_keys
from energyflow.diffusion import linear_diffusion, log_snr_diffusion
from energyflow.energies.levels import level_mlp, level_mlp_field
from energyflow.objectives.recovery import published_recovery, recovery_likelihood
from energyflow.recovery import first_point, recover, recovery_rungs, recovery_sample, with_initialiser

DIFFUSION = linear_diffusion(6)
RUNGS = recovery_rungs(DIFFUSION)
VARIANCE, MEAN = 0.25, 0.7


def gaussian_levels(factor=1.0):
    """Energies of the levels of data N(0.7, 0.25), their precisions times `factor`."""
    variances = DIFFUSION.alphas[:-1] ** 2 * VARIANCE + DIFFUSION.sigmas[:-1] ** 2
    return Partial(quadratic, jnp.asarray(factor / variances, float), jnp.asarray(DIFFUSION.alphas[:-1] * MEAN, float))


def quadratic(precisions, centers, x, level):
    return 0.5 * precisions[level] * jnp.sum((x - centers[level]) ** 2)


def rows(key, num):
    return MEAN + VARIANCE**0.5 * jax.random.normal(jax.random.key(key), (num, 1))


def slopes(objective, energy, repeats=24, num=1024, first=100):
    """Return the gradient of the loss by each log precision, (repeats, T), of independent batches."""
    state = objective.init(jax.random.key(0), energy, rows(0, num))

    @jax.jit
    def one(energy, key, batch):
        return jax.grad(lambda e: objective.loss(e, batch, key, state)[0], allow_int=True)(energy)

    found = [one(energy, jax.random.key(first + i), rows(first + i, num)).args[0] for i in range(repeats)]
    return np.asarray(found) * np.asarray(energy.args[0])[None]


def z_scores(values, expected=0.0):
    return (values.mean(axis=0) - expected) / (values.std(axis=0, ddof=1) / len(values) ** 0.5)


CONVERGED = {"num_steps": 80, "step_size": 0.3, "target_acceptance": None}


def test_the_gradient_is_zero_at_the_energies_of_the_levels_and_signed_beside_them():
    """24 batches: a mean within 4.5 standard errors (t with 23 degrees of freedom, 6 levels: p = .001)."""
    objective = recovery_likelihood(DIFFUSION, **CONVERGED)
    assert np.abs(z_scores(slopes(objective, gaussian_levels()))).max() < 4.5
    assert (z_scores(slopes(objective, gaussian_levels(1.3))) > 3).all()
    assert (z_scores(slopes(objective, gaussian_levels(0.75))) < -3).all()


def conditional_moments(precision, center, level, noisy):
    total = precision + float(RUNGS.precisions[level])
    return (precision * center + float(RUNGS.precisions[level] * RUNGS.centers[level]) * noisy) / total, 1 / total


@pytest.mark.parametrize("kernel", [ef.mala, ef.ula])
@pytest.mark.parametrize("level", [0, 3])
def test_chains_are_those_of_the_conditional_density(kernel, level):
    """Langevin on a Gaussian is linear: mean and variance after K moves, and MALA's are those of the density."""
    energy, num, steps, noisy = gaussian_levels(), 20000, 40, 0.9
    rung = jax.tree.map(lambda x: x[level], RUNGS)
    h = 0.2 * rung.variances
    start = rung.centers * noisy * jnp.ones((num, 1))
    keys = chain_keys(jax.random.key(level), num)
    points = jnp.full((num, 1), noisy)
    run = jax.vmap(lambda k, y, x: recover(k, energy, kernel(h), rung, level, y, x, steps)[0].position)
    found = np.asarray(run(keys, points, start))
    mean, variance = conditional_moments(float(energy.args[0][level]), float(energy.args[1][level]), level, noisy)
    if kernel is ef.ula:
        decay = 1 - float(h) / variance
        mean = mean + decay**steps * (float(start[0, 0]) - mean)
        variance = 2 * float(h) * (1 - decay ** (2 * steps)) / (1 - decay**2)
    assert abs(found.mean() - mean) < 4.5 * (variance / num) ** 0.5
    assert abs(found.var() / variance - 1) < 4.5 * (2 / num) ** 0.5


def fixed_point(squared, steps, level=1):
    """Return the precision times the variance at which K Langevin moves of step squared/2 from x'/a match the data.

    In points a x, as published: var(x_K) = decay^2K var(a x) + ... of a chain that starts at x' = a x + s z.
    """
    a, s = (float(x[level]) for x in (RUNGS.shrinks, RUNGS.spreads))
    variance = a**2 * (DIFFUSION.alphas[level] ** 2 * VARIANCE + DIFFUSION.sigmas[level] ** 2)

    def excess(precision):
        rate = squared / 2 * (precision + 1 / s**2)
        decay, pull = (1 - rate) ** steps, 1 / s**2 / (precision + 1 / s**2)
        towards = decay + (1 - decay) * pull  # of x' in the mean of x_K
        return towards**2 * (variance + s**2) + squared * (1 - decay**2) / (1 - (1 - rate) ** 2) - variance

    low, high = 0.1, 1000.0
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if excess(middle / variance) > 0 else (low, middle)
    return low


def test_short_chains_from_the_noisy_point_make_energies_too_sharp():
    """With the published step, 30 moves and the level of s^2 = .00173: zero gradient at four times the precision."""
    settings = published_recovery(DIFFUSION)
    s = np.asarray(RUNGS.spreads)
    squared = 2e-4 * DIFFUSION.sigmas[:-1] / DIFFUSION.sigmas[0] * s**2
    np.testing.assert_allclose(squared[1], 0.00173, atol=1e-5)
    factor = fixed_point(squared[1], 30)
    published = recovery_likelihood(DIFFUSION, 30, kernel=ef.ula, start="noisy", **settings)
    at_bias = z_scores(slopes(published, gaussian_levels(factor)))[1]
    at_truth = z_scores(slopes(published, gaussian_levels()))[1]
    assert abs(at_bias) < 4.5 and at_truth < -20
    assert 3 < factor < 6
    # The remedies: longer steps in the same formula, and the defaults as they are.
    assert fixed_point(0.03, 30) < 1.2 < fixed_point(0.01, 30)
    remedied = slopes(recovery_likelihood(DIFFUSION, 30, step_size=0.3, target_acceptance=None), gaussian_levels())
    assert np.abs(z_scores(remedied)).max() < 4.5


def test_one_noise_for_both_points_keeps_the_gradient_and_lowers_its_variance():
    found = {
        shared: slopes(recovery_likelihood(DIFFUSION, shared_noise=shared, **CONVERGED), gaussian_levels(1.3), 48, 512)
        for shared in (False, True)
    }
    means = [values.mean(axis=0) for values in found.values()]
    errors = sum(values.var(axis=0, ddof=1) / 48 for values in found.values()) ** 0.5
    assert (np.abs(means[0] - means[1]) < 4.5 * errors).all()
    # F(47, 47) of 6 levels together: the ratio of summed variances lies within a factor 1.5 of its mean.
    assert found[True].var(axis=0).sum() < found[False].var(axis=0).sum()


def linear_guess(weights, x, level):
    slope, offset = weights
    return slope[level] * x + offset[level]


def test_the_initialiser_is_right_at_the_mean_of_the_chains_ends():
    """The gradient of a linear guess is 0 at E[x | x'], which for Gaussians is linear, and not beside it."""
    energy, a, s = gaussian_levels(), np.asarray(RUNGS.shrinks, np.float64), np.asarray(RUNGS.spreads, np.float64)
    variances = 1 / np.asarray(energy.args[0], np.float64)
    slope = a * variances / (a**2 * variances + s**2)
    # The chain of the last level ignores x': its mean is that of the level.
    slope[-1] = 0.0
    centers = np.asarray(energy.args[1], np.float64)
    offset = centers - slope * a * centers
    objective = recovery_likelihood(DIFFUSION, **CONVERGED)

    def gradients(shift):
        guess = Partial(linear_guess, (jnp.asarray(slope + shift, float), jnp.asarray(offset, float)))
        both = with_initialiser(energy, guess)
        state = objective.init(jax.random.key(0), both, rows(0, 1024))

        @jax.jit
        def one(both, key, batch):
            found = jax.grad(lambda e: objective.loss(e, batch, key, state)[0])(both)
            return found.initialiser.args[0][0]

        return np.asarray([one(both, jax.random.key(i), rows(i, 1024)) for i in range(24)])

    assert np.abs(z_scores(gradients(0.0))).max() < 4.5
    assert (z_scores(gradients(0.3)) > 5).all()


def test_an_exact_guess_needs_no_moves():
    """Data at one point: x given x' and the datum is the guess plus the backward noise, and one move keeps that law."""
    alphas, sigmas = (np.asarray(x, np.float64) for x in (RUNGS.alphas, RUNGS.sigmas))
    energy = Partial(quadratic, jnp.asarray(1 / sigmas**2, float), jnp.asarray(alphas * MEAN, float))
    level, num, noisy = 2, 20000, 1.1
    a, s = float(RUNGS.shrinks[level]), float(RUNGS.spreads[level])
    mean, variance = conditional_moments(1 / sigmas[level] ** 2, alphas[level] * MEAN, level, noisy)
    slope = (a / s**2) * variance
    both = with_initialiser(energy, Partial(linear_guess, (jnp.full(6, slope), jnp.full(6, mean - slope * noisy))))
    rung = jax.tree.map(lambda x: x[level], RUNGS)
    points = jnp.full((num, 1), noisy)
    begin = jax.vmap(lambda k, y: first_point(k, both, rung, level, y, "noisy"))
    first = begin(chain_keys(jax.random.key(0), num), points)
    move = jax.vmap(lambda k, y, x: recover(k, both, ef.mala(0.1), rung, level, y, x, 1)[0].position)
    for found in (first, move(chain_keys(jax.random.key(1), num), points, first)):
        assert abs(float(found.mean()) - mean) < 4.5 * (variance / num) ** 0.5
        assert abs(float(found.var()) / variance - 1) < 4.5 * (2 / num) ** 0.5


def test_going_down_all_levels_draws_the_data():
    """Exact energies and 4000 chains: moments of level 0; energies of twice the precision give other ones."""
    start = jax.random.normal(jax.random.key(3), (4000, 1))
    variance = DIFFUSION.alphas[0] ** 2 * VARIANCE + DIFFUSION.sigmas[0] ** 2

    def ratio(factor):
        draws = recovery_sample(1, gaussian_levels(factor), DIFFUSION, start, num_steps=60, step_size=0.3)
        assert draws.acceptance.shape == (6,) and draws.num_gradients == 4000 * 6 * 61
        return float(draws.position.mean()), float(draws.position.var() / variance)

    mean, spread = ratio(1.0)
    assert abs(mean - MEAN) < 4.5 * (variance / 4000) ** 0.5
    assert abs(spread - 1) < 4.5 * (2 / 4000) ** 0.5
    assert ratio(2.0)[1] < 0.75


def test_the_denoised_draw_is_the_mean_of_the_datum():
    """Tweedie's formula on a Gaussian: the mean of the datum is m + alpha v (x - alpha m) / (alpha^2 v + sigma^2)."""
    diffusion = log_snr_diffusion(4, -5.0, 1.0)
    alpha, sigma = float(diffusion.alphas[0]), float(diffusion.sigmas[0])
    precision = 1 / (alpha**2 * VARIANCE + sigma**2)
    energy = Partial(quadratic, jnp.full(4, precision, float), jnp.full(4, alpha * MEAN, float))
    start = jax.random.normal(jax.random.key(0), (8, 1))
    plain, mean = (recovery_sample(1, energy, diffusion, start, denoise=flag).position for flag in (False, True))
    expected = MEAN + alpha * VARIANCE * precision * (plain - alpha * MEAN)
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)


def test_new_weights_and_steps_compile_nothing_and_steps_follow_the_acceptance(count_compilations):
    energy, optimizer = level_mlp(0, 2, 6, (8,)), optax.sgd(1e-3)
    batch = jax.random.normal(jax.random.key(0), (64, 2))
    for scale in (0.1, 0.2):
        objective = recovery_likelihood(DIFFUSION, 4, step_size=scale)
        state = ef.init(0, energy, objective, optimizer, batch)
        step = ef.make_step(objective, optimizer)
        if scale == 0.2:
            with count_compilations() as made:
                state, _ = step(state, batch)
            assert made.count == 0
        for _ in range(30):
            state, metrics = step(state, batch)
    steps = np.asarray(state.objective_state.step_sizes)
    assert steps.shape == (6,) and (steps != 0.2).all()
    assert abs(float(metrics["acceptance_rate"]) - 0.6) < 0.15


def test_both_parts_of_an_initialised_energy_train():
    both = with_initialiser(level_mlp(0, 2, 6, (8,)), level_mlp_field(1, 2, 6, (8,)))
    batch = jax.random.normal(jax.random.key(0), (32, 2))
    objective = recovery_likelihood(DIFFUSION, 2)
    state = objective.init(jax.random.key(1), both, batch)
    found = jax.grad(lambda e: objective.loss(e, batch, jax.random.key(2), state)[0], allow_int=True)(both)
    for part in (found.energy, found.initialiser):
        leaves = jax.tree.leaves(ef.energy.partition(part)[0])
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in leaves) and any(bool(leaf.any()) for leaf in leaves)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="step sizes must be positive"):
        recovery_likelihood(DIFFUSION, 0)
    with pytest.raises(ValueError, match="target_acceptance"):
        recovery_likelihood(DIFFUSION, target_acceptance=1.5)
    with pytest.raises(ValueError, match="is a landscape"):
        recovery_likelihood(DIFFUSION).init(jax.random.key(0), ef.landscape(gaussian_levels()), rows(0, 8))
    with pytest.raises(ValueError, match="step sizes must be positive"):
        recovery_sample(0, gaussian_levels(), DIFFUSION, jnp.zeros((2, 1)), step_size=-1.0)
