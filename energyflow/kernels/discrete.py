"""Gradient-informed kernels on discrete positions: Gibbs with gradients, and the discrete Langevin proposal.

A discrete position is a pytree of floating arrays that hold the allowed values only: two of them, `values = (low,
high)`, {0, 1} by default and (-1.0, 1.0) for spins; or, with `categorical=True`, one-hot rows along the last axis of
every leaf. The log density must be differentiable in the position as if it were continuous; only its values at the
allowed points matter to what the adjusted kernels sample, its gradient there to how well they move.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.nn import log_sigmoid, log_softmax, sigmoid, softmax
from jax.tree_util import Partial

from energyflow.kernels.algorithm import adapt, configured, pair
from energyflow.kernels.conditionals import BINARY, coin, ordered
from energyflow.kernels.langevin import LangevinState
from energyflow.kernels.metropolis import MoveInfo, SlopeState, accept, slope_state
from energyflow.types import Algorithm, Array, Kernel, Key, LogDensity, Scalar, Tree


class _FreeInfo(NamedTuple):
    num_integration_steps: int


def gibbs_with_gradients(values: tuple[float, float] = BINARY, *, categorical: bool = False) -> Kernel:
    """Gibbs with gradients (Grathwohl et al. 2021): one coordinate changes, chosen by the gradient, then accepted.

    The change in log density is estimated to first order, and proposed with the square root of its exponential.
    categorical: one-hot rows instead of two values. One gradient a move.
    """
    return Partial(configured(_gibbs_with_gradients, categorical=categorical), values=ordered(values))


def _gibbs_with_gradients(logdensity: LogDensity, values: tuple, categorical: bool) -> Algorithm:
    def log_probs(state: Any) -> Array:
        return single_log_probs(state.position, state.logdensity_grad, values, categorical=categorical)

    def propose(key: Key, state: Any) -> tuple[Tree, Array, Callable]:
        logs = log_probs(state)
        index = jax.random.categorical(key, logs)
        x, unravel = ravel_pytree(state.position)
        picked = unravel(jnp.zeros_like(x).at[index].set(1.0))
        moved, back = single_move(state.position, picked, values, categorical=categorical)
        chosen = ravel_pytree(back)[0] > 0.5
        return moved, logs[index], lambda new: jnp.sum(jnp.where(chosen, log_probs(new), 0.0))

    return _metropolis(logdensity, propose)


def dmala(step_size: float, values: tuple[float, float] = BINARY, *, categorical: bool = False) -> Kernel:
    """The discrete Langevin proposal, accepted (Zhang, Liu and Liu 2022): every coordinate may change at once.

    Coordinate i goes to x' with probability proportional to exp(g_i (x' - x_i) / 2 - |x' - x_i|^2 / (2 step_size)).
    step_size: the paper's alpha, in squared units of the position; acceptance about 0.5 to 0.6 mixes well.
    categorical: one-hot rows instead of two values. One gradient a move.
    """
    return Partial(configured(_dmala, categorical=categorical), step_size=step_size, values=ordered(values))


def _dmala(logdensity: LogDensity, step_size: Scalar, values: tuple, categorical: bool) -> Algorithm:
    def log_prob(here: Any, there: Any) -> Array:
        gradient = here.logdensity_grad
        return joint_log_prob(here.position, gradient, there, step_size, values, categorical=categorical)

    def propose(key: Key, state: Any) -> tuple[Tree, Array, Callable]:
        moved = _joint_draw(key, state.position, state.logdensity_grad, step_size, values, categorical)
        return moved, log_prob(state, moved), lambda new: log_prob(new, state.position)

    return _metropolis(logdensity, propose)


def dula(step_size: float, values: tuple[float, float] = BINARY, *, categorical: bool = False) -> Kernel:
    """The discrete Langevin proposal without its accept step (Zhang, Liu and Liu 2022): BIASED, for training only.

    Settings of `dmala`. Its bias vanishes with the step size only where the log density is quadratic; elsewhere, as for
    a marginal RBM, a bias remains at any step size. Annealed importance sampling refuses it.
    """
    return Partial(configured(_dula, categorical=categorical), step_size=step_size, values=ordered(values))


def _dula(logdensity: LogDensity, step_size: Scalar, values: tuple, categorical: bool) -> Algorithm:
    def init(position: Tree, key: Key) -> LangevinState:
        return LangevinState(position)

    def step(key: Key, state: LangevinState) -> tuple[LangevinState, _FreeInfo]:
        gradient = jax.grad(logdensity)(state.position)
        moved = _joint_draw(key, state.position, gradient, step_size, values, categorical)
        return LangevinState(moved), _FreeInfo(1)

    return adapt(pair(init, step), adjusted=False)


def gains(position: Tree, gradient: Tree, values: tuple = BINARY, *, categorical: bool = False) -> Tree:
    """Return the first-order gain in log density of each elementary change, shaped like the position.

    Binary: of flipping coordinate i. Categorical: of moving a row to category j, 0 at the present one.
    """
    if categorical:
        return jax.tree.map(lambda x, g: g - jnp.sum(g * x, axis=-1, keepdims=True), position, gradient)
    return jax.tree.map(lambda x, g: (values[0] + values[1] - 2 * x) * g, position, gradient)


def single_log_probs(position: Tree, gradient: Tree, values: tuple = BINARY, *, categorical: bool = False) -> Array:
    """Return the log probability with which Gibbs with gradients proposes each change, over the raveled position."""
    estimates = gains(position, gradient, values, categorical=categorical)
    if categorical:
        estimates = jax.tree.map(lambda x, d: jnp.where(x > 0.5, -jnp.inf, d), position, estimates)
    return log_softmax(ravel_pytree(estimates)[0] / 2)


def single_move(position: Tree, picked: Tree, values: tuple = BINARY, *, categorical: bool = False) -> tuple:
    """Return the position after the change marked by a one in `picked`, and the mark of the change back."""
    if not categorical:
        flip = lambda x, p: jnp.where(p > 0.5, values[0] + values[1] - x, x)  # noqa: E731
        return jax.tree.map(flip, position, picked), picked
    rows = jax.tree.map(lambda p: jnp.sum(p, axis=-1, keepdims=True) > 0.5, picked)
    moved = jax.tree.map(lambda x, p, row: jnp.where(row, p, x), position, picked, rows)
    return moved, jax.tree.map(lambda x, row: jnp.where(row, x, 0.0), position, rows)


def joint_logits(
    position: Tree, gradient: Tree, step_size: Scalar | float, values: tuple = BINARY, *, categorical: bool = False
) -> Tree:
    """Return the discrete Langevin proposal: log odds of a flip, or unnormalised log probabilities of the categories.

    Half the gain minus the squared length of the move over twice the step; one-hot rows move by sqrt(2).
    """
    estimates = gains(position, gradient, values, categorical=categorical)
    if categorical:
        return jax.tree.map(lambda x, d: jnp.where(x > 0.5, 0.0, d / 2 - 1 / step_size), position, estimates)
    return jax.tree.map(lambda d: d / 2 - (values[1] - values[0]) ** 2 / (2 * step_size), estimates)


def joint_log_prob(
    position: Tree,
    gradient: Tree,
    moved: Tree,
    step_size: Scalar | float,
    values: tuple = BINARY,
    *,
    categorical: bool = False,
) -> Array:
    """Return the log probability with which the discrete Langevin proposal goes from `position` to `moved`."""
    logits = joint_logits(position, gradient, step_size, values, categorical=categorical)
    if categorical:
        taken = jax.tree.map(lambda a, new: jnp.where(new > 0.5, log_softmax(a, axis=-1), 0.0), logits, moved)
    else:
        taken = jax.tree.map(lambda a, x, new: log_sigmoid(jnp.where(new == x, -a, a)), logits, position, moved)
    return jnp.sum(ravel_pytree(taken)[0])


def _joint_draw(key: Key, position: Tree, gradient: Tree, step_size: Scalar, values: tuple, categorical: bool) -> Tree:
    logits = joint_logits(position, gradient, step_size, values, categorical=categorical)
    x, unravel = ravel_pytree(position)
    if categorical:
        noise = unravel(jax.random.gumbel(key, x.shape, x.dtype))
        best = jax.tree.map(lambda a, z: jnp.argmax(a + z, axis=-1), logits, noise)
        # NaN odds must not become a finite position.
        rows = lambda a, i: jax.nn.one_hot(i, a.shape[-1], dtype=a.dtype) + 0 * softmax(a, axis=-1)  # noqa: E731
        return jax.tree.map(rows, logits, best)
    uniform = unravel(jax.random.uniform(key, x.shape, x.dtype))
    flip = lambda x, a, u: coin(u, sigmoid(a), values[0] + values[1] - x, x)  # noqa: E731
    return jax.tree.map(flip, position, logits, uniform)


def _metropolis(logdensity: LogDensity, propose: Callable) -> Algorithm:
    """Accept or reject `propose(key, state) -> (moved, log q(moved | x), new state -> log q(x | moved))`."""

    def init(position: Tree, key: Key) -> SlopeState:
        return slope_state(logdensity, position)

    def step(key: Key, state: SlopeState) -> tuple[SlopeState, MoveInfo]:
        move_key, accept_key = jax.random.split(key)
        moved, forward, backward = propose(move_key, state)
        proposal = slope_state(logdensity, moved)
        log_ratio = proposal.logdensity - state.logdensity + backward(proposal) - forward
        return accept(jax.random.uniform(accept_key, (), log_ratio.dtype), log_ratio, proposal, state)

    return adapt(pair(init, step))
