"""Laws of parallel tempering: every rung keeps its own density, and the rung of beta = 1 crosses between modes."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.tree_util import Partial

import energyflow as ef
from energyflow.kernels import algorithm, tempering
from energyflow.kernels.ladders import geometric_ladder, tune_ladder
from energyflow.kernels.tempering import parallel_tempering
from invariance import NUM_CHAINS, NUM_STEPS
from laws import assert_mean, assert_not_mean

MASS, CENTRE, SD = 0.3, 4.0, 0.5  # of the left mode; the modes are 16 standard deviations apart
GRID = np.linspace(-80.0, 80.0, 320_001)
BETAS = geometric_ladder(8, 0.01)
BASE = dist.Normal(0.0, 6.0)


def two_modes(mass, x):
    left, right = -0.5 * ((x + CENTRE) / SD) ** 2, -0.5 * ((x - CENTRE) / SD) ** 2
    return jnp.logaddexp(jnp.log(mass) + left, jnp.log1p(-mass) + right)


TARGET = Partial(two_modes, MASS)


def features(x):
    """Of each rung: its energy, position, spread, and mode."""
    return np.stack([-np.asarray(TARGET(x)), x, x**2, x > 0], axis=-1).astype(np.float64)


def rung_masses(betas, base):
    """The probabilities of the grid's points at each rung, (R, G): quadrature by the trapezoid rule."""
    with jax.enable_x64(True):
        logp = np.asarray(TARGET(jnp.asarray(GRID)))
    logq = 0.0 if base is None else -0.5 * (GRID / 6.0) ** 2
    logs = np.stack([logq + beta * (logp - logq) for beta in betas])
    masses = np.exp(logs - logs.max(axis=1, keepdims=True))
    return masses / masses.sum(axis=1, keepdims=True)


def ends_of(key, kernel, betas, base=None):
    """Start all rungs of N chains at exact draws, make k transitions; the features of the ends, (N, R, 4), and state.

    Exact draws by the inverse distribution function, spread over the cells of the grid (5e-4 wide: 1e-3 of an sd).
    """
    draw_key, move_key = jax.random.split(key)
    uniforms = np.asarray(jax.random.uniform(draw_key, (NUM_CHAINS, len(betas))), np.float64)
    cumulated = np.cumsum(rung_masses(betas, base), axis=1)
    exact = np.stack([np.interp(uniforms[:, k], c, GRID) for k, c in enumerate(cumulated)], axis=1)

    @jax.jit
    def run(key, rungs):
        bound = algorithm.bind(kernel, TARGET)

        def chain(index, rungs):
            own = jax.random.fold_in(key, index)
            state = algorithm.start(bound, jax.random.fold_in(own, 0), rungs[0], {"rungs": rungs})
            move = lambda state, i: (bound.step(jax.random.fold_in(own, i), state)[0], None)  # noqa: E731
            return jax.lax.scan(move, state, jnp.arange(1, NUM_STEPS + 1))[0]

        return jax.vmap(chain)(jnp.arange(NUM_CHAINS), rungs)

    state = run(move_key, jnp.asarray(exact, jnp.float32))
    return features(np.asarray(state.rungs)), state


def rung_means(betas, base=None):
    """The exact means of `features` at every rung, (R, 4)."""
    with jax.enable_x64(True):
        values = features(jnp.asarray(GRID))
    return rung_masses(betas, base) @ values


@pytest.mark.core
def test_every_rung_keeps_its_own_density(key):
    """E[E], moments and mode masses of each rung against quadrature, as in the exact-start law of other kernels."""
    ends, state = ends_of(key, parallel_tempering(ef.mala(0.1), BETAS), BETAS)
    assert_mean(ends, rung_means(BETAS))
    assert (mean_swaps(state) > 0.5).all()
    np.testing.assert_array_equal(np.sort(state.replica, axis=1), np.tile(np.arange(8), (NUM_CHAINS, 1)))
    np.testing.assert_array_equal(state.rungs[:, 0], state.position)
    np.testing.assert_allclose(state.logdensity, jax.vmap(TARGET)(state.position), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inner", [ef.hmc(0.3, 3), ef.rmh(1.0)], ids=["hmc", "rmh"])
def test_with_a_base_every_rung_keeps_its_own_density(inner, key):
    """Rungs q (p/q)^beta down to beta = 0, which is redrawn from the base itself at every transition."""
    betas = np.append(geometric_ladder(4, 0.02), 0.0)
    ends, state = ends_of(key, parallel_tempering(inner, betas, BASE), betas, BASE)
    assert_mean(ends, rung_means(betas, BASE))
    assert np.unique(np.asarray(state.rungs)[:, -1]).size > 0.99 * NUM_CHAINS


def wrong_sign(key, betas, ratios, parity):
    return RIGHT(key, betas, -ratios, parity)


RIGHT = tempering._swaps


def test_a_swap_of_the_wrong_sign_is_caught(key, monkeypatch):
    """Negative control: its acceptance looks healthy, every law above fails."""
    monkeypatch.setattr(tempering, "_swaps", wrong_sign)
    ends, state = ends_of(key, parallel_tempering(ef.mala(0.1), BETAS), BETAS)
    assert (mean_swaps(state) > 0.4).all()
    assert_not_mean(ends, rung_means(BETAS))
    assert_not_mean(ends[:, 0, 3], 1 - MASS)


def right_share(key, kernel):
    """Per chain the share of draws in the right mode, all chains started in the left one; and the last states.

    The first 300 draws are dropped here: a warm-up would be one more program to compile.
    """
    trace = ef.sample_chains(key, kernel, TARGET, jnp.full(256, -CENTRE), 1500, chunk_size=1500)
    assert trace.stats.num_gradients.min() == trace.stats.num_gradients.max()
    return (trace.position[:, 300:] > 0).mean(axis=1), trace.final.state, trace.stats.num_gradients[0, 0]


def mean_swaps(state):
    return np.asarray(state.swap_rates).mean(axis=0)


@pytest.mark.core
def test_weights_of_far_modes_are_recovered(key):
    """S4: .3/.7 to .02 (eight standard errors), and within the error between chains; MALA alone stays put."""
    share, state, gradients = right_share(key, parallel_tempering(ef.mala(0.1), BETAS))
    assert_mean(share, 1 - MASS)
    assert abs(share.mean() - (1 - MASS)) < 0.02
    assert (np.asarray(state.round_trips) > 0).all()
    assert gradients == 2 * 8  # a start and a move per rung
    alone, _, _ = right_share(jax.random.clone(key), ef.mala(0.1))
    assert (alone == 0).all()


@pytest.mark.slow
def test_a_rung_out_of_reach_makes_no_round_trips(key):
    """The hottest rung is 5e9 wide against 5: it comes within reach of its neighbour less than once in 1e8 draws."""
    betas = np.append(geometric_ladder(7, 0.01), 1e-20)
    _, state, _ = right_share(key, parallel_tempering(ef.mala(0.1), betas))
    assert np.asarray(state.round_trips).sum() == 0
    assert (mean_swaps(state)[:-1] > 0.5).all() and mean_swaps(state)[-1] < 0.01


def test_round_trips_are_those_of_replicas_followed_one_by_one():
    """A walk of five transitions written out: replica 0 goes to the hottest rung and back."""
    replica, direction, total = jnp.arange(3), jnp.array([1, 0, 0]), 0
    for order in ([1, 0, 2], [0, 2, 1], [0, 2, 1], [1, 0, 2], [1, 0, 2]):
        replica, direction, trips = tempering._follow(replica[jnp.array(order)], direction)
        total += int(trips)
    assert total == 1 and replica[1] == 0
    assert direction.tolist() == [1, 1, 0]


def test_new_ladders_and_steps_compile_nothing(key, count_compilations):
    def run(ladder, step):
        kernel = parallel_tempering(ef.mala(step), ladder)
        return ef.sample_chains(0, kernel, TARGET, jnp.full(4, -CENTRE), 10)

    run(geometric_ladder(4, 0.01), 0.1)
    with count_compilations() as made:
        run(geometric_ladder(4, 0.2), 0.2)
    assert made.count == 0


@pytest.mark.slow
def test_a_tuned_ladder_swaps_equally_often(key):
    """Equal rates within .1, from a ladder whose rates were not; step sizes per rung; round trips that are made.

    The rates are means over 64 chains of 100 trials: their noise is below .01.
    """
    bounds = {"num_rungs": 8, "beta_min": 1e-4}
    _, state, _ = right_share(key, parallel_tempering(ef.mala(0.1), geometric_ladder(**bounds)))
    start = jnp.full(64, -CENTRE)
    ladder = tune_ladder(jax.random.clone(key), ef.mala(0.1), TARGET, start, **bounds)
    assert np.ptp(ladder.swap_rates) < 0.1 < np.ptp(mean_swaps(state))
    assert ladder.betas[0] == 1 and ladder.betas[-1] == 1e-4 and (np.diff(ladder.betas) < 0).all()
    np.testing.assert_allclose(ladder.acceptance_rates, 0.6, atol=0.1)
    assert ladder.round_trips > 0 and ladder.num_gradients == 64 * 8 * 200 * 8 * 2
    assert "round trips" in str(ladder) and len(str(ladder).splitlines()) == 10
    share, _, _ = right_share(jax.random.fold_in(key, 1), ladder.kernel)
    assert_mean(share, 1 - MASS)


def learn_mass(key, kernel, num_updates=300, num_chains=256):
    """Fit the mass of the left mode by persistent chains to data of masses .3/.7; returns it, from .5."""
    data = jnp.asarray(np.where(np.arange(num_chains) < MASS * num_chains, -CENTRE, CENTRE), jnp.float32)
    negatives = ef.pcd(kernel, 2)
    slope = jax.vmap(jax.grad(lambda a, x: -two_modes(jax.nn.sigmoid(a), x)), (None, 0))

    @jax.jit
    def run(key):
        def update(carry, i):
            a, state = carry
            energy = Partial(_energy, a)
            drawn, _, state, _ = negatives.draw(jax.random.fold_in(key, i), energy, data, state)
            a = a - 2.0 * (slope(a, data).mean() - slope(a, drawn).mean()) / (1.0 + i.astype(float) / 30)
            return (a, state), a

        a = jnp.zeros(())
        state = negatives.init(jax.random.fold_in(key, 0), Partial(_energy, a), data)
        return jax.lax.scan(update, (a, state), jnp.arange(1, num_updates + 1))

    (_, state), path = run(key)
    return float(jax.nn.sigmoid(path[num_updates // 2 :]).mean()), state


def _energy(a, x):
    return -two_modes(jax.nn.sigmoid(a), x)


def test_persistent_tempered_chains_learn_the_mass_of_modes(key):
    """PCD's chains start at the data, .3/.7: MALA's stay there, whatever the model, and it never leaves .5.

    With mixing chains the error of the average is at most that of 256 draws per update that forget in tens of updates:
    sqrt(.21/256/10) = .009; the data's own share is 77/256.
    """
    learned, state = learn_mass(key, parallel_tempering(ef.mala(0.1), BETAS))
    assert abs(learned - 77 / 256) < 0.04
    assert (np.asarray(state.carry["num_steps"]) == 600).all() and state.carry["rungs"].shape == (256, 8)
    stuck, _ = learn_mass(jax.random.clone(key), ef.mala(0.1))
    assert abs(stuck - 0.5) < 0.02


def test_the_position_of_a_new_start_replaces_rung_0(key):
    """A replay buffer may put a chain elsewhere: the rungs that persist must not bring the old position back."""
    bound = algorithm.bind(parallel_tempering(ef.rmh(1e-3), [1.0, 0.5]), lambda x: -jnp.sum(x**2))

    @jax.jit
    def run(key):
        init_key, again_key, step_key = jax.random.split(key, 3)
        state = bound.init(jnp.zeros(2), init_key)
        state = algorithm.start(bound, again_key, jnp.full(2, 3.0), algorithm.carried(state))
        return bound.step(step_key, state)[0]

    state = run(key)
    ends = np.sort(np.linalg.norm(np.asarray(state.rungs), axis=1))
    assert ends[1] > 3.0


def test_refusals_say_why(key):
    with pytest.raises(ValueError, match="exactly 1"):
        parallel_tempering(ef.mala(0.1), [0.9, 0.5])
    with pytest.raises(ValueError, match="strictly down"):
        parallel_tempering(ef.mala(0.1), [1.0, 0.5, 0.5])
    with pytest.raises(ValueError, match="without a base"):
        parallel_tempering(ef.mala(0.1), [1.0, 0.0])
    with pytest.raises(ValueError, match="to_event"):
        parallel_tempering(ef.mala(0.1), [1.0, 0.0], dist.Normal(jnp.zeros(2), jnp.ones(2)))
    with pytest.raises(ValueError, match="one factor per rung"):
        parallel_tempering(ef.mala(0.1), [1.0, 0.5], step_scales=[1.0])
    with pytest.raises(ValueError, match="accept step"):
        ef.sample_chains(key, parallel_tempering(ef.ula(0.1), [1.0, 0.5]), TARGET, jnp.zeros(2), 5)
    with pytest.raises(ValueError, match="moves its rungs"):
        exact = jnp.zeros((4, 2))
        base = dist.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1)
        ef.reverse_ais(0, parallel_tempering(ef.mala(0.1), [1.0, 0.5]), base, lambda x: jnp.sum(x**2), 10, exact)
