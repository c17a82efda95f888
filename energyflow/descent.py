"""Floor 4: descents, which sample a landscape and find the modes of a density.

A landscape of equilibrium matching is sampled by descending it for a finite time, `scale * step * num_steps`, from
noise or from anything between noise and data. Descents that go on leave the law of the data for a few points of rest: a
small gradient does not say that the samples are good, so choose the time first (Wang and Du 2025 stop at 1.7 to 3).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from energyflow.chains import count_chains, require_floats
from energyflow.energies.fields import gradient_field
from energyflow.types import Array, Tree


class Descent(NamedTuple):
    """Where descents ended, and why; arrays lead with [sample].

    position: after the last step. num_steps: (n,) steps made. num_gradients: (n,) evaluations of the gradient or field,
    one to start and one a step. gradient_norm: (n,) its last norm, over all leaves. stopped: (n,) "gradient" where that
    was small enough, "time" where all steps were made. path: starts, points in between and ends, leading axes [sample,
    point], where they were kept.
    """

    position: Tree
    num_steps: np.ndarray
    num_gradients: np.ndarray
    gradient_norm: np.ndarray
    stopped: np.ndarray
    path: Tree | None


class DescentDiverged(RuntimeError):
    """A descent left the finite numbers; `descent` holds the last finite positions, and "diverged" in `stopped`."""

    def __init__(self, message: str, descent: Descent):
        super().__init__(message)
        self.descent = descent


def descend(
    energy: Any,
    position: Tree,
    step: float | optax.GradientTransformation = 0.005,
    num_steps: int = 85,
    *,
    look_ahead: float = 0.0,
    min_gradient: float = 0.0,
    keep_every: int | None = None,
) -> Descent:
    """Move every sample down the gradient of an energy, or along a field, for `num_steps` or until it is flat.

    energy: a landscape, a field, or any energy of one point (then it finds modes). position: starts, leading axis
    [sample]; noise, or data with some noise left on them. step: eta in `x <- x - eta f(x)`, or an optax optimiser,
    which keeps a state for each sample. The defaults, for `equilibrium_matching()`, make a time of 4 * 0.005 * 85.
    look_ahead: mu, evaluates at `x + mu (x - x_before)`: the accelerated descent of Wang and Du (2025), 0.3 there;
    unlike Nesterov's it builds up no velocity. min_gradient: a sample whose gradient (at the point looked at) is
    shorter than this stays where it is and is counted no further; the others go on. keep_every: keep the path, a point
    every so many steps. New weights, settings and numbers of steps cost no compilation; a new optimiser or another
    number of points kept does.
    Raises ValueError for settings out of range, and for starts that are not finite or where the gradient is not;
    DescentDiverged, naming sample and step, where a step leaves the finite numbers.
    """
    by_size = not isinstance(step, optax.GradientTransformation)
    if by_size and not (np.isfinite(step) and step > 0):
        raise ValueError(f"step must be a positive and finite step size, or an optax optimiser; got {step}")
    if num_steps < 1 or (keep_every is not None and keep_every < 1):
        raise ValueError(f"num_steps and keep_every must be at least 1; got {num_steps} and {keep_every}")
    if not (look_ahead >= 0 and min_gradient >= 0):
        raise ValueError(f"look_ahead and min_gradient must be at least 0; got {look_ahead} and {min_gradient}")
    require_floats(position)
    position = jax.tree.map(jnp.asarray, position)
    count_chains(position)
    if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(position)):
        raise ValueError("the starts hold values that are not finite")
    ends = [*range(keep_every or num_steps, num_steps, keep_every or num_steps), num_steps]
    settings = _Settings(float(step) if by_size else None, float(look_ahead), float(min_gradient))
    optimizer = None if by_size else step
    state, path = _descend(gradient_field(energy), optimizer, settings, position, np.asarray(ends, np.int32))
    if keep_every is not None:
        path = jax.tree.map(lambda x, xs: jnp.concatenate([x[:, None], xs], axis=1), position, path)
    return _checked(state, min_gradient, None if keep_every is None else path)


class _Settings(NamedTuple):
    step_size: Any
    look_ahead: Any
    min_gradient: Any


class _State(NamedTuple):
    position: Tree
    gradient: Tree
    norm: Array
    optimizer_state: Any
    num_steps: Array
    is_lost: Array


@functools.partial(jax.jit, static_argnames="optimizer")
def _descend(field: Any, optimizer: Any, settings: _Settings, position: Tree, ends: Array) -> tuple[_State, Tree]:
    """Return the states after `ends[-1]` steps, and the positions after each of `ends`, axes [sample, end]."""
    rule = optax.sgd(settings.step_size) if optimizer is None else optimizer
    move = functools.partial(_move, field, rule, settings.look_ahead)

    def leg(state: _State, end: Array) -> tuple[_State, Tree]:
        state = jax.lax.while_loop(functools.partial(_goes_on, settings.min_gradient, end), move, state)
        return state, state.position

    def one(x: Tree) -> tuple[_State, Tree]:
        gradient = field(x)
        norm = optax.tree.norm(gradient)
        start = _State(x, gradient, norm, rule.init(x), jnp.zeros((), jnp.int32), ~jnp.isfinite(norm))
        return jax.lax.scan(leg, start, ends)

    return jax.vmap(one)(position)


def _goes_on(min_gradient: Any, end: Array, state: _State) -> Array:
    return (state.num_steps < end) & (state.norm >= min_gradient) & ~state.is_lost


def _move(field: Any, rule: optax.GradientTransformation, look_ahead: Any, state: _State) -> _State:
    """Make one step of one sample; where it leaves the finite numbers, stay and say so."""
    update, optimizer_state = rule.update(state.gradient, state.optimizer_state, state.position)
    position: Any = optax.apply_updates(state.position, update)
    gradient = field(jax.tree.map(lambda new, old: new + look_ahead * (new - old), position, state.position))
    norm = optax.tree.norm(gradient)
    is_finite = jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(position))
    moved = _State(position, gradient, norm, optimizer_state, state.num_steps + 1, state.is_lost)
    stayed = state._replace(is_lost=jnp.ones_like(state.is_lost))
    return jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), moved, stayed)


def _checked(state: _State, min_gradient: float, path: Tree | None) -> Descent:
    """Return what happened; raises where a sample was lost."""
    norm, steps, is_lost = map(np.asarray, (state.norm, state.num_steps, state.is_lost))
    stopped = np.select([is_lost, norm < min_gradient], ["diverged", "gradient"], "time")
    descent = Descent(state.position, steps, steps + 1 + is_lost, norm, stopped, path)
    if not is_lost.any():
        return descent
    sample = int(np.flatnonzero(is_lost)[np.argmin(steps[is_lost])])
    if not np.isfinite(norm[sample]):
        raise ValueError(
            f"the gradient has norm {norm[sample]} at the start of sample {sample}: start where it is finite"
        )
    raise DescentDiverged(
        f"sample {sample} left the finite numbers at step {steps[sample] + 1} ({is_lost.sum()} of {is_lost.size} did): "
        "the steps are too long for the curvature there, or the start is far from where the landscape was trained; "
        "take smaller steps",
        descent,
    )
