"""Floor 2: a U-Net, the field of an image."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from energyflow.energies.fields import Field
from energyflow.energies.modules import from_nnx
from energyflow.energies.nets import ACTIVATIONS, ResidualBlock, convolution, require_shape
from energyflow.types import Key


class UNet(nnx.Module):
    """A U-Net of residual blocks (Ronneberger et al. 2015), NHWC: shape (N, *shape) -> (N, *shape).

    One resolution for each of `channels`, halved (rounding up) by convolutions of stride 2 on the way down, and on the
    way up doubled by repeating pixels and joined with the block of the way down. A multiple of each pixel, trained from
    0, is added to the output.
    """

    def __init__(
        self,
        shape: tuple[int, int, int] = (28, 28, 1),
        channels: tuple[int, ...] = (64, 128, 128),
        *,
        activation: str = "silu",
        rngs: nnx.Rngs,
    ) -> None:
        self.shape, self.activation = tuple(shape), activation
        widths = (shape[-1], *channels)
        self.down = nnx.List(
            [
                convolution(m, n, strides=1 + (i > 0), rngs=rngs)
                for i, (m, n) in enumerate(zip(widths[:-1], widths[1:], strict=True))
            ]
        )
        self.encode = nnx.List([ResidualBlock(n, activation=activation, rngs=rngs) for n in channels])
        self.up = nnx.List([convolution(m + n, n, rngs=rngs) for n, m in zip(channels[:-1], channels[1:], strict=True)])
        self.decode = nnx.List([ResidualBlock(n, activation=activation, rngs=rngs) for n in channels[:-1]])
        self.out = convolution(channels[0], shape[-1], rngs=rngs)
        self.gain = nnx.Param(jnp.zeros(shape))

    def __call__(self, x: Array) -> Array:
        require_shape(x, self.shape)
        h, beside = x, []
        for down, block in zip(self.down, self.encode, strict=True):
            h = block(down(h))
            beside.append(h)
        beside.pop()
        for up, block in zip(reversed(self.up), reversed(self.decode), strict=True):
            h = block(up(jnp.concatenate([_enlarged(h, beside[-1]), beside.pop()], axis=-1)))
        return self.out(ACTIVATIONS[self.activation](h)) + self.gain[...][None] * x


def unet_field(
    key: Key | int,
    shape: tuple[int, int, int] = (28, 28, 1),
    channels: tuple[int, ...] = (64, 128, 128),
    activation: str = "silu",
) -> Field:
    """Return the field of a U-Net on images of shape (height, width, channels).

    key: a typed key or an int seed. channels: of each resolution, at least 4. activation: a name in
    `energies.nets.ACTIVATIONS`. Raises ValueError for fewer channels or an unknown activation.
    """
    return Field(from_nnx(UNet(shape, channels, activation=activation, rngs=nnx.Rngs(key))))


def _enlarged(h: Array, like: Array) -> Array:
    """Repeat each pixel of h (N, ., ., C) twice both ways, and cut to the height and width of `like`."""
    height, width = like.shape[1:3]
    return jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)[:, :height, :width]
