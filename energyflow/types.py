"""Floor 0: the aliases and protocols that every other floor speaks.

The house in one sentence: an energy is a callable pytree; a kernel turns its log density into moves; the negative
phase uses the moves; an objective uses the negative phase; training is a fold over objectives; everything else reads
traces.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Tree: TypeAlias = Any
"""Any pytree of arrays: a position, a batch, parameters."""
Key: TypeAlias = Array
"""A typed JAX random key (`jax.random.key(seed)`)."""
Scalar: TypeAlias = Array
"""An array of shape ()."""
LogDensity: TypeAlias = Callable[[Tree], Scalar]
"""An unnormalised log density of ONE point."""
Kind: TypeAlias = Literal["density", "tempered", "landscape"]


class Energy(Protocol):
    """A callable pytree that scores one point; its leaves are its parameters.

    An energy may also carry `temperature` (default 1) and `kind` (default "density"); see `energyflow.energy`.
    """

    def __call__(self, x: Tree, *cond: Tree) -> Scalar: ...


class Stats(NamedTuple):
    """What every transition reports, whatever the kernel; a trace holds it for all of them, leading axes [chain, draw].

    acceptance_rate: probability of accepting the proposal, shape (); None for kernels without an accept step.
    jump_distance: Euclidean distance moved, over all leaves of the position.
    is_divergent: True where the proposal was non-finite or too far to square its distance (then it was rejected), or
        the kernel called it divergent.
    num_gradients: energy gradients spent, int32 (0 for gradient-free kernels).
    """

    acceptance_rate: Any
    jump_distance: Any
    is_divergent: Any
    num_gradients: Any


class Algorithm(NamedTuple):
    """A kernel bound to a log density: BlackJAX's `init` and `step`, plus what a caller may rely on.

    init: (position, key) -> state, a NamedTuple with a field `position`.
    step: (key, state) -> (state, Stats).
    reversible: detailed balance holds, so reverse annealing may use the same move.
    temperature: the temperature the moves sample at, on top of the energy's own; not 1 only for decoupled Langevin.
    noise, move: the step in two parts, (key, position) -> noise and (noise, state) -> (state, Stats), for kernels whose
        noise depends on the position by its shape alone: the noise of many steps is then drawn at once, ahead of them.
    """

    init: Callable[[Tree, Key], Any]
    step: Callable[[Key, Any], tuple[Any, Stats]]
    reversible: bool = True
    temperature: Scalar | float = 1.0
    noise: Callable[[Key, Tree], Tree] | None = None
    move: Callable[[Tree, Any], tuple[Any, Stats]] | None = None


Kernel: TypeAlias = Callable[[LogDensity], Any]
"""Binds a log density: returns an `Algorithm` or any `blackjax.SamplingAlgorithm`."""


class Negatives(NamedTuple):
    """A negative phase: where the model's samples come from during training.

    init: (key, energy, batch) -> state, an explicit pytree (chains, buffer, step size).
    draw: (key, energy, batch, state) -> (negatives, log_weights or None, state, metrics).
    """

    init: Callable
    draw: Callable


class Objective(NamedTuple):
    """A training objective, stateful in the manner of an optax transformation.

    init: (key, energy, batch) -> state.
    loss: (energy, batch, key, state) -> (scalar to minimise, (state, metrics)).
    """

    init: Callable
    loss: Callable


def as_key(key: Key | int) -> Key:
    """Return a typed key as it is, and a Philox key of an int seed. Raises TypeError for anything else.

    JAX's own default, threefry, hashes by a loop that the CPU runs slowly beside small energies.
    """
    if isinstance(key, (int, np.integer)):
        return jax.random.key(key, impl="philox4x32")
    if not (isinstance(key, Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"a random key must be jax.random.key(seed) or an int seed; got {type(key).__name__}")
    return key
