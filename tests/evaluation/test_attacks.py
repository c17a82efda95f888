"""Attacks by projected gradients: on linear models the worst point is known, on others the ball and the range are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import energyflow as ef
from energyflow.energies.nets import MLP
from energyflow.evaluation.attacks import pgd, robustness
from energyflow.evaluation.scores import class_logits

W = np.array([[1.0, -2.0, 0.5, 3.0]])
RADIUS = 0.25


def linear(w, x):
    margin = jnp.dot(w[0], x.reshape(-1))
    return jnp.stack([-margin / 2, margin / 2])


def rows(n, seed=0, shape=(4,)):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (n, *shape)), rng.integers(2, size=n)


def worst(x, y, norm, radius=RADIUS, low=-np.inf, high=np.inf):
    side = (2 * y - 1)[:, None]
    direction = np.sign(W) if norm == "inf" else W / np.linalg.norm(W)
    return np.clip(x.reshape(len(x), -1) - radius * side * direction, low, high)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_a_linear_classifier_is_led_to_its_worst_point(norm, key):
    """`x - radius * y * sign(w)`, or along w: a step of the radius halves what is not along w, at least.

    The loss is flat across w at the worst point of a ball, so the best point visited is known to the root of rounding.
    """
    x, y = rows(50)
    with jax.enable_x64(True):
        classifier = Partial(linear, jnp.asarray(W))
        found = pgd(key, classifier, x, y, RADIUS, RADIUS, 60, norm=norm)
        np.testing.assert_allclose(found, worst(x, y, norm), rtol=0, atol=1e-9 if norm == "inf" else 1e-7)
        other = pgd(jax.random.clone(key), classifier, x, 1 - y, RADIUS, RADIUS, 60, norm=norm)
        assert np.abs(other - worst(x, y, norm)).max() > RADIUS  # the wrong sign


def test_the_range_cuts_the_worst_point_short_and_images_keep_their_shape(key):
    x, y = rows(50, shape=(2, 2, 1))
    with jax.enable_x64(True):
        found = pgd(key, Partial(linear, jnp.asarray(W)), x, y, RADIUS, 0.1, 10, low=-1.0, high=1.0)
    expected = worst(x, y, "inf", low=-1, high=1)
    assert found.shape == x.shape and np.abs(expected).max() == 1
    np.testing.assert_allclose(found.reshape(50, -1), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_too_few_steps_do_not_arrive(norm, key):
    """The negative control of the closed form."""
    x, y = rows(50)
    with jax.enable_x64(True):
        found = pgd(key, Partial(linear, jnp.asarray(W)), x, y, RADIUS, 0.01, 5, norm=norm)
    assert np.abs(found - worst(x, y, norm)).max() > 0.1 * RADIUS


def test_robust_accuracy_of_a_linear_classifier_is_the_share_of_wide_margins(key):
    x, y = rows(400, seed=1)
    margins = (2 * y - 1) * (x @ W[0])
    y = np.where(np.arange(400) % 10 > 0, (margins * (2 * y - 1) > 0).astype(int), y)  # nine of ten are right
    margins = (2 * y - 1) * (x @ W[0])
    with jax.enable_x64(True):
        found = robustness(key, Partial(linear, jnp.asarray(W)), x, y, RADIUS, 0.1, 8)
    assert found.accuracy == np.mean(margins > 0)
    assert found.robust_accuracy == np.mean(margins > RADIUS * np.abs(W).sum())
    assert 0 < found.robust_accuracy < found.accuracy < 1


def test_two_digits_told_apart_by_a_line_are_as_robust_as_its_margins_say(key):
    """Threes and eights, pixels in [0, 1]: each moves against its weight as far as the radius and range allow."""
    images, digits = load_digits(return_X_y=True)
    x, y = images[np.isin(digits, (3, 8))] / 16, (digits[np.isin(digits, (3, 8))] == 8).astype(int)
    model = LogisticRegression(C=0.1).fit(x[:200], y[:200])
    x, y, w, b = x[200:], y[200:], model.coef_, model.intercept_[0]
    moved = np.clip(x - 0.1 * (2 * y - 1)[:, None] * np.sign(w), 0, 1)

    def margins(points):
        return (2 * y - 1) * (points @ w[0] + b)

    with jax.enable_x64(True):
        weights = jnp.concatenate([jnp.asarray(w), jnp.full((1, 1), b)], axis=1)
        classifier = Partial(lambda w, x: linear(w, jnp.append(x, 1)), weights)
        found = robustness(key, classifier, x, y, 0.1, 0.05, 6, low=0.0, high=1.0)
    assert (found.accuracy, found.robust_accuracy) == (np.mean(margins(x) > 0), np.mean(margins(moved) > 0))
    assert found.robust_accuracy < 0.9 < found.accuracy
    np.testing.assert_allclose(margins(found.points), margins(moved), rtol=0, atol=1e-9)


NET = ef.classifier_energy(MLP(4, (16,), num_outputs=3, rngs=nnx.Rngs(0)))


def losses(classifier, x, y):
    log_p = jax.nn.log_softmax(jax.vmap(lambda row: class_logits(classifier, row))(jnp.asarray(x)))
    return -np.asarray(log_p)[np.arange(len(y)), y]


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_points_stay_in_ball_and_range_and_only_get_worse(norm, key):
    x, y = rows(200, seed=2)
    x = x.astype(np.float32)
    found = pgd(key, NET, x, y, 0.3, 0.07, 20, norm=norm, low=-1.0, high=1.0)
    away = np.abs(found - x).max() if norm == "inf" else np.linalg.norm(found - x, axis=1).max()
    assert 0.29 < away < 0.3 + 1e-6 and np.abs(found).max() <= 1
    before, after = losses(NET, x, y), losses(NET, found, y)
    assert (after >= before - 1e-6).all() and (after > before + 0.01).mean() > 0.95
    np.testing.assert_array_equal(pgd(0, NET, x, y, 0.0, 0.1, 3, norm=norm), x)


@pytest.mark.parametrize(("norm", "square"), [("inf", 4 / 3), ("2", 4 / 6)])
def test_the_start_is_uniform_in_the_ball(norm, square, key):
    """Where loss grows with distance from x, no step at all returns the start: its mean square is d/3, or d/(d + 2)."""
    zeros, n = np.zeros((4000, 4), np.float32), 4000
    away = pgd(key, lambda x: jnp.stack([0 * x[0], jnp.sum(x**2)]), zeros, np.zeros(n, int), 1.0, 0.1, 0, norm=norm)
    squares = np.square(away.astype(float)).sum(axis=1)
    assert abs(squares.mean() - square) < 4.5 * squares.std() / n**0.5
    assert (np.abs(away.mean(axis=0)) < 4.5 * away.std(axis=0) / n**0.5).all()


def test_a_temperature_changes_neither_what_is_right_nor_the_worst_point(key):
    x, y = rows(50, seed=3)
    with jax.enable_x64(True):
        classifier = Partial(linear, jnp.asarray(W))
        found = [
            robustness(jax.random.clone(key), energy, x, y, RADIUS, 0.1, 8)
            for energy in (classifier, ef.tempered(classifier, 2.0))
        ]
    np.testing.assert_allclose(found[0].points, found[1].points, rtol=0, atol=1e-9)
    assert found[0][:2] == found[1][:2]


def test_settings_compile_nothing(count_compilations):
    x, y = rows(20, seed=4)
    x = x.astype(np.float32)
    pgd(0, NET, x, y, 0.1, 0.01, 3)
    other = ef.classifier_energy(MLP(4, (16,), num_outputs=3, rngs=nnx.Rngs(1)))
    with count_compilations() as made:
        pgd(0, other, x, y, 0.2, 0.03, 7)
    assert made.count == 0


def test_what_cannot_be_attacked_is_refused():
    x, y = rows(5)
    with pytest.raises(ValueError, match='norm must be "inf" or "2"'):
        pgd(0, NET, x, y, 0.1, 0.1, 1, norm="1")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="labels are one integer a row"):
        pgd(0, NET, x, y[:3], 0.1, 0.1, 1)
    with pytest.raises(ValueError, match="must be at least 0"):
        pgd(0, NET, x, y, -0.1, 0.1, 1)
    with pytest.raises(ValueError, match=r"must lie in \[0.0, 1.0\]"):
        pgd(0, NET, x, y, 0.1, 0.1, 1, low=0.0, high=1.0)
