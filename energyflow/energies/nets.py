"""Floor 2: neural networks as energies: MLP, CNN, deep residual CNN, and any classifier.

The networks are plain flax.nnx modules, batch in and outputs out; the builders in lower case return energies of one
point. A network alone need not have a finite Z: `confinement` c adds `c |x|^2`, and any c > 0 makes Z finite because
the networks here grow at most linearly (Nijkamp et al. 2020 use the same Gaussian term). c is an array that no
training step changes.

Normalisation forgets contrast (`norm(x) == norm(x/2)`), so in both CNNs every normalised branch is added to a branch
that is not normalised. Groups have at least four channels: with one channel each, GroupNorm would also forget how
strongly a channel responds relative to the others.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from energyflow.energies.convolutions import convolve
from energyflow.energies.modules import ModuleEnergy, from_nnx
from energyflow.types import Key

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
}
"""The activations by name. "relu" is piecewise linear: its network's Laplacian is exactly 0 (score matching fails)."""


class MLP(nnx.Module):
    """A multilayer perceptron, shape (N, dim) -> (N, num_outputs)."""

    def __init__(
        self,
        dim: int,
        hidden: tuple[int, ...] = (64, 64, 64),
        *,
        num_outputs: int = 1,
        activation: str = "silu",
        rngs: nnx.Rngs,
    ) -> None:
        widths = (dim, *hidden, num_outputs)
        self.shape, self.activation = (dim,), _known(activation)
        self.layers = nnx.List([_dense(m, n, rngs=rngs) for m, n in zip(widths[:-1], widths[1:], strict=True)])

    def __call__(self, x: Array) -> Array:
        require_shape(x, self.shape)
        *inner, last = self.layers
        for layer in inner:
            x = ACTIVATIONS[self.activation](layer(x))
        return last(x)


class ResidualMLP(nnx.Module):
    """A multilayer perceptron with skips, shape (N, dim) -> (N, num_outputs).

    One dense layer to `width`, `depth` blocks `h + act(dense(h))` and one dense layer out.
    """

    def __init__(
        self,
        dim: int,
        width: int = 512,
        depth: int = 3,
        *,
        num_outputs: int = 1,
        activation: str = "silu",
        rngs: nnx.Rngs,
    ) -> None:
        self.shape, self.activation = (dim,), _known(activation)
        self.first = _dense(dim, width, rngs=rngs)
        self.blocks = nnx.List([_dense(width, width, rngs=rngs) for _ in range(depth)])
        self.last = _dense(width, num_outputs, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        require_shape(x, self.shape)
        h = self.first(x)
        for block in self.blocks:
            h = h + ACTIVATIONS[self.activation](block(h))
        return self.last(h)


class ConvBlock(nnx.Module):
    """Halve the resolution, then add a normalised branch: `h = act(down(x)); h + act(norm(conv(h)))`."""

    def __init__(self, channels_in: int, channels: int, *, activation: str, rngs: nnx.Rngs) -> None:
        self.activation = activation
        self.down = convolution(channels_in, channels, strides=2, rngs=rngs)
        self.conv = convolution(channels, channels, rngs=rngs)
        self.norm = group_norm(channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        act = ACTIVATIONS[self.activation]
        h = act(self.down(x))
        return h + act(self.norm(self.conv(h)))


class CNN(nnx.Module):
    """Convolution blocks and one dense layer, NHWC: shape (N, height, width, channels) -> (N, num_outputs)."""

    def __init__(
        self,
        shape: tuple[int, int, int] = (28, 28, 1),
        channels: tuple[int, ...] = (32, 64, 64),
        *,
        num_outputs: int = 1,
        activation: str = "silu",
        rngs: nnx.Rngs,
    ) -> None:
        self.shape = tuple(shape)
        widths = (shape[-1], *channels)
        self.blocks = nnx.List(
            [
                ConvBlock(m, n, activation=_known(activation), rngs=rngs)
                for m, n in zip(widths[:-1], widths[1:], strict=True)
            ]
        )
        height, width = (-(-size // 2 ** len(channels)) for size in shape[:2])
        self.out = nnx.Linear(height * width * widths[-1], num_outputs, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        require_shape(x, self.shape)
        for block in self.blocks:
            x = block(x)
        return self.out(x.reshape(x.shape[0], -1))


class ResidualBlock(nnx.Module):
    """Two pre-activated convolutions added to their input (He et al. 2016), both active at initialisation.

    The usual zero start of the last convolution would make the energy ignore the block until training finds it.
    """

    def __init__(self, channels: int, *, activation: str, rngs: nnx.Rngs) -> None:
        self.activation = activation
        self.norms = nnx.List([group_norm(channels, rngs=rngs) for _ in range(2)])
        self.convs = nnx.List([convolution(channels, channels, rngs=rngs) for _ in range(2)])

    def __call__(self, x: Array) -> Array:
        h = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(ACTIVATIONS[self.activation](norm(h)))
        return x + h


class ResidualCNN(nnx.Module):
    """A deep residual network, NHWC: shape (N, height, width, channels) -> (N, num_outputs).

    A stem of stride 2, `depth` convolutions in depth/2 residual blocks with another convolution of stride 2 half-way,
    the mean over space and one dense layer.
    """

    def __init__(
        self,
        shape: tuple[int, int, int] = (28, 28, 1),
        depth: int = 8,
        channels: int = 64,
        *,
        num_outputs: int = 1,
        activation: str = "silu",
        rngs: nnx.Rngs,
    ) -> None:
        if depth < 2 or depth % 2:
            raise ValueError(f"depth counts the convolutions of residual blocks of two: an even number; got {depth}")
        self.shape, self.activation = tuple(shape), _known(activation)
        self.stem = convolution(shape[-1], channels, strides=2, rngs=rngs)
        self.blocks = nnx.List([ResidualBlock(channels, activation=activation, rngs=rngs) for _ in range(depth // 2)])
        self.halve = convolution(channels, channels, strides=2, rngs=rngs)
        self.out = nnx.Linear(channels, num_outputs, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.out(self.features(x))

    def features(self, x: Array) -> Array:
        """Return what the last layer reads, shape (N, channels)."""
        require_shape(x, self.shape)
        h = self.stem(x)
        for i, block in enumerate(self.blocks):
            h = block(self.halve(h) if i == len(self.blocks) // 2 else h)
        return jnp.mean(ACTIVATIONS[self.activation](h), axis=(1, 2))


class Constant(nnx.Variable):
    """A variable that no training step changes."""


class Confined(nnx.Module):
    """The energies `net(x)[:, 0] + confinement |x|^2` of a batch, shape (N, *shape) -> (N,)."""

    def __init__(self, net: nnx.Module, confinement: float) -> None:
        self.net = net
        self.confinement = Constant(jnp.asarray(non_negative(confinement)))

    def __call__(self, x: Array) -> Array:
        return self.net(x)[:, 0] + self.confinement[...] * jnp.sum(jnp.square(x), axis=range(1, x.ndim))


def mlp(
    key: Key | int,
    dim: int,
    hidden: tuple[int, ...] = (64, 64, 64),
    activation: str = "silu",
    confinement: float = 0.0,
) -> ModuleEnergy:
    """Return the energy `MLP(x) + confinement |x|^2` of one point of shape (dim,).

    key: a typed key or an int seed. hidden: widths. activation: a name in `ACTIVATIONS`. confinement: at least 0.
    Raises ValueError for an unknown activation or a negative confinement, and, when called, for another shape.
    """
    return from_nnx(Confined(MLP(dim, hidden, activation=activation, rngs=nnx.Rngs(key)), confinement))


def cnn(
    key: Key | int,
    shape: tuple[int, int, int] = (28, 28, 1),
    channels: tuple[int, ...] = (32, 64, 64),
    activation: str = "silu",
    confinement: float = 0.0,
) -> ModuleEnergy:
    """Return the energy `CNN(x) + confinement |x|^2` of one image of shape (height, width, channels).

    key: a typed key or an int seed. channels: of each block, at least 4; a block halves the resolution (rounding up).
    Raises ValueError as `mlp` does, and for fewer than 4 channels.
    """
    return from_nnx(Confined(CNN(shape, channels, activation=activation, rngs=nnx.Rngs(key)), confinement))


def residual_cnn(
    key: Key | int,
    shape: tuple[int, int, int] = (28, 28, 1),
    depth: int = 8,
    channels: int = 64,
    activation: str = "silu",
    confinement: float = 0.0,
) -> ModuleEnergy:
    """Return the energy `ResidualCNN(x) + confinement |x|^2` of one image of shape (height, width, channels).

    key: a typed key or an int seed. depth: convolutions in residual blocks, even, typically 8 to 12 (Du & Mordatch
    2019 use such networks). channels: of every layer, at least 4. Raises ValueError as `cnn` does, and for odd depth.
    """
    net = ResidualCNN(shape, depth, channels, activation=activation, rngs=nnx.Rngs(key))
    return from_nnx(Confined(net, confinement))


def group_norm(channels: int, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Return GroupNorm (Wu & He 2018) with the most groups, up to 8, that leave at least four channels to each."""
    if channels < 4:
        raise ValueError(f"group normalisation needs at least 4 channels; got {channels}")
    groups = max(g for g in range(1, min(8, channels // 4) + 1) if channels % g == 0)
    # The one-pass variance cancels in float32, and accept steps live on small differences of energies.
    return nnx.GroupNorm(channels, num_groups=groups, use_fast_variance=False, rngs=rngs)


# One object for all layers, since flax compares initialisers by identity.
_KERNEL_INIT = nnx.initializers.he_normal()
# With zero biases a blank image has variance 0 in every group, where GroupNorm's slope is 1/sqrt(epsilon): eight
# layers then have scores of 1e7 at x = 0.
_BIAS_INIT = nnx.initializers.normal(0.3)


def _dense(inputs: int, outputs: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, kernel_init=_KERNEL_INIT, dot_general=_dot, rngs=rngs)


def _dot(x: Array, kernel: Array, dimension_numbers: Any, **options: Any) -> Array:
    """Multiply rows (N, m) and a kernel; a lone row as a vector, whose gradients over a batch need no transposes."""
    if len(x) > 1:
        return lax.dot_general(x, kernel, dimension_numbers, **options)
    return lax.dot_general(x[0], kernel, (((0,), (0,)), ((), ())), **options)[None]


def convolution(channels_in: int, channels: int, *, strides: int = 1, rngs: nnx.Rngs) -> nnx.Conv:
    """Return a 3x3 convolution whose gradients are fast in loops."""
    options = {"strides": strides, "bias_init": _BIAS_INIT, "conv_general_dilated": convolve}
    return nnx.Conv(channels_in, channels, (3, 3), **options, rngs=rngs)


def _known(activation: str) -> str:
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; choose from {', '.join(ACTIVATIONS)}")
    return activation


def non_negative(confinement: float) -> float:
    """Return it as a float. Raises ValueError below 0, where Z would be infinite."""
    if not confinement >= 0:
        raise ValueError(f"confinement must be at least 0 (below 0, Z is infinite); got {confinement}")
    return float(confinement)


def require_shape(x: Array, shape: tuple[int, ...]) -> None:
    """Raise ValueError for a batch whose points have another shape."""
    if x.shape[1:] != shape:
        raise ValueError(f"this network scores points of shape {shape}; got {x.shape[1:]}: vmap over batches")
