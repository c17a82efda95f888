"""Objectives from functions, and from other objectives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from energyflow.energy import as_energy
from energyflow.types import Key, Objective, Tree


def stateless(loss: Callable) -> Objective:
    """Wrap `loss(energy, batch, key) -> (scalar, metrics)` as an objective (cf. `optax.stateless`)."""
    return Objective(Partial(_init), Partial(_loss, as_energy(loss)))


def _init(key: Key, energy: Any, batch: Tree) -> None:
    return None


def _loss(loss: Callable, energy: Any, batch: Tree, key: Key, state: None) -> Any:
    value, metrics = loss(energy, batch, key)
    return value, (None, metrics)


def in_turn(num_steps: int, first: Objective, then: Objective) -> Objective:
    """Return the objective that is `first` for `num_steps` steps and `then` afterwards, in one run of one optimiser.

    Both are initialised at the start. Metrics: those of the one whose turn it is; those of the other are 0.
    """
    return Objective(
        Partial(_init_both, as_energy(first.init), as_energy(then.init)),
        Partial(_in_turn, num_steps, as_energy(first.loss), as_energy(then.loss)),
    )


def _init_both(first: Callable, then: Callable, key: Key, energy: Any, batch: Tree) -> Any:
    keys = jax.random.split(key)
    return jnp.zeros((), jnp.int32), first(keys[0], energy, batch), then(keys[1], energy, batch)


def _in_turn(num_steps: Any, first: Callable, then: Callable, energy: Any, batch: Tree, key: Key, state: Any) -> Any:
    count, one, other = state
    turns = (Partial(first, energy, batch, key), one), (Partial(then, energy, batch, key), other)
    names = {}
    for loss, own in turns:
        names |= jax.eval_shape(loss, own)[1][1]

    def padded(metrics: Any) -> Any:
        return {name: metrics.get(name, jnp.zeros(like.shape, like.dtype)) for name, like in names.items()}

    def early(one: Any, other: Any) -> Any:
        value, (one, metrics) = turns[0][0](one)
        return value, (one, other, padded(metrics))

    def late(one: Any, other: Any) -> Any:
        value, (other, metrics) = turns[1][0](other)
        return value, (one, other, padded(metrics))

    value, (one, other, metrics) = jax.lax.cond(count < num_steps, early, late, one, other)
    return value, ((count + 1, one, other), metrics)
