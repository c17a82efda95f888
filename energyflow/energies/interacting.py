"""Floor 2: points that push one another apart, as one energy of all of them (Balcerak et al. 2025).

A set of points is one position, so that any kernel samples sets: diverse draws, or diverse ones with a property asked
for.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from energyflow.energy import Around, Frozen, as_energy, require_density
from energyflow.types import Array, Scalar, Tree


@register_dataclass
@dataclass(frozen=True, eq=False)
class Interacting(Around):
    """The energy of n points, leaves leading with [point]; made by `interacting`. Its temperature is that of V."""

    energy: Any
    push: Frozen
    pull: Frozen

    def __call__(self, points: Tree) -> Scalar:
        """Return the energy of one set of points, shape ()."""
        forces = -self._apart(points) + self._from_target(points)
        return jnp.sum(jax.vmap(self.energy)(points)) + self.temperature * forces

    def _apart(self, points: Tree) -> Scalar:
        if self.push.value is None:
            return jnp.zeros(())
        # Squared distances over all ordered pairs are 2n times those from the mean.
        squares = [len(x) * jnp.sum((x - jnp.mean(x, axis=0, keepdims=True)) ** 2) for x in jax.tree.leaves(points)]
        return sum(squares[1:], squares[0]) / self.push.value**2

    def _from_target(self, points: Tree) -> Scalar:
        if self.pull.value is None:
            return jnp.zeros(())
        measure, target, width = jax.lax.stop_gradient(self.pull.value)
        misses = (jax.vmap(measure)(points) - jnp.asarray(target)[None]) / width
        return 0.5 * jnp.sum(misses**2)


def interacting(
    energy: Any, *, spread: float | None = None, measure: Any = None, target: Array | float = 0.0, width: float = 1.0
) -> Interacting:
    """Return `sum_i V(x_i) + T (sum_i |y_i - y*|^2 / (2 width^2) - sum_{i != j} |x_i - x_j|^2 / (2 spread^2))`.

    energy: V, of one point, at its temperature T. spread: a length; the smaller, the more the points push one another
    apart (None: not at all). Ordered pairs, so each counts twice, and the push grows with the number of points n. It is
    quadratic: the density exists only where V rises faster, far out, than `n T |x|^2 / spread^2`.
    measure: x -> y, a callable pytree, with `target` y* and `width` (None: no such pull).
    Raises ValueError for a spread or width that is not positive and for a landscape.
    """
    require_density(energy, "an interaction of points")
    for name, value in (("spread", spread), ("width", width)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive; got {value}")
    pull = None if measure is None else (as_energy(measure), target, width)
    return Interacting(as_energy(energy), Frozen(spread), Frozen(pull))
