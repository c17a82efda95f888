"""Floor 2: networks as energies of a point and of the level of a diffusion that it is on."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from energyflow.energies.fields import Field
from energyflow.energies.modules import ModuleEnergy, from_nnx
from energyflow.energies.nets import MLP, require_shape
from energyflow.types import Key


class LevelConditional(nnx.Module):
    """The energies `|x|^2/2 + d/2 log(2 pi) + net(x, t)` of points at levels t, shapes (N, dim), (N,) -> (N,).

    net: (N, dim + num_levels) -> (N, 1), of the point and an indicator of its level.
    """

    def __init__(self, net: nnx.Module, dim: int, num_levels: int) -> None:
        self.net, self.shape, self.num_levels = net, (dim,), num_levels

    def __call__(self, x: Array, level: Array) -> Array:
        require_shape(x, self.shape)
        indicator = jax.nn.one_hot(level, self.num_levels, dtype=x.dtype)
        tilt = self.net(jnp.concatenate([x, indicator], axis=1))[:, 0]
        return jnp.sum(x**2, axis=1) / 2 + x.shape[1] / 2 * jnp.log(2 * jnp.pi) + tilt


class LevelField(nnx.Module):
    """Vectors `gain x + net(x, t)` of points at levels t, shapes (N, dim), (N,) -> (N, dim), gain 1 before training."""

    def __init__(self, net: nnx.Module, dim: int, num_levels: int) -> None:
        self.net, self.num_levels, self.gain = net, num_levels, nnx.Param(jnp.ones((num_levels, dim)))

    def __call__(self, x: Array, level: Array) -> Array:
        indicator = jax.nn.one_hot(level, self.num_levels, dtype=x.dtype)
        return (indicator @ self.gain[...]) * x + self.net(jnp.concatenate([x, indicator], axis=1))


def level_mlp(
    key: Key | int,
    dim: int,
    num_levels: int,
    hidden: tuple[int, ...] = (128, 128, 128),
    activation: str = "silu",
) -> ModuleEnergy:
    """Return an energy `E(x, t)` of one point (dim,) at level t, an integer (), of a variance-preserving diffusion.

    A standard normal density, which such diffusions end in, tilted at each of the `num_levels` levels by a network, so
    that Z is finite at all of them. key: a typed key or an int seed. hidden, activation: as in `mlp`.
    Raises ValueError for an unknown activation or no level and, when called, for another shape.
    """
    if num_levels < 1:
        raise ValueError(f"num_levels must be at least 1; got {num_levels}")
    net = MLP(dim + num_levels, hidden, activation=activation, rngs=nnx.Rngs(key))
    return from_nnx(LevelConditional(net, dim, num_levels))


def level_mlp_field(
    key: Key | int,
    dim: int,
    num_levels: int,
    hidden: tuple[int, ...] = (128, 128, 128),
    activation: str = "silu",
) -> Field:
    """Return a vector for each point (dim,) and level t: what `with_initialiser` takes.

    A multiple of each coordinate, 1 before training, plus a network. Settings and errors as of `level_mlp`.
    """
    if num_levels < 1:
        raise ValueError(f"num_levels must be at least 1; got {num_levels}")
    net = MLP(dim + num_levels, hidden, num_outputs=dim, activation=activation, rngs=nnx.Rngs(key))
    return Field(from_nnx(LevelField(net, dim, num_levels)))
