"""Floor 6: training as a fold. One state, one pure step, the caller's loop.

    state = init(key, energy, objective, optimizer, batch)
    step = make_step(objective, optimizer)
    for state, metrics in train(state, step, batches):
        ...                                     # log, plot, save: the caller's for-body

Swapping the sampler or the objective changes neither the step nor the loop.
"""

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from energyflow.energy import as_energy, combine, partition
from energyflow.types import Array, Key, Objective, Tree, as_key

TOO_EASY = 0.95
"""Accuracy over which telling noise from data teaches little (Gutmann and Hyvarinen 2012)."""


class TrainState(NamedTuple):
    """Everything a run is: `step(state, batch)` is a pure function of it, and a checkpoint holds it whole.

    energy: current weights. ema: their exponential moving average (the same energy without averaging).
    opt_state, objective_state: of the optimiser and the objective (chains, buffers, step sizes). key: typed key, split
    once a step. step: updates made, int32.
    """

    energy: Any
    ema: Any
    opt_state: Any
    objective_state: Any
    key: Key
    step: Array


def init(
    key: Key | int, energy: Any, objective: Objective, optimizer: optax.GradientTransformation, batch: Tree
) -> TrainState:
    """Return the state before the first step.

    key: typed key or int seed. batch: an example batch, leading axis [batch]; persistent chains may start there.
    Raises ValueError where the energy has nothing to train.
    """
    key = as_key(key)
    energy = jax.tree.map(_owned, as_energy(energy))
    trainable, _ = partition(energy)
    if not jax.tree.leaves(trainable):
        raise ValueError(
            "this energy has no trainable leaf: every floating-point array in it is frozen, or it has none"
        )
    init_key, run_key = jax.random.split(key)
    objective_state = jax.tree.map(_owned, objective.init(init_key, energy, batch))
    ema = jax.tree.map(_owned, energy)
    return TrainState(energy, ema, optimizer.init(trainable), objective_state, run_key, jnp.zeros((), jnp.int32))


def _owned(leaf: Any) -> Array:
    """Return a copy whose dtype no arithmetic changes: a Python number, or an array made of one, is weakly typed."""
    return jnp.array(leaf, dtype=jnp.result_type(leaf))


def make_step(
    objective: Objective, optimizer: optax.GradientTransformation, *, ema_decay: float = 0.0
) -> Callable[[TrainState, Tree], tuple[TrainState, dict[str, Array]]]:
    """Return the jitted `step(state, batch) -> (state, metrics)`, which is also a `lax.scan` body.

    ema_decay: of the averaged weights, per step; at step n it is at most (n-1)/(n+9), so the average starts at the
    first trained weights. 0 keeps `state.ema` equal to `state.energy`, and compiles no average. The settings of the
    objective are arguments of the compiled function: another step size or other weights compile nothing. Metrics add
    `loss`, `gradient_norm`, `step`.
    """
    return functools.partial(_step, optimizer, as_energy(objective.loss), ema_decay or None)


@functools.partial(jax.jit, static_argnums=0)
def _step(
    optimizer: optax.GradientTransformation, loss: Callable, ema_decay: Any, state: TrainState, batch: Tree
) -> tuple[TrainState, dict[str, Array]]:
    key, loss_key = jax.random.split(state.key)
    trainable, rest = partition(state.energy)

    def value(trainable: Tree) -> Any:
        return loss(combine(trainable, rest), batch, loss_key, state.objective_state)

    (total, (objective_state, metrics)), gradient = jax.value_and_grad(value, has_aux=True)(trainable)
    updates, opt_state = optimizer.update(gradient, state.opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    count = state.step + 1
    averaged = trainable
    if ema_decay is not None:
        # A warm-up of the decay removes the weight of the random start: after n steps it is at most (n-1)/(n+9).
        decay = jnp.minimum(ema_decay, (count - 1) / (count + 9))
        averaged = jax.tree.map(
            lambda a, w: decay.astype(a.dtype) * a + (1 - decay).astype(a.dtype) * w, partition(state.ema)[0], trainable
        )
    metrics = metrics | {"loss": total, "gradient_norm": optax.tree.norm(gradient), "step": count}
    new = TrainState(combine(trainable, rest), combine(averaged, rest), opt_state, objective_state, key, count)
    return new, metrics


def train(state: TrainState, step: Callable, batches: Iterable[Tree]) -> Iterator[tuple[TrainState, dict[str, Array]]]:
    """Yield (state, metrics) after each batch: logging, plotting and saving are the body of the caller's for-loop."""
    for batch in batches:
        state, metrics = step(state, batch)
        yield state, metrics


class TrainingDiverged(RuntimeError):
    """Training ran away; `state` is the last state found healthy."""

    def __init__(self, message: str, state: TrainState | None):
        super().__init__(message)
        self.state = state


def guarded(
    stream: Iterable[tuple[TrainState, dict[str, Array]]], *, every: int = 10
) -> Iterator[tuple[TrainState, dict[str, Array]]]:
    """Pass a training stream through, judging its metrics every `every` steps.

    Raises TrainingDiverged, which names the first cause since the last healthy state and holds that state, when the
    loss or gradient is not finite, when chains leave the finite numbers, or when the energy gap runs away. A state
    with ten times the usual gap passes, but is not kept as healthy: a runaway is slow at first.
    """
    good, gaps, recent = None, [], []
    for count, (state, metrics) in enumerate(stream):
        recent.append(metrics)
        if count % every == 0:
            before = gaps.copy()
            if trouble(_floats(metrics), gaps):
                raise TrainingDiverged(_first_trouble(recent, before), good)
            good, recent = good if unusual(gaps, 10) else state, []
        yield state, metrics


def remarks(metrics: dict[str, Any]) -> list[str]:
    """Return what one row of metrics says against what is learned, a sentence each; training goes on.

    Of an `accuracy` over 0.95 and a `weight_of_data` over 0.95 (the noise, or the next noise level, is too easy to
    tell), of an `acceptance_rate` under 0.05 (chains stand still) and of one effective walker in `ess`.
    """
    row, found = _floats(metrics), []
    if "cross_entropy" not in row and row.get("accuracy", 0.0) > TOO_EASY:  # of noise, not of classes
        found.append(
            f"the accuracy is {row['accuracy']:.2f}: what is told from the data is too easy, and teaches little of its "
            "density; use noise nearer to the data (a fitted mixture, a flow, a tempered energy) or closer noise levels"
        )
    if row.get("weight_of_data", 0.0) > TOO_EASY:
        found.append(
            f"the row has weight {row['weight_of_data']:.2f} among its noise, which is too easy: use noise nearer to "
            "the data, or more of it"
        )
    if row.get("acceptance_rate", 1.0) < 0.05:
        found.append(f"the acceptance rate is {row['acceptance_rate']:.3f}: chains stand still; lower the step size")
    if "resampled" in row and row.get("ess", 2.0) < 2:
        found.append("one walker has all the weight: lower the learning rate, or move the walkers more between updates")
    return found


def _floats(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _first_trouble(rows: list[dict[str, Array]], gaps: list[float]) -> str:
    """Return what went wrong first: a blow-up of the chains spoils the weights, and then the loss, a step later."""
    for row in map(_floats, rows):
        reason = trouble(row, gaps.copy())
        if reason:
            return f"step {int(row['step'])}: {reason}"
    raise AssertionError("called without trouble")


def trouble(metrics: dict[str, float], gaps: list[float]) -> str | None:
    """Return what is wrong with one row of metrics, or None; appends the row's gap to `gaps`, the history judged by."""
    if math.isfinite(metrics.get("energy_data", 0.0)):  # the weights are sound: look at the chains
        if "acceptance_rate" not in metrics and metrics.get("divergent", 0.0) > 0:
            return (
                f"{100 * metrics['divergent']:.2g} % of the unadjusted sampler's moves left the finite numbers: its "
                "step size is too large for the energy's curvature; lower it, or use an adjusted kernel such as mala"
            )
        if not math.isfinite(metrics.get("energy_model", 0.0)):
            return f"the energy of the chains is {metrics['energy_model']}: {_LEFT}"
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(metrics.get(name, 0.0)):
            return f"the {name.replace('_', ' ')} is {metrics[name]}; lower the learning rate"
    gaps.append(abs(metrics.get("gap", 0.0)))
    if unusual(gaps, 1000):
        return f"the energy gap is {metrics['gap']:.3g}, a thousand times its usual size: {_LEFT}"
    return None


def unusual(gaps: list[float], factor: float) -> bool:
    """Return whether the last gap is over `factor` times the usual one: the median of a hundred before, at least 1."""
    *before, last = gaps[-101:]
    return bool(before) and last > factor * max(1.0, statistics.median(before))


_LEFT = "the chains have left the model; use an adjusted kernel, a smaller step size or a lower learning rate"
