"""Floor 2: mixtures of rings and the two moons cut from one ring, with log Z and exact draws by rejection.

The contract is that of `analytic`: points of shape (2,), `dim`, `log_z` in float64, `sample(key, num)`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import logsumexp
from jax.tree_util import register_dataclass
from scipy.special import log_ndtr

from energyflow.energies.exact import as_arrays, reject
from energyflow.types import Key, Scalar


@register_dataclass
@dataclass(frozen=True)
class Rings:
    """`E(x) = -log sum_k h_k exp(-(|x| - R_k)^2/(2 s_k^2))` in the plane: concentric ridges of heights h_k.

    `Z = sum_k h_k 2 pi (s_k^2 exp(-R_k^2/(2 s_k^2)) + R_k s_k sqrt(2 pi) Phi(R_k/s_k))`, the radial integrals of r.
    Shapes: radii, widths and log_heights (K,); points (2,).
    """

    radii: Any
    widths: Any
    log_heights: Any

    @property
    def dim(self) -> int:
        return 2

    @property
    def log_z(self) -> float:
        radii, widths, heights = (np.asarray(v, np.float64) for v in (self.radii, self.widths, self.log_heights))
        ratio = radii / widths
        shell = ratio * np.sqrt(2 * np.pi) * np.exp(log_ndtr(ratio)) + np.exp(-(ratio**2) / 2)
        return float(np.logaddexp.reduce(heights + np.log(2 * np.pi * widths**2 * shell)))

    def __call__(self, x: Array) -> Scalar:
        radii, widths, log_heights = as_arrays(self.radii, self.widths, self.log_heights)
        return -logsumexp(log_heights - ((_radius(x) - radii) / widths) ** 2 / 2)

    @partial(jax.jit, static_argnames="num")
    def sample(self, key: Key, num: int) -> Array:
        radii, widths, log_heights = as_arrays(self.radii, self.widths, self.log_heights)
        mode = _radial_mode(radii, widths)
        # Log mass of each ring's envelope, not of the ring: the acceptance step makes up the difference.
        logits = log_heights + jnp.log(mode * widths) - (widths / mode) ** 2 / 2

        def propose(key: Key) -> tuple[Array, Scalar]:
            key_pick, key_point = jax.random.split(key)
            pick = jax.random.categorical(key_pick, logits)
            return _propose_ring(mode[pick], widths[pick], key_point)

        return jax.vmap(lambda key: reject(key, propose))(jax.random.split(key, num))


def rings(radii: Any, widths: Any, heights: Any = 1.0) -> Rings:
    """Return a mixture of rings: radii (K,), widths and heights () or (K,).

    Raises ValueError for negative radii and for widths or heights that are not positive.
    """
    radii, widths, heights = np.broadcast_arrays(
        *(np.atleast_1d(np.asarray(v, np.float64)) for v in (radii, widths, heights))
    )
    if np.any(radii < 0) or not (np.all(widths > 0) and np.all(heights > 0)):
        raise ValueError("rings need radii >= 0, positive widths and positive heights")
    return Rings(radii, widths, np.log(heights))


@register_dataclass
@dataclass(frozen=True)
class TwoMoons:
    """The potential U1 of Rezende and Mohamed 2015: a ring of radius 2 and width .4, cut into two moons at x = +-2.

    `E(x, y) = ((|x| - 2)/.4)^2/2 - log(exp(-((x-2)/.6)^2/2) + exp(-((x+2)/.6)^2/2))`. No leaves.
    `log_z` by quadrature: trapezoid rule on [-11, 11]^2 with 3001^2 nodes, equal to 1e-13 to the one on [-9, 9]^2.
    Draws: the ring, thinned by half the sum of the two exponentials (acceptance .26).
    """

    @property
    def dim(self) -> int:
        return 2

    @property
    def log_z(self) -> float:
        return 1.8775016261097810

    def __call__(self, x: Array) -> Scalar:
        return ((_radius(x) - 2.0) / 0.4) ** 2 / 2 - self._log_cut(x)

    @partial(jax.jit, static_argnames="num")
    def sample(self, key: Key, num: int) -> Array:
        def propose(key: Key) -> tuple[Array, Scalar]:
            x, log_accept = _propose_ring(_radial_mode(2.0, 0.4), 0.4, key)
            return x, log_accept + self._log_cut(x) - jnp.log(2.0)

        return jax.vmap(lambda key: reject(key, propose))(jax.random.split(key, num))

    @staticmethod
    def _log_cut(x: Array) -> Scalar:
        return jnp.logaddexp(-(((x[0] - 2) / 0.6) ** 2) / 2, -(((x[0] + 2) / 0.6) ** 2) / 2)


def _radius(x: Array) -> Scalar:
    """Return |x| with gradient 0 at the origin, where that of a norm is NaN."""
    square = jnp.sum(x**2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _radial_mode(radius: Any, width: Any) -> Any:
    """Return the mode of `r exp(-(r - radius)^2/(2 width^2))`."""
    return (radius + (radius**2 + 4 * width**2) ** 0.5) / 2


def _propose_ring(mode: Any, width: Any, key: Key) -> tuple[Array, Scalar]:
    """Propose a point whose radius is N(mode, width^2): `r <= mode exp(r/mode - 1)` bounds the factor r."""
    key_radius, key_angle = jax.random.split(key)
    radius = mode + width * jax.random.normal(key_radius)
    angle = jax.random.uniform(key_angle, maxval=2 * np.pi)
    ratio = radius / mode
    log_accept = jnp.where(ratio > 0, jnp.log(jnp.where(ratio > 0, ratio, 1.0)) + 1 - ratio, -jnp.inf)
    return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)]), log_accept
