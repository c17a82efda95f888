"""Floor 6: how far a field is from being a gradient. It is one where its Jacobian is symmetric, and nowhere else.

A field with curl has no energy: integrals along two ways between the same points differ, and with them any accept step
or weight made of them (Salimans and Ho 2021 compare trained fields of both kinds).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from energyflow.chains import count_chains
from energyflow.energies.fields import gradient_field
from energyflow.rows import flat_rows
from energyflow.types import Array, Key, Tree, as_key

EXACT = 64
"""Most dimensions for which the whole Jacobian is taken."""


def asymmetry(energy: Any, points: Tree, *, key: Key | int = 0, num_probes: int = 16) -> np.ndarray:
    """Return `|J - J^T| / |J|` of the Jacobian J of a field at every point, (n,), in the Frobenius norm.

    energy: a field, or an energy, whose gradient is judged (rounding is all that it shows). points: leading axis
    [point]. 0 for a gradient, sqrt(2) for a matrix of independent entries, 2 for pure rotation; 0 where J is 0.
    Exact up to 64 dimensions. Above, the squares of both norms are estimated by `|Jv - J^T v|^2` and `|Jv|^2`, each a
    mean over the same `num_probes` random signs v made from `key` (Hutchinson 1990).
    Raises ValueError for fewer than one probe or points without a shared leading axis.
    """
    if num_probes < 1:
        raise ValueError(f"num_probes must be at least 1; got {num_probes}")
    count_chains(points)
    return np.asarray(_asymmetry(gradient_field(energy), jax.tree.map(jnp.asarray, points), as_key(key), num_probes))


@partial(jax.jit, static_argnames="num_probes")
def _asymmetry(field: Any, points: Tree, key: Key, num_probes: int) -> Array:
    flat, unravel = flat_rows(points)
    dim = flat.shape[1]
    probes = (
        jax.random.rademacher(key, (num_probes, dim), flat.dtype) if dim > EXACT else jnp.eye(dim, dtype=flat.dtype)
    )

    def one(x: Array) -> Array:
        value, push = jax.linearize(lambda x: ravel_pytree(field(unravel(x)))[0], x)
        pull = jax.linear_transpose(push, x)
        turns = jax.vmap(push)(probes)
        gap, size = jnp.linalg.norm(turns - jax.vmap(lambda v: pull(v)[0])(probes)), jnp.linalg.norm(turns)
        return jnp.where(size > 0, gap / jnp.where(size > 0, size, 1), 0)

    return jax.lax.map(one, flat, batch_size=EXACT)
