"""Binding a kernel to a log density: uniform reports, and rejection of whatever is not finite.

A kernel is a callable `logdensity -> algorithm`. Those of this package return an `Algorithm`; any BlackJAX algorithm
bound by `jax.tree_util.Partial(blackjax.X, ...)` is adapted here, so that chains, negative phases and annealing see one
interface. Raw BlackJAX 1.7 accepts states of energy -inf (a dense kinetic energy that overflows) and can report a NaN
acceptance rate; here a transition into such a state is undone, counted as a rejection and flagged divergent.
"""

import functools
from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from energyflow.types import Algorithm, Kernel, Key, LogDensity, Stats, Tree

CACHED = frozenset({"position", "logdensity", "logdensity_grad"})
"""State fields that belong to one log density and one position; everything else (momentum, slice, random generator)
survives a change of the energy."""


def bind(kernel: Kernel, logdensity: LogDensity) -> Algorithm:
    """Return the kernel's moves on `logdensity`; raw BlackJAX algorithms are adapted.

    The kernel sees a log density of +inf (an energy of -inf, which is no density) as NaN: BlackJAX rejects that.
    """
    algorithm = kernel(functools.partial(_below_infinity, logdensity))
    return algorithm if isinstance(algorithm, Algorithm) else adapt(algorithm)


def _below_infinity(logdensity: LogDensity, position: Tree) -> jax.Array:
    value = logdensity(position)
    # Added, not selected: the gradient then does not depend on the value, which kernels that only drift never compute.
    return value + jax.lax.stop_gradient(jnp.where(value < jnp.inf, 0.0, jnp.nan))


def adapt(
    algorithm: Any,
    *,
    gradients_per_step: int = 1,
    adjusted: bool = True,
    reversible: bool = True,
    temperature: Any = 1.0,
    noise: Callable[[Key, Tree], Tree] | None = None,
) -> Algorithm:
    """Return a BlackJAX `SamplingAlgorithm` as an `Algorithm` that reports `Stats` and rejects non-finite states.

    gradients_per_step: energy gradients per integration step (1 for leapfrog and Langevin moves).
    adjusted: False for kernels without an accept step; they report no acceptance rate.
    noise: `(key, position) -> noise`, all that a step draws at random, of the shapes of the position alone; the
    algorithm's step then takes the noise in place of a key.
    """
    move = functools.partial(_guarded_step, algorithm.step, gradients_per_step, adjusted)
    if noise is None:
        init = lambda position, key: algorithm.init(position, _threefry(key))  # noqa: E731
        step = lambda key, state: move(_threefry(key), state)  # noqa: E731
        return Algorithm(init, step, reversible, temperature)
    step = lambda key, state: move(noise(key, state.position), state)  # noqa: E731
    return Algorithm(algorithm.init, step, reversible, temperature, noise, move)


def _threefry(key: Key) -> Key:
    """Return a Philox key's words as a key of JAX's default.

    A move that draws as it goes, as NUTS does, hashes inside of its choices between states: a Philox hash XLA's CPU
    code repeats for every number of a state, threefry's loop it runs once.
    """
    if jax.random.key_impl(key) != "philox4x32":
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl="threefry2x32")


def _guarded_step(
    raw_step: Callable, gradients_per_step: int, adjusted: bool, key_or_noise: Any, state: Any
) -> tuple[Any, Stats]:
    new, raw = raw_step(key_or_noise, state)
    energy = getattr(raw, "energy", 0.0)
    distance = _distance(new.position, state.position)  # not finite where the new position is not
    # BlackJAX rejected an energy of +inf or NaN; that rejection stands, because GHMC's turns the momentum around.
    sound = jnp.isfinite(distance) & jnp.isfinite(getattr(new, "logdensity", 0.0)) & (energy != -jnp.inf)
    kept = jax.tree.map(lambda n, o: jnp.where(sound, n, o), new, state)
    rate = getattr(raw, "acceptance_rate", getattr(raw, "is_accepted", None)) if adjusted else None
    proposed = getattr(getattr(raw, "proposal", None), "logdensity", 0.0)
    finite = sound & jnp.isfinite(energy) & jnp.isfinite(proposed)
    if rate is not None:
        rate = jnp.asarray(rate, dtype=float)
        finite = finite & jnp.isfinite(rate)
        rate = jnp.where(finite, rate, 0.0)
    divergent = ~finite | getattr(raw, "is_divergent", False) | ~jnp.asarray(getattr(raw, "nonans", True))
    steps = getattr(raw, "num_integration_steps", 1 if hasattr(state, "logdensity_grad") else 0)
    num_gradients = jnp.asarray(steps * gradients_per_step, dtype=jnp.int32)
    return kept, Stats(rate, jnp.where(sound, distance, 0.0), divergent, num_gradients)


def _distance(new: Tree, old: Tree) -> jax.Array:
    squares = jax.tree.map(lambda n, o: jnp.sum(jnp.square(n - o)), new, old)
    return jnp.sqrt(sum(jax.tree.leaves(squares)))


def pair(init: Callable, step: Callable) -> Any:
    """Return a BlackJAX `SamplingAlgorithm` of `init(position, key)` and `step(key, state)`."""
    return blackjax.SamplingAlgorithm(init, step)


def is_adjusted(kernel: Kernel, logdensity: LogDensity, position: Tree) -> bool:
    """Return whether the kernel leaves exp(logdensity) invariant by an accept step (traced, nothing is computed)."""

    def acceptance(key: Key, position: Tree) -> Any:
        algorithm = bind(kernel, logdensity)
        init_key, step_key = jax.random.split(key)
        return algorithm.step(step_key, algorithm.init(position, init_key))[1].acceptance_rate

    return jax.eval_shape(acceptance, jax.random.key(0), position) is not None


def is_reversible(kernel: Kernel, logdensity: LogDensity, position: Tree) -> bool:
    """Return whether reverse annealing may use the kernel's own move.

    A raw BlackJAX algorithm does not say; one whose state keeps a momentum between moves (GHMC) is taken not to be.
    """
    algorithm = bind(kernel, logdensity)
    state = jax.eval_shape(algorithm.init, position, jax.random.key(0))
    return algorithm.reversible and "momentum" not in carried(state)


def carries_rungs(kernel: Kernel, logdensity: LogDensity, position: Tree) -> bool:
    """Return whether the state holds chains at other temperatures too, as parallel tempering's does."""
    return "rungs" in carried(jax.eval_shape(bind(kernel, logdensity).init, position, jax.random.key(0)))


def carried(state: Any) -> dict[str, Any]:
    """Return the fields of a kernel state that survive a change of the energy, besides the position."""
    return {name: getattr(state, name) for name in state._fields if name not in CACHED}


def start(algorithm: Algorithm, key: Key, position: Tree, carry: dict[str, Any] | None = None) -> Any:
    """Initialise a kernel state at `position` on the algorithm's own log density.

    A state caches the log density and gradient of the energy it was made with; carrying it across a parameter update
    samples the wrong density, so positions are re-initialised and only `carry` (from `carried`) is put back.
    """
    state = algorithm.init(position, key)
    return state._replace(**carry) if carry else state


def step_size(kernel: Kernel) -> Any:
    """Return the step size of a kernel built by keyword (every kernel of this package, `Partial(blackjax.X, ...)`)."""
    try:
        return kernel.keywords["step_size"]  # type: ignore[attr-defined]
    except (AttributeError, KeyError):
        raise ValueError(f"this kernel has no step size to read or tune: {kernel!r}") from None


def with_step_size(kernel: Kernel, value: Any) -> Kernel:
    """Return the same kernel with another step size; same pytree structure, so nothing recompiles."""
    step_size(kernel)
    return with_settings(kernel, step_size=value)


def with_settings(kernel: Kernel, **settings: Any) -> Kernel:
    """Return the same kernel with some of its keyword settings replaced."""
    return Partial(kernel.func, *kernel.args, **{**kernel.keywords, **settings})  # type: ignore[attr-defined]


def name_of(kernel: Kernel) -> str:
    """Return the name a kernel was made by, "mala" for `mala(0.1)`, "<lambda>" for one without a name."""
    function: Any = kernel
    while not hasattr(function, "__name__"):
        inner = getattr(function, "func", None) or getattr(function, "fun", None)
        if inner is None:
            return type(function).__name__  # a raw BlackJAX algorithm
        function = inner
    return function.__name__.removeprefix("_")


@functools.cache
def configured(function: Callable, **static: Any) -> Callable:
    """Return `functools.partial(function, **static)`, the same object for the same settings.

    Partials compare by identity and a kernel's function is part of its pytree structure: without this, two kernels of
    equal settings would compile twice.
    """
    return functools.partial(function, **static)
