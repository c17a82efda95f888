"""Classification of noise levels: an energy that tells how noisy a point is knows its log density at every level.

Among points of all noise levels in equal numbers, the best classifier's logits are `log p_sigma(x)` plus a number that
x does not enter. So cross-entropy, unlike the score, sees an energy that gives a mode the wrong weight at one level
(Yadin, Elata and Michaeli 2024; OuYang, Grenioux and Hernandez-Lobato 2026).
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import log_softmax
from jax.tree_util import Partial, register_dataclass

from energyflow.chains import require_floats
from energyflow.energy import logdensity, require_density
from energyflow.noise_levels import checked_ladder
from energyflow.rows import flat_rows
from energyflow.types import Array, Key, Objective, Scalar, Tree


def noise_level_classification(
    sigmas: Any, *, num_levels: int | None = None, denoising: float = 1.0, classification: float = 1.0
) -> Objective:
    """Return denoising score matching plus the cross-entropy of the level (OuYang et al. 2026), for `E(x, sigma)`.

    `denoising mean 1/2 |sigma_i s + z|^2 - classification mean log softmax_i(-E(x + sigma_i z, sigma_j)/T)`, the levels
    i drawn uniformly. sigmas: the ladder (L,), strictly decreasing. num_levels: how many neighbouring levels a point is
    told between, drawn anew for every row; None is all of them and 2 the pairs, noise-contrastive estimation of each
    level against the next. A point costs `num_levels` energies and one gradient.
    The energy's offset at each level is trained too: give `noise_conditional_mlp`, which has its own, or a
    `normalised_levels` energy; an energy that has none is bent to make up for it. Offsets common to all levels stay
    free: see `normalise_at`.
    Metrics: `denoising` and `classification`, the two parts; `accuracy`, 1/num_levels by chance. Near 1 the levels are
    too far apart, the classifier is sure whatever the weights of the modes, and nothing is learned of them: take more
    levels. In d dimensions neighbours overlap while their ratio is below 1 + 2/sqrt(d), about. Pairs told apart hardly
    better than by chance are too close: each says little, and the errors of many steps down the ladder add up.
    Raises ValueError for fewer than two levels and a ladder that is not one; refuses a landscape when training starts.
    """
    ladder = checked_ladder(sigmas)
    num = len(ladder) if num_levels is None else num_levels
    if not 2 <= num <= len(ladder):
        raise ValueError(f"num_levels must be between 2 and the {len(ladder)} levels of the ladder; got {num}")
    levels = _Levels(jnp.asarray(ladder, float), num)
    return Objective(Partial(_require_density), Partial(_loss, levels, denoising, classification))


@register_dataclass
@dataclass(frozen=True, eq=False)
class _Levels:
    sigmas: Array
    num: int = field(metadata={"static": True})

    def draw(self, key: Key, num_rows: int) -> tuple[Array, Array]:
        """Return the levels each row is told between, (B, num), and which of them it has, (B,)."""
        first_key, own_key = jax.random.split(key)
        first = jax.random.randint(first_key, (num_rows, 1), 0, self.sigmas.size - self.num + 1)
        own = jax.random.randint(own_key, (num_rows,), 0, self.num)
        return self.sigmas[first + jnp.arange(self.num)[None]], own


def _loss(levels: _Levels, denoising: Any, classification: Any, energy: Any, batch: Tree, key: Key, state: None) -> Any:
    level_key, noise_key = jax.random.split(key)
    points, unravel = flat_rows(batch)
    sigmas, own = levels.draw(level_key, len(points))
    noise = jax.random.normal(noise_key, points.shape, points.dtype)
    misses, log_shares = _rows(energy, unravel, points, sigmas.astype(points.dtype), own, noise)
    right = jnp.take_along_axis(log_shares, own[:, None], axis=1)
    matching, entropy = 0.5 * jnp.mean(jnp.sum(misses**2, axis=1)), -jnp.mean(right)
    accuracy = jnp.mean((jnp.argmax(log_shares, axis=1) == own).astype(float))
    metrics = {"denoising": matching, "classification": entropy, "accuracy": accuracy}
    return denoising * matching + classification * entropy, (state, metrics)


def _rows(energy: Any, unravel: Any, x: Array, sigmas: Array, own: Array, z: Array) -> tuple[Array, Array]:
    """Return the errors of the noise of noisy points, (B, d), and the log probabilities of their levels, (B, num)."""

    def density(y: Array, sigma: Scalar) -> Scalar:
        return logdensity(energy, sigma)(unravel(y))

    sigma = jnp.take_along_axis(sigmas, own[:, None], axis=1)
    noisy = x + sigma * z
    score = jax.vmap(jax.grad(density))(noisy, sigma[:, 0])
    # Points and levels in one axis of rows: in two, a step takes a quarter longer.
    logits = jax.vmap(density)(jnp.repeat(noisy, sigmas.shape[1], axis=0), sigmas.ravel()).reshape(sigmas.shape)
    return z + sigma * score, log_softmax(logits)


def _require_density(key: Key, energy: Any, batch: Tree) -> None:
    require_density(energy, "classification of noise levels")
    require_floats(batch)
