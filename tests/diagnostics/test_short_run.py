"""Laws behind the diagnostics of short runs, and that the diagnostics tell a density from a mere sampler."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial, register_dataclass
from scipy.optimize import root

import energyflow as ef
from energyflow.chains import SamplingStopped
from energyflow.diagnostics.short_run import gap_report, long_run
from laws import assert_mean, assert_not_mean


@register_dataclass
@dataclass(frozen=True, eq=False)
class Gaussian:
    """`E(x) = scale precision (x - mean)^2 / 2`; the scale is not trained."""

    precision: Any
    mean: Any
    scale: float = field(default=1.0, metadata={"static": True})

    def __call__(self, x):
        return self.scale * self.precision * jnp.sum((x - self.mean) ** 2) / 2


def standardised(rng, num, mean, variance):
    x = rng.normal(size=num)
    return jnp.asarray(mean + variance**0.5 * (x - x.mean()) / x.std())


# Learning


@pytest.mark.lenient("optax")
def test_gradient_descent_does_not_tell_a_scaled_network_from_the_energy_itself(key, seed):
    """Steps of 1 and noise e on f are ULA on U = 2f/e^2, and the factor cancels from loss and rate; not with Adam.

    So a network that is moved by `x - grad f + e z` at rate r is an energy at T = 1 trained at rate r e^2/2.
    """
    with jax.enable_x64(True):
        epsilon, rate = 0.25, 0.05
        factor = 2 / epsilon**2
        data = standardised(np.random.default_rng(seed), 64, 0.7, 0.25)

        def path(scale, kernel, optimizer):
            """Return the weights of f where the energy is `scale f`."""
            objective = ef.contrastive(ef.pcd(kernel, 2))
            start = Gaussian(jnp.array(0.06), jnp.array(0.3), scale)
            state = ef.init(jax.random.clone(key), start, objective, optimizer, data)
            step = ef.make_step(objective, optimizer)
            scan = jax.jit(lambda state: jax.lax.scan(lambda s, _: (step(s, data)[0],) * 2, state, length=30)[1])
            energies = scan(state).energy
            return np.stack([energies.precision, energies.mean])

        network = (1.0, ef.langevin(1.0, epsilon))
        energy = (factor, ef.ula(epsilon**2 / 2))
        plain = path(*network, optax.sgd(rate))
        assert np.abs(np.diff(plain, axis=1)).min() > 0
        assert np.allclose(plain, path(*energy, optax.sgd(rate / factor)), rtol=1e-10)
        by_adam = path(*network, optax.adam(rate)), path(*energy, optax.adam(rate / factor))
        assert not np.allclose(*by_adam, rtol=1e-2)


def toy_ends(precision, mean, steps=5, eta=0.045):
    """Moments of five steps of noise sqrt(2 eta) = .3 from N(-1, .5) on a Gaussian energy."""
    shrink = 1 - eta * precision
    noise = 2 * eta * (1 - shrink ** (2 * steps)) / (1 - shrink**2)
    return mean + (-1 - mean) * shrink**steps, 0.5 * shrink ** (2 * steps) + noise


def test_short_runs_match_moments_exactly_and_the_energy_does_not(key):
    """The zero of the contrast is where the chains' ends have the data's moments: (4.94, 1.38), not (4, .7)."""
    found = root(lambda w: np.subtract(toy_ends(*w), (0.7, 0.25)), (4.9, 1.4), tol=1e-13)
    assert found.success and np.allclose(found.x, (4.94, 1.38), rtol=0, atol=5.1e-3)
    start = ef.from_sampler(lambda key, num: -1 + 0.5**0.5 * jax.random.normal(key, (num,)))
    negatives = ef.short_run(ef.ula(0.045), 5, start=start, num_chains=2**14)

    @jax.jit
    def statistics(weights, key):
        fake = negatives.draw(key, Gaussian(*weights), jnp.zeros(1), None)[0]
        return jnp.stack([fake, (fake - 0.7) ** 2], axis=1)

    assert_mean(statistics(jnp.asarray(found.x, jnp.float32), jax.random.clone(key)), [0.7, 0.25])
    assert_not_mean(statistics(jnp.array([4.0, 0.7]), key), [0.7, 0.25])  # the likelihood's own optimum


@pytest.mark.parametrize(("share", "stays"), [(0.98, True), (1.02, False)])
def test_unadjusted_chains_blow_up_where_the_curvature_passes_four_over_epsilon_squared(share, stays, key):
    """x' = (1 - e^2 lambda/2) x + e z: bounded if and only if e^2 lambda < 4, whatever the start; MALA always is."""
    epsilon = 0.2
    target = ef.logdensity(Gaussian(share * 4 / epsilon**2, 0.0))
    starts = jax.random.normal(key, (256,))
    end, _ = ef.advance_chains(0, ef.ula(epsilon**2 / 2), target, starts, 2000)
    assert bool(np.abs(end).max() < 100) == stays
    adjusted, _ = ef.advance_chains(0, ef.mala(epsilon**2 / 2), target, starts, 2000)
    assert np.abs(adjusted).max() < 10


# The gap over training


def autoregression(rng, num, rho):
    x = np.empty(num)
    x[0] = rng.normal() / np.sqrt(1 - rho**2)
    for i in range(1, num):
        x[i] = rho * x[i - 1] + rng.normal()
    return x


@pytest.mark.core
@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_a_gap_about_zero_is_balanced_and_its_error_knows_the_correlation(rho, seed):
    num = 4000
    gaps = autoregression(np.random.default_rng(seed), num, rho)
    found = gap_report([{"gap": gap, "loss": 0.0} for gap in gaps], skip=0.0)
    assert found.verdict == "balanced"
    # Lags of an autoregression: rho^k, each known to about sqrt((1 + rho^2)/(1 - rho^2)/n).
    error = np.sqrt((1 + rho**2) / (1 - rho**2) / num)
    assert np.abs(found.autocorrelation[:4] - rho ** np.arange(1, 5)).max() < 4.5 * error + 10 / num
    exact = 1 / (1 - rho) / np.sqrt(num)
    assert found.stderr == pytest.approx(exact, rel=0.35)
    assert found.sign_changes == pytest.approx(
        np.arccos(rho) / np.pi, abs=4.5 * 0.5 * np.sqrt((1 + rho) / (1 - rho) / num)
    )
    assert f"{found}".startswith("balanced: the gap is ")


def test_a_gap_of_one_sign_is_named_and_the_way_there_left_out(seed):
    rng = np.random.default_rng(seed)
    gaps = autoregression(rng, 2000, 0.5)
    assert gap_report(gaps + 3).verdict == "model above data"
    assert gap_report(gaps - 3).verdict == "model below data"
    assert gap_report(gaps - 3).positive < 0.2
    on_the_way = np.concatenate([np.full(2000, 50.0), gaps])
    assert abs(gap_report(on_the_way).mean) < 1 < 20 < gap_report(on_the_way, skip=0.0).mean
    with pytest.raises(ValueError, match="22 steps or more"):
        gap_report(gaps[:40])
    with pytest.raises(ValueError, match="finite"):
        gap_report(np.full(100, np.nan))


# Long runs


EIGHT = ef.energies.eight_gaussians()
ANGLES = np.arange(8) * np.pi / 4
NARROW = ef.energies.gaussian_mixture(4 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1), 0.25)
TURNED = ef.energies.gaussian_mixture(
    4 * np.stack([np.cos(ANGLES + np.pi / 8), np.sin(ANGLES + np.pi / 8)], axis=1), 0.5
)


def in_a_mode(x):
    """Within three standard deviations of a centre: exp(-4.5), 1.1 %, of the data are not."""
    centres = jnp.asarray(EIGHT.means, jnp.float32)
    return jnp.min(jnp.sum((x[None] - centres) ** 2, axis=1)) < (3 * 0.5) ** 2


@pytest.mark.parametrize("near", [None, in_a_mode], ids=["rows", "modes"])
def test_data_stay_with_their_own_density_and_leave_another(near, key):
    """Sharpened, the same modes are denser than the data; turned by half a mode, data lie between the modes."""
    rows = EIGHT.sample(key, 1024)
    found = {
        name: long_run(0, energy, ef.mala(0.1), rows, 1500, near=near)
        for name, energy in {"own": EIGHT, "narrow": NARROW, "turned": TURNED}.items()
    }
    own = found["own"]
    assert own.verdict == "convergent" and not own.reasons, own
    # Means over 1024 chains, starts and ends independent: sqrt(2/1024) sd apart; shares of .95 likewise.
    assert abs(own.drift) < 4.5 * np.sqrt(2 / 1024)
    assert own.expected_near == pytest.approx(0.95 if near is None else 1 - np.exp(-4.5), abs=0.021)
    assert abs(own.near - own.expected_near) < 4.5 * np.sqrt(2 * 0.05 * 0.95 / 1024)
    assert abs(own.memory) < 4.5 / np.sqrt(1024)
    assert found["narrow"].verdict == "drifts" and found["narrow"].drift < -0.25
    assert "energies went down" in f"{found['narrow']}"
    assert found["turned"].verdict == "drifts" and found["turned"].near < 0.85
    assert own.steps[-1] == 1500 and own.energy.shape == own.slope.shape == own.steps.shape == (51,)


def test_chains_that_hardly_moved_leave_it_undecided(key):
    found = long_run(0, EIGHT, ef.mala(1e-5), EIGHT.sample(key, 128), 20)
    assert found.verdict == "undecided" and found.memory > 0.95
    assert "run longer" in f"{found}"


def test_a_drift_that_chance_may_have_made_is_undecided(key):
    """Four chains, and a tolerance that any change exceeds."""
    rows = jax.random.normal(key, (4, 2))
    found = long_run(0, Partial(_flattened, jnp.array(0.5)), ef.mala(0.3), {"x": rows}, 200, drift=1e-6, lost=1.0)
    assert found.verdict == "undecided" and "give more starts" in f"{found}"


def test_the_slope_along_a_path_is_that_of_the_energy_over_its_temperature(key):
    """On N(0, 1) at equilibrium, in two dims: mean |x| is sqrt(pi/2), at T = 1/2 of E = x^2/4 as well."""
    rows = {"x": jax.random.normal(key, (4096, 2))}
    energy = ef.tempered(Partial(_flattened, jnp.array(0.25)), 0.5)
    found = long_run(0, energy, ef.mala(0.5), rows, 20, num_kept=4, near=lambda x: x["x"][0] > 0)
    error = np.sqrt((2 - np.pi / 2) / 4096)
    assert np.abs(found.slope - np.sqrt(np.pi / 2)).max() < 4.5 * error
    assert np.abs(found.energy - 1.0).max() < 4.5 / 64
    assert found.verdict == "convergent" and found.position["x"].shape == (4096, 2)


def _flattened(scale, x):
    return scale * jnp.sum(x["x"] ** 2)


def test_what_cannot_be_run_is_refused(key):
    rows = EIGHT.sample(key, 16)
    with pytest.raises(ValueError, match="two starts and a step"):
        long_run(0, EIGHT, ef.mala(0.1), rows[:1], 10)
    with pytest.raises(ValueError, match="needs a density"):
        long_run(0, ef.landscape(EIGHT), ef.mala(0.1), rows, 10)
    with pytest.raises(SamplingStopped, match="left the finite numbers"):
        long_run(0, EIGHT, ef.ula(10.0), rows, 500)
