"""Improved contrastive divergence: a contrast, and terms that improve its sampler (Du, Li, Tenenbaum, Mordatch 2021).

The divergence `KL(p_data | p) - KL(q | p)`, with q the law of the chains' ends, depends on the weights through q too.
Its exact derivative is that of the contrast MINUS that of `KL(q | p)` with p held. The published method ADDS the latter
to the contrast: it does not remove the bias of contrastive divergence. It is a regulariser which bends the energy so
that the last steps of a short chain lower the energy and keep their spread, and it moves the optimum of the likelihood.

IGEBM (Du and Mordatch 2019) is no objective of its own. On images in [0, 1] it is `contrastive(negatives, l2=1.0)` with

    replay(langevin(10.0, 0.005, gradient_clip=0.01, low=0.0, high=1.0, noise_first=True), 60,
           capacity=10_000, num_chains=128, policy="fifo", start=from_uniform(0.0, 1.0), reinit=0.05)

and Adam of learning rate 3e-4 and b1 = 0. That Langevin samples at T = .005^2 / (2 * 10) = 1.25e-6: the energy it
learns is about 1.25e-6 times that of the data's density, so log Z, likelihoods and AIS need
`tempered(energy, 1.25e-6)`, after training, and the clip makes even that density a Huberised one.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, register_dataclass
from scipy.special import digamma, gammaln

from energyflow.chains import count_chains
from energyflow.energy import as_energy, logdensity
from energyflow.negatives import Buffer
from energyflow.objectives.contrastive import contrastive
from energyflow.rows import flat_rows, some_rows
from energyflow.types import Array, Key, Negatives, Objective, Scalar, Tree


def improved_contrastive(
    negatives: Negatives,
    *,
    step_size: float,
    kl: float = 1.0,
    entropy: float = 0.3,
    l2: float = 0.0,
    gradient_clip: float | None = None,
    low: Any = None,
    high: Any = None,
    num_kl: int | None = None,
    num_references: int = 100,
    floor: float = 1e-3,
    in_nats: bool = False,
    conditional: bool = False,
) -> Objective:
    """Return `contrastive(negatives, l2=l2)` plus `kl mean E'(x_K)/T - entropy mean log d(x_K)`.

    x_K is one step beyond the negatives x, `x_K = clip(x - step_size clip(grad E(x)/T))`, without noise. Only this step
    is differentiated, by a second derivative of the energy: x is held, and so is the energy E' that judges x_K. d is
    the distance to the nearest of `num_references` random rows of the buffer as it was before the draw, held, where
    `negatives` keep a buffer that is larger than a draw; else to the nearest other x_K, which moves too.
    The module's docstring has what this is, and what it is not.

    step_size, gradient_clip, low, high: of the step; give those of the sampler. kl, entropy: weights, published as 1
    and .3. in_nats: let `entropy` weigh the entropy itself, dims times the mean log distance; the published form leaves
    the number of dims out. With kl = entropy = 1 and in nats the terms have the gradient of `KL(q | p)`, p held, along
    the last step. floor: shorter distances count as this and push nothing apart. num_kl: how many negatives make the
    step, drawn at random; all by default. l2, conditional: as of `contrastive`.
    Metrics: those of `contrastive`, `energy_ahead`, the mean of E(x_K)/T, and `entropy`, the estimate of
    `nearest_neighbour_entropy` in nats (against a buffer a cross-entropy).
    Raises ValueError for half a range, for settings that are not positive, and in training for weighted negatives.
    """
    if (low is None) != (high is None):
        raise ValueError("give both low and high, or neither")
    for name, value in {"step_size": step_size, "floor": floor, "num_references": num_references}.items():
        if isinstance(value, (int, float)) and not value > 0:
            raise ValueError(f"{name} must be positive; got {value}")
    if num_kl is not None and num_kl < 1:
        raise ValueError(f"num_kl must be positive; got {num_kl}")
    negatives = Negatives(*map(as_energy, negatives))
    step = _LastStep(step_size, gradient_clip, low, high)
    terms = _Terms(negatives, step, kl, entropy, l2, floor, num_kl, num_references, in_nats, conditional)
    return Objective(contrastive(negatives).init, Partial(_loss, terms))


def nearest_neighbour_entropy(points: Tree, others: Tree | None = None, *, floor: float = 1e-12) -> Scalar:
    """Return the entropy in nats of the law of n points, from their nearest neighbours (Kozachenko, Leonenko 1987).

    `H = D mean log d + log V_D + psi(N) - psi(1)`, with D the dims, V_D the volume of the unit ball, d the distance to
    the nearest of the N - 1 other points. others: m rows to which d is taken instead (then N = m + 1): for these of a
    law r, the cross-entropy `-E log r`. floor: shorter distances count as this, so duplicates give no log 0.
    Differentiable in both, along the pairs as they are. Raises ValueError for one point and no others.
    """
    return _in_nats(mean_log_nearest(points, others, floor=floor), points, others)


def mean_log_nearest(points: Tree, others: Tree | None = None, *, floor: float = 1e-12) -> Scalar:
    """Return the mean log distance of points (n, ...) to the nearest other point, or to the nearest row of `others`."""
    x = flat_rows(points)[0]
    rows = x if others is None else flat_rows(others)[0]
    if others is None and len(x) < 2:
        raise ValueError("the nearest neighbour of one point needs others")
    # Differences, not products: near neighbours would cancel. XLA sums them without storing them.
    squares = jnp.sum(jax.lax.stop_gradient(x[:, None] - rows[None]) ** 2, axis=-1)
    if others is None:
        squares = jnp.where(jnp.eye(len(x), dtype=bool), jnp.inf, squares)
    nearest = rows[jnp.argmin(squares, axis=1)]
    gaps = jnp.sum((x - nearest) ** 2, axis=1)
    return 0.5 * jnp.mean(jnp.log(jnp.maximum(gaps, floor**2)))


@register_dataclass
@dataclass(frozen=True, eq=False)
class _LastStep:
    step_size: Any
    gradient_clip: Any
    low: Any
    high: Any

    def __call__(self, energy: Any, x: Tree, cond: tuple) -> Tree:
        """Return where rows go, a function of the energy's weights as well."""

        def total(x: Tree) -> Scalar:  # of the batch at once, as `rows.gradients`, which has no conditions
            return jnp.sum(jax.vmap(Partial(_logdensity, energy))(x, *cond))

        def moved(x: Array, g: Array) -> Array:
            if self.gradient_clip is not None:
                g = jnp.clip(g, -self.gradient_clip, self.gradient_clip)
            x = x + self.step_size * g
            return x if self.low is None else jnp.clip(x, self.low, self.high)

        return jax.tree.map(moved, x, jax.grad(total)(x))


@register_dataclass
@dataclass(frozen=True, eq=False)
class _Terms:
    negatives: Negatives
    step: _LastStep
    kl: Any
    entropy: Any
    l2: Any
    floor: Any
    num_kl: int | None = field(metadata={"static": True})
    num_references: int = field(metadata={"static": True})
    in_nats: bool = field(metadata={"static": True})
    conditional: bool = field(metadata={"static": True})


def _loss(terms: _Terms, energy: Any, batch: Tree, key: Key, state: Any) -> Any:
    energy = as_energy(energy)
    draw_key, row_key, reference_key = jax.random.split(key, 3)
    still = jax.lax.stop_gradient(energy)
    fake, log_weights, after, metrics = terms.negatives.draw(draw_key, still, batch, state)
    if log_weights is not None:
        raise ValueError("improved_contrastive needs negatives without weights, whose law is that of their chains")
    drawn = Negatives(terms.negatives.init, Partial(_drawn, (fake, None, after, metrics)))
    contrast = contrastive(drawn, l2=terms.l2, conditional=terms.conditional)
    loss, (after, metrics) = contrast.loss(energy, batch, None, state)
    x, *cond = _some(row_key, fake, terms.num_kl) if terms.conditional else (_some(row_key, fake, terms.num_kl),)
    ahead = terms.step(energy, jax.lax.stop_gradient(x), tuple(cond))
    energy_ahead = -jnp.mean(jax.vmap(Partial(_logdensity, still))(ahead, *cond))
    others = _references(terms, reference_key, state, count_chains(fake))
    spread = mean_log_nearest(ahead, others, floor=terms.floor)
    nats = _in_nats(spread, ahead, others)
    loss = loss + terms.kl * energy_ahead - terms.entropy * (nats if terms.in_nats else spread)
    return loss, (after, metrics | {"energy_ahead": energy_ahead, "entropy": nats})


def _drawn(result: tuple, *_: Any) -> tuple:
    return result


def _logdensity(energy: Any, x: Tree, *cond: Tree) -> Scalar:
    return logdensity(energy, *cond)(x)


def _some(key: Key, rows: Tree, num: int | None) -> Tree:
    """Return `num` of the rows, drawn without replacement; all of them where there are no more."""
    size = count_chains(rows)
    if num is None or num >= size:
        return rows
    picked = some_rows(key, size, num)
    return jax.tree.map(lambda x: x[picked], rows)


def _references(terms: _Terms, key: Key, state: Any, num_drawn: int) -> Tree | None:
    """Return rows of a buffer that is larger than a draw: in one that is not, each chain would find itself."""
    if not isinstance(state, Buffer) or count_chains(state.position) <= num_drawn:
        return None
    return jax.lax.stop_gradient(_some(key, state.position, terms.num_references))


def _in_nats(spread: Scalar, points: Tree, others: Tree | None) -> Scalar:
    dim = flat_rows(points)[0].shape[1]
    num = count_chains(points) if others is None else count_chains(others) + 1
    log_ball = dim / 2 * math.log(math.pi) - float(gammaln(dim / 2 + 1))
    return dim * spread + (log_ball + float(digamma(num) - digamma(1)))
