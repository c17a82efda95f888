"""Annealed Langevin: exact on Gaussians, in the right proportions on a mixture, and Tweedie's mean at its end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import energyflow as ef
from laws import assert_mean, assert_not_mean

pytestmark = pytest.mark.core

NUM = 4096
WEIGHTS, CENTRES, SPREAD = np.array([0.8, 0.2]), np.array([-4.0, 4.0]), 0.3


def noisy_gaussian(scale, x, sigma):
    """N(0, scale^2) with noise of scale sigma added, in every coordinate."""
    return jnp.sum(x**2) / (2 * (scale**2 + sigma**2))


def noisy_mixture(x, sigma):
    """Two Gaussians at (-4, 0) and (4, 0) of weights 0.8 and 0.2, with noise added."""
    centres = jnp.stack([jnp.asarray(CENTRES, float), jnp.zeros(2)], axis=1)
    squares = jnp.sum((x[None, :] - centres) ** 2, axis=1)
    return -jax.nn.logsumexp(jnp.log(jnp.asarray(WEIGHTS, float)) - squares / (2 * (SPREAD**2 + sigma**2)))


def starts(key, sigma, dim=2, num=NUM):
    return sigma * jax.random.normal(key, (num, dim))


def shares(result):
    return (np.asarray(result.position)[:, 0] < 0).astype(float)


LADDER = np.geomspace(8.0, 0.1, 28)


@pytest.mark.parametrize("kernel", [ef.ula, ef.mala])
def test_the_weights_of_a_mixture_are_recovered(kernel, key):
    """Noise changes no weight, so chains in equilibrium where the modes still touch keep 0.8 to 0.2 on the way down.

    They freeze where a level's 100 moves of 0.1 sigma^2 no longer cross. The lag behind equilibrium there, 0.005 by
    runs of 49,152 chains, is under two thirds of a standard error of the 2048 here.
    """
    start_key, run_key = jax.random.split(key)
    result = ef.annealed_langevin(run_key, noisy_mixture, LADDER, starts(start_key, LADDER[0], num=2048), kernel=kernel)
    assert_mean(shares(result), WEIGHTS[0])
    from_mode = np.abs(np.asarray(result.position)[:, 0]) - 4.0
    assert np.abs(from_mode).max() < 6 * np.hypot(SPREAD, LADDER[-1])  # none is left between the modes


def test_langevin_at_the_last_level_does_not_recover_them(key):
    """The negative control: as many steps from the same starts, all at the smallest noise, end where they began."""
    start_key, run_key = jax.random.split(key)
    steps = 100 * len(LADDER)
    result = ef.annealed_langevin(
        run_key, noisy_mixture, LADDER[-1:], starts(start_key, LADDER[0], num=2048), num_steps=steps, step_size=0.01
    )
    assert_not_mean(shares(result), WEIGHTS[0])
    assert_mean(shares(result), 0.5)  # the starts are symmetric


def exact_variance(sigmas, steps, num_steps, scale, first):
    """The variance of unadjusted Langevin after a ladder: v <- (1 - h lambda)^2 v + 2h at every transition."""
    variance = first
    for sigma, h in zip(sigmas, steps, strict=True):
        for _ in range(num_steps):
            variance = (1 - h / (scale**2 + sigma**2)) ** 2 * variance + 2 * h
    return variance


@pytest.mark.parametrize("num_steps", [2, 80])
def test_unadjusted_langevin_has_its_exact_variance_on_a_gaussian(num_steps, key):
    """After few steps from a wide start it depends on every level's step; other conventions for the step are caught."""
    start_key, run_key = jax.random.split(key)
    sigmas, last, wide = np.array([2.0, 1.0, 0.6]), 0.2, 8.0
    energy = Partial(noisy_gaussian, 1.0)
    start = starts(start_key, wide)
    result = ef.annealed_langevin(run_key, energy, sigmas, start, num_steps=num_steps, step_size=last)
    steps = last * (sigmas / 0.6) ** 2
    np.testing.assert_allclose(result.steps, steps)
    square = np.asarray(result.position) ** 2
    assert_mean(square, exact_variance(sigmas, steps, num_steps, 1.0, wide**2))
    if num_steps == 2:
        for wrong in (steps / 2, last * sigmas / 0.6):
            assert_not_mean(square, exact_variance(sigmas, wrong, num_steps, 1.0, wide**2))


@pytest.mark.parametrize("num_levels", [1, 3])
@pytest.mark.parametrize("kernel", [ef.ula, ef.mala], ids=["ula", "mala"])
def test_every_level_is_at_temperature_one(kernel, num_levels, key):
    """The variance of level i is s^2 + sigma_i^2 with an accept step, and ULA's 1/(lambda (1 - h lambda / 2)) without.

    h lambda is at least 0.08, so 150 steps shrink a start's excess of variance of at most 4 by (1 - 0.08)^300 < 1e-10.
    """
    start_key, run_key = jax.random.split(key)
    sigmas = np.array([2.0, 1.0, 0.5])[:num_levels]
    step, variance = 0.4 * sigmas[-1] ** 2, 1.0 + sigmas[-1] ** 2
    energy = Partial(noisy_gaussian, 1.0)
    result = ef.annealed_langevin(
        run_key, energy, sigmas, starts(start_key, 2.0), num_steps=150, step_size=step, kernel=kernel
    )
    square = np.asarray(result.position) ** 2
    biased = variance / (1 - step / variance / 2)
    assert_mean(square, variance if kernel is ef.mala else biased)
    assert_not_mean(square, 0.8 * variance)
    assert (result.acceptance is None) == (kernel is ef.ula)


def test_any_kernel_follows_the_levels(key):
    """HMC by its length, and Langevin at T = 1/2, whose noise scale must follow the level's step too."""
    start_key, hmc_key, sgld_key = jax.random.split(key, 3)
    energy, sigmas, start = Partial(noisy_gaussian, 1.0), np.array([2.0, 0.5]), starts(start_key, 2.0)
    settings = {"num_steps": 60, "step_size": 0.1}
    hmc = ef.annealed_langevin(hmc_key, energy, sigmas, start, kernel=lambda h: ef.hmc((2 * h) ** 0.5, 3), **settings)
    assert_mean(np.asarray(hmc.position) ** 2, 1.25)
    cold = functools.partial(ef.sgld, temperature=0.5)
    sgld = ef.annealed_langevin(sgld_key, energy, sigmas, start, kernel=cold, **settings)
    # At temperature T the recursion of the variance is v <- (1 - h lambda)^2 v + 2hT, linear in (v, T).
    variance = 0.5 * exact_variance(sigmas, sgld.steps, 60, 1.0, 2 * 4.0)
    assert_mean(np.asarray(sgld.position) ** 2, variance)


def test_denoising_is_the_mean_given_the_noisy_point(key):
    """On a Gaussian it is x s^2 / (s^2 + sigma^2) (Tweedie); one more gradient a chain."""
    start_key, run_key = jax.random.split(key)
    sigmas, start = np.array([1.0, 0.5]), starts(start_key, 1.0, num=64)
    run = functools.partial(ef.annealed_langevin, energy=Partial(noisy_gaussian, 0.7), sigmas=sigmas, num_steps=5)
    noisy = run(jax.random.clone(run_key), position=start)
    clean = run(run_key, position=start, denoise=True)
    np.testing.assert_allclose(clean.position, np.asarray(noisy.position) * 0.49 / (0.49 + 0.25), rtol=1e-5, atol=1e-6)
    assert (noisy.num_gradients, clean.num_gradients) == (64 * 2 * 5, 64 * 2 * 5 + 64)


def test_a_temperature_divides_the_energy_in_the_moves_and_in_the_denoising(key):
    """At T = 2 half the energy: the same run, draw for draw."""
    start_key, run_key = jax.random.split(key)
    start = starts(start_key, 1.0, num=16)
    energy = Partial(noisy_gaussian, 1.0)
    warm = ef.annealed_langevin(jax.random.clone(run_key), ef.tempered(energy, 2.0), [1.0, 0.5], start, denoise=True)
    half = ef.annealed_langevin(run_key, lambda x, sigma: energy(x, sigma) / 2, [1.0, 0.5], start, denoise=True)
    np.testing.assert_allclose(warm.position, half.position, rtol=1e-4, atol=1e-5)


def test_points_are_pytrees_and_gradients_are_counted(key):
    def energy(x, sigma):
        return (jnp.sum(x["a"] ** 2) + x["b"] ** 2) / (2 * (1 + sigma**2))

    result = ef.annealed_langevin(
        key, energy, [1.0, 0.5], {"a": np.zeros((8, 2)), "b": np.zeros(8)}, num_steps=3, kernel=ef.mala
    )
    assert result.position["a"].shape == (8, 2) and result.position["b"].shape == (8,)
    assert result.acceptance is not None
    assert result.acceptance.shape == result.jump_distance.shape == result.divergent.shape == result.steps.shape == (2,)
    assert result.num_gradients == 8 * 2 * (3 + 1)  # a cached kernel takes one gradient to start at every level
    assert (result.jump_distance > 0).all() and (result.divergent == 0).all()


@pytest.mark.parametrize("kernel", [ef.ula, lambda h: ef.mala(h, np.ones(2))], ids=["ula", "mala"])
def test_new_weights_and_levels_cost_no_compilation(kernel, key, count_compilations):
    keys = jax.random.split(key, 2)
    ladders, weights = ([2.0, 1.0], [3.0, 0.5]), (1.0, 0.5)
    start = np.zeros((4, 2), np.float32)
    run = functools.partial(ef.annealed_langevin, num_steps=2, kernel=kernel, denoise=True)
    run(keys[0], Partial(noisy_gaussian, weights[0]), ladders[0], start)
    second = keys[1]
    with count_compilations() as made:
        run(second, Partial(noisy_gaussian, weights[1]), ladders[1], start)
    assert made.count == 0


GOOD = np.zeros((4, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigmas": [0.5, 1.0]}, "strictly decreasing"),
        ({"sigmas": [1.0, 1.0]}, "strictly decreasing"),
        ({"sigmas": [1.0, float("nan")]}, "finite, positive and strictly decreasing"),
        ({"sigmas": [1.0, 0.0]}, "finite, positive and strictly decreasing"),
        ({"sigmas": 1.0}, r"shape \(L,\); got shape \(\)"),
        ({"sigmas": []}, r"shape \(L,\); got shape \(0,\)"),
        ({"position": np.full((4, 2), np.nan)}, "starts hold values that are not finite"),
        ({"position": 0.0}, r"leading axis \[chain\]"),
        ({"position": {"a": np.zeros((4, 2)), "b": np.zeros(3)}}, r"leading axis \[chain\]"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"step_size": float("nan")}, "step_size must be positive"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"energy": lambda x, sigma: x / sigma}, "an energy must return a scalar"),
    ],
)
def test_what_is_no_ladder_is_refused(changes, message):
    arguments = {"energy": Partial(noisy_gaussian, 1.0), "sigmas": [1.0, 0.5], "position": GOOD} | changes
    with pytest.raises(ValueError, match=message):
        ef.annealed_langevin(0, **arguments)


@pytest.mark.parametrize("kernel", [ef.mala(0.1), ef.ula(0.1), 0.1], ids=["mala", "ula", "number"])
def test_a_kernel_whose_step_is_set_is_refused(kernel):
    with pytest.raises(TypeError, match="kernel makes a kernel of each level's step"):
        ef.annealed_langevin(0, Partial(noisy_gaussian, 1.0), [1.0, 0.5], GOOD, kernel=kernel)
