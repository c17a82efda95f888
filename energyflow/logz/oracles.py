"""Floor 4: log Z and expectations in up to three dimensions, or over finite sets, to (nearly) rounding error.

Everything runs in float64 on the host's CPU, whatever the precision and device of the energy's leaves. All integrals
are one weighted sum over a grid: quadrature nodes with their weights, or the values of a discrete coordinate.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from energyflow.energy import as_energy, logdensity, require_density
from energyflow.types import LogDensity, Scalar, Tree

Bound: TypeAlias = float | Sequence[float] | np.ndarray

_ORDER = 20
_BLOCK = 2**14
_MAX_NODES = 2**26
_MAX_STATES = 2**22


@overload
def log_z_quadrature(
    energy: Any, low: Bound, high: Bound, num: int = ..., *, return_error: Literal[False] = ...
) -> float: ...
@overload
def log_z_quadrature(
    energy: Any, low: Bound, high: Bound, num: int = ..., *, return_error: Literal[True]
) -> tuple[float, float]: ...
def log_z_quadrature(
    energy: Any, low: Bound, high: Bound, num: int = 2001, *, return_error: bool = False
) -> float | tuple[float, float]:
    """Return the log of the integral of exp(-E/T) over a box, in one to three dimensions.

    energy: an energy or plain function of one point. low, high: the box; floats for a point of shape (), sequences of
    length d for a point of shape (d,). num: nodes a dimension, rounded up to two or more panels of 20. return_error:
    also return the change in log Z from half as many panels, which bounds the error of the coarser grid.

    Composite Gauss-Legendre (Davis, Rabinowitz 1984): for a smooth density it converges as fast as the trapezoid rule
    does for one that decays, and unlike it also where the box cuts a density that does not vanish at its faces.
    What lies outside of the box is not seen: see `edge_share`.
    Raises ValueError for a landscape, a box that is not finite and ordered, dimensions above 3, more than 2^26 nodes,
    and an energy that is NaN or minus infinity in the box.
    """
    require_density(energy, "log Z")
    log_z, _ = _integrate(energy, _nothing, *_box(low, high, max(num, 2 * _ORDER)))
    if not return_error:
        return log_z
    coarse, _ = _integrate(energy, _nothing, *_box(low, high, max(num, 2 * _ORDER) // 2))
    return log_z, abs(log_z - coarse)


def expectation_quadrature(energy: Any, f: Callable, low: Bound, high: Bound, num: int = 2001) -> Tree:
    """Return the mean of `f(x)` under the density exp(-E/T)/Z of a box; arguments and errors of `log_z_quadrature`.

    f: a function of one point, to a scalar or a pytree of arrays, whose means come back as float64 numpy arrays.
    """
    require_density(energy, "an expectation")
    _, means = _integrate(energy, f, *_box(low, high, num))
    return means


def edge_share(energy: Any, low: Bound, high: Bound, num: int = 401) -> float:
    """Return the share of the box's mass within 1 % of its width of a face: not tiny where the box cuts a tail.

    Arguments and errors of `log_z_quadrature`. On a bounded support, whose faces are the box's, it means nothing.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    return float(expectation_quadrature(energy, Partial(_near_edge, low, high), low, high, num))


def log_z_enumeration(energy: Any, support: Sequence | np.ndarray, num_dims: int) -> float:
    """Return the log of the sum of exp(-E/T) over all points of `num_dims` coordinates, each with a value in `support`.

    energy: an energy or plain function of one point (num_dims,). support: the K values, such as (-1.0, 1.0) or
    (0, 1, 2); integers stay int32. Raises ValueError for a landscape, an empty support, no dimension, and more than
    2^22 points.
    """
    require_density(energy, "log Z")
    values = np.atleast_1d(np.asarray(support))
    if values.ndim != 1 or values.size == 0 or num_dims < 1:
        raise ValueError(f"need a list of values and a dimension; got values {values.shape} and {num_dims} dimensions")
    if values.size**num_dims > _MAX_STATES:
        raise ValueError(f"{values.size}^{num_dims} points are more than the 2^22 that enumeration accepts")
    values = values.astype(np.int32 if np.issubdtype(values.dtype, np.integer) else np.float64)
    nodes = np.tile(values, (num_dims, 1))
    log_z, _ = _integrate(energy, _nothing, nodes, np.zeros(nodes.shape), False)
    return log_z


def _box(low: Bound, high: Bound, num: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return Gauss-Legendre nodes and log weights, both (d, n), and whether a point is a scalar."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if low.shape != high.shape or low.ndim > 1 or not (np.all(np.isfinite([low, high])) and np.all(low < high)):
        raise ValueError(f"a box needs finite low < high of one shape, () or (d,); got {low} and {high}")
    if not 1 <= low.size <= 3:
        raise ValueError(f"quadrature needs one to three dimensions, not {low.size}: use annealing (energyflow.ais)")
    panels = max(-(-num // _ORDER), 1)
    if (panels * _ORDER) ** low.size > _MAX_NODES:
        raise ValueError(f"{num} nodes in each of {low.size} dimensions are more than 2^26 points: lower num")
    nodes, weights = np.polynomial.legendre.leggauss(_ORDER)
    unit = ((np.arange(panels)[:, None] + (nodes + 1) / 2) / panels).ravel()
    width = np.atleast_1d(high - low)[:, None]
    log_weights = np.log(np.tile(weights / (2 * panels), panels)) + np.log(width)
    return np.atleast_1d(low)[:, None] + width * unit, log_weights, low.ndim == 0


def _integrate(energy: Any, f: Any, nodes: np.ndarray, log_weights: np.ndarray, scalar: bool) -> tuple[float, Tree]:
    """Return the log of the weighted sum of exp(-E/T) over a grid, and the mean of f under the summands."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        target, f = _in_float64(logdensity(energy)), _in_float64(as_energy(f))
        tops, sums, values = jax.device_get(_blocks(target, f, nodes, log_weights, scalar))
    if not np.all(np.isfinite(sums)):
        raise ValueError("the energy is NaN, or minus infinity, at a point of the grid")
    if not np.any(sums):
        return -np.inf, jax.tree.map(lambda v: np.full(v.shape[1:], np.nan), values)
    top = tops[sums > 0].max()
    # A block without mass has no top of its own, and its sums are zero whatever their scale.
    scales = np.exp(np.where(sums > 0, tops - top, 0.0))
    total = scales @ sums
    return float(top + np.log(total)), jax.tree.map(lambda v: np.tensordot(scales, v, 1) / total, values)


def _in_float64(tree: Tree) -> Tree:
    # Copies: for an array that was a constant of a jitted function, jax 0.10 to 0.12 would pass its old float32 buffer.
    return jax.tree.map(
        lambda v: np.array(v, np.float64) if jnp.issubdtype(jnp.result_type(v), jnp.floating) else v, tree
    )


@partial(jax.jit, static_argnames="scalar")
def _blocks(
    target: LogDensity, f: Callable, nodes: jax.Array, log_weights: jax.Array, scalar: bool
) -> tuple[jax.Array, jax.Array, Tree]:
    """Return, for each block of grid points, its largest log term, the sum of exp(terms - it), and that of f too."""
    num_dims, num_nodes = nodes.shape
    total = num_nodes**num_dims
    size = min(total, _BLOCK)
    axes, strides = np.arange(num_dims), num_nodes ** np.arange(num_dims)[::-1]

    def term(index: Scalar) -> tuple[Scalar, Tree]:
        digits = index // strides % num_nodes
        x = nodes[axes, digits]
        x = x[0] if scalar else x
        log_weight = jnp.where(index < total, jnp.sum(log_weights[axes, digits]), -jnp.inf)
        return target(x) + log_weight, f(x)

    def block(start: Scalar) -> tuple[Scalar, Scalar, Tree]:
        logs, values = jax.vmap(term)(start + np.arange(size))
        top = jnp.max(logs)
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        masses = jnp.exp(logs - top)
        means = jax.tree.map(lambda v: jnp.tensordot(masses, jnp.asarray(v, masses.dtype), 1), values)
        return top, jnp.sum(masses), means

    return jax.lax.map(block, size * np.arange(-(-total // size)))


def _nothing(x: Tree) -> tuple:
    return ()


def _near_edge(low: Any, high: Any, x: Any) -> Scalar:
    return jnp.any(jnp.minimum(x - low, high - x) < 0.01 * (high - low))
