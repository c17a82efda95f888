"""Floor 1: step sizes that adapt while chains are used, by acceptance or by the distance the chains travel.

A tuner is a pair-like NamedTuple of pure functions over an explicit state; each chain may be given its own step, so one
pass over many chains compares several. Acceptance alone certifies nothing: on eight Gaussians a step accepted 92 % of
the time left persistent contrastive divergence ten times further from the data than one accepted 33 % of the time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.tree_util import Partial

from energyflow.types import Array


class StepTuner(NamedTuple):
    """init: (step_size) -> state. propose: (state, num_chains) -> steps (num_chains,).

    update: (state, steps, acceptance (num_chains,), squared_jump (num_chains,)) -> state. value: (state) -> step size.
    """

    init: Callable
    propose: Callable
    update: Callable
    value: Callable


class StepState(NamedTuple):
    """Log step size, and how many updates it has had."""

    log_step: Array
    count: Array


def _init(step_size: Any) -> StepState:
    return StepState(jnp.log(jnp.asarray(step_size, dtype=float)), jnp.zeros((), jnp.int32))


def _value(state: StepState) -> Array:
    return jnp.exp(state.log_step)


def by_acceptance(target: float = 0.574, gain: float = 1.0) -> StepTuner:
    """Move the common step until the mean acceptance over the chains is `target` (Robbins and Monro 1951).

    gain: of the first updates; it falls as count^-1/2 to a floor of `gain`/20, so that the step can follow an energy
    that trains. 0.574 suits MALA (Roberts and Rosenthal 1998), 0.8 HMC.
    """
    return StepTuner(Partial(_init), Partial(_same), Partial(_to_acceptance, target, gain), Partial(_value))


def _same(state: StepState, num_chains: int) -> Array:
    return jnp.full((num_chains,), _value(state))


def decaying_gain(count: Array) -> Array:
    """Return the gain of an update after `count` others: their number to the power -1/2, at least 1/20."""
    return jnp.maximum((count.astype(float) + 1.0) ** -0.5, 0.05)


def _to_acceptance(
    target: Any, gain: Any, state: StepState, steps: Array, acceptance: Array, squared_jump: Array
) -> StepState:
    error = jnp.mean(acceptance) - target
    return StepState(state.log_step + gain * decaying_gain(state.count) * error, state.count + 1)


def by_jump(min_acceptance: float = 0.1, spread: float = 0.25, gain: float = 1.0) -> StepTuner:
    """Climb the mean squared distance between where a chain's moves began and where they ended.

    Half of the chains use the step times exp(spread), half divided by it; the step moves towards the half that travels
    further (expected squared jump distance, Pasarica and Gelman 2010), and down whenever the mean acceptance falls
    under `min_acceptance`. In high dimension the maximum is near the classical acceptance rates; with separated modes
    it lies at larger steps, which is what keeps persistent chains moving between them.
    """
    update = Partial(_to_distance, min_acceptance, gain)
    return StepTuner(Partial(_init), Partial(_two_sided, spread), update, Partial(_value))


def _two_sided(spread: Any, state: StepState, num_chains: int) -> Array:
    sign = jnp.where(jnp.arange(num_chains) % 2 == 0, 1.0, -1.0)
    return jnp.exp(state.log_step + spread * sign)


def _to_distance(
    min_acceptance: Any, gain: Any, state: StepState, steps: Array, acceptance: Array, squared_jump: Array
) -> StepState:
    longer = steps > _value(state)
    up, down = (jnp.sum(jnp.where(half, squared_jump, 0.0)) / _count(half, squared_jump) for half in (longer, ~longer))
    slope = (up - down) / jnp.maximum(up + down, jnp.finfo(squared_jump.dtype).tiny)
    short = jnp.mean(acceptance) < min_acceptance
    step = gain * decaying_gain(state.count) * jnp.where(short, -0.5, slope)
    return StepState(state.log_step + step, state.count + 1)


def _count(mask: Array, like: Array) -> Array:
    return jnp.maximum(jnp.sum(mask, dtype=like.dtype), 1.0)
