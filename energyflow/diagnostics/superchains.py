"""Floor 6: starts for nested R-hat: a few dispersed points, each shared by many chains (Margossian et al. 2024)."""

import jax
import jax.numpy as jnp
import numpy as np

from energyflow.chains import count_chains
from energyflow.types import Key, Tree, as_key


def superchain_starts(
    key: Key | int, position: Tree, num_chains: int, *, num_superchains: int | None = None
) -> tuple[Tree, np.ndarray]:
    """Give `num_chains` chains their starts, so that the chains of a superchain really share one.

    key: typed key or int seed, used to choose which points of `position` start a superchain. position: dispersed
    points, leading axis [start], more widely spread than the target. num_superchains: how many of them to use, by
    default all up to 16: some tens of chains each say more than many superchains of a few.
    Returns (positions with leading axis [chain], labels (chain,)): sample from the first, give the second to
    `check(trace, superchains=labels)`. Raises ValueError unless there are two superchains or more, of equal size, and
    as many starts.
    """
    starts = count_chains(position)
    wanted = min(starts, 16) if num_superchains is None else num_superchains
    if not 2 <= wanted <= starts:
        raise ValueError(f"{wanted} superchains need two or more different starts, one each; position holds {starts}")
    if num_chains % wanted:
        raise ValueError(f"{num_chains} chains cannot be split into {wanted} superchains of equal size")
    chosen = jax.random.permutation(as_key(key), starts)[:wanted]
    labels = np.repeat(np.arange(wanted), num_chains // wanted)
    return jax.tree.map(lambda x: jnp.asarray(x)[chosen[labels]], position), labels
