"""Floor 7: remedies for a run in training: pure functions of its state and its objective, whose settings are leaves."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from energyflow.health.views import RESEED, nodes
from energyflow.kernels import step_size, with_step_size
from energyflow.negatives import Buffer, Moves, from_data, move, pcd
from energyflow.negatives.buffers import Persistent
from energyflow.negatives.fresh import ShortRun
from energyflow.stepsize import StepState
from energyflow.training import TrainState
from energyflow.types import Key, Negatives, Objective, Tree

TRIED = 20
"""Step sizes tried, each a quarter of the one before: from 1e6 to 1e-6."""


class Run(NamedTuple):
    """What a remedy may change."""

    state: TrainState
    objective: Objective


class Slowed(NamedTuple):
    """State of a `slowable` optimiser: its own, and the factor of its updates, shape ()."""

    inner: Any
    factor: Any


def slowable(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the optimiser with a factor of its updates, 1 at first, in its state: `guard` lowers it.

    Other weights of the factor compile nothing, and a checkpoint of the train state holds it.
    """
    return optax.GradientTransformation(Partial(_slow_init, optimizer), Partial(_slow_update, optimizer))


def _slow_init(optimizer: Any, weights: Tree) -> Slowed:
    return Slowed(optimizer.init(weights), jnp.ones(()))


def _slow_update(optimizer: Any, gradient: Tree, state: Slowed, weights: Tree = None) -> tuple[Tree, Slowed]:
    updates, inner = optimizer.update(gradient, state.inner, weights)
    return jax.tree.map(lambda u: state.factor.astype(u.dtype) * u, updates), Slowed(inner, state.factor)


def shrink_steps(run: Run, batch: Tree) -> Run:
    """Divide the step sizes of the sampler by 5."""
    return _scale_steps(run, 0.2)


def settle_steps(run: Run, batch: Tree) -> Run:
    """Quarter the step sizes until chains from rows of data accept most of their moves, then once more."""
    # Once more, because a step that suits the flat energy of a start stands still on what training makes of it.
    key = jax.random.fold_in(jax.random.clone(run.state.key), 2 * RESEED)
    factor = 1.0
    for number, moves in enumerate(nodes(run.objective, Moves)[:1] * TRIED):
        rate = _acceptance(_scaled(moves, factor), jax.random.fold_in(key, number), run, batch)
        factor /= 4
        if rate is None or rate >= 0.6:
            break
    return _scale_steps(run, factor)


@jax.jit
def _acceptance(moves: Moves, key: Key, run: Run, batch: Tree) -> Any:
    moves = dataclasses.replace(moves, tuner=None)
    conditional = any(settings.conditional for settings in nodes(run.objective, (Persistent, ShortRun)))
    x, cond = (batch[0], tuple(batch[1:])) if conditional else (batch, ())
    return move(moves, key, run.state.energy, x, {}, None, cond)[3].get("acceptance_rate")


def stretch_steps(run: Run, batch: Tree) -> Run:
    """Multiply the step sizes of the sampler by 5."""
    return _scale_steps(run, 5.0)


def _scale_steps(run: Run, factor: float) -> Run:
    tuned = _replaced(run.state, StepState, lambda s: s._replace(log_step=s.log_step + math.log(factor)))
    return Run(tuned, _replaced(run.objective, Moves, lambda moves: _scaled(moves, factor)))


def _scaled(moves: Moves, factor: float) -> Moves:
    if "step_size" not in getattr(moves.kernel, "keywords", {}):
        return moves
    return dataclasses.replace(moves, kernel=with_step_size(moves.kernel, factor * step_size(moves.kernel)))


def slow_down(run: Run, batch: Tree) -> Run:
    """Lower the learning rate to a fifth, in the state of the optimiser (see `slowable`)."""
    slower = _replaced(run.state.opt_state, Slowed, lambda s: s._replace(factor=s.factor * 0.2))
    return run._replace(state=run.state._replace(opt_state=slower))


def restart(run: Run, batch: Tree) -> Run:
    """Start persistent chains again at rows of data, each from a start of its own; others start afresh anyway."""
    if not nodes(run.state.objective_state, Buffer):
        return run
    key = jax.random.clone(run.state.key)
    init_key, row_key = jax.random.split(jax.random.fold_in(key, RESEED))
    fresh = run.objective.init(init_key, run.state.energy, batch)

    def at_data(buffer: Buffer) -> Buffer:
        rows = batch if buffer.cond else (batch,)
        position, *cond = from_data()(row_key, run.state.energy, rows, len(buffer.lineage))
        return buffer._replace(position=position, cond=tuple(cond))

    return run._replace(state=run.state._replace(objective_state=_replaced(fresh, Buffer, at_data)))


def refresh(run: Run, batch: Tree) -> Run:
    """Let a twentieth of the chains at least begin again at the data at every draw: none lives long enough to leave."""

    def kept(settings: Persistent) -> Persistent:
        chance = jnp.maximum(jnp.asarray(settings.reinit or 0.0, dtype=float), 0.05)
        return dataclasses.replace(settings, start=from_data(), reinit=chance)

    return run._replace(objective=_replaced(run.objective, Persistent, kept))


def keep_slots(run: Run, batch: Tree) -> Run:
    """Let chains go back to the slots that they came from, where they overwrote others (`fifo`, `reservoir`)."""
    changed = _replaced(run.objective, Persistent, lambda p: dataclasses.replace(p, policy="in_place"))
    return run._replace(objective=changed)


def lengthen(run: Run, batch: Tree) -> Run:
    """Double the transitions of a draw."""
    doubled = _replaced(run.objective, Moves, lambda m: dataclasses.replace(m, num_steps=2 * m.num_steps))
    return run._replace(objective=doubled)


def persist(run: Run, batch: Tree) -> Run:
    """Let chains that start afresh at every draw go on where they stopped, and start them at the data."""

    def persistent(negatives: Negatives) -> Negatives:
        for short in nodes(negatives, ShortRun):
            moves, shared = short.moves, {"num_chains": short.num_chains, "conditional": short.conditional}
            return pcd(moves.kernel, moves.num_steps, tuner=moves.tuner, unroll=moves.unroll, **shared)
        return negatives

    objective = _replaced(run.objective, Negatives, persistent)
    key = jax.random.fold_in(jax.random.clone(run.state.key), RESEED)
    return Run(run.state._replace(objective_state=objective.init(key, run.state.energy, batch)), objective)


_ALL = shrink_steps, settle_steps, stretch_steps, slow_down, restart, refresh, keep_slots, lengthen, persist
REMEDIES = {remedy.__name__: remedy for remedy in _ALL}
"""Each remedy by its name: `(run, rows of data) -> run`."""


def _replaced(tree: Tree, kind: type, change: Callable) -> Tree:
    one = lambda node: change(node) if isinstance(node, kind) else node  # noqa: E731
    return jax.tree.map(one, tree, is_leaf=lambda node: isinstance(node, kind))
