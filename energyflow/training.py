"""Floor 6: training as a fold. One state, one pure step, the caller's loop.

    state = init(key, energy, objective, optimizer, batch)
    step = make_step(objective, optimizer)
    for state, metrics in train(state, step, batches):
        ...                                     # log, plot, save: the caller's for-body

Swapping the sampler or the objective changes neither the step nor the loop.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from energyflow.energy import as_energy, combine, partition
from energyflow.types import Array, Key, Objective, Tree


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
    key = jax.random.key(key) if isinstance(key, int) else key
    energy = jax.tree.map(jnp.array, as_energy(energy))
    trainable, _ = partition(energy)
    if not jax.tree.leaves(trainable):
        raise ValueError("this energy has no trainable leaf: every floating-point array in it is frozen, or it has none")
    init_key, run_key = jax.random.split(key)
    objective_state = jax.tree.map(jnp.array, objective.init(init_key, energy, batch))
    ema = jax.tree.map(jnp.array, energy)
    return TrainState(energy, ema, optimizer.init(trainable), objective_state, run_key, jnp.zeros((), jnp.int32))


def make_step(
    objective: Objective, optimizer: optax.GradientTransformation, *, ema_decay: float = 0.0
) -> Callable[[TrainState, Tree], tuple[TrainState, dict[str, Array]]]:
    """Return the jitted `step(state, batch) -> (state, metrics)`, which is also a `lax.scan` body.

    ema_decay: of the averaged weights, per step, with Adam's bias correction (the average starts at the first weights
    it sees); 0 keeps `state.ema` equal to `state.energy`. The settings of the objective are arguments of the compiled
    function: another step size or other weights compile nothing. Metrics add `loss`, `gradient_norm`, `step`.
    """
    return functools.partial(_step, optimizer, Partial(as_energy(objective.loss)), ema_decay)


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
    # A warm-up of the decay removes the weight of the random start: after n steps it is at most (n-1)/(n+9).
    decay = jnp.minimum(ema_decay, (count - 1) / (count + 9))
    averaged = jax.tree.map(lambda a, w: decay.astype(a.dtype) * a + (1 - decay).astype(a.dtype) * w, partition(state.ema)[0], trainable)
    metrics = metrics | {"loss": total, "gradient_norm": optax.tree.norm(gradient), "step": count}
    new = TrainState(combine(trainable, rest), combine(averaged, rest), opt_state, objective_state, key, count)
    return new, metrics


def train(
    state: TrainState, step: Callable, batches: Iterable[Tree]
) -> Iterator[tuple[TrainState, dict[str, Array]]]:
    """Yield (state, metrics) after each batch: logging, plotting and saving are the body of the caller's for-loop."""
    for batch in batches:
        state, metrics = step(state, batch)
        yield state, metrics
