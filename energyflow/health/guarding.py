"""Floor 7: a training loop that goes back where it went wrong, repairs what was wrong, and goes on."""

import collections
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from energyflow import checkpoint
from energyflow.chains import count_chains
from energyflow.health.detectors import Alarm, judge
from energyflow.health.remedies import REMEDIES, Run, Slowed
from energyflow.health.views import RESEED, ROWS, nodes
from energyflow.training import TrainingDiverged, TrainState, make_step
from energyflow.types import Array, Objective, Tree

HISTORY = 400
"""Rows of metrics kept: what is usual is judged by them."""
WARY = 0.7
"""Severity from which a state is not kept as healthy: most failures are slow at first."""
PATIENCE = 4
"""Judgements in a row without an alarm after which a state is kept all the same, and tries are forgotten."""


class Event(NamedTuple):
    """A rollback: the step of the alarm, the alarm, the step gone back to, and which try in a row begins there."""

    step: int
    alarm: Alarm
    back_to: int
    attempt: int


class Good(NamedTuple):
    """The last state found healthy, the rows of metrics up to it, and the batches since."""

    state: TrainState
    history: list[dict[str, float]]
    since: list[Tree]


def guard(
    state: TrainState,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    batches: Iterable[Tree],
    *,
    every: int = 50,
    max_tries: int = 5,
    ema_decay: float = 0.0,
    long_run: int = 0,
    conditional: bool = False,
    path: str | Path | None = None,
    tell: Callable[[Event], Any] | None = None,
) -> Iterator[tuple[TrainState, dict[str, Array]]]:
    """Yield (state, metrics) after each batch, as `train`, and repair the run where `watch` finds an alarm.

    Every `every` steps, and at the end, the run is judged. On an alarm it goes back to the last state found healthy
    (`state` before the first), takes another key, applies the remedies of the first alarm and goes through the batches
    since once more: `state.step` falls, and ends at the number of batches. After `max_tries` tries that did not get
    further, raises TrainingDiverged, with the name and the evidence of the last alarm and the last healthy state.

    optimizer: made by `slowable`, and what `state` was begun with. ema_decay: as of `make_step`. long_run, conditional:
    as of `look`. path: a file for the last healthy state, saved as it is found; a process that is killed loses what
    came since (`checkpoint.load(path, state)`), and the changes of the objective, which `tell` is told of. tell: called
    with each `Event`.
    Raises ValueError where the optimiser is not slowable.
    """
    if not nodes(state.opt_state, Slowed):
        raise ValueError("the guard lowers the learning rate of a run that swings: begin it with slowable(optimizer)")
    how = {"long_run": long_run, "conditional": conditional}
    good, history, rows = Good(state, [], []), [], []
    attempt, failed, wary = 0, 0, 0
    source, again, step = iter(batches), collections.deque(), make_step(objective, optimizer, ema_decay=ema_decay)
    while True:
        batch = again.popleft() if again else next(source, None)
        if batch is not None:
            good.since.append(batch)
            state, metrics = step(state, batch)
            rows.append(metrics)
            yield state, metrics
            if len(rows) < every:
                continue
        elif not rows:
            return
        history, rows = [*history, *_floats(rows)][-HISTORY:], []
        size = count_chains(good.since[-1])
        found = judge(state, history, _together(good.since, size), objective, size=size, **how)
        alarm = next((one for one in found if one.severity >= 1), None)
        if alarm is None:
            wary = wary + 1 if any(one.severity >= WARY for one in found) else 0
            attempt = attempt if int(state.step) < failed + PATIENCE * every else 0
            if wary in (0, PATIENCE):
                good, wary = Good(state, history, []), 0
                if path is not None:
                    checkpoint.save(path, state)
            continue
        attempt, failed, wary = attempt + 1, int(state.step), 0
        if attempt > max_tries:
            raise TrainingDiverged(f"step {failed}: {alarm.name} after {max_tries} tries: {alarm.reason}", good.state)
        if tell is not None:
            tell(Event(failed, alarm, int(good.state.step), attempt))
        again.extendleft(reversed(good.since))
        state, objective = _repaired(Run(good.state, objective), alarm, attempt, good.since[0])
        good, history = Good(state, good.history, []), good.history
        step = make_step(objective, optimizer, ema_decay=ema_decay)


def _repaired(run: Run, alarm: Alarm, attempt: int, batch: Tree) -> Run:
    """Apply the remedies of an alarm, and take a key of this attempt's own."""
    for name in alarm.remedies:
        run = REMEDIES[name](run, batch)
    key = jax.random.fold_in(jax.random.clone(run.state.key), RESEED + attempt)
    return run._replace(state=run.state._replace(key=key))


def _floats(rows: list[dict[str, Array]]) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in row.items()} for row in jax.device_get(rows)]


def _together(batches: list[Tree], size: int) -> Tree:
    """Return the rows of the last batches, `ROWS` or a batch."""
    last = batches[-max(1, ROWS // size) :]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *last)
