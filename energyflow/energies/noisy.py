"""Floor 2: networks as energies of a point and of the scale of the noise on it."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from energyflow.energies.modules import ModuleEnergy, from_nnx
from energyflow.energies.nets import MLP, Constant, require_shape
from energyflow.types import Key


class NoiseConditional(nnx.Module):
    """The energies `|x|^2/(2v) + d/2 log(2 pi v) + s/sqrt(v) net(x/sqrt(v), log(sigma/s)/4)` with `v = s^2 + sigma^2`.

    Shapes (N, dim), (N,) -> (N,). net: (N, dim + 1) -> (N, 1). scale: s.
    """

    def __init__(self, net: nnx.Module, dim: int, scale: float) -> None:
        self.net, self.shape = net, (dim,)
        self.scale = Constant(jnp.asarray(_positive(scale)))

    def __call__(self, x: Array, sigma: Array) -> Array:
        require_shape(x, self.shape)
        scale, sigma = self.scale[...].astype(x.dtype), jnp.asarray(sigma, x.dtype)
        variance = scale**2 + sigma**2
        white = x / jnp.sqrt(variance)[:, None]
        level = jnp.log(sigma / scale)[:, None] / 4
        net = self.net(jnp.concatenate([white, level], axis=1))[:, 0]
        gaussian = jnp.sum(white**2, axis=1) / 2 + x.shape[1] / 2 * jnp.log(2 * jnp.pi * variance)
        return gaussian + scale / jnp.sqrt(variance) * net


def noise_conditional_mlp(
    key: Key | int,
    dim: int,
    hidden: tuple[int, ...] = (64, 64, 64),
    activation: str = "silu",
    scale: float = 1.0,
) -> ModuleEnergy:
    """Return an energy `E(x, sigma)` of one point (dim,) with noise of scale sigma, (), added to it.

    That of N(0, scale^2 + sigma^2), normalised, plus `scale / sqrt(scale^2 + sigma^2)` times a network of x in units of
    its spread and of log sigma: where the noise drowns the data it is the density they have there, whatever the
    weights, and Z is finite at every sigma (cf. Karras et al. 2022). scale: of the data about 0; centre them first.
    key: a typed key or an int seed. hidden, activation: as in `mlp`. Raises ValueError for an unknown activation or a
    scale that is not positive, and, when called, for another shape.
    """
    net = MLP(dim + 1, hidden, activation=activation, rngs=nnx.Rngs(key))
    return from_nnx(NoiseConditional(net, dim, scale))


def _positive(scale: float) -> float:
    if not scale > 0:
        raise ValueError(f"scale must be positive; got {scale}")
    return float(scale)
