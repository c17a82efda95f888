"""Floor 7: what there is to see of a run: its draws beside the data, and the sizes of its energies."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from energyflow.energy import as_energy, temperature
from energyflow.kernels import with_step_size
from energyflow.negatives import Buffer, Moves, move, start_tuner
from energyflow.rows import flat_rows
from energyflow.stepsize import StepState
from energyflow.training import TrainState
from energyflow.types import Key, Negatives, Objective, Tree

ROWS = 512
"""Draws and rows of data that are compared: a share of them is then known to .02, in milliseconds."""
RESEED = 2**20
"""Folded into keys of a state that are not its steps': a fold of 1 would be the key of a step's loss once more."""


class View(NamedTuple):
    """What detectors see besides metrics: draws (n, d) or None, rows of data (m, d), and sizes of energies.

    temperature: of the energy. spread: standard deviation of the energy over the data. noise: what that leaves of the
    gap of a batch. fall: of the mean energy along long chains from the draws, nan where they were not run. slots: of
    the buffer, 0 without one.
    """

    draws: np.ndarray | None
    data: np.ndarray
    temperature: float
    spread: float
    noise: float
    fall: float = math.nan
    slots: int = 0


def look(
    state: TrainState, objective: Objective, batch: Tree, *, size: int = 0, long_run: int = 0, conditional: bool = False
) -> View:
    """Return draws of the run beside the rows of `batch`: its persistent chains, or else new draws of its negatives.

    size: rows of a batch of training, where `batch` is several together. long_run: transitions, by the objective's own
    moves, of chains that go on from the draws; 0 for none. conditional: the batch is `(x, *cond)`, as of `contrastive`.
    An objective without a negative phase has no draws to see.
    """
    x, cond = (batch[0], tuple(batch[1:])) if conditional else (batch, ())
    heat, spread = float(temperature(state.energy)), float(np.std(_energies(state.energy, x, cond)))
    data = np.asarray(flat_rows(x)[0])
    seen = View(None, data, heat, spread, spread * math.sqrt(2 / (size or len(data))))
    draw_key, long_key = jax.random.split(jax.random.fold_in(jax.random.clone(state.key), RESEED))
    buffers, phases = nodes(state.objective_state, Buffer), nodes(objective, Negatives)
    if buffers:
        draws, *cond = jax.tree.map(_spaced, (buffers[0].position, *buffers[0].cond))
        seen = seen._replace(slots=len(buffers[0].lineage))
    elif phases:
        made = _draw(phases[0], draw_key, state, batch)
        draws, *cond = made if conditional else (made,)
    else:
        return seen
    moves = nodes(objective, Moves)
    if long_run and moves:
        ends = _continue(_longer(moves[0], state, long_run), long_key, state.energy, draws, tuple(cond))
        before, after = (_energies(state.energy, x, tuple(cond)) for x in (draws, ends))
        seen = seen._replace(fall=float(np.mean(before) - np.mean(after)))
    return seen._replace(draws=np.asarray(flat_rows(draws)[0]))


def _longer(moves: Moves, state: TrainState, num_steps: int) -> Moves:
    """Return the moves with more steps, and with the step size that their tuner has reached."""
    tuned = nodes(state.objective_state, StepState)
    kernel = with_step_size(moves.kernel, jnp.exp(tuned[0].log_step)) if tuned else moves.kernel
    return dataclasses.replace(moves, kernel=kernel, tuner=None, num_steps=num_steps)


def nodes(tree: Tree, kind: type | tuple) -> list[Any]:
    """Return the nodes of a pytree that are of a type, or of one of several."""
    return [node for node in jax.tree.leaves(tree, is_leaf=lambda n: isinstance(n, kind)) if isinstance(node, kind)]


def _spaced(x: Any) -> Any:
    return x[:: -(-len(x) // ROWS)]


@jax.jit
def _energies(energy: Any, x: Tree, cond: tuple) -> Any:
    return jax.vmap(as_energy(energy))(x, *cond)


@jax.jit
def _draw(negatives: Negatives, key: Key, state: TrainState, batch: Tree) -> Tree:
    return negatives.draw(key, state.energy, batch, state.objective_state)[0]


@jax.jit
def _continue(moves: Moves, key: Key, energy: Any, position: Tree, cond: tuple) -> Tree:
    return move(moves, key, energy, position, {}, start_tuner(moves), cond)[0]
