"""Laws of equilibrium matching: optima in closed form and by quadrature, where they rest, and what they are not."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax.tree_util import Partial

import energyflow as ef
from energyflow.objectives.equilibrium import decayed
from landscapes import SCALE, exact_field
from laws import assert_mean, assert_not_mean

pytestmark = pytest.mark.core

DECAYS = ("truncated", "linear")


def value(objective, energy, batch, key=None):
    return objective.loss(energy, batch, jax.random.key(0) if key is None else key, None)[0]


def values(objective, energy, batch, key, num=2000):
    """Return the loss under `num` keys."""
    return jax.jit(jax.vmap(lambda k: value(objective, energy, batch, k)))(jax.random.split(key, num))


def zeros(x):
    return jnp.zeros_like(x)


def pull(scale, centre, x):
    """The field `scale (x - centre)`, of any pytree."""
    return jax.tree.map(lambda a, c: scale * (a - c), x, centre)


def bowl(scale, centre, x):
    return 0.5 * scale * sum(jnp.sum((a - c) ** 2) for a, c in zip(*map(jax.tree.leaves, (x, centre)), strict=True))


def test_the_decays_are_the_published_ones():
    gamma = jnp.array([0.0, 0.5, 0.8, 0.9, 1.0])
    close = {"rtol": 0, "atol": 1e-6}
    np.testing.assert_allclose(4 * decayed(gamma, 0.8, 1.0), [4, 4, 4, 2, 0], **close)
    np.testing.assert_allclose(decayed(gamma, 0.0, 1.0), 1 - gamma, **close)
    for b in (0.5, 1.4, 3.0):
        lines = b - (b - 1) * gamma / 0.8, (1 - gamma) / (1 - 0.8)
        np.testing.assert_allclose(decayed(gamma, 0.8, b), np.minimum(*lines), **close)


@pytest.mark.parametrize("build", [lambda c: ef.field(Partial(pull, SCALE, c)), lambda c: landscape_of(c)])
def test_one_datum_with_linear_decay_costs_nothing_at_its_optimum(build, key):
    """All that may lie behind y points to the datum with `scale (y - x)`, so that the loss can be 0 to rounding."""
    point = {"a": jnp.array([0.3, -1.2]), "b": jnp.float32(0.7)}
    batch = jax.tree.map(lambda x: jnp.broadcast_to(x, (64, *x.shape)), point)
    assert value(ef.equilibrium_matching("linear"), build(point), batch, key) < 1e-6 * SCALE**2
    assert value(ef.equilibrium_matching("truncated"), build(point), batch, jax.random.clone(key)) > 0.1
    found = ef.descend(build(point), jax.tree.map(lambda x: x + 1, batch), 1 / SCALE, 1)
    for x, end in zip(jax.tree.leaves(point), jax.tree.leaves(found.position), strict=True):
        np.testing.assert_allclose(end, np.broadcast_to(x, end.shape), rtol=0, atol=1e-6)


def landscape_of(centre):
    return ef.landscape(Partial(bowl, SCALE, centre))


def test_the_loss_is_a_mean_over_rows_and_dimensions(key):
    """Of the zero field it is scale^2 E[c^2] (1 + |x|^2 / d), with E[c^2] = .8 + .2 / 3."""
    batch = jnp.array([[0.5, -1.0, 2.0, 0.0], [1.0, 0.0, 0.0, -0.5]])
    zero = ef.field(Partial(lambda c, x: c * x, jnp.zeros(())))
    found = values(ef.equilibrium_matching(), zero, batch, key)
    expected = 16 * (0.8 + 0.2 / 3) * (1 + jnp.mean(batch**2))
    assert_mean(found, float(expected))
    assert_not_mean(4 * found, float(expected))


@pytest.mark.parametrize("decay", DECAYS)
def test_the_mean_over_all_that_may_lie_behind_a_point_is_the_optimum(decay, key):
    """The slope of the loss along any other field vanishes there, and at the other decay's optimum it does not."""
    data = jnp.array([[-0.6, 0.2], [0.9, -0.4], [0.1, 0.7]])
    objective = ef.equilibrium_matching(decay)
    direction = lambda x: x + jnp.tanh(x[::-1])  # noqa: E731

    def slope(field, key):
        def moved(a):
            return value(objective, ef.field(lambda x: field(x) + a * direction(x)), data, key)

        return jax.grad(moved)(0.0)

    for name in DECAYS:
        slopes = jax.jit(
            lambda keys, n=name: jax.lax.map(lambda k: slope(exact_field(data, n), k), keys, batch_size=50)
        )
        found = slopes(jax.random.split(jax.random.clone(key), 600))
        (assert_mean if name == decay else assert_not_mean)(found, 0.0)


@pytest.mark.parametrize(("decay", "end"), [("truncated", 0.97167), ("linear", 0.81461)])
def test_in_one_dimension_descents_rest_short_of_the_data_and_in_two_at_them(decay, end):
    """Data at -1 and 1: on a line the ways to one lead past the other and pull at it.

    The ends on a line are roots by adaptive quadrature; the nodes here leave an error of about their spacing squared.
    """
    with jax.enable_x64(True):
        for dim, rest in ((1, end), (2, 1.0)):
            data = jnp.array([[-1.0, 0.0], [1.0, 0.0]])[:, :dim]
            found = ef.descend(exact_field(data, decay), 0.2 * data, 0.05, 2000, min_gradient=1e-9)
            np.testing.assert_allclose(found.position, rest * data, rtol=0, atol=4e-4)


def test_near_one_datum_a_truncated_landscape_bends_by_scale_over_what_is_left(key):
    """Its slope there tends to 4 / .2 = 20, so that descents come to rest with steps under .1 and not with longer."""
    with jax.enable_x64(True):
        field = exact_field(jnp.zeros((1, 2)), "truncated")
        near = jnp.array([1e-5, 0.0])
        assert abs(field(near)[0] / near[0] - 20) < 0.1
        starts = 0.5 * jax.random.normal(key, (4, 2), float)
        for step, rests in ((0.095, True), (0.105, False)):
            ends = jnp.linalg.norm(ef.descend(field, starts, step, 600).position, axis=1)
            assert (ends < 1e-6).all() if rests else (ends > 1e-4).all()


HEADS = {
    "field": lambda: ef.mlp_field(0, 2, (32, 32)),
    "residual field": lambda: ef.residual_mlp_field(0, 2, 32, 2),
    "dot": lambda: ef.dot_energy(ef.mlp_field(0, 2, (32, 32))),
    "norm": lambda: ef.norm_energy(ef.mlp_field(0, 2, (32, 32))),
    "scalar": lambda: ef.landscape(ef.mlp(0, 2, (32, 32))),
    "sum": lambda: ef.sum_landscapes(ef.mlp_field(0, 2, (32,)), ef.landscape(ef.mlp(1, 2, (32,)))),
}


PAIR = np.array([[-1.0, 0.0], [1.0, 0.0]], np.float32)


@pytest.fixture(scope="module")
def costs():
    """What the best field costs on two points, and what the field of zeros does."""
    fields, rows = (exact_field(PAIR, "truncated"), ef.field(zeros)), jnp.tile(PAIR, (2000, 1))
    return [float(value(ef.equilibrium_matching(), field, rows)) for field in fields]


@pytest.mark.lenient("optax")
@pytest.mark.parametrize("name", HEADS)
def test_training_by_the_usual_loop_lowers_the_loss(name, costs, seed):
    """To what the best field costs, and a fifth of the way to what the field of zeros does."""
    rng = np.random.default_rng(seed)
    batches = (PAIR[rng.integers(2, size=256)] for _ in range(300))
    objective, optimizer = ef.equilibrium_matching(), optax.adam(5e-3)
    state = ef.init(seed, HEADS[name](), objective, optimizer, PAIR)
    rows = [metrics for state, metrics in ef.train(state, ef.make_step(objective, optimizer), batches)]
    best, nothing = costs
    assert np.mean([row["loss"] for row in rows[-50:]]) < best + 0.2 * (nothing - best)
    assert all(np.isfinite(row["field_norm"]) for row in rows)


def test_a_density_is_refused():
    net = ef.energies.mlp(0, 2, (4,))
    for density in (net, ef.tempered(net, 0.5)):
        with pytest.raises(ValueError, match=r"declare the energy by ef\.landscape"):
            ef.init(0, density, ef.equilibrium_matching(), optax.sgd(0.1), jnp.ones((3, 2)))


POINTS, BASE, KERNEL = np.ones((3, 2), np.float32), dist.Normal(np.zeros(2), 1.0).to_event(1), ef.mala(0.1)
NEEDS_DENSITY = {
    "ais": lambda e: ef.ais(0, KERNEL, BASE, e, 5, 4),
    "bracket": lambda e: ef.bracket(0, e, BASE, KERNEL),
    "smc": lambda e: ef.smc(0, e, BASE, KERNEL),
    "log_z": lambda e: ef.log_z(0, e, BASE, KERNEL),
    "quadrature": lambda e: ef.log_z_quadrature(e, -np.ones(2), np.ones(2)),
    "likelihood": lambda e: ef.log_likelihood(e, POINTS, None),
    "raise": lambda e: ef.raise_log_likelihood(0, e, BASE, POINTS, KERNEL),
    "distribution": lambda e: ef.as_distribution(e, BASE),
    "run": lambda e: ef.run(0, e, position=POINTS),
    "temperature": lambda e: ef.tempered(e, 0.5),
    "product": lambda e: ef.sum_energies(e),
    "score matching": lambda e: ef.init(0, e, ef.score_matching(), optax.sgd(0.1), POINTS),
}


@pytest.mark.parametrize("name", NEEDS_DENSITY)
def test_what_needs_a_density_refuses_what_equilibrium_matching_trains(name):
    field = ef.mlp_field(0, 2, (4,))
    for landscape in (field, ef.dot_energy(field), ef.sum_landscapes(field)):
        with pytest.raises(ValueError, match="this energy is a landscape"):
            NEEDS_DENSITY[name](landscape)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": "cosine"}, "decay must be"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"scale": float("nan")}, "scale must be positive"),
        ({"start": 1.0}, "start must lie between 0 and 1"),
        ({"start": 0.0}, "start must lie between 0 and 1"),
        ({"decay": "piecewise"}, "initial is a positive number"),
        ({"initial": 2.0}, "initial is a positive number"),
        ({"decay": "piecewise", "initial": 0.0}, "initial is a positive number"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ef.equilibrium_matching(**settings)


def test_integers_are_refused():
    with pytest.raises(ValueError, match="float32 or float64"):
        ef.init(0, ef.mlp_field(0, 2), ef.equilibrium_matching(), optax.sgd(0.1), np.ones((3, 2), int))


def test_new_weights_decays_and_scales_compile_nothing(count_compilations, key):
    batch, optimizer = jax.random.normal(key, (8, 2)), optax.sgd(0.1)
    objective = ef.equilibrium_matching()
    state = ef.init(0, ef.mlp_field(0, 2), objective, optimizer, batch)
    state, _ = ef.make_step(objective, optimizer)(state, batch)
    others = [ef.equilibrium_matching("linear", scale=1.0), ef.equilibrium_matching("piecewise", initial=1.4)]
    batch = batch + 1
    with count_compilations() as made:
        for objective in others:
            state, metrics = ef.make_step(objective, optimizer)(state, batch)
    assert made.count == 0 and np.isfinite(metrics["loss"])
