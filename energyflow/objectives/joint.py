"""A classifier and a density in one network (JEM, Grathwohl et al. 2020), and the methods that made it more stable.

Logits f(x) are read as the joint energy `E(x, y) = -f(x)[y]`, so that `E(x) = -logsumexp f(x)` and p(y|x) is their
softmax: cross entropy fits p(y|x), a contrast fits p(x). With these the published methods are settings:

    wall = {"low": -1.0, "high": 1.0}
    jem = joint(replay(langevin(1.0, 0.01), 20, capacity=10_000, start=from_uniform(), reinit=0.05), noise=0.03)
    plus = replay(langevin(1.0, 0.0, gradient_clip=1.0, **wall), 10, capacity=10_000, reinit=0.05,
                  start=from_class_gaussians(x, y, **wall))
    jem_plus_plus = joint(plus, noise=0.03)

JEM++ (Yang and Ji 2021) calls its moves proximal: five inner steps of 0.2 along a gradient held fixed behind the first
layer, which is linear, so that they are one step of 1. SADA-JEM (Yang, Su and Ji 2023) takes the moves of JEM++, five
or ten, without noise on the data, batches `(augmented x, y, x)`, and `sharpness_aware(optimizer, 2.0, adaptive=True)`.

The metric `sampler_temperature` says which law the chains were after: T = 5e-5 in JEM, where a density is that of
`tempered(energy, 5e-5)` rather than of the energy, and T = 0 in the other two, whose chains descend: such an energy
is no density at all. Declare it, `landscape(energy)`, before training or after: `joint` trains a landscape too, and
whatever needs a density refuses it from then on. With `mala` and a step tuner T is 1, and the energy is a density.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial, register_dataclass

from energyflow.energies.classifiers import class_logits, logits_and_energy
from energyflow.energy import (
    Around,
    Landscape,
    as_energy,
    combine,
    partition,
    temperature,
)
from energyflow.kernels.noise import normal_like
from energyflow.negatives.starts import Start
from energyflow.rows import flat_rows
from energyflow.types import Array, Key, Negatives, Objective, Scalar, Tree


@register_dataclass
@dataclass(frozen=True)
class JointSettings:
    """Settings of `joint`; noise and information are None where there is none."""

    negatives: Negatives
    generative: Any
    noise: Any
    l2: Any
    information: Any
    conditional: bool = field(metadata={"static": True})
    balance: bool = field(metadata={"static": True})


def joint(
    negatives: Negatives,
    *,
    generative: float = 1.0,
    conditional: bool = False,
    noise: float = 0.0,
    l2: float = 0.0,
    information: float = 0.0,
    balance: bool = False,
) -> Objective:
    """Return `cross entropy(f(x), y) + generative ((mean E(x+) - mean E(x-)) / T + l2 (...))`, after JEM.

    Batches are `(x, y)` or, from two loaders, `(x, y, x+)`: the classifier's rows may then be augmented, and those of
    the density not (Yang, Su and Ji 2023). y: integer labels (B,), -1 where unknown: such a row has no part in the
    cross entropy, and counts in the density. The energy is a classifier's (`classifier_energy`), also within
    `tempered`, `tilt`, `normalised`, `bounded` or `landscape`. p(y|x) is the softmax of the logits whatever T: only at
    T = 1 is E(x) the free energy of E(x, y), and the sum the likelihood of the pairs for `generative` 1.
    negatives: as of `contrastive`; the moving phase sees x+, noise included. generative: weight of the density, 0 for a
    classifier alone. conditional: the density is that of x given y, `E(x, y)`, by chains of each class; the negative
    phase has to be conditional too, x+ of a second loader is a pair `(x+, y+)`, and -1 asks for `E(x)`. noise: standard
    deviation of what is added to x+. l2: as of `contrastive`.
    information: weight of the mutual information of x and y over the rows x+, which is maximised: predictions that are
    certain, and of all classes alike (Krause, Perona and Gomes 2010). balance: the density's terms are scaled by
    min(1, |g+| / |g-|), the norms of the gradients of mean E(x+) and mean E(x-), so that negatives that run away move
    no weight further than data do; costs two gradients. Both are this project's surrogates for the terms of those names
    in Sustek et al. (2023), whose formulas were not available; neither moves the zeros of the contrast, but
    information adds a pull of its own.
    Metrics: `accuracy` and `cross_entropy` of the labelled rows, `gap`, `energy_data`, `energy_model`, those of the
    negative phase, `log_likelihood` where it knows log Z, `mutual_information` and `gradient_ratio` where asked for.
    Raises ValueError, when training starts, for an energy without logits, batches of other shapes and labels that are
    not integers of these classes or -1.
    """
    negatives = Negatives(*map(as_energy, negatives))
    weights = generative, noise or None, l2, information or None
    settings = JointSettings(negatives, *weights, conditional, balance)
    return Objective(Partial(_init, settings), Partial(_loss, settings))


def mutual_information(logits: Array) -> Scalar:
    """Return `H(mean p(y|x)) - mean H(p(y|x))` in nats of logits (B, num_classes): between 0 and log num_classes."""
    log_p = jax.nn.log_softmax(logits)
    log_mean = jax.nn.logsumexp(log_p, axis=0) - jnp.log(float(len(logits)))
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_mean[None]), axis=1))


def from_class_gaussians(x: Tree, y: Any, low: Any = None, high: Any = None, *, ridge: float = 1e-4) -> Start:
    """Start at draws of a Gaussian of each class, `N(mean_c, cov_c + ridge I)`, in the proportions of the classes.

    Fitted once to the rows x, a pytree with leading axis [row], and labels y (N,); rows of label -1 are left out. low,
    high: range to which draws are clipped. The start of JEM++ (Yang and Ji 2021). The class of a draw is not that of a
    conditional chain. Holds a d x d matrix a class.
    Raises ValueError for a class with fewer than two rows and for half a range.
    """
    if (low is None) != (high is None):
        raise ValueError("give both low and high, or neither")
    rows, labels = np.asarray(flat_rows(x)[0], float), np.asarray(y)
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    if len(classes) == 0 or counts.min() < 2:
        raise ValueError(f"a Gaussian needs two rows or more a class; the classes {classes} have {counts} rows")
    groups = [rows[labels == c] for c in classes]
    covs = [np.cov(group, rowvar=False).reshape(rows.shape[1], -1) + ridge * np.eye(rows.shape[1]) for group in groups]
    means = jnp.asarray(np.stack([group.mean(axis=0) for group in groups]), float)
    factors = jnp.asarray(np.linalg.cholesky(np.stack(covs)), float)
    return Partial(_from_class_gaussians, means, factors, jnp.log(jnp.asarray(counts, float)), low, high)


def sharpness_aware(
    optimizer: optax.GradientTransformation, radius: float, *, adaptive: bool = False
) -> optax.GradientTransformation:
    """Sharpness-aware minimisation (Foret et al. 2021): the gradient of `optimizer` is that at `w + radius g / |g|`.

    adaptive: at `w + radius w^2 g / |w g|` elementwise, which does not change when weights are rescaled (Kwon et al.
    2021). It is `optax.contrib.sam`, in which steps alternate: the first goes up, the second from there to the new
    weights. So give each batch to two steps, `(b for b in batches for _ in range(2))`, end after an even number, and
    use no average of weights; negatives move in both, where the published SADA-JEM keeps those of the first.
    """
    ascent = optax.GradientTransformation(_no_state, functools.partial(_ascent, radius, adaptive))
    return optax.contrib.sam(optimizer, ascent)


@register_dataclass
@dataclass(frozen=True, eq=False)
class _OpenLabels(Around):
    """`E(x, y)` for a label, and `E(x)` for the label -1."""

    energy: Any

    @property
    def base(self) -> Any:
        return self.energy.base

    def __call__(self, x: Tree, y: Array) -> Scalar:
        return jnp.where(y < 0, self.energy(x), self.energy(x, jnp.maximum(y, 0)))


def _density(settings: JointSettings, energy: Any) -> Any:
    """Return what chains move on: the energy inside a landscape, of x or of x given a label."""
    energy = as_energy(energy)
    while isinstance(energy, Landscape):
        energy = energy.energy
    return _OpenLabels(energy) if settings.conditional else energy


def _parts(settings: JointSettings, batch: Tree) -> tuple:
    """Return x, y and the rows of the density: x+ alone, or a pair with its labels."""
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        raise ValueError("a joint objective takes batches (x, y) or (x, y, x of the density), as tuples")
    x, y, *rest = batch
    rows = rest[0] if rest else (x, y) if settings.conditional else x
    if settings.conditional and not (isinstance(rows, (tuple, list)) and len(rows) == 2):
        raise ValueError("conditional=True takes a second loader's rows as a pair (x, y)")
    return x, jnp.asarray(y), tuple(rows) if settings.conditional else rows


def _init(settings: JointSettings, key: Key, energy: Any, batch: Tree) -> Any:
    x, y, rows = _parts(settings, batch)
    num = jax.eval_shape(Partial(class_logits, as_energy(energy)), jax.tree.map(lambda a: jnp.asarray(a)[0], x)).shape[
        -1
    ]
    for labels in (y, jnp.asarray(rows[1])) if settings.conditional else (y,):
        if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(f"labels are integers of shape (B,); got {labels.dtype} of shape {labels.shape}")
        if int(jnp.min(labels)) < -1 or int(jnp.max(labels)) >= num:
            raise ValueError(f"labels are -1 (unknown) or from 0 to {num - 1}, the classes of this energy; got others")
    return settings.negatives.init(key, _density(settings, energy), rows)


def _loss(settings: JointSettings, energy: Any, batch: Tree, key: Key, state: Any) -> Any:
    x, y, rows = _parts(settings, batch)
    logits, density = Partial(class_logits, as_energy(energy)), _density(settings, energy)
    noise_key, draw_key = jax.random.split(key)
    rows = _noisy(settings, noise_key, rows)
    fake, log_weights, state, found = settings.negatives.draw(draw_key, jax.lax.stop_gradient(density), rows, state)
    energies = Partial(_energies, settings.conditional)
    if rows is x:  # one pass through the network for both of its roles
        seen, data_energies = jax.vmap(Partial(logits_and_energy, density))(x)
    else:
        seen, data_energies = jax.vmap(logits)(x), energies(rows, density)
    cross_entropy, metrics = _classified(seen, y)
    (data, model), squares = _means(data_energies, energies(fake, density), log_weights)
    scale = jax.lax.stop_gradient(temperature(density))
    contrast, weight = (data - model) / scale + settings.l2 * squares, settings.generative
    metrics = found | metrics | {"gap": model - data, "energy_data": data, "energy_model": model}
    if "log_z" in found:
        metrics["log_likelihood"] = -data / scale - found["log_z"]
    if settings.balance:
        means = lambda energy: _means(energies(rows, energy), energies(fake, energy), log_weights)[0]  # noqa: E731
        metrics["gradient_ratio"] = _gradient_ratio(means, density)
        weight = weight * jnp.minimum(1.0, metrics["gradient_ratio"])
    total = cross_entropy + weight * contrast
    if settings.information is not None:
        real = rows[0] if settings.conditional else rows
        metrics["mutual_information"] = mutual_information(seen if real is x else jax.vmap(logits)(real))
        total = total - settings.information * metrics["mutual_information"]
    return total, (state, metrics)


def _noisy(settings: JointSettings, key: Key, rows: Tree) -> Tree:
    if settings.noise is None:
        return rows
    x = rows[0] if settings.conditional else rows
    x = jax.tree.map(lambda a, z: a + settings.noise * z, x, normal_like(key, x))
    return (x, rows[1]) if settings.conditional else x


def _classified(logits: Array, y: Array) -> tuple[Scalar, dict[str, Array]]:
    """Return the mean cross entropy of the labelled rows, 0 where there are none, and the metrics."""
    labelled = (y >= 0).astype(logits.dtype)
    share = labelled / jnp.maximum(jnp.sum(labelled), 1)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(y, 0)[:, None], axis=1)[:, 0]
    right = (jnp.argmax(logits, axis=1) == y).astype(logits.dtype)
    cross_entropy = -jnp.sum(share * picked)
    return cross_entropy, {"accuracy": jnp.sum(share * right), "cross_entropy": cross_entropy}


def _energies(conditional: bool, points: Tree, energy: Any) -> Array:
    """Return the energies (B,) of points, or of pairs of points and labels."""
    return jax.vmap(energy)(*(points if conditional else (points,)))


def _means(data: Array, model: Array, log_weights: Array | None) -> tuple:
    """Return the mean energies of data and of negatives, and the sum of their mean squares."""
    num = model.shape[0]
    weights = jnp.full((num,), 1 / num, model.dtype) if log_weights is None else jax.nn.softmax(log_weights)
    return (jnp.mean(data), jnp.sum(weights * model)), jnp.mean(data**2) + jnp.sum(weights * model**2)


def _gradient_ratio(means: Callable, energy: Any) -> Scalar:
    """Return |gradient of mean E(x+)| / |gradient of mean E(x-)|, over the trained weights."""
    trainable, rest = partition(jax.lax.stop_gradient(energy))
    gradients = jax.jacrev(lambda trainable: means(combine(trainable, rest)))(trainable)
    up, down = map(optax.tree.norm, gradients)
    return up / jnp.maximum(down, jnp.finfo(down.dtype).tiny)


def _from_class_gaussians(
    means: Array, factors: Array, log_share: Array, low: Any, high: Any, key: Key, energy: Any, batch: Tree, num: int
) -> Tree:
    class_key, noise_key = jax.random.split(key)
    rows, unravel = flat_rows(batch)
    label = jax.random.categorical(class_key, log_share, shape=(num,))
    noise = jax.random.normal(noise_key, (num, rows.shape[1]), means.dtype)
    # Of all classes, then picked: gathering a d x d factor a row would take num d^2 numbers.
    moved = means[None] + jnp.einsum("cij,nj->nci", factors, noise)
    drawn = jnp.take_along_axis(moved, label[:, None, None], axis=1)[:, 0].astype(rows.dtype)
    return jax.vmap(unravel)(drawn if low is None else jnp.clip(drawn, low, high))


def _no_state(params: Tree) -> optax.EmptyState:
    return optax.EmptyState()


def _ascent(radius: float, adaptive: bool, updates: Tree, state: Any, params: Tree = None) -> tuple[Tree, Any]:
    """Return minus the way up, as optax's optimisers do: `sam` turns it round."""
    sizes = jax.tree.map(jnp.abs, params) if adaptive else jax.tree.map(jnp.ones_like, updates)
    slope = jax.tree.map(jnp.multiply, sizes, updates)
    norm = optax.tree.norm(slope)
    factor = -radius / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)  # no way up from where the gradient is 0
    return jax.tree.map(lambda a, g: factor * a * g, sizes, slope), state
