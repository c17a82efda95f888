"""Floor 4: chains that begin afresh at every draw."""

from dataclasses import dataclass, field
from typing import Any

import jax
from jax.tree_util import Partial, register_dataclass

from energyflow.chains import count_chains
from energyflow.energy import as_energy
from energyflow.negatives.moves import Moves, move, start_tuner
from energyflow.negatives.starts import Start, begin, from_data, from_normal, with_conditions
from energyflow.stepsize import StepTuner
from energyflow.types import Kernel, Key, Negatives, Tree


@register_dataclass
@dataclass(frozen=True)
class ShortRun:
    """Settings of chains that start afresh at every draw."""

    moves: Moves
    start: Start
    num_chains: int | None = field(metadata={"static": True})
    conditional: bool = field(metadata={"static": True})


def cd(
    kernel: Kernel,
    num_steps: int,
    *,
    tuner: StepTuner | None = None,
    unroll: bool = False,
    conditional: bool = False,
) -> Negatives:
    """CD-k (Hinton 2002): chains start at the batch and make `num_steps` transitions.

    On a Gaussian the gradient is shrunk by 1 - a^k, a being the chain's autocorrelation, and its zero is kept.
    conditional: as of `short_run`.
    """
    return short_run(kernel, num_steps, start=from_data(), tuner=tuner, unroll=unroll, conditional=conditional)


def short_run(
    kernel: Kernel,
    num_steps: int,
    *,
    start: Start | None = None,
    num_chains: int | None = None,
    tuner: StepTuner | None = None,
    unroll: bool = False,
    conditional: bool = False,
) -> Negatives:
    """Fresh chains at every draw (Nijkamp et al. 2019): from `start` (Gaussian noise by default), `num_steps` moves.

    num_chains: negatives per draw, the batch size by default. A model trained so is right only for samplers of this
    length from this start. conditional: batches are tuples `(x, *cond)`, and so are the negatives; each chain samples
    `E(x, *cond)` under the conditions of a row of the batch.
    """
    moves = Moves(as_energy(kernel), tuner, num_steps, unroll)
    settings = ShortRun(moves, from_normal() if start is None else as_energy(start), num_chains, conditional)
    return Negatives(Partial(_short_run_init, settings), Partial(_short_run_draw, settings))


def _short_run_init(settings: ShortRun, key: Key, energy: Any, batch: Tree) -> Any:
    return start_tuner(settings.moves)


def _short_run_draw(settings: ShortRun, key: Key, energy: Any, batch: Tree, state: Any) -> Any:
    start_key, move_key = jax.random.split(key)
    num = settings.num_chains or count_chains(batch)
    position, cond = begin(settings.start, settings.conditional, start_key, energy, batch, num)
    position, _, tuner, metrics = move(settings.moves, move_key, energy, position, {}, state, cond)
    return with_conditions(position, cond), None, tuner, metrics
