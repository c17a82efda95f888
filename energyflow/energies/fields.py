"""Floor 2: vector fields as landscapes, and energies made of fields.

A field takes the place of an energy's gradient: it maps one point to a vector of the point's shape, which a descent
subtracts. An implicit field, `field(net)`, is in general the gradient of no energy (its Jacobian is not symmetric), so
that no value tells two points apart. An explicit one is the gradient of `dot_energy`, `norm_energy`, `line_energy` or
of a scalar network marked by `landscape`; training it differentiates twice.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.tree_util import Partial, register_dataclass

from energyflow.energies.modules import from_nnx
from energyflow.energies.nets import MLP, ResidualMLP
from energyflow.energy import Frozen, Landscape, as_energy, landscape
from energyflow.rows import gradients
from energyflow.types import Array, Key, Kind, Scalar, Tree


@register_dataclass
@dataclass(frozen=True, eq=False)
class Field:
    """A vector for every point, of the shapes of its leaves; made by `field`. No density: its kind is "landscape"."""

    net: Any
    kind: ClassVar[Kind] = "landscape"

    def __call__(self, x: Tree, *cond: Tree) -> Tree:
        """Return the vector at the one point `x`. Raises ValueError where it has another shape than the point."""
        value = self.net(x, *cond)
        shapes, expected = (jax.tree.map(jnp.shape, tree) for tree in (value, x))
        if (shapes, expected) == ((), (1,)):
            return jnp.reshape(value, (1,))  # a network of one output gives a scalar
        if shapes != expected:
            raise ValueError(
                f"a field must return a vector of its point's shape, {expected}; this one returned {shapes}: give the "
                "network as many outputs as inputs"
            )
        return value


def field(net: Any) -> Field:
    """Return the vector field of a network or function, to be trained in place of an energy's gradient.

    net: a callable pytree of one point, such as `from_nnx(MLP(dim, num_outputs=dim, rngs=...))`.
    Raises TypeError for something that cannot be called; when called, ValueError for a value shaped unlike its point.
    """
    return Field(as_energy(net))


def dot_energy(net: Any) -> Landscape:
    """Return the energy `E(x) = x . f(x)` of a field or a network of the point's shape (Wang and Du 2025)."""
    return landscape(Partial(_dot, _as_field(net)))


def norm_energy(net: Any) -> Landscape:
    """Return the energy `E(x) = -1/2 |f(x)|^2` of a field or a network of the point's shape (Wang and Du 2025)."""
    return landscape(Partial(_minus_half_square, _as_field(net)))


def line_energy(net: Any, num_nodes: int = 2) -> Partial:
    """Return the energy `E(x) = integral of x . f(s x) ds, s from 0 to 1` of a field or a network of the point's shape.

    The work against f on the straight line from the origin: where f is a gradient, f is the gradient of E, so that a
    field trained without differentiating twice becomes an energy as it is. Say of which kind: `landscape(...)`, or
    `tempered(...)` to go on with `energy_matching`. num_nodes: of Gauss and Legendre's quadrature, each one evaluation
    of f; it is exact for polynomials of degree 2 num_nodes - 1 in s. Raises ValueError for fewer than one.
    """
    if num_nodes < 1:
        raise ValueError(f"num_nodes must be at least 1; got {num_nodes}")
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    return Partial(_work, _as_field(net), Frozen(((nodes + 1) / 2, weights / 2)))


def gradient_field(energy: Any) -> Any:
    """Return the field that a descent follows: a field as it is, and the gradient of an energy.

    The gradient is that of E itself, whatever its temperature. Raises TypeError for something that cannot be called
    and, when called, ValueError for an energy whose value is no scalar.
    """
    energy = as_energy(energy)
    return energy if is_field(energy) else Field(Partial(_gradient, energy))


def slopes(energy: Any, points: Tree) -> Tree:
    """Return what `gradient_field` gives at the rows of `points`, leading axis [row], at the speed of one matrix."""
    energy = as_energy(energy)
    return jax.vmap(energy)(points) if is_field(energy) else gradients(Partial(_scalar, energy), points)


def sum_landscapes(*landscapes: Any, weights: tuple[float, ...] | None = None) -> Landscape | Field:
    """Return the weighted sum of energies and fields, weights 1 by default: descents then heed all of them.

    A landscape of the sum of energies where all are energies, and otherwise the field of their gradients. Temperatures
    are ignored and weights are not trained. Raises ValueError for no landscape or not one weight each.
    """
    weights = (1.0,) * len(landscapes) if weights is None else tuple(weights)
    if not landscapes or len(weights) != len(landscapes):
        raise ValueError(f"need one weight per landscape and at least one; got {len(landscapes)} and {len(weights)}")
    parts = tuple(map(as_energy, landscapes))
    if any(map(is_field, parts)):
        return Field(Partial(_weighted, tuple(map(gradient_field, parts)), Frozen(weights)))
    return landscape(Partial(_weighted, parts, Frozen(weights)))


def mlp_field(key: Key | int, dim: int, hidden: tuple[int, ...] = (128, 128, 128), activation: str = "silu") -> Field:
    """Return the field of a multilayer perceptron on points of shape (dim,).

    key: a typed key or an int seed. hidden: widths. activation: a name in `energies.nets.ACTIVATIONS`.
    Raises ValueError for an unknown activation.
    """
    return Field(from_nnx(MLP(dim, hidden, num_outputs=dim, activation=activation, rngs=nnx.Rngs(key))))


def residual_mlp_field(
    key: Key | int, dim: int, width: int = 512, depth: int = 3, activation: str = "silu", *, skip: bool = False
) -> Field:
    """Return the field of a residual perceptron with `depth` blocks of `width` units, on points of shape (dim,).

    skip: add a multiple of each coordinate, trained from 0. A network narrower than a point, as on images, has no other
    way to take noise off all coordinates.
    Settings and errors otherwise as for `mlp_field`; `ResidualMLP` is the network.
    """
    net = ResidualMLP(dim, width, depth, num_outputs=dim, activation=activation, rngs=nnx.Rngs(key))
    return Field(from_nnx(Skipped(net, dim) if skip else net))


class Skipped(nnx.Module):
    """A network plus a multiple of each coordinate, shape (N, dim) -> (N, dim)."""

    def __init__(self, net: nnx.Module, dim: int) -> None:
        self.net, self.gain = net, nnx.Param(jnp.zeros(dim))

    def __call__(self, x: Array) -> Array:
        return self.net(x) + self.gain[...][None] * x


def mlp_velocity(
    key: Key | int, dim: int, hidden: tuple[int, ...] = (128, 128, 128), activation: str = "silu"
) -> Field:
    """Return the average velocity u(z, r, t) of a multilayer perceptron on points of shape (dim,), for `mean_flow`.

    r, t: times, (). Settings and errors otherwise as for `mlp_field`.
    """
    net = MLP(dim + 2, hidden, num_outputs=dim, activation=activation, rngs=nnx.Rngs(key))
    return Field(from_nnx(Timed(net)))


class Timed(nnx.Module):
    """A network of points and of times beside them, shapes (N, dim), (N,), ... -> (N, num_outputs)."""

    def __init__(self, net: nnx.Module) -> None:
        self.net = net

    def __call__(self, x: Array, *times: Array) -> Array:
        columns = [jnp.asarray(time, x.dtype)[:, None] for time in times]
        return self.net(jnp.concatenate([x, *columns], axis=1))


def _as_field(net: Any) -> Any:
    net = as_energy(net)
    return net if is_field(net) else Field(net)


def is_field(energy: Any) -> bool:
    """Return whether `energy` is a vector field, which gives no value to a point."""
    if isinstance(energy, Frozen):
        return is_field(energy.value)
    if isinstance(energy, Landscape):
        return is_field(energy.energy)
    return isinstance(energy, Field)


def _dot(field: Field, x: Tree, *cond: Tree) -> Scalar:
    return jnp.asarray(optax.tree.vdot(x, field(x, *cond)))


def _work(field: Field, line: Frozen, x: Tree, *cond: Tree) -> Scalar:
    nodes, weights = line.value

    def work(s: Scalar) -> Scalar:
        return jnp.asarray(optax.tree.vdot(x, field(jax.tree.map(lambda v: s.astype(v.dtype) * v, x), *cond)))

    works = jax.vmap(work)(jnp.asarray(nodes))
    return jnp.asarray(weights, works.dtype) @ works


def _minus_half_square(field: Field, x: Tree, *cond: Tree) -> Scalar:
    return -0.5 * jnp.asarray(optax.tree.norm(field(x, *cond), squared=True))


def _gradient(energy: Any, x: Tree, *cond: Tree) -> Tree:
    return jax.grad(Partial(_scalar, energy))(x, *cond)


def _scalar(energy: Any, x: Tree, *cond: Tree) -> Scalar:
    value = jnp.asarray(energy(x, *cond))
    if value.shape != ():
        raise ValueError(
            f"an energy must return a scalar for one point; this one returned shape {value.shape}: if it is a "
            "vector field, wrap it by ef.field"
        )
    return value


def _weighted(parts: tuple, weights: Frozen, x: Tree, *cond: Tree) -> Tree:
    terms = [jax.tree.map(lambda v, w=w: w * v, part(x, *cond)) for w, part in zip(weights.value, parts, strict=True)]
    return jax.tree.map(lambda *values: sum(values[1:], values[0]), *terms)
