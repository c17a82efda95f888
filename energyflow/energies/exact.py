"""Floor 2: what the analytic energies share: parameters in the precision of the moment, and rejection sampling."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from energyflow.types import Key, Scalar, Tree


def as_arrays(*values: Any) -> list[Array]:
    """Return parameters as JAX arrays: of float64 numpy arrays under `jax.enable_x64`, of float32 otherwise.

    Copies first: jax 0.10 keeps, for a numpy array that once became a constant of a traced function, the float32 it
    was then, and would return that under x64 too.
    """
    return [jnp.asarray(value.copy() if isinstance(value, np.ndarray) else value) for value in values]


def reject(key: Key, propose: Callable[[Key], tuple[Tree, Scalar]]) -> Tree:
    """Draw one point exactly by rejection (von Neumann 1951); many points come from `jax.vmap`.

    propose: key -> (point, log acceptance probability), the second at most 0: the log of target over envelope.
    A NaN ends the loop and is returned: wrong parameters must not hang.
    """

    def attempt(carry: tuple) -> tuple:
        key, key_point, key_accept = jax.random.split(carry[0], 3)
        point, log_accept = propose(key_point)
        return key, point, log_accept < -jax.random.exponential(key_accept)

    _, point, _ = jax.lax.while_loop(lambda carry: carry[2], attempt, attempt((key,)))
    return point
