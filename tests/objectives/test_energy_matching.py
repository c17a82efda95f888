"""Laws of Energy Matching: the minimisers of its regression, the fixed point of its contrast, and a toy end to end."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax.tree_util import Partial

import energyflow as ef
from energyflow.objectives.energy_matching import _halves, _trimmed_mean
from energyflow.types import Negatives
from laws import assert_mean, assert_not_mean

pytestmark = [pytest.mark.core, pytest.mark.lenient("numpyro", "optax")]

MEAN, SCALE = 2.0, 0.5
POINTS = np.array([-1.0, 0.0, 1.0, 2.0, 3.0])
DRIFT = np.array([2.7461, 2.3644, 2.0547, 1.5953, 0.8207])


class Normal(NamedTuple):
    """A source N(0, 1) of points of one coordinate."""

    batch_shape = ()

    def sample(self, key, shape):
        return jax.random.normal(key, (*shape, 1), float)


def monge(key, x0, x1):
    """Optimal transport of N(0, 1) to N(2, 0.25), without the chance of a batch."""
    return x0, MEAN + SCALE * x0


def value(objective, energy, batch, key, state=None):
    return objective.loss(energy, batch, key, state)[0]


def linear_drift(a, b, x):
    """The potential whose drift -V' is a + b x, in one coordinate."""
    return -jnp.sum(a * x + 0.5 * b * x**2)


def bowl(k, x):
    return 0.5 * k * jnp.sum(x**2)


def warm(energy, temperature=0.15):
    return ef.tempered(energy, temperature)


def flow_only(source, coupling, **settings):
    """Energy matching without its contrast: the regression as it is faded."""
    return ef.energy_matching(source, coupling, weight=0.0, negatives=ef.transport_run(source, 1), **settings)


# The regression


def best_line(weights, sigma):
    """Weighted least squares of u on x_t, from the moments given t: x_t = 2t + (1 - t/2) x0 + sigma z, u = 2 - x0/2."""
    nodes, quadrature = np.polynomial.legendre.leggauss(200)
    t, mass = (nodes + 1) / 2, quadrature / 2
    mass = mass * weights(t)
    r = 1 + t * (SCALE - 1)
    x, xx = mass @ (t * MEAN), mass @ ((t * MEAN) ** 2 + r**2 + sigma**2)
    u, ux = mass.sum() * MEAN, mass @ (t * MEAN**2 + (SCALE - 1) * r)
    return np.linalg.solve([[mass.sum(), x], [x, xx]], [u, ux])


def gate(onset):
    return lambda t: np.ones_like(t) if onset is None else np.clip((1 - t) / (1 - onset), 0, 1)


@jax.jit
def slopes(objective, line, key):
    """The loss's derivatives in the two parameters of the line, under 1000 keys."""

    def slope(key):
        run = lambda line: value(objective, warm(Partial(linear_drift, *line)), jnp.zeros((256, 1)), key)  # noqa: E731
        return jnp.stack(jax.grad(run)(line))

    return jax.vmap(slope)(jax.random.split(key, 1000))


@pytest.mark.parametrize(("onset", "sigma"), [(None, 0.0), (None, 0.4), (0.3, 0.0), (0.8, 0.4)])
def test_the_best_straight_drift_is_weighted_least_squares(onset, sigma, key):
    """Stationary at the solution from exact moments; with a gate, not at that without. None: the first phase."""
    first_phase = ef.transport_matching(Normal(), monge, sigma=sigma)
    objective = first_phase if onset is None else flow_only(Normal(), monge, onset=onset, sigma=sigma)
    right, wrong = (tuple(map(jnp.float32, best_line(gate(o), sigma))) for o in (onset, None if onset else 0.0))
    assert_mean(slopes(objective, right, jax.random.clone(key)), 0.0)
    assert_not_mean(slopes(objective, wrong, key), 0.0)


def expected_drift(x):
    """E[u | x_t = x] over uniform t, by quadrature: x0 follows from x and t."""
    nodes, quadrature = np.polynomial.legendre.leggauss(400)
    t = (nodes + 1) / 2
    r = 1 + t * (SCALE - 1)
    x0 = (x[:, None] - t * MEAN) / r
    mass = quadrature * np.exp(-(x0**2) / 2) / r
    return (mass * (MEAN + (SCALE - 1) * x0)).sum(1) / mass.sum(1)


def test_the_drift_at_the_points_is_that_of_the_quadrature():
    np.testing.assert_allclose(expected_drift(POINTS), DRIFT, rtol=0, atol=5e-5)


def waves(weights, x):
    """A potential linear in its weights, of polynomials up to the ninth degree."""
    powers = ((x[0] - 1) / 4) ** jnp.arange(1.0, len(weights) + 1)
    return weights @ powers


def sort(key, x0, x1):
    """What exact transport does in one dimension, for any number of rows."""
    return jnp.sort(x0, axis=0), jnp.sort(x1, axis=0)


@jax.jit
def best_wave(objective, batch, key):
    """The loss is quadratic in the weights: one step of Newton's method minimises it."""
    loss = lambda weights: value(objective, warm(Partial(waves, weights)), batch, jax.random.clone(key))  # noqa: E731
    zero = jnp.zeros(10)
    return -jnp.linalg.solve(jax.hessian(loss)(zero), jax.grad(loss)(zero))


@pytest.mark.parametrize(("coupling", "agrees"), [(sort, True), (ef.couplings.independent, False)])
def test_the_drift_is_the_mean_velocity_of_optimal_transport(coupling, agrees, key):
    """Of 400,000 rows; the errors at the five points have standard deviations of about 0.003."""
    with jax.enable_x64(True):
        data_key, loss_key = jax.random.split(key)
        batch = MEAN + SCALE * jax.random.normal(data_key, (400_000, 1), float)
        best = best_wave(ef.transport_matching(Normal(), coupling), batch, loss_key)
        drift = -jax.vmap(jax.grad(Partial(waves, best)))(jnp.asarray(POINTS)[:, None])[:, 0]
        error = np.abs(drift - DRIFT).max()
        assert error < 0.02 if agrees else error > 0.2


@pytest.mark.slow
def test_a_network_learns_the_drift(seed):
    """From pairs of optimal transport itself: in the tails a batch of 128 rows pairs its own extremes with others."""
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 4000, 0.01))
    objective, key = ef.transport_matching(Normal(), monge), jax.random.key(seed)
    energy = warm(ef.energies.mlp(seed, 1, (64, 64)))
    step, state = ef.make_step(objective, optimizer), ef.init(seed, energy, objective, optimizer, jnp.zeros((2048, 1)))
    for i in range(4000):
        state, _ = step(state, MEAN + SCALE * jax.random.normal(jax.random.fold_in(key, i), (2048, 1)))
    drift = -jax.vmap(jax.grad(state.energy))(jnp.asarray(POINTS, float)[:, None])[:, 0]
    np.testing.assert_allclose(drift, DRIFT, rtol=0, atol=0.02)


def test_the_gate_of_a_step_has_finite_slopes_and_is_open(key):
    """An onset of 1 is the first phase on the half that is transported, value and gradient."""
    energy, batch = warm(ef.energies.mlp(0, 1, (8,))), jnp.linspace(1.0, 3.0, 16)[:, None]
    slope = jax.jit(lambda objective, x, key: jax.grad(lambda e: value(objective, e, x, key))(energy))
    slopes = slope(flow_only(Normal(), monge, onset=1.0), batch, jax.random.clone(key))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    half_key, flow_key, _ = jax.random.split(key, 3)
    alone = slope(ef.transport_matching(Normal(), monge), _halves(half_key, batch)[0], flow_key)
    for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# The contrast


def nothing(key, energy, batch):
    return None


def these(rows, key, energy, batch, state):
    return rows, None, state, {}


def given(rows):
    """A negative phase that returns these rows."""
    return Negatives(Partial(nothing), Partial(these, rows))


def shown(draw, key, energy, batch, state):
    rows, log_weights, state, metrics = draw(key, energy, batch, state)
    return rows, log_weights, state, metrics | {"rows": rows}


@jax.jit
def contrasted(negatives, k, batch, key):
    """Return the derivative of the contrast alone in k, on `k x^2 / 2` at temperature 0.15, and the metrics."""

    def loss(k, weight):
        energy = warm(Partial(bowl, k))
        objective = ef.energy_matching(Normal(), monge, negatives=negatives, weight=weight)
        state = objective.init(jax.random.clone(key), energy, batch)
        value, (_, metrics) = objective.loss(energy, batch, jax.random.clone(key), state)
        return value, metrics

    slopes, metrics = jax.vmap(jax.grad(loss, has_aux=True), (None, 0))(k, jnp.array([1.0, 0.0]))
    return slopes[0] - slopes[1], jax.tree.map(lambda x: x[0], metrics)


def data_of_variance(variance):
    return variance**0.5 * jnp.tile(jnp.array([[-1.0], [1.0]]), (8, 1))


def test_the_contrast_balances_where_the_variance_of_the_data_is_that_of_the_density(key):
    """With exact negatives dL/dk is half of Var(data) - T/k: zero at T/Var = 3, and descent goes there."""
    with jax.enable_x64(True):
        for k in (1.0, 3.0, 9.0):
            exact = given((0.15 / k) ** 0.5 * jnp.ones((6, 1)))
            slope, _ = contrasted(exact, jnp.asarray(k), data_of_variance(0.05), jax.random.clone(key))
            assert abs(slope - 0.5 * (0.05 - 0.15 / k)) < 1e-12
        untempered = given((1.0 / 3.0) ** 0.5 * jnp.ones((6, 1)))
        slope, _ = contrasted(untempered, jnp.asarray(3.0), data_of_variance(0.05), jax.random.clone(key))
        assert slope < -0.1


def chains(name):
    """Return a negative phase, and what it makes of the variance T/3 for lack of an accept step."""
    starts = {"start": ef.from_either(ef.from_data(), ef.from_source(Normal())), "num_chains": 4096}
    biased = 1 / (1 - 0.05 * 3.0 / 2)
    return {
        "transport": lambda: (ef.transport_run(Normal(), 100, step_size=0.05, num_chains=4096), biased),
        "ula": lambda: (ef.short_run(ef.ula(0.05 * 0.15), 100, **starts), biased),
        "mala": lambda: (ef.short_run(ef.mala(0.05), 60, **starts), 1.0),
        "hmc": lambda: (ef.short_run(ef.hmc(0.1, 4), 30, **starts), 1.0),
        "pcd": lambda: (ef.pcd(ef.mala(0.05), 60, **starts), 1.0),
    }[name]()


@pytest.mark.parametrize("name", ["transport", "ula", "mala", "hmc", "pcd"])
def test_any_negative_phase_may_be_contrasted_with_and_is_reported(name, key):
    """At k = 3 negatives from the source and from the data have forgotten both; the slope follows their variance."""
    negatives, factor = chains(name)
    watched = Negatives(negatives.init, Partial(shown, negatives.draw))
    slope, metrics = contrasted(watched, jnp.asarray(3.0), data_of_variance(0.05), key)
    squares = np.asarray(metrics["rows"])[:, 0] ** 2
    assert_mean(squares, 0.05 * factor)
    assert_not_mean(squares, 1 / 3)
    np.testing.assert_allclose(slope, 0.5 * (0.05 - squares.mean()), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["gap"], metrics["energy_model"] - metrics["energy_data"], rtol=1e-4)
    assert {"transport", "jump_distance", "divergent", "num_gradients"} <= metrics.keys()
    assert ("acceptance_rate" in metrics) == (name in ("mala", "hmc", "pcd"))


def same_point(key, x0, x1):
    return x1, x1


@pytest.mark.parametrize(("floor", "slope"), [(None, -2.0), (3.0, -2.0), (1.0, 0.0)])
def test_below_the_floor_there_is_no_gradient(floor, slope):
    """In c of `E = c x` with data at 1 and negatives at 2: a contrast of -2 c at c = 1. The paths here stand still."""
    objective = ef.energy_matching(Normal(), same_point, negatives=given(2 * jnp.ones((3, 1))), weight=2.0, floor=floor)
    run = lambda c: value(objective, warm(Partial(jnp.vdot, c)), jnp.ones((4, 1)), jax.random.key(0))  # noqa: E731
    regression = ef.energy_matching(Normal(), same_point, negatives=given(jnp.ones((3, 1))), weight=0.0)
    alone = lambda c: value(regression, warm(Partial(jnp.vdot, c)), jnp.ones((4, 1)), jax.random.key(0))  # noqa: E731
    c = jnp.ones(1)
    np.testing.assert_allclose(jax.jit(jax.grad(run))(c) - jax.jit(jax.grad(alone))(c), slope, atol=1e-6)


def test_the_highest_negatives_are_left_out():
    values = jnp.array([3.0, 100.0, 1.0, 2.0, 0.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    trimmed = _trimmed_mean
    assert trimmed(values, None, 0.1) == 4.0
    np.testing.assert_allclose(trimmed(values, None, 0.0), 13.6, rtol=1e-6)
    np.testing.assert_allclose(trimmed(values.at[1].set(jnp.inf), None, 0.1), 4.0)
    assert trimmed(values, None, 0.99) == 0.0
    slopes = jax.grad(trimmed)(values.at[1].set(jnp.inf), None, 0.1)
    np.testing.assert_allclose(slopes, np.where(np.arange(10) == 1, 0.0, 1 / 9), rtol=1e-6)
    weights = jnp.log(jnp.array([1.0, 5.0, 3.0]))
    np.testing.assert_allclose(trimmed(jnp.array([2.0, 9.0, 6.0]), weights, 1 / 3), (2 + 3 * 6) / 4, rtol=1e-6)


def test_a_batch_is_halved_at_random(key):
    """Every row is in one half; in which, is a fair coin."""
    firsts = []
    for i in range(400):
        first, second = _halves(jax.random.fold_in(key, i), jnp.arange(7.0))
        assert sorted([*first.tolist(), *second.tolist()]) == list(range(7)) and len(first) == 3
        firsts.append(np.isin(np.arange(7), first).astype(float))
    assert_mean(np.array(firsts), 3 / 7)


# The two phases in training

OPTIMIZER = optax.adam(1e-2)  # one object: both tests use the same compiled steps


def phases(onset=0.8, sigma=0.0, dt=0.1, **settings):
    """The objectives of both phases, from NumPyro's source in two coordinates."""
    source = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    chains = ef.transport_run(source, 3, onset=onset, step_size=dt)
    first = ef.transport_matching(source, sigma=sigma)
    return first, ef.energy_matching(source, negatives=chains, onset=onset, sigma=sigma, **settings)


def test_both_phases_train_by_the_usual_loop(key):
    """A Gaussian in two coordinates; the second phase goes on from the first."""
    data = 0.4 * jax.random.normal(key, (64, 2)) + 1.0
    energy, errors = warm(ef.energies.mlp(0, 2, (8,))), []
    for objective in phases():
        start = ef.init(0, energy, objective, OPTIMIZER, data)
        for state, metrics in ef.train(start, ef.make_step(objective, OPTIMIZER), [data] * 40):
            energy = state.energy
            errors.append(float(metrics["transport"]))
    assert np.mean(errors[30:]) < 0.7 * np.mean(errors[:5]) and np.isfinite(errors).all()
    assert float(energy.temperature) == pytest.approx(0.15)


def test_new_weights_temperatures_and_settings_compile_nothing(count_compilations, key):
    batch = jax.random.normal(key, (64, 2))

    def made_of(temperature, **settings):
        energy = warm(ef.energies.mlp(0, 2, (8,)), temperature)
        return [(ef.init(0, energy, o, OPTIMIZER, batch), o) for o in phases(**settings)]

    for state, objective in made_of(0.1):
        ef.make_step(objective, OPTIMIZER)(state, batch)
    again = made_of(0.2, onset=1.0, sigma=0.3, weight=3.0, trim=0.1, floor=1.0, dt=0.2)
    with count_compilations() as made:
        for state, objective in again:
            _, metrics = ef.make_step(objective, OPTIMIZER)(state, batch)
            assert np.isfinite(metrics["loss"])
    assert made.count == 0


class Wide(NamedTuple):
    batch_shape = ()

    def sample(self, key, shape):
        return jax.random.normal(key, (*shape, 3))


@pytest.mark.parametrize(
    ("objective", "energy", "batch", "message"),
    [
        (ef.transport_matching(Normal()), bowl, jnp.ones((4, 1)), r"ef\.landscape\(energy\) for the flow alone"),
        (ef.energy_matching(Normal()), bowl, jnp.ones((4, 1)), r"this energy is a density: give ef\.tempered"),
        (ef.energy_matching(Normal()), ef.landscape, jnp.ones((4, 1)), "this energy is a landscape"),
        (ef.transport_matching(Wide()), warm, jnp.ones((4, 1)), r"\(4, 3\) against a batch of \(4, 1\)"),
        (ef.energy_matching(Wide()), warm, jnp.ones((4, 1)), r"\(4, 3\) against a batch of \(4, 1\)"),
        (ef.energy_matching(Normal()), warm, jnp.ones((1, 1)), "a single row"),
        (ef.energy_matching(Normal()), warm, jnp.ones((4, 1), int), "dtype"),
    ],
)
def test_what_cannot_be_matched_is_refused(objective, energy, batch, message):
    potential = Partial(bowl, jnp.ones(()))
    with pytest.raises(ValueError, match=message):
        ef.init(0, potential if energy is bowl else energy(potential), objective, optax.sgd(0.1), batch)


def test_a_landscape_and_a_field_may_be_transported(key):
    """The field's loss is that of the potential whose gradient it is."""
    objective, k, batch = ef.transport_matching(Normal()), jnp.asarray(2.0), jnp.ones((4, 1))
    valley, slopes = ef.landscape(Partial(bowl, k)), ef.field(Partial(jnp.multiply, k))
    ef.init(0, valley, objective, optax.sgd(0.1), batch)
    ef.init(0, slopes, objective, optax.sgd(0.1), batch)
    losses = [value(objective, energy, batch, jax.random.clone(key)) for energy in (valley, slopes)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_bad_settings_are_refused_in_one_sentence():
    with pytest.raises(TypeError, match="sample"):
        ef.transport_matching(abs)
    with pytest.raises(ValueError, match="one point"):
        ef.energy_matching(dist.Normal(jnp.zeros(2), 1.0))
    for settings in ({"onset": 1.1}, {"trim": 1.0}, {"trim": -0.1}, {"floor": 0.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            ef.energy_matching(Normal(), **settings)


# Eight Gaussians to two moons


class EightGaussians(NamedTuple):
    """Eight Gaussians of variance sqrt(0.1) on a circle of radius 5."""

    batch_shape = ()

    def sample(self, key, shape):
        angle_key, noise_key = jax.random.split(key)
        angle = jax.random.randint(angle_key, shape, 0, 8).astype(float) * (math.pi / 4)
        centre = 5.0 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        return centre + 0.1**0.25 * jax.random.normal(noise_key, (*shape, 2))


def moons(key, num):
    """Two moons of radius 3 with noise of scale 0.6, drawn anew."""
    angle_key, side_key, noise_key = jax.random.split(key, 3)
    angle = math.pi * jax.random.uniform(angle_key, (num, 1))
    up = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)
    down = jnp.concatenate([1 - jnp.cos(angle), 0.5 - jnp.sin(angle)], axis=1)
    clean = jnp.where(jax.random.bernoulli(side_key, 0.5, (num, 1)), up, down)
    return 3 * (clean + 0.2 * jax.random.normal(noise_key, (num, 2))) - 1


def energy_distance(x, y):
    """2 E|x - y| - E|x - x'| - E|y - y'| (Szekely and Rizzo 2004)."""

    def mean(a, b):
        return np.linalg.norm(np.asarray(a, np.float64)[:, None] - np.asarray(b, np.float64)[None], axis=-1).mean()

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


def distances_on_the_way(seed):
    """Return the distances to fresh moons at T = 1, 2, 4, 10: of the flow alone, and after the second phase."""
    key, source, size = jax.random.key(seed), EightGaussians(), 2000
    draw = jax.jit(lambda i, num: moons(jax.random.fold_in(key, i), num), static_argnums=1)
    fresh, starts = draw(-1, size), source.sample(jax.random.fold_in(key, 10**6), (size,))

    def trained(energy, objective, rate, num_steps, rows, first):
        optimizer = optax.adam(optax.cosine_decay_schedule(rate, num_steps, 0.1))
        state = ef.init(seed, energy, objective, optimizer, draw(0, rows))
        step = ef.make_step(objective, optimizer, ema_decay=0.99)
        for i in range(num_steps):
            state, _ = step(state, draw(first + i, rows))
        return state.ema

    def distances(energy, **settings):
        result = ef.transport_langevin(seed, energy, (1, 2, 4, 10), starts, **settings)
        return [energy_distance(x, fresh) for x in result.position]

    energy = warm(ef.energies.mlp(seed, 2, (128, 128, 128)))
    energy = trained(energy, ef.transport_matching(source, sigma=0.1), 1e-3, 4000, 128, 0)
    flow = distances(energy, temperature=0.0)
    energy = trained(energy, ef.energy_matching(source, weight=2.0, sigma=0.1), 1e-4, 1000, 256, 4000)
    return flow, distances(energy)


@pytest.mark.slow
def test_eight_gaussians_become_moons_and_stay_so_for_the_length_of_the_chains(seed):
    """The flow alone is right at T = 1 and nowhere else; the contrast makes T = 2, its chains' length, right.

    The limits are twice the published 0.006 at T = 1 and 0.0078 at T = 2; two sets of data are 0.004 apart. One
    training ends at 0.008 to 0.017, so it is the mean of two that counts.
    """
    flow, both = np.mean([distances_on_the_way(2 * seed + i) for i in range(2)], axis=0)
    print(f"energy distances at T = 1, 2, 4, 10: flow {np.round(flow, 4)}, then {np.round(both, 4)}")
    assert flow[0] < 0.012 and (np.diff(flow) > 0).all() and flow[1] > 0.3
    assert np.argmin(both) == 1 and both[1] < 0.0156
    assert both[2] < 0.2 * flow[2] and both[3] < 0.5 * flow[3]
