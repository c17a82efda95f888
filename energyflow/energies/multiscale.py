"""Floor 2: energies of images that add up over resolutions (Du, Li, Tenenbaum and Mordatch 2021).

An image and its averages over ever larger windows are scored by an energy each, and their sum is the energy: one number
that chains follow and that losses train. Published code moves chains on the sum and trains the mean over resolutions.
The contrast of the mean has the zeros of the contrast of the sum, so that only weighs regularisers differently; here
there is one energy, and nothing to weigh.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import register_dataclass

from energyflow.energies.nets import cnn
from energyflow.energy import as_energy, require_density, temperature
from energyflow.types import Key, Scalar, as_key


@register_dataclass
@dataclass(frozen=True, eq=False)
class Multiscale:
    """The energy `sum_i E_i(pool^i(x), *cond)/T_i` of one image, at temperature 1; made by `multiscale`."""

    energies: tuple
    window: int = field(default=3, metadata={"static": True})
    stride: int = field(default=2, metadata={"static": True})

    def __call__(self, x: Array, *cond: Any) -> Scalar:
        first, *others = self.energies
        total = first(x, *cond) / temperature(first)
        for energy in others:
            x = average_pool(x, self.window, self.stride)
            total = total + energy(x, *cond) / temperature(energy)
        return total


def multiscale(*energies: Any, window: int = 3, stride: int = 2) -> Multiscale:
    """Return the sum of energies of one image at as many resolutions: the first of it as it is, the next of it pooled.

    energies: of images of the shapes that `pooled_shapes` tells, each divided by its own temperature. window, stride:
    of the pooling between neighbours; see `average_pool`. With `mala` and the like the sum is what is sampled, in
    `contrastive` what is trained, and its log Z is one number.
    Raises ValueError without an energy, for a landscape and for a window or a stride below 1.
    """
    if not energies or min(window, stride) < 1:
        raise ValueError(f"need an energy, a window and a stride; got {len(energies)}, {window} and {stride}")
    for energy in energies:
        require_density(energy, "a sum over resolutions")
    return Multiscale(tuple(map(as_energy, energies)), window, stride)


def multiscale_cnn(
    key: Key | int,
    shape: tuple[int, int, int] = (32, 32, 3),
    num_scales: int = 3,
    channels: tuple[int, ...] = (32, 64, 64),
    activation: str = "silu",
    confinement: float = 0.0,
) -> Multiscale:
    """Return the sum of `num_scales` networks `cnn`, one a resolution, each with weights of its own.

    shape: (height, width, channels) of an image. confinement: of the full resolution, which alone makes Z finite.
    Raises ValueError for fewer than one scale, and as `cnn` does.
    """
    shapes = pooled_shapes(shape, num_scales)
    keys = jax.random.split(as_key(key), num_scales)
    rest = (confinement, *(0.0,) * (num_scales - 1))
    return multiscale(*(cnn(k, s, channels, activation, c) for k, s, c in zip(keys, shapes, rest, strict=True)))


def pooled_shapes(shape: tuple[int, int, int], num_scales: int, stride: int = 2) -> list[tuple[int, int, int]]:
    """Return the shapes of one image at `num_scales` resolutions, its own first; sizes are rounded up."""
    if num_scales < 1:
        raise ValueError(f"need a resolution or more; got {num_scales}")
    height, width, channels = shape
    return [(-(-height // stride**i), -(-width // stride**i), channels) for i in range(num_scales)]


def average_pool(x: Array, window: int = 3, stride: int = 2) -> Array:
    """Return the means of an image (height, width, channels) over windows centred at every `stride`-th pixel.

    At the border a mean is over the pixels that are there: a constant image stays constant. Two products with small
    matrices, whose gradients are such products too: a pooling primitive's are slow inside loops.
    """
    rows, columns = (jnp.asarray(_averages(size, window, stride), x.dtype) for size in x.shape[:2])
    return jnp.einsum("ih,hwc,jw->ijc", rows, x, columns, precision=jax.lax.Precision.HIGHEST)


def _averages(size: int, window: int, stride: int) -> np.ndarray:
    """Return the matrix (size / stride rounded up, size) that averages along one axis."""
    offsets = np.arange(size)[None, :] - stride * np.arange(-(-size // stride))[:, None]
    inside = (offsets >= -((window - 1) // 2)) & (offsets <= window // 2)
    return inside / inside.sum(axis=1, keepdims=True)
