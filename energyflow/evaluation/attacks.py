"""Floor 6: points near the data that a classifier gets wrong, by projected gradients, and its accuracy on them."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from energyflow.energy import as_energy
from energyflow.evaluation.scores import class_logits, in_batches
from energyflow.rows import per_row
from energyflow.types import Key, Scalar, as_key

Norm = Literal["inf", "2"]


class Robustness(NamedTuple):
    """accuracy: on the points as they are. robust_accuracy: share right there and at `points`, what `pgd` found.

    An upper bound: another attack may find more.
    """

    accuracy: float
    robust_accuracy: float
    points: np.ndarray


def pgd(
    key: Key | int,
    classifier: Any,
    x: Array,
    y: Array,
    radius: Scalar | float,
    step: Scalar | float,
    num_steps: int,
    *,
    norm: Norm = "inf",
    low: float = -np.inf,
    high: float = np.inf,
) -> np.ndarray:
    """Return points near x, of its shape, that `classifier` likes least as y: projected gradient ascent of -log p(y|x).

    classifier: see `evaluation.scores.class_logits`. x: (n, ...), floats in [low, high], in the units of the radius.
    y: (n,), integers. radius: of the ball around each point in the norm "inf" (over all values of a point) or "2".
    The start is uniform in the ball. A step moves by `step` times the sign of the gradient ("inf") or along it ("2"),
    and is projected onto ball and range (Madry et al. 2018). Returned is the visited point of the highest loss, x among
    them, and not the last: `step * num_steps` should be some times the radius. Settings are arguments of one compiled
    program. float32 as JAX is set; a point is in the ball to its rounding.
    Raises ValueError for x outside the range, labels that are not one integer a row, a negative radius or step, and an
    unknown norm.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    if norm not in ("inf", "2"):
        raise ValueError(f'norm must be "inf" or "2"; got {norm!r}')
    if y.shape != x.shape[:1] or not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"labels are one integer a row, ({len(x)},); got {y.dtype} {y.shape}")
    if radius < 0 or step < 0 or num_steps < 0:
        raise ValueError(f"radius, step and num_steps must be at least 0; got {radius}, {step} and {num_steps}")
    if not bool(jnp.all((x >= low) & (x <= high))):
        raise ValueError(f"points must lie in [{low}, {high}], the range that they are attacked in")
    settings = [jnp.asarray(value, x.dtype) for value in (radius, step, low, high)]
    attack = partial(_attack, norm, as_energy(classifier), num_steps, *settings)
    offset = _in_ball(as_key(key), x, norm) * settings[0]
    return in_batches(attack, (x, y, offset)).astype(x.dtype)


def robustness(key: Key | int, classifier: Any, x: Array, y: Array, *settings: Any, **options: Any) -> Robustness:
    """Return the accuracy of `classifier` on x and on what `pgd` makes of it; arguments as there.

    A row counts as robust where it is right both as it is and at the point found.
    """
    points = pgd(key, classifier, x, y, *settings, **options)
    right = [in_batches(partial(_classes, as_energy(classifier)), part) == np.asarray(y) for part in (x, points)]
    return Robustness(float(right[0].mean()), float(np.mean(right[0] & right[1])), points)


def _in_ball(key: Key, x: Array, norm: Norm) -> Array:
    """Return uniform draws from the unit balls around 0, of the shape of x."""
    if norm == "inf":
        return jax.random.uniform(key, x.shape, x.dtype, -1, 1)
    return jax.random.ball(key, x[0].size, 2, x.shape[:1], x.dtype).reshape(x.shape)


@partial(jax.jit, static_argnums=0)
def _attack(
    norm: Norm, classifier: Any, num_steps: int, radius: Array, step: Array, low: Array, high: Array, rows: tuple
) -> Array:
    x, y, offset = rows

    def losses(points: Array) -> tuple[Array, Array]:
        log_p = jax.nn.log_softmax(jax.vmap(partial(class_logits, classifier))(points))
        each = -jnp.take_along_axis(log_p, y[:, None], axis=1)[:, 0]
        return each.sum(), each

    def better(found: tuple, points: Array, each: Array) -> tuple:
        worse_off = each > found[1]
        return jnp.where(per_row(worse_off, x), points, found[0]), jnp.where(worse_off, each, found[1])

    def advance(_: Any, carry: tuple) -> tuple:
        points, found = carry
        (_, each), slope = jax.value_and_grad(losses, has_aux=True)(points)
        moved = points + step * (jnp.sign(slope) if norm == "inf" else _scaled(slope, _inverse(_lengths(slope))))
        return _project(norm, x, moved, radius, low, high), better(found, points, each)

    start = jnp.clip(x + offset, low, high)
    points, found = jax.lax.fori_loop(0, num_steps, advance, (start, (x, losses(x)[1])))
    return better(found, points, losses(points)[1])[0]


@jax.jit
def _classes(classifier: Any, x: Array) -> Array:
    return jnp.argmax(jax.vmap(partial(class_logits, classifier))(x), axis=1)


def _project(norm: Norm, x: Array, points: Array, radius: Array, low: Array, high: Array) -> Array:
    """Return the points nearer to x than `radius` and in the range: clipping to a box around x leaves no ball."""
    offset = points - x
    if norm == "inf":
        offset = jnp.clip(offset, -radius, radius)
    else:
        offset = _scaled(offset, jnp.minimum(1, radius * _inverse(_lengths(offset))))
    return jnp.clip(x + offset, low, high)


def _lengths(rows: Array) -> Array:
    return jnp.linalg.norm(rows.reshape(len(rows), -1), axis=1)


def _inverse(lengths: Array) -> Array:
    """Return 1 / lengths, and 0 for 0: a gradient that vanishes moves nothing."""
    return jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1), 0)


def _scaled(rows: Array, factors: Array) -> Array:
    return rows * per_row(factors, rows)
