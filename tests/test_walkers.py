"""Laws of weighted walkers: Z without bias at any step size, and mode weights that persistent chains do not see."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax.tree_util import Partial

import energyflow as ef
from energyflow import walkers as module
from laws import assert_mean, assert_not_mean, count_compilations

pytestmark = pytest.mark.lenient("numpyro", "optax")


def quadratic(precision, mean, x):
    return precision * jnp.sum((x - mean) ** 2) / 2


def path(num_updates, dim=1):
    """Energies of Gaussians on the way from N(0, 1) to N(2, 1/6): Z falls by sqrt(1/6) per dimension."""
    for t in np.linspace(0, 1, num_updates + 1):
        yield Partial(quadratic, jnp.asarray(1 + 5 * t), jnp.full(dim, 2 * t))


BASE = dist.Normal(jnp.zeros(1), jnp.ones(1)).to_event(1)
RATIO = 6**-0.5 * (2 * np.pi) ** 0.5  # the first energy's Z is not 1: walkers begin with importance weights


def follow(key, negatives, energies):
    """Return the walkers at the last energy, and the metrics of the last draw."""
    energies, batch, metrics = iter(energies), jnp.zeros((2, 1)), {}
    state = negatives.init(jax.random.fold_in(key, 0), next(energies), batch)
    for i, energy in enumerate(energies):
        _, _, state, metrics = negatives.draw(jax.random.fold_in(key, i + 1), energy, batch, state)
    return state, metrics


KERNELS = {
    "ula": (ef.ula(0.15), 1),
    "ula twice": (ef.ula(0.15), 2),
    "mala": (ef.mala(0.3), 1),
    "hmc": (ef.hmc(0.4, 3), 1),
}


@pytest.mark.core
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_weights_hold_z_and_the_mean_at_eight_crude_updates(kernel, key):
    """E[w] = Z and E[w (x - mean)] = 0 exactly; 50 000 walkers, the largest weights seen carry no more than 1 %."""
    negatives = ef.jarzynski(*KERNELS[kernel], num_walkers=50_000, base=BASE, min_ess=1e-6)
    state, _ = jax.jit(lambda key: follow(key, negatives, path(8)))(key)
    weights = np.exp(np.asarray(state.log_weights, float) + float(state.log_z))
    assert weights.max() < 0.01 * weights.sum()
    assert_mean(weights, RATIO)
    centred = np.asarray(state.position[:, 0], float) - 2
    assert_mean(weights * centred, 0.0)
    assert_mean(weights * (centred**2 - 1 / 6), 0.0)
    assert_not_mean(centred, 0.0)  # without weights the walkers lag behind


def test_langevin_weighed_as_if_it_had_an_accept_step_is_caught(key, monkeypatch):
    negatives = ef.jarzynski(ef.ula(0.15), num_walkers=50_000, base=BASE, min_ess=1e-6)
    energies = list(path(8))
    state = negatives.init(key, energies[0], jnp.zeros((2, 1)))
    monkeypatch.setattr(module, "ula_step_size", lambda kernel: None)
    for i, energy in enumerate(energies[1:]):
        _, _, state, _ = negatives.draw(jax.random.key(i), energy, jnp.zeros((2, 1)), state)
    assert_not_mean(np.exp(np.asarray(state.log_weights, float) + float(state.log_z)), RATIO)


@pytest.mark.parametrize("kernel", ["ula", "mala"])
def test_resampling_leaves_z_unbiased(kernel, key):
    """Resampled at every update, 64 walkers: the mean of Z over 4000 runs is Z."""
    negatives = ef.jarzynski(*KERNELS[kernel], num_walkers=64, base=BASE, min_ess=1.0)

    def run(key):
        state, metrics = follow(key, negatives, path(4))
        return state.log_z - state.lost, metrics["resampled"]

    log_z, resampled = jax.jit(jax.vmap(run))(jax.random.split(key, 4000))
    assert resampled.min() == 1
    assert_mean(np.exp(np.asarray(log_z, float)), RATIO)


def two_modes(left, right, log_odds, x):
    return -jnp.logaddexp(log_odds - (x - left) ** 2 / 2, -((x - right) ** 2) / 2)


def halves():
    modes = dist.Normal(jnp.array([-10.0, 6.0]), jnp.ones(2))
    return dist.MixtureSameFamily(dist.Categorical(jnp.full(2, 0.5)), modes)


def learn(key, negatives, rows, num_steps=600):
    """Train (left, right, log odds) from mass one half at each mode; returns the state."""
    energy = Partial(two_modes, jnp.float32(-10), jnp.float32(6), jnp.float32(0))
    objective, optimizer = ef.contrastive(negatives), optax.sgd(0.2)
    state = ef.init(key, energy, objective, optimizer, rows)
    step = ef.make_step(objective, optimizer)
    return jax.jit(lambda state: jax.lax.scan(lambda s, _: step(s, rows), state, None, num_steps))(state)


@pytest.mark.lenient("numpyro_models")
def test_walkers_learn_mode_weights_that_persistent_chains_do_not(key):
    """Modes 16 apart, a quarter of the data on the left: no chain crosses, but weights do.

    4000 walkers at an ESS over a half carry the mass to .009 at each resampling; .04 is four of them.
    """
    is_left = np.arange(4000) % 4 == 0
    noise = np.random.default_rng(0).normal(size=4000)
    rows = jnp.asarray(np.where(is_left, -10 + noise, 6 + noise), jnp.float32)
    mass = {}
    for name, negatives in (
        ("walkers", ef.jarzynski(ef.mala(0.5), base=halves())),
        ("langevin", ef.jarzynski(ef.ula(0.2), base=halves())),
        ("persistent", ef.pcd(ef.mala(0.5), 1, start=ef.from_sampler(Partial(_draws)))),
    ):
        state, metrics = learn(jax.random.clone(key), negatives, rows)
        odds = state.energy.args[2]
        mass[name] = float(jax.nn.sigmoid(odds))
        if name != "persistent":
            log_z, ess = ef.live_log_z(state.objective_state, state.energy)
            exact = 0.5 * np.log(2 * np.pi) + np.logaddexp(float(odds), 0)
            assert abs(log_z - exact) < 0.05 and ess > 1000
            assert abs(metrics["log_z"][-1] - exact) < 0.05
            likelihood = -jnp.mean(jax.vmap(state.energy)(rows)) - exact
            assert abs(metrics["log_likelihood"][-1] - likelihood) < 0.05
    assert abs(mass["walkers"] - 0.25) < 0.04 and abs(mass["langevin"] - 0.25) < 0.04
    assert abs(mass["persistent"] - 0.25) > 0.15


def _draws(key, num):
    return halves().sample(key, (num,))


def test_new_weights_and_another_step_compile_nothing(key):
    draw = jax.jit(lambda negatives, key, energy, state: negatives.draw(key, energy, jnp.zeros((2, 1)), state))
    first, second = path(1)
    negatives = ef.jarzynski(ef.mala(0.3), base=BASE, num_walkers=8)
    state = negatives.init(key, first, jnp.zeros((2, 1)))
    draw(negatives, jax.random.key(1), second, state)
    other, another = ef.jarzynski(ef.mala(0.1), base=BASE, num_walkers=8), jax.random.key(2)
    with count_compilations() as made:
        draw(other, another, first, state)
    assert made.count == 0


def test_walkers_outside_the_support_lose_their_weight(key):
    def half_line(x):
        return jnp.where(x[0] > 0, jnp.sum(x**2) / 2, jnp.inf)

    negatives = ef.jarzynski(ef.rmh(0.5), base=BASE, num_walkers=40_000, min_ess=1e-6)
    state, _ = follow(key, negatives, [half_line, half_line])
    weights = np.exp(np.asarray(state.log_weights, float) + float(state.log_z))
    assert_mean(weights, (2 * np.pi) ** 0.5 / 2)


def test_what_walkers_cannot_do_is_refused(key):
    energy, batch = next(path(1)), jnp.zeros((4, 1))
    with pytest.raises(ValueError, match="walkers need exact draws to start from: give base"):
        ef.jarzynski(ef.mala(0.1)).init(key, energy, batch)
    for kernel in (ef.sgld(0.1, 2.0), ef.langevin(0.1, gradient_clip=1.0)):
        with pytest.raises(ValueError, match="kernels with an accept step and of ula; this one has neither"):
            ef.jarzynski(kernel, base=BASE).init(jax.random.clone(key), energy, batch)
    with pytest.raises(ValueError, match="landscape"):
        ef.jarzynski(ef.mala(0.1), base=BASE).init(jax.random.clone(key), ef.landscape(energy), batch)
    with pytest.raises(ValueError, match="min_ess must be a share"):
        ef.jarzynski(ef.mala(0.1), min_ess=64)
