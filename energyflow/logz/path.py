"""From a base to a target: intermediate densities, temperature schedules, and the pilot that places and tunes them."""

import functools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial, register_dataclass

from energyflow.chains import chain_keys, evolve_from, start_cost
from energyflow.energy import (
    Normalised,
    WithNoise,
    as_energy,
    logdensity,
    require_density,
    require_one_point,
    temperature,
)
from energyflow.kernels.algorithm import carries_rungs, is_adjusted, step_size, with_step_size
from energyflow.stepsize import by_acceptance
from energyflow.types import Array, Kernel, Key, LogDensity, Scalar, Tree


@register_dataclass
@dataclass(frozen=True)
class Path:
    """The densities between a base q and the target p: `log f_b = log q + b log(p/q)`, or a q-path.

    base: a NumPyro distribution over one point. log_ratio: x -> log p(x) - log q(x), p unnormalised.
    order: 1 for the geometric path; otherwise the exponent of Masrani et al. (2021), 0 < order < 1 mixing towards the
    arithmetic one.
    """

    base: Any
    log_ratio: LogDensity
    order: float = field(default=1.0, metadata={"static": True})

    def at(self, beta: Scalar | float) -> LogDensity:
        """Return the unnormalised log density at inverse temperature `beta`, as a pytree."""
        return Partial(_interpolate, self, beta)


def _interpolate(path: Path, beta: Scalar, x: Tree) -> Scalar:
    base, ratio = path.base.log_prob(x), path.log_ratio(x)
    if path.order == 1.0:
        return base + beta * ratio
    power = 1.0 - path.order
    mixed = jnp.logaddexp(jnp.log1p(-beta), jnp.log(beta) + power * ratio)
    return base + jnp.where(beta <= 0, 0.0, jnp.where(beta >= 1, ratio, mixed / power))


def annealing_path(energy: Any, base: Any = None, order: float = 1.0) -> Path:
    """Return the path from `base` to `energy`.

    base: a NumPyro distribution over one point; the energy's own where it has one (a tilt, a model with its prior) and
    none is given (then only the tilt is annealed). Raises ValueError for a landscape, a missing base or a batch of
    bases.
    """
    energy = as_energy(energy)
    require_density(energy, "log Z")
    own = getattr(energy, "base", None)
    if base is None and own is None:
        why = getattr(energy, "why_no_base", None) or "pass one, or a tilted energy"
        raise ValueError(f"annealing needs a base distribution to start from: {why}")
    require_one_point(base)
    base = own if base is None else base
    if base is own and not isinstance(energy, Normalised | WithNoise):  # which have a base without being its tilt
        return Path(own, Partial(_tilt, energy.energy), order)
    return Path(base, Partial(_ratio, logdensity(energy), base), order)


def _tilt(energy: Any, x: Tree) -> Scalar:
    return -energy(x) / temperature(energy)


def _ratio(target: LogDensity, base: Any, x: Tree) -> Scalar:
    return target(x) - base.log_prob(x)


def require_annealing_kernel(kernel: Kernel, density: LogDensity, position: Tree) -> None:
    """Raise ValueError for kernels whose moves annealing cannot weigh; position: one point."""
    if not is_adjusted(kernel, density, position):
        raise ValueError(
            "annealing needs a kernel with an accept step: unadjusted moves make log Z wrong by about a nat with a "
            "healthy ESS; use mala, hmc, nuts or another adjusted kernel"
        )
    if carries_rungs(kernel, density, position):
        raise ValueError(
            "parallel tempering has temperatures of its own, and annealing weighs its coldest rung alone: give the "
            "kernel that moves its rungs"
        )


def checked_schedule(betas: Any) -> np.ndarray:
    """Return a schedule in float64; raises ValueError unless it rises strictly from 0 to 1."""
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or (np.diff(betas) <= 0).any():
        raise ValueError("a schedule must rise strictly from exactly 0 to exactly 1")
    return betas


def linear_schedule(num_temperatures: int) -> np.ndarray:
    """Return `num_temperatures + 1` equally spaced inverse temperatures from 0 to 1."""
    return np.linspace(0.0, 1.0, num_temperatures + 1)


def sigmoid_schedule(num_temperatures: int, radius: float = 4.0) -> np.ndarray:
    """Return inverse temperatures that are dense at both ends (Grosse, Ghahramani and Adams 2015), radius 4."""
    s = 1 / (1 + np.exp(-np.linspace(-radius, radius, num_temperatures + 1)))
    return (s - s[0]) / (s[-1] - s[0])


class Pilot(NamedTuple):
    """What a short run along the path found, on a coarse grid of inverse temperatures.

    betas; spread, the interquartile range of log p/q under f_beta, as a standard deviation; log_steps (None for kernels
    without a step size); acceptance: each (num_stages,). num_gradients: what it cost.
    """

    betas: np.ndarray
    spread: np.ndarray
    log_steps: np.ndarray | None
    acceptance: np.ndarray
    num_gradients: int

    @property
    def length(self) -> float:
        """The thermodynamic length L of the path: K moves that mix at once leave log weights a variance of L^2 / K."""
        return float(np.trapezoid(self.spread, self.betas))

    def schedule(self, num_temperatures: int) -> np.ndarray:
        """Return inverse temperatures at equal steps of thermodynamic length, the integral of the spread.

        Gelman and Meng (1998): with perfect mixing this minimises the variance of log Z at a fixed number of steps.
        """
        fine = np.linspace(0, 1, 4001)
        speed = np.interp(fine, self.betas, self.spread)
        speed = np.maximum(speed, 0.05 * speed.mean()) + 1e-12
        length = np.concatenate([[0.0], np.cumsum(0.5 * (speed[1:] + speed[:-1]))])
        betas = np.interp(np.linspace(0, 1, num_temperatures + 1), length / length[-1], fine)
        betas[0], betas[-1] = 0.0, 1.0
        return betas

    def steps(self, betas: np.ndarray) -> np.ndarray | None:
        """Return one step size per annealing move, (K,), interpolated at betas[1:]."""
        return None if self.log_steps is None else np.exp(np.interp(betas[1:], self.betas, self.log_steps))


def pilot(
    key: Key,
    path: Path,
    kernel: Kernel,
    *,
    num_chains: int = 64,
    num_stages: int = 24,
    num_rounds: int = 8,
    target_acceptance: float = 0.6,
) -> Pilot:
    """Carry `num_chains` chains up the path in `num_stages` stages, tuning the step at each by pooled acceptance.

    Its result is frozen before the chains that are weighted start, so they stay exact.
    """
    tunable = "step_size" in getattr(kernel, "keywords", {})
    first = step_size(kernel) if tunable else 1.0
    # Stages are dense near 0, where a vague base meets the target and the spread changes fastest.
    betas = np.concatenate([[1e-4, 1e-3], np.linspace(0, 1, max(num_stages, 4) - 1)[1:] ** 1.5])
    out = _pilot(key, path, kernel, first, jnp.asarray(betas), target_acceptance, tunable, num_chains, num_rounds)
    spread, log_steps, acceptance, gradients = jax.tree.map(np.asarray, out)
    return Pilot(betas, spread, log_steps if tunable else None, acceptance, int(gradients.sum()))


@functools.partial(jax.jit, static_argnames=("tunable", "num_chains", "num_rounds"))
def _pilot(
    key: Key,
    path: Path,
    kernel: Kernel,
    first: Any,
    betas: Array,
    target: Any,
    tunable: bool,
    num_chains: int,
    num_rounds: int,
) -> Any:
    tuner = by_acceptance(target)

    def round_(density: LogDensity, carry: Any, key: Key) -> Any:
        position, tune = carry
        moved = with_step_size(kernel, tuner.value(tune)) if tunable else kernel
        state, stats = jax.vmap(lambda k, x: evolve_from(k, moved, density, x, 4))(
            chain_keys(key, num_chains), position
        )
        rate = jnp.mean(stats.acceptance_rate)
        tune = tuner.update(tune, tune, rate, rate) if tunable else tune
        return (state.position, tune), (rate, jnp.sum(stats.num_gradients) + start_cost(state) * num_chains)

    def stage(carry: Any, xs: Any) -> Any:
        position, tune = carry
        # Each stage restarts the tuner's gain, so that the step may move as far as the first stage's could.
        carry = position, tune._replace(count=jnp.zeros_like(tune.count))
        keys = jax.random.split(xs[0], num_rounds)
        (position, tune), (rates, gradients) = jax.lax.scan(functools.partial(round_, path.at(xs[1])), carry, keys)
        quartiles = jnp.quantile(jax.vmap(path.log_ratio)(position), jnp.array([0.25, 0.75]))
        spread = (quartiles[1] - quartiles[0]) / 1.349
        return (position, tune), (spread, tune.log_step, jnp.mean(rates[num_rounds // 2 :]), jnp.sum(gradients))

    start_key, run_key = jax.random.split(key)
    carry = path.base.sample(start_key, (num_chains,)), tuner.init(first)
    return jax.lax.scan(stage, carry, (jax.random.split(run_key, betas.shape[0]), betas))[1]
