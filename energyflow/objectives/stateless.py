"""Objectives that need no state between steps: any loss of (energy, batch, key)."""

from collections.abc import Callable
from typing import Any

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
