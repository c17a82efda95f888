"""Laws of descents: recurrences on quadratics, when samples stop, what they cost, and where they lead."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import energyflow as ef
from energyflow.descent import DescentDiverged
from landscapes import exact_field

pytestmark = pytest.mark.core


def bowl(scale, x):
    return 0.5 * scale * jnp.sum(x**2)


def quartic(x):
    return jnp.sum(x**4) / 4


STARTS = np.array([[3.0, 0.0], [0.3, 0.4], [0.0, -0.002]], np.float32)


def test_a_sample_stops_by_the_rule_of_geometric_decay():
    """On a bowl |f| falls by |1 - eta lambda| a step: from 12 by .6 to below 1e-3 in ceil(18.4) = 19 steps."""
    scale, step, small = 4.0, 0.1, 1e-3
    first = scale * np.linalg.norm(STARTS, axis=1)
    expected = np.maximum(np.ceil(np.log(small / first) / np.log(abs(1 - scale * step))), 0)
    found = ef.descend(Partial(bowl, scale), STARTS, step, 100, min_gradient=small)
    assert found.num_steps[0] == 19
    np.testing.assert_array_equal(found.num_steps, expected)
    np.testing.assert_array_equal(found.num_gradients, expected + 1)
    assert (found.gradient_norm < small).all() and set(found.stopped) == {"gradient"}
    np.testing.assert_allclose(found.position, STARTS * 0.6 ** expected[:, None], rtol=1e-4)


def test_time_stops_whom_the_gradient_does_not():
    found = ef.descend(Partial(bowl, 4.0), STARTS, 0.1, 10, min_gradient=1e-2)
    assert list(found.stopped) == ["time", "time", "gradient"] and list(found.num_steps) == [10, 10, 0]
    np.testing.assert_array_equal(found.position[2], STARTS[2])
    forever = ef.descend(Partial(bowl, 4.0), np.zeros((1, 2), np.float32), 0.1, 10)
    assert list(forever.stopped) == ["time"] and list(forever.num_gradients) == [11]


def test_looking_ahead_is_the_published_recurrence():
    """`x <- x - eta f(x + mu (x - x_before))`; on a bowl its roots are those of r^2 - .48 r - .12, .661 and -.181."""
    scale, step, mu = 4.0, 0.1, 0.3
    with jax.enable_x64(True):
        x = jnp.asarray(STARTS, float)
        before, path = x, [x]
        for _ in range(30):
            before, x = x, x - step * scale * (x + mu * (x - before))
            path.append(x)
        found = ef.descend(Partial(bowl, scale), path[0], step, 30, look_ahead=mu, keep_every=1)
        np.testing.assert_allclose(found.path, np.stack(path, axis=1), rtol=1e-12)
        roots = np.sort(np.roots([1, -(1 - scale * step * (1 + mu)), -scale * step * mu]))
        np.testing.assert_allclose(roots, [-0.181, 0.661], atol=5e-4)
        coordinate = np.asarray(found.path)[0, :, 0]
        weights = np.linalg.solve(np.stack([roots**0, roots]), coordinate[:2])
        np.testing.assert_allclose(coordinate, (weights * roots ** np.arange(31)[:, None]).sum(axis=1), rtol=1e-9)
        # Heavy ball and Nesterov's method carry a velocity, and plain descent none.
        for other in (optax.sgd(step, mu), optax.sgd(step, mu, nesterov=True), step):
            assert np.abs(ef.descend(Partial(bowl, scale), path[0], other, 30).position - x).max() > 1e-8


@pytest.mark.lenient("optax")
def test_any_optax_optimiser_runs_with_a_state_for_each_sample():
    """As if every sample were optimised alone; a step size is plain gradient descent."""
    optimizer = optax.adam(0.05)
    found = ef.descend(quartic, STARTS, optimizer, 20)
    for start, end in zip(STARTS, found.position, strict=True):
        x, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
        for _ in range(20):
            updates, state = optimizer.update(jax.grad(quartic)(x), state)
            x = optax.apply_updates(x, updates)
        np.testing.assert_allclose(end, x, rtol=1e-4, atol=1e-6)
    plain, sgd = (ef.descend(quartic, STARTS, step, 20).position for step in (0.05, optax.sgd(0.05)))
    np.testing.assert_allclose(plain, sgd, rtol=1e-6)


def test_paths_lead_from_the_starts_to_the_ends():
    found = ef.descend(Partial(bowl, 1.0), STARTS, 0.1, 10, keep_every=4, min_gradient=1e-2)
    assert found.path.shape == (3, 4, 2)  # after 0, 4, 8 and 10 steps
    np.testing.assert_allclose(found.path[:2], STARTS[:2, None] * 0.9 ** np.array([0, 4, 8, 10])[:, None], rtol=1e-5)
    np.testing.assert_array_equal(found.path[2], np.stack([STARTS[2]] * 4))  # frozen from the start
    np.testing.assert_array_equal(found.path[:, -1], found.position)
    assert ef.descend(Partial(bowl, 1.0), STARTS, 0.1, 10).path is None


def test_neighbours_change_nothing():
    """A sample's end and count do not depend on how long the others take."""
    together = ef.descend(quartic, STARTS, 0.05, 200, min_gradient=0.02, look_ahead=0.3)
    for i in range(3):
        alone = ef.descend(quartic, STARTS[i : i + 1], 0.05, 200, min_gradient=0.02, look_ahead=0.3)
        np.testing.assert_allclose(alone.position[0], together.position[i], rtol=1e-6)
        assert alone.num_gradients[0] == together.num_gradients[i]


def test_the_modes_of_a_density_are_found(key):
    energy = ef.energies.gaussian_mixture(np.array([[-4.0, 0.0], [4.0, 1.0]]), 0.5, np.array([0.3, 0.7]))
    starts = 2.0 * jax.random.normal(key, (64, 2))
    found = ef.descend(energy, starts, 0.1, 500, min_gradient=1e-4)
    gaps = np.linalg.norm(np.asarray(found.position)[:, None] - np.array([[-4.0, 0.0], [4.0, 1.0]]), axis=2)
    assert gaps.min(axis=1).max() < 1e-3 and set(found.stopped) == {"gradient"}


def test_a_descent_may_start_at_any_noise_level(key):
    """Data with a fifth of the noise are 2.8 of its standard deviations from another's quarter, twice over: 99.5 %
    return to their own datum, and from noise alone a quarter of them do; both to 4.5 standard errors."""
    data = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    own = jnp.arange(200) % 4
    noise = jax.random.normal(key, (200, 2))
    for gamma, low, high in ((0.8, 0.97, 1.0), (0.0, 0.1, 0.4)):
        starts = gamma * data[own] + (1 - gamma) * noise
        ends = ef.descend(exact_field(data, "truncated"), starts, 0.02, 50).position
        gaps = jnp.linalg.norm(ends[:, None] - data[None], axis=2)
        assert jnp.median(gaps.min(axis=1)) < 1e-2
        assert low <= float(jnp.mean((gaps.argmin(axis=1) == own).astype(float))) <= high


def well(i, x):
    return (x[i] ** 2 - 1) ** 2 / 4


def test_landscapes_compose(key):
    """A well in each coordinate, one of them a field: each alone leaves the other coordinate where it was."""
    starts = jax.random.normal(key, (50, 2)) + 0.05
    first = ef.landscape(Partial(well, 0))
    second = ef.field(lambda x: jax.grad(Partial(well, 1))(x))
    ends = [np.asarray(ef.descend(e, starts, 0.2, 400).position) for e in (first, ef.sum_landscapes(first, second))]
    np.testing.assert_array_equal(ends[0][:, 1], starts[:, 1])
    assert np.allclose(np.abs(ends[1]), 1.0, atol=1e-3)


def test_points_are_pytrees():
    starts = {"a": STARTS, "b": STARTS[:, 0]}
    energy = lambda x: bowl(4.0, x["a"]) + bowl(4.0, x["b"])  # noqa: E731
    found = ef.descend(energy, starts, 0.1, 5, keep_every=5)
    for name, x in starts.items():
        np.testing.assert_allclose(found.position[name], x * 0.6**5, rtol=1e-5)
        assert found.path[name].shape == (3, 2, *x.shape[1:])


def test_a_lost_descent_is_named_and_keeps_its_last_finite_position():
    """Steps of 1 on x^4 / 4 lead from 3 to -24, 13800 and -2.6e12, whose gradient float32 cannot square."""
    with pytest.raises(DescentDiverged, match=r"sample 0 left the finite numbers at step 3 \(1 of 3 did") as caught:
        ef.descend(quartic, STARTS, 1.0, 50)
    descent = caught.value.descent
    np.testing.assert_allclose(descent.position[0], [13_800.0, 0.0], rtol=1e-5)
    assert list(descent.stopped) == ["diverged", "time", "time"]
    assert list(descent.num_steps) == [2, 50, 50] and list(descent.num_gradients) == [4, 51, 51]
    assert np.isfinite(descent.gradient_norm).all()


def test_new_weights_steps_and_times_compile_nothing(count_compilations):
    ef.descend(ef.mlp_field(0, 2, (8,)), STARTS, 0.1, 5, keep_every=5)
    other = ef.mlp_field(1, 2, (8,))
    with count_compilations() as made:
        ef.descend(other, STARTS, 0.01, 11, look_ahead=0.3, min_gradient=0.1, keep_every=11)
    assert made.count == 0


def root(x):
    return jnp.sqrt(x[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 0.0}, "step must be a positive"),
        ({"step": float("nan")}, "step must be a positive"),
        ({"num_steps": 0}, "num_steps and keep_every must be at least 1"),
        ({"keep_every": 0}, "num_steps and keep_every must be at least 1"),
        ({"look_ahead": -0.1}, "look_ahead and min_gradient must be at least 0"),
        ({"min_gradient": float("nan")}, "look_ahead and min_gradient must be at least 0"),
        ({"position": np.ones((3, 2), int)}, "float32 or float64"),
        ({"position": np.float32(1.0)}, r"leading axis \[chain\]"),
        ({"position": np.full((3, 2), np.nan, np.float32)}, "starts hold values that are not finite"),
        ({"energy": root, "position": STARTS}, "the gradient has norm inf at the start of sample 2"),
        ({"energy": lambda x: x}, r"wrap it by ef\.field"),
    ],
)
def test_what_is_no_descent_is_refused(changes, message):
    arguments = {"energy": quartic, "position": STARTS, "step": 0.1, "num_steps": 3} | changes
    with pytest.raises(ValueError, match=message):
        ef.descend(**arguments)
