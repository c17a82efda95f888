"""Floor 5: contrast of data with diffused data, which no sampler of the model enters (Luo et al. 2023)."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, register_dataclass

from energyflow.energy import logdensity
from energyflow.objectives.score import score_matching
from energyflow.rows import flat_rows, gradients
from energyflow.types import Array, Key, Objective, Tree


@register_dataclass
@dataclass(frozen=True)
class DiffusionContrast:
    """Settings: the variance added, directions per row for the trace (None: all axes), and pairs +-z or single z."""

    tau: Any
    num_probes: int | None = field(metadata={"static": True})
    antithetic: bool = field(metadata={"static": True})


def diffusion_contrastive(tau: float, *, num_probes: int | None = 1, antithetic: bool = True) -> Objective:
    """Return diffusion contrastive divergence by one step of Gaussian noise of variance `tau` (Luo et al. 2023).

    `mean(E(x) - E(x + sqrt(tau) z)) + tau/2 mean(|grad E|^2 - trace(Hess E))` at temperature 1 (E/T otherwise), a first
    order estimate of `KL(p || q) - KL(p * N(0, tau) || q * N(0, tau))`, p the data and q the model. Its negatives are
    the data with noise, so log Z cancels and nothing is sampled from the model. Divided by tau it becomes exact score
    matching as tau goes to 0, and like score matching it hardly sees the weights of modes that are further apart than
    the noise reaches. The bracket is taken at x: at the noisy points the fixed point is biased, a Gaussian of
    variance v then has precision 1/(v + tau) instead of 1/v.
    tau: a hundredth to a tenth of the variance of the data. num_probes: random signs per row for the trace (Hutchinson
    1989); None takes all axes, exact and for few dimensions. antithetic: each row uses z and -z, which removes the
    gradient's part of the noise for one energy more. The loss and its gradient are of the size of tau.
    Metrics: `contrast`, the mean of E(x + sqrt(tau) z) - E(x), and `score_norm`, the root mean square of |grad E|.
    Raises ValueError for a tau that is not positive or fewer than one probe; refuses, when training starts, what
    `score_matching` refuses: a landscape, and an energy with a piecewise linear network, whose trace is zero.
    """
    if not tau > 0:
        raise ValueError(f"tau must be positive; got {tau}")
    if num_probes is not None and num_probes < 1:
        raise ValueError(f"num_probes must be at least 1, or None for all axes; got {num_probes}")
    settings = DiffusionContrast(tau, num_probes, antithetic)
    return Objective(score_matching().init, Partial(_loss, settings))


def _loss(settings: DiffusionContrast, energy: Any, batch: Tree, key: Key, state: None) -> Any:
    noise_key, probe_key = jax.random.split(key)
    points, unravel = flat_rows(batch)
    noise = jax.random.normal(noise_key, points.shape, points.dtype)
    if settings.num_probes is None:
        probes = jnp.eye(points.shape[1], dtype=points.dtype)[:, None]
    else:
        shape = (settings.num_probes, *points.shape)
        probes = jax.random.rademacher(probe_key, shape, points.dtype) * settings.num_probes**-0.5

    def density(x: Array) -> Array:
        return logdensity(energy)(unravel(x))

    contrasts, brackets, squares = _parts(density, points, noise, probes, settings.tau, settings.antithetic)
    loss = jnp.mean(settings.tau / 2 * brackets - contrasts)
    return loss, (state, {"contrast": jnp.mean(contrasts), "score_norm": jnp.sqrt(jnp.mean(squares))})


def _parts(density: Any, points: Array, noise: Array, probes: Array, tau: Any, antithetic: bool) -> Any:
    """Return E(x + sqrt(tau) z) - E(x), |grad E|^2 - trace(Hess E) and |grad E|^2 of rows, (B,) each.

    density: -E of one vector. points, noise: (B, d). probes: (k, B or 1, d), whose outer products sum to the identity.
    """
    values = jax.vmap(density)
    shift = tau**0.5 * noise
    there = (values(points + shift) + values(points - shift)) / 2 if antithetic else values(points + shift)
    scores, push = jax.linearize(Partial(gradients, density), points)

    def add(total: Array, v: Array) -> tuple[Array, None]:
        v = jnp.broadcast_to(v, points.shape)
        return total - jnp.sum(v * push(v), axis=1), None

    trace, _ = jax.lax.scan(add, jnp.zeros(len(points), points.dtype), probes, unroll=min(len(probes), 8))
    squares = jnp.sum(scores**2, axis=1)
    return values(points) - there, squares - trace, squares
