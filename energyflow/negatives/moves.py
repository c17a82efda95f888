"""Floor 4: how a negative phase moves its chains on the current energy, and tunes their step."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from energyflow.chains import chain_keys, count_chains, evolve_from, start_cost, summary_of
from energyflow.energy import as_energy, logdensity
from energyflow.kernels.algorithm import bind, carried, step_size, with_step_size
from energyflow.stepsize import StepTuner
from energyflow.types import Array, Kernel, Key, Tree


@register_dataclass
@dataclass(frozen=True)
class Moves:
    """How a negative phase moves its chains: kernel, step tuner (or None), transitions per draw, unrolled or not."""

    kernel: Kernel
    tuner: StepTuner | None
    num_steps: int = field(metadata={"static": True})
    unroll: bool = field(default=False, metadata={"static": True})


def start_tuner(moves: Moves) -> Any:
    """Return the tuner's state at the kernel's own step size; None without a tuner."""
    return None if moves.tuner is None else moves.tuner.init(step_size(moves.kernel))


def move(
    moves: Moves,
    key: Key,
    energy: Any,
    position: Tree,
    carry: dict,
    tuner: Any,
    cond: tuple = (),
    scales: Array | None = None,
) -> Any:
    """Move chains on the current energy; returns position, carry, tuner state and metrics.

    cond: what each chain's energy is conditioned on, leading axis [chain]. scales: (num,), factors of each chain's step
    size, for kernels whose noise follows it.
    """
    energy = jax.lax.stop_gradient(as_energy(energy))
    num = count_chains(position)
    steps = None if moves.tuner is None else moves.tuner.propose(tuner, num)
    own = steps
    if scales is not None:
        own = scales * (step_size(moves.kernel) if steps is None else steps)

    def one(key: Key, position: Tree, carry: dict, step: Any, cond: tuple) -> Any:
        kernel = moves.kernel if step is None else with_step_size(moves.kernel, step)
        target = logdensity(energy, *cond)
        return evolve_from(key, kernel, target, position, moves.num_steps, carry=carry, unroll=moves.unroll)

    state, stats = jax.vmap(one)(chain_keys(key, num), position, carry, own, cond)
    metrics = summary_of(stats, start_cost(state) * num)
    squares = jax.tree.map(
        lambda a, b: jnp.sum(jnp.square(a - b), axis=tuple(range(1, a.ndim))), state.position, position
    )
    travelled = sum(jax.tree.leaves(squares))
    metrics["travel"] = jnp.sqrt(jnp.mean(travelled))
    metrics["sampler_temperature"] = jnp.asarray(bind(moves.kernel, logdensity(energy)).temperature, dtype=float)
    if moves.tuner is not None:
        if stats.acceptance_rate is None:
            raise ValueError("a step tuner needs a kernel with an accept step; unadjusted kernels keep their step size")
        tuner = moves.tuner.update(tuner, steps, jnp.mean(stats.acceptance_rate, axis=1), travelled)
        metrics["step_size"] = moves.tuner.value(tuner)
    return jax.lax.stop_gradient(state.position), carried(state), tuner, metrics
