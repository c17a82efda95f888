"""Samplers of one step, taught by data, by another sampler's draws, or by an energy."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, register_dataclass

from energyflow.chains import count_chains, require_floats
from energyflow.energy import as_energy, logdensity, require_density
from energyflow.kernels.noise import normal_like
from energyflow.types import Array, Key, Objective, Scalar, Tree, as_key

STEADY = 0.01
"""Added to the squared error that a row's loss is divided by."""


def mean_flow(*, share_equal: float = 0.75, power: float = 1.0, mean: float = -0.4, spread: float = 1.0) -> Objective:
    """Return the mean-flow loss, of an average velocity `u(z, r, t)` that carries noise to data at once.

    Geng et al. (2025). Along `z_t = (1 - t) x + t e`, of velocity `v = e - x`, the average velocity from r to t solves
    `u = v - (t - r) du/dt`; the right side is regressed on, held still. Rows are the data, or another sampler's draws.
    share_equal: of the rows with r = t, where u is the velocity itself. power: each row's squared error is divided by
    its own size to this power, held still; 0 is plain least squares. mean, spread: of the logit-normal law of r and t.
    Sample with `one_step`. Metrics: `velocity_error`, the mean square per dimension.
    Raises ValueError for a share outside [0, 1].
    """
    if not 0 <= share_equal <= 1:
        raise ValueError(f"share_equal must lie in [0, 1]; got {share_equal}")
    return Objective(Partial(_require_rows), Partial(_mean_flow, (share_equal, power, mean, spread)))


def one_step(key: Key | int, velocity: Any, like: Tree) -> Tree:
    """Return draws `e - u(e, 0, 1)` of a mean flow, as many as `like`, leaves [row, ...], which gives their shapes."""
    noise = normal_like(as_key(key), like)
    return _jump(as_energy(velocity), noise)


@jax.jit
def _jump(velocity: Any, noise: Tree) -> Tree:
    return jax.vmap(lambda e: jax.tree.map(jnp.subtract, e, velocity(e, jnp.zeros(()), jnp.ones(()))))(noise)


def reverse_kl(energy: Any, num_draws: int = 256) -> Objective:
    """Return KL(q || exp(-E/T)/Z) up to log Z, of what is trained: a sampler with a density, such as `flow`.

    `mean(E(y)/T + log q(y))` over draws y, through which its gradient goes; the batch is not looked at. Draws of one
    pass then stand in for chains: check them by importance weights, since this divergence keeps to some modes
    (Rezende and Mohamed 2015). Metrics: `ess`, the effective share of the draws, weighed by exp(-E/T) / q.
    Raises ValueError for a landscape, and, when training starts, TypeError for what does not draw and score.
    """
    require_density(energy, "the reverse Kullback-Leibler divergence")
    teacher = jax.tree.map(jax.lax.stop_gradient, as_energy(energy))
    return Objective(Partial(_require_sampler), Partial(_reverse, _Teacher(teacher, num_draws)))


@register_dataclass
@dataclass(frozen=True, eq=False)
class _Teacher:
    energy: Any
    num: int = field(metadata={"static": True})


def _reverse(teacher: _Teacher, student: Any, batch: Tree, key: Key, state: None) -> Any:
    density = logdensity(jax.lax.stop_gradient(teacher.energy))
    draws = student.sample(key, (teacher.num,))
    log_weights = jax.vmap(lambda y: density(y) - student.log_prob(y))(draws)
    weights = jax.nn.softmax(jax.lax.stop_gradient(log_weights))
    return -jnp.mean(log_weights), (state, {"ess": 1 / (teacher.num * jnp.sum(weights**2))})


def _mean_flow(settings: tuple, velocity: Any, batch: Tree, key: Key, state: None) -> Any:
    share_equal, power, mean, spread = settings
    noise_key, time_key, coin_key = jax.random.split(key, 3)
    num = count_chains(batch)
    noise = normal_like(noise_key, batch)
    times = jax.nn.sigmoid(mean + spread * jax.random.normal(time_key, (2, num)))
    r, t = times.min(axis=0), times.max(axis=0)
    r = jnp.where(jax.random.bernoulli(coin_key, share_equal, (num,)), t, r)
    squares, size = jax.vmap(lambda *row: _residual(velocity, *row))(batch, noise, r, t)
    weights = jax.lax.stop_gradient(squares + STEADY) ** -power
    return jnp.mean(weights * squares), (state, {"velocity_error": jnp.mean(squares) / size[0]})


def _residual(velocity: Any, x: Tree, noise: Tree, r: Scalar, t: Scalar) -> tuple[Scalar, Array]:
    """Return the squared error of the identity at one point of one pair, and the number of dimensions."""
    z = jax.tree.map(lambda x, e: (1 - t) * x + t * e, x, noise)
    v = jax.tree.map(jnp.subtract, noise, x)
    u, change = jax.jvp(velocity, (z, r, t), (v, jnp.zeros_like(r), jnp.ones_like(t)))
    target = jax.lax.stop_gradient(jax.tree.map(lambda v, c: v - (t - r) * c, v, change))
    gaps = jax.tree.leaves(jax.tree.map(jnp.subtract, u, target))
    return jnp.sum(jnp.stack([jnp.sum(g**2) for g in gaps])), jnp.asarray(sum(g.size for g in gaps))


def _require_rows(key: Key, velocity: Any, batch: Tree) -> None:
    require_floats(batch)


def _require_sampler(key: Key, student: Any, batch: Tree) -> None:
    for name in ("sample", "log_prob"):
        if not callable(getattr(student, name, None)):
            raise TypeError(f"a student must have sample(key, shape) and log_prob(x); got {type(student).__name__}")
