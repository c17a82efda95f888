"""Floor 2: energies on constrained supports, sampled in unconstrained coordinates.

A kernel moves freely in R^d. For a density on a box, a simplex or the positive numbers, write x = t(u) and sample u:
the density of u is `exp(-E(t(u))/T) |det J_t(u)|`, whose Z is the one of x.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import register_dataclass
from numpyro.distributions import biject_to, constraints

from energyflow.energy import Around, Frozen, as_energy
from energyflow.types import Scalar, Tree


@register_dataclass
@dataclass(frozen=True, eq=False)
class Transformed(Around):
    """The energy `E_u(u) = E(t(u)) - T log|det J_t(u)|` of unconstrained coordinates u; made by `transformed`.

    Its temperature and kind are those of E. A landscape has minima and no density: it gets no Jacobian, so that its
    minima stay where they are.
    """

    energy: Any
    transform: Frozen

    def __call__(self, u: Array, *cond: Tree) -> Scalar:
        """Return the energy of one unconstrained point u, shape ()."""
        x = self.constrain(u)
        energy = self.energy(x, *cond)
        if self.kind == "landscape":
            return energy
        log_det = self._transform.log_abs_det_jacobian(u, x)
        return energy - self.temperature * jnp.sum(log_det)

    def constrain(self, u: Array) -> Array:
        """Return x = t(u), one point in the support."""
        return self._transform(u)

    def unconstrain(self, x: Array) -> Array:
        """Return u with t(u) = x, for one point x inside the support (on its boundary u is infinite)."""
        return self._transform.inv(x)

    @property
    def _transform(self) -> Any:
        return jax.lax.stop_gradient(self.transform.value)


def transformed(energy: Any, transform: Any) -> Transformed:
    """Return `energy` as an energy of unconstrained u, by the change of variables x = t(u).

    energy: an energy or function of one point x. transform: a bijective NumPyro transform (a pytree, frozen), for
    example `biject_to(distribution.support)` or `biject_to(constraints.positive)`; its log-determinants are summed.
    log Z is that of the energy. Raises TypeError where `transform` is not a NumPyro transform.
    """
    if not callable(getattr(transform, "log_abs_det_jacobian", None)):
        raise TypeError(f"a transform needs log_abs_det_jacobian, as NumPyro's have; got {type(transform).__name__}")
    return Transformed(as_energy(energy), Frozen(transform))


def bounded(energy: Any, low: float | Array, high: float | Array) -> Transformed:
    """Return `energy`, whose points live in the box low <= x <= high, as an energy of unconstrained u.

    low, high: concrete scalars or arrays that broadcast to a point's shape, in the units of x; finite.
    Raises ValueError unless low < high everywhere and both are finite (see `transformed` for half-open supports).
    """
    if not (np.all(np.isfinite(low)) and np.all(np.isfinite(high)) and np.all(np.less(low, high))):
        raise ValueError(
            f"a box needs finite low < high; got low={low}, high={high}: for half-open supports use "
            "transformed(energy, biject_to(constraints.greater_than(low)))"
        )
    return transformed(energy, biject_to(constraints.interval(low, high)))
