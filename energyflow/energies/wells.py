"""Floor 2: double wells and two-dimensional surfaces with several minima, with log Z and exact draws by rejection.

The contract is that of `analytic`: points of shape (dim,), `dim`, `log_z` in float64, `sample(key, num)`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import register_dataclass

from energyflow.energies.exact import as_arrays, reject
from energyflow.types import Key, Kind, Scalar


@register_dataclass
@dataclass(frozen=True)
class QuarticWells:
    """`E(x) = sum_i (a_i x_i^4 + b_i x_i^2 + c_i x_i) + constant`: double wells where b_i < 0, Gaussians where a_i = 0.

    Shapes: quartic a, quadratic b and linear c (d,); constant (). The density is a product over coordinates: `log_z`
    sums 1-D trapezoid rules of 4001 nodes, accurate to rounding for such integrands (Trefethen, Weideman 2014).
    """

    quartic: Any
    quadratic: Any
    linear: Any
    constant: Any = 0.0

    @property
    def dim(self) -> int:
        return self.quartic.shape[-1]

    @property
    def log_z(self) -> float:
        a, b, c = (np.asarray(v, np.float64) for v in (self.quartic, self.quadratic, self.linear))
        well, stiffness = _envelope(a, b)
        # Beyond this radius the envelope of `sample` is below exp(-60) of its peak.
        radius = well + np.abs(c) / (2 * stiffness) + np.sqrt(60 / stiffness)
        x = np.linspace(-radius, radius, 4001)
        energy = x**2 * (a * x**2 + b) + c * x
        floor = energy.min(axis=0)
        logs = np.log(np.sum(np.exp(floor - energy), axis=0) * (x[1] - x[0])) - floor
        return float(np.sum(logs) - self.constant)

    def __call__(self, x: Array) -> Scalar:
        a, b, c = as_arrays(self.quartic, self.quadratic, self.linear)
        return jnp.sum(x**2 * (a * x**2 + b) + c * x) + self.constant

    @partial(jax.jit, static_argnames="num")
    def sample(self, key: Key, num: int) -> Array:
        a, b, c = as_arrays(self.quartic, self.quadratic, self.linear)
        draw = jax.vmap(lambda key, a, b, c: reject(key, partial(_propose_quartic, a, b, c)))
        return jax.vmap(draw, (0, None, None, None))(jax.random.split(key, (num, self.dim)), a, b, c)


def _envelope(a: Any, b: Any) -> tuple[Any, Any]:
    """Return (m, k) with `a x^4 + b x^2 >= k (|x| - m)^2` up to a constant, with equality at |x| = m."""
    well = (abs(b) - b) / 2
    return (well / (2 * a + abs(b) + b)) ** 0.5, abs(b) - well / 2


def _propose_quartic(a: Scalar, b: Scalar, c: Scalar, key: Key) -> tuple[Scalar, Scalar]:
    """Propose from one Gaussian a side; the gap to the envelope is `a (|x|-m)^2 |x| (|x|+2m)`, never negative."""
    well, stiffness = _envelope(a, b)
    key_side, key_noise = jax.random.split(key)
    side = jnp.where(jax.random.bernoulli(key_side, jax.nn.sigmoid(-2 * c * well)), 1.0, -1.0)
    x = side * well - c / (2 * stiffness) + jax.random.normal(key_noise) / jnp.sqrt(2 * stiffness)
    size = jnp.abs(x)
    log_accept = -a * (size - well) ** 2 * size * (size + 2 * well)
    # Without a well the two sides are one Gaussian; with wells each proposal serves its own half-line.
    return x, jnp.where((side * x >= 0) | (well == 0), log_accept, -jnp.inf)


def quartic_wells(quartic: Any, quadratic: Any, linear: Any, constant: float = 0.0) -> QuarticWells:
    """Return a sum of 1-D quartics from coefficients of shape (d,).

    Raises ValueError unless a >= 0, b != 0, and a > 0 wherever b < 0 (otherwise there is no density, or no envelope).
    """
    a, b, c = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, np.float64)) for v in (quartic, quadratic, linear)))
    if np.any(a < 0) or np.any(b == 0) or np.any((b < 0) & (a == 0)):
        raise ValueError("quartic wells need a >= 0, b != 0, and a > 0 where b < 0, in every coordinate")
    return QuarticWells(a, b, c, float(constant))


def double_well() -> QuarticWells:
    """Return `4 (x^2 - 1)^2 + y^2/2`: two equal wells at x = -1 and 1."""
    return quartic_wells([4.0, 0.0], [-8.0, 0.5], [0.0, 0.0], constant=4.0)


def four_wells() -> QuarticWells:
    """Return `3 (x^2 - 1)^2 + 3 (y^2 - 1)^2 + 0.3 x + 0.2 y`: four wells of unequal weight."""
    return quartic_wells([3.0, 3.0], [-6.0, -6.0], [0.3, 0.2], constant=6.0)


def many_well(dim: int) -> QuarticWells:
    """Return dim/2 copies of `x^4 - 6 x^2 - x/2 + y^2/2` (Noe et al. 2019; Midgley et al. 2023), (x, y) interleaved.

    2^(dim/2) modes; Z = 11784.50927 sqrt(2 pi) per copy. Raises ValueError for an odd or non-positive dim.
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"a many-well has an even number of dimensions; got {dim}")
    return quartic_wells([1.0, 0.0] * (dim // 2), [-6.0, 0.5] * (dim // 2), [-0.5, 0.0] * (dim // 2))


@register_dataclass
@dataclass(frozen=True)
class Himmelblau:
    """`E(x, y) = u^2 + v^2` with `u = x^2 + y - 11`, `v = x + y^2 - 7` (Himmelblau 1972), at temperature 20.

    Four minima of value 0. `log_z` by quadrature: trapezoid rule on [-11, 11]^2 with 3001^2 nodes, equal to 1e-13 to
    the one on [-9, 9]^2. Draws: `u^2 >= 2tu - t^2` and `v^2 >= 2sv - s^2` make a Gaussian envelope of the whole plane,
    gap `(u-t)^2 + (v-s)^2`; t and s minimise its mass (acceptance .056). No leaves.
    """

    temperature: ClassVar[float] = 20.0
    kind: ClassVar[Kind] = "tempered"

    @property
    def dim(self) -> int:
        return 2

    @property
    def log_z(self) -> float:
        return 2.1889649248772387

    def __call__(self, x: Array) -> Scalar:
        return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2

    @partial(jax.jit, static_argnames="num")
    def sample(self, key: Key, num: int) -> Array:
        t, s = 0.4416, 0.6117
        mean = jnp.array([-s / (2 * t), -t / (2 * s)])
        scale = jnp.sqrt(self.temperature / (4 * jnp.array([t, s])))

        def propose(key: Key) -> tuple[Array, Scalar]:
            x = mean + scale * jax.random.normal(key, (2,))
            gap = (x[0] ** 2 + x[1] - 11 - t) ** 2 + (x[0] + x[1] ** 2 - 7 - s) ** 2
            return x, -gap / self.temperature

        return jax.vmap(lambda key: reject(key, propose))(jax.random.split(key, num))


# One row per term: amplitude, then a, b, c of the quadratic form and its centre (Mueller, Brown 1979).
_MUELLER_BROWN = np.array(
    [
        [-200.0, -1.0, 0.0, -10.0, 1.0, 0.0],
        [-100.0, -1.0, 0.0, -10.0, 0.0, 0.5],
        [-170.0, -6.5, 11.0, -6.5, -0.5, 1.5],
        [15.0, 0.7, 0.6, 0.7, -1.0, 1.0],
    ]
)


@register_dataclass
@dataclass(frozen=True)
class MuellerBrown:
    """`E(x, y) = sum_k A_k exp(a_k dx^2 + b_k dx dy + c_k dy^2)` (Mueller, Brown 1979), at temperature 20.

    Three minima (-146.7, -108.2, -80.8) on a bent path; the last term confines, so the density lives on the whole
    plane. `log_z` by quadrature: beta = 1/20, trapezoid rule on the box [-5, 4] x [-4, 5] with 1601^2 nodes, equal to
    1e-13 to 2401^2 nodes and to [-6, 5] x [-5, 6]. Draws: a Gaussian envelope `E/T >= |F (x - m)|^2/2 + c`, whose c is
    the minimum of the gap on a grid of 1801^2, polished; the gap grows beyond (acceptance .06). No leaves.
    """

    temperature: ClassVar[float] = 20.0
    kind: ClassVar[Kind] = "tempered"

    @property
    def dim(self) -> int:
        return 2

    @property
    def log_z(self) -> float:
        return 5.366133242308871

    def __call__(self, x: Array) -> Scalar:
        height, a, b, c, centre_x, centre_y = as_arrays(*_MUELLER_BROWN.T)
        dx, dy = x[0] - centre_x, x[1] - centre_y
        return jnp.sum(height * jnp.exp(a * dx**2 + b * dx * dy + c * dy**2))

    @partial(jax.jit, static_argnames="num")
    def sample(self, key: Key, num: int) -> Array:
        mean, factor, floor = jnp.array([-0.534, 1.288]), jnp.array([[2.1, 1.23], [0.0, 1.37]]), -7.3766
        spread = jnp.linalg.inv(factor)

        def propose(key: Key) -> tuple[Array, Scalar]:
            noise = jax.random.normal(key, (2,))
            x = mean + spread @ noise
            return x, floor + jnp.sum(noise**2) / 2 - self(x) / self.temperature

        return jax.vmap(lambda key: reject(key, propose))(jax.random.split(key, num))
