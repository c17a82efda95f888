"""Floor 2: a convolution whose gradients are as fast inside a loop as outside, for networks that are sampled.

Outside of loops, XLA's CPU backend brings every convolution into the layout that its fast code wants (NHWC inputs,
HWIO kernels); inside it does not, and the gradients that JAX derives come in other layouts. A Langevin step of a
small CNN in a scan then takes 9 times as long, a parameter gradient 27 times. Here both gradients are NHWC-HWIO
convolutions from the start, in loops or not, and no value changes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

# The axes (batch, channel, *space) of images and (out, in, *space) of kernels, in the order in which they are stored.
_NHWC, _CHWN, _HWNC = (0, 3, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1)
_HWIO, _HWOI, _IHWO = (3, 2, 0, 1), (2, 3, 0, 1), (3, 0, 1, 2)


def convolve(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    dimension_numbers: Any = ("NHWC", "HWIO", "NHWC"),
    **options: Any,
) -> Array:
    """Convolve images (N, height, width, C) with a kernel (height, width, C, C'): `jax.lax.conv_general_dilated`.

    Give it to `flax.nnx.Conv(..., conv_general_dilated=convolve)` in networks of your own. Any option that asks for
    more (other axes, dilation, groups, precision) gets the plain convolution.
    """
    numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers)
    if numbers != (_NHWC, _HWIO, _NHWC) or any(option not in (None, 1, (1, 1)) for option in options.values()):
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers, **options)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _convolve(tuple(strides), tuple((low, high) for low, high in padding), x, kernel)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _convolve(strides: tuple, padding: tuple, x: Array, kernel: Array) -> Array:
    return _plain(strides, padding, x, kernel, _NHWC, _HWIO, _NHWC)


def _tangent(strides: tuple, padding: tuple, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """Return the value, and the tangent in layouts whose transposes, the gradients, are NHWC-HWIO."""
    (x, kernel), (dx, dkernel) = primals, tangents
    terms = []
    if not isinstance(dx, SymbolicZero):
        terms.append(_plain(strides, padding, dx, kernel.swapaxes(2, 3), _NHWC, _HWOI, _NHWC))
    if not isinstance(dkernel, SymbolicZero):
        x_chwn, dkernel_ihwo = x.swapaxes(0, 3), dkernel.transpose(2, 0, 1, 3)
        terms.append(_plain(strides, padding, x_chwn, dkernel_ihwo, _CHWN, _IHWO, _HWNC).transpose(2, 0, 1, 3))
    return _convolve(strides, padding, x, kernel), sum(terms[1:], terms[0])


_convolve.defjvp(_tangent, symbolic_zeros=True)


def _plain(strides: tuple, padding: tuple, x: Array, kernel: Array, *axes: tuple) -> Array:
    numbers = lax.ConvDimensionNumbers(*axes)
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)
