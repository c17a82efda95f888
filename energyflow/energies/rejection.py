"""Floor 2: exact draws by rejection, for one point; many points come from `jax.vmap`."""

from collections.abc import Callable

import jax

from energyflow.types import Key, Scalar, Tree


def reject(key: Key, propose: Callable[[Key], tuple[Tree, Scalar]]) -> Tree:
    """Draw one point exactly by rejection (von Neumann 1951).

    propose: key -> (point, log acceptance probability), the second at most 0: the log of target over envelope.
    A NaN ends the loop and is returned: wrong parameters must not hang.
    """

    def attempt(carry: tuple) -> tuple:
        key, key_point, key_accept = jax.random.split(carry[0], 3)
        point, log_accept = propose(key_point)
        return key, point, log_accept < -jax.random.exponential(key_accept)

    _, point, _ = jax.lax.while_loop(lambda carry: carry[2], attempt, attempt((key,)))
    return point
