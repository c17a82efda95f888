"""Equilibrium matching: a landscape without time or noise level, whose descents lead from noise to data.

Points between noise and data are told the way to the data, the shorter the nearer (Wang and Du 2025). What is learned
is the mean of that way over all data and noise that may lie behind a point. Its zeros are near the data, but exp(-E) is
not their density: sample it with `descend`, for a finite time. The value of an energy is a score of novelty where the
data are sparse, as images are; on a plane a gap among the data can lie lower than they do.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from energyflow.chains import require_floats
from energyflow.energies.fields import slopes
from energyflow.energy import kind
from energyflow.rows import flat_rows
from energyflow.types import Array, Key, Objective, Tree

Decay = Literal["truncated", "linear", "piecewise"]


def equilibrium_matching(
    decay: Decay = "truncated", *, scale: float = 4.0, start: float = 0.8, initial: float | None = None
) -> Objective:
    """Return `mean |f(y) - scale c(g) (e - x)|^2 / d` at `y = g x + (1 - g) e`, a mean over rows and the d dimensions.

    x: rows, any pytree of floats. e: standard normal. g: uniform on (0, 1). f: the gradient of a `landscape`, or a
    `field` (Wang and Du 2025; their lambda is `scale`). decay: c, which falls to 0 at the data, so that a descent comes
    to rest: "linear" 1 - g; "truncated" 1 until g = `start`, then in a line to 0; "piecewise" in a line from `initial`
    at g = 0 to 1 at `start`, then in one to 0.
    Bring the data to the scale of the noise first, a standard deviation of 1 or less. Near a datum that stands alone, a
    truncated landscape has the curvature scale / (1 - start), and descents come to rest with steps under twice its
    inverse. The loss does not fall to 0: several rows may lie behind a point. Metrics: `field_norm`, the root mean
    square of |f|.
    Raises ValueError for settings out of range; refuses, when training starts, an energy that is declared a density.
    """
    if decay not in ("truncated", "linear", "piecewise"):
        raise ValueError(f'decay must be "truncated", "linear" or "piecewise"; got {decay!r}')
    if not scale > 0:
        raise ValueError(f"scale must be positive; got {scale}")
    if not 0 < start < 1:
        raise ValueError(f"start must lie between 0 and 1, both excluded; got {start}")
    if (initial is not None) != (decay == "piecewise") or (initial is not None and not initial > 0):
        raise ValueError(f'initial is a positive number for the decay "piecewise" alone; got {initial} for {decay!r}')
    settings = scale, 0.0 if decay == "linear" else start, 1.0 if initial is None else initial
    return Objective(Partial(_require_landscape), Partial(_loss, settings))


def decayed(gamma: Array, start: Array | float, initial: Array | float) -> Array:
    """Return c: `initial` at gamma 0, 1 at `start`, 0 at 1, in lines; "linear" starts at 0, "truncated" has 1 at 0."""
    rest = (1 - gamma) / (1 - start)
    return jnp.where(gamma < start, initial + (1 - initial) * gamma / jnp.where(start > 0, start, 1), rest)


def _loss(settings: tuple, energy: Any, batch: Tree, key: Key, state: None) -> Any:
    scale, start, initial = settings
    gamma_key, noise_key = jax.random.split(key)
    x, unravel = flat_rows(batch)
    gamma = jax.random.uniform(gamma_key, (len(x), 1), x.dtype)
    noise = jax.random.normal(noise_key, x.shape, x.dtype)
    found, _ = flat_rows(slopes(energy, jax.vmap(unravel)(gamma * (x - noise) + noise)))
    misses = (found - scale * decayed(gamma, start, initial) * (noise - x)) ** 2
    return jnp.mean(misses), (state, {"field_norm": jnp.sqrt(jnp.mean(jnp.sum(found**2, axis=1)))})


def _require_landscape(key: Key, energy: Any, batch: Tree) -> None:
    if kind(energy) != "landscape":
        raise ValueError(
            "equilibrium matching trains no density, so that exp(-E) must not be sampled or normalised as one: declare "
            "the energy by ef.landscape(energy), or train a field, such as ef.energies.mlp_field(0, dim)"
        )
    require_floats(batch)
