"""Kernels without an accept step: unadjusted and decoupled Langevin, microcanonical Langevin.

They sample a biased law. They report no acceptance rate, and annealed importance sampling refuses them: inside AIS an
unadjusted move is wrong by about a nat with a healthy effective sample size.

The general Langevin step is `x - eta clip(grad E) + sigma z`; for small eta it targets exp(-E/T) with
T = sigma^2 / (2 eta). Much published code decouples eta and sigma and so samples at T = 1e-4 or colder; the temperature
here is part of the bound algorithm and of every training metric.
"""

from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from energyflow.kernels.algorithm import adapt, configured, pair
from energyflow.kernels.noise import normal_row, shaped_like
from energyflow.types import Algorithm, Array, Kernel, LogDensity, Scalar, Tree


class LangevinState(NamedTuple):
    """The position alone: nothing is cached, so k steps cost exactly k gradients."""

    position: Tree


class RampedState(NamedTuple):
    """The position and its clock, shape (); like a momentum, the clock survives a change of the energy."""

    position: Tree
    time: Scalar


class _LangevinInfo(NamedTuple):
    num_integration_steps: int


def ula(step_size: float) -> Kernel:
    """Unadjusted Langevin (Roberts and Tweedie 1996), `x + h grad logp + sqrt(2h) z`, at temperature 1.

    On a Gaussian of precision lambda its stationary variance is `1 / (lambda (1 - h lambda / 2))`.
    """
    return langevin(step_size)


def sgld(step_size: float, temperature: float = 1.0) -> Kernel:
    """Langevin dynamics at a chosen temperature, `x + h grad logp + sqrt(2 h T) z` (Welling and Teh 2011)."""
    return langevin(step_size, (2 * step_size * temperature) ** 0.5)


def langevin_temperature(step_size: Any, noise_scale: Any) -> Any:
    """Return T = sigma^2 / (2 eta), the temperature a decoupled Langevin step samples at."""
    return noise_scale**2 / (2 * step_size)


def langevin(
    step_size: float,
    noise_scale: float | None = None,
    *,
    gradient_clip: float | None = None,
    low: Any = None,
    high: Any = None,
    boundary: str = "clip",
    noise_first: bool = False,
) -> Kernel:
    """Decoupled Langevin, `x - eta clip(grad E) + sigma z`, as energy-based models are usually trained.

    step_size: eta. noise_scale: sigma, sqrt(2 eta) by default (T = 1). gradient_clip: elementwise bound on the
    gradient; it turns a quadratic energy into a Huberised one. low, high: range of the position, kept by `boundary`
    "clip" (mass piles up on the walls) or "reflect". noise_first: add the noise before the gradient is taken, as IGEBM
    (Du and Mordatch 2019) does; the stationary variance differs.
    Raises ValueError for an unknown boundary or half a range.
    """
    if boundary not in ("clip", "reflect"):
        raise ValueError(f'boundary must be "clip" or "reflect"; got {boundary!r}')
    if (low is None) != (high is None):
        raise ValueError("give both low and high, or neither")
    return Partial(
        configured(_langevin, boundary=boundary, noise_first=noise_first),
        step_size=step_size,
        noise_scale=noise_scale,
        gradient_clip=gradient_clip,
        low=low,
        high=high,
    )


def ula_step_size(kernel: Kernel) -> Any:
    """Return h where the kernel is `ula(h)`, without clip, range or another temperature, and else None."""
    is_ula = jax.tree.structure(kernel) == jax.tree.structure(ula(0.0))  # the other settings are None there
    return kernel.keywords["step_size"] if is_ula else None  # type: ignore[attr-defined]


def _langevin(
    logdensity: LogDensity,
    step_size: Scalar,
    noise_scale: Any,
    gradient_clip: Any,
    low: Any,
    high: Any,
    boundary: str,
    noise_first: bool,
) -> Algorithm:
    gradient = jax.grad(logdensity)
    sigma = jnp.sqrt(2 * step_size) if noise_scale is None else noise_scale

    def drift(x: Tree) -> Tree:
        g = gradient(x)
        if gradient_clip is not None:
            g = jax.tree.map(lambda v: jnp.clip(v, -gradient_clip, gradient_clip), g)
        return jax.tree.map(lambda v: step_size * v, g)

    def move(row: Array, state: LangevinState) -> tuple[LangevinState, _LangevinInfo]:
        x, noise = state.position, jax.tree.map(lambda z: sigma * z, shaped_like(row, state.position))
        if noise_first:
            x = jax.tree.map(jnp.add, x, noise)
            x = jax.tree.map(jnp.add, x, drift(x))
        else:
            x = jax.tree.map(lambda a, b, c: a + b + c, x, drift(x), noise)
        if low is not None:
            x = jax.tree.map(lambda v: _keep(v, low, high, boundary), x)
        return LangevinState(x), _LangevinInfo(1)

    algorithm = pair(lambda position, key: LangevinState(position), move)
    temperature = 1.0 if noise_scale is None else langevin_temperature(step_size, sigma)
    return adapt(algorithm, adjusted=False, reversible=False, temperature=temperature, noise=normal_row)


def temperature_ramp(time: Any, temperature: Any = 1.0, onset: Any = 0.8) -> Any:
    """Return the temperature of noise that comes on with time (Balcerak et al. 2025).

    0 before `onset`, then linear up to `temperature` at time 1, and that from there on; a step for an onset of 1.
    """
    risen = jnp.clip((time - onset) / jnp.maximum(1 - onset, 1e-6), 0.0, 1.0)
    return temperature * jnp.where(time >= 1, 1.0, risen)


def ramped_langevin(step_size: float, time_step: float, *, onset: float = 0.8, temperature: float = 1.0) -> Kernel:
    """Langevin whose noise comes on with time, `x + h grad logp + sqrt(2 h eps(t)) z` (Balcerak et al. 2025).

    It descends until `onset` and is unadjusted Langevin at `temperature` from t = 1 on; eps is `temperature_ramp`.
    step_size: h. time_step: what a move adds to its clock t, which starts at 0; for a potential V at temperature T of
    its own, `-grad V` is a velocity and h is T times as much. Chains that are carried on keep their clock.
    Raises ValueError for an onset outside [0, 1].
    """
    if not 0 <= onset <= 1:
        raise ValueError(f"onset must be a time between 0 and 1; got {onset}")
    settings = {"step_size": step_size, "time_step": time_step, "onset": onset, "temperature": temperature}
    return Partial(_ramped_langevin, **settings)


def _ramped_langevin(
    logdensity: LogDensity, step_size: Scalar, time_step: Scalar, onset: Scalar, temperature: Scalar
) -> Algorithm:
    gradient = jax.grad(logdensity)

    def move(row: Array, state: RampedState) -> tuple[RampedState, _LangevinInfo]:
        sigma = jnp.sqrt(2 * step_size * temperature_ramp(state.time, temperature, onset))
        moved = jax.tree.map(
            lambda x, g, z: x + step_size * g + sigma.astype(x.dtype) * z,
            state.position,
            gradient(state.position),
            shaped_like(row, state.position),
        )
        return RampedState(moved, state.time + time_step), _LangevinInfo(1)

    algorithm = pair(lambda position, key: RampedState(position, jnp.zeros((), float)), move)
    return adapt(algorithm, adjusted=False, reversible=False, temperature=temperature, noise=normal_row)


def _keep(x: Any, low: Any, high: Any, boundary: str) -> Any:
    if boundary == "clip":
        return jnp.clip(x, low, high)
    width = high - low
    folded = jnp.mod(x - low, 2 * width)
    return low + jnp.minimum(folded, 2 * width - folded)


def mclmc(step_size: float, decoherence_length: float | None = None) -> Kernel:
    """Microcanonical Langevin Monte Carlo (Robnik, De Luca, Silverstein and Seljak 2023), unadjusted.

    step_size: of the McLachlan integrator, two gradients a move. decoherence_length: L, sqrt(d) by default.
    Positions of at least two dimensions.
    """
    return Partial(_mclmc, step_size=step_size, decoherence_length=decoherence_length)


def _mclmc(logdensity: LogDensity, step_size: Scalar, decoherence_length: Any) -> Algorithm:
    def of(position: Tree) -> Any:
        size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(position))
        length = size**0.5 if decoherence_length is None else decoherence_length
        return blackjax.mclmc(logdensity, L=length, step_size=step_size)

    algorithm = pair(
        lambda position, key: of(position).init(position, key),
        lambda key, state: of(state.position).step(key, state),
    )
    return adapt(algorithm, gradients_per_step=2, adjusted=False, reversible=False)
