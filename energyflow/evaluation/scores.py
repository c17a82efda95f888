"""Floor 6: scores of points under an energy, high for what the energy was trained on.

A score ranks points; where the line is drawn is not its business. `evaluation.ood` says how well it separates two sets.
Points are batches, pytrees with a leading axis [row]; scores are float64 arrays (n,).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from energyflow.energies.classifiers import class_logits
from energyflow.energies.fields import is_field, slopes
from energyflow.energy import (
    as_energy,
    require_density,
    temperature,
)
from energyflow.rows import flat_rows
from energyflow.types import Key, Scalar, Tree, as_key

BATCH = 1024
"""Points scored at a time."""


def energy_score(energy: Any, x: Tree) -> np.ndarray:
    """Return `-E(x)/T` of every point: the log density up to a constant, for a landscape minus its height.

    A density may give more of it to points that are none of its own (Nalisnick et al. 2019): see `likelihood_ratio`.
    Raises ValueError for a field, and for an energy whose value is no scalar.
    """
    if is_field(energy):
        raise ValueError("a field has no energy to score points by: score them by gradient_norm_score")
    return in_batches(partial(_negative_energies, as_energy(energy)), x)


def gradient_norm_score(energy: Any, x: Tree) -> np.ndarray:
    """Return `-|grad E(x)|` of every point, over all leaves of a position; of a field `-|f(x)|`.

    Near 0 at modes and at every other stationary point, the flat country far from the data included, and in high
    dimension typical points of a density are not stationary: it suits landscapes, whose minima are the data.
    """
    return in_batches(partial(_negative_slopes, as_energy(energy)), x)


def class_probability_score(classifier: Any, x: Tree) -> np.ndarray:
    """Return the largest `p(y|x)` of every point (Hendrycks and Gimpel 2017). classifier: see `class_logits`."""
    return in_batches(partial(_largest_probabilities, as_energy(classifier)), x)


def likelihood_ratio(energy: Any, background: Any, x: Tree, background_x: Tree = None) -> np.ndarray:
    """Return `log p(x) - log p_background(x)` up to a constant, `E_bg/T_bg - E/T`, of every point (Ren et al. 2019).

    background: an energy of the same points, trained on `mutated` rows or otherwise of what all points share; what both
    models explain cancels. The difference of two energies: log Z of either shifts all scores alike and is not needed,
    while a quotient of energies would depend on it. With a constant background it is `energy_score`, with the energy
    itself 0 everywhere. background_x: the same points in the background's coordinates, where those are linear maps of
    the others (their Jacobian is such a shift too).
    Raises ValueError where either is a landscape, which has no likelihood.
    """
    for model in (energy, background):
        require_density(model, "a likelihood ratio")
    return energy_score(energy, x) - energy_score(background, x if background_x is None else background_x)


def mutated(key: Key | int, x: Array, rate: Scalar | float, low: float, high: float) -> Array:
    """Return x with each value, with probability `rate`, replaced by a uniform one: rows to train a background on.

    x: any shape; integers are replaced by one of low, ..., high - 1, floats by a draw from [low, high). A value may be
    replaced by itself. What is left are the frequencies of single values; what ties values together is lost (Ren et
    al. 2019 use rates of 0.1 to 0.3). A rate chosen on outliers makes those outliers no test any more.
    Raises ValueError for a rate outside [0, 1] and an empty range.
    """
    if isinstance(rate, (int, float)) and not 0 <= rate <= 1:
        raise ValueError(f"a rate of mutation is a probability; got {rate}")
    if not low < high:
        raise ValueError(f"low must be below high; got {low} and {high}")
    x = jnp.asarray(x)
    whether, what = jax.random.split(as_key(key))
    if jnp.issubdtype(x.dtype, jnp.integer):
        fresh = jax.random.randint(what, x.shape, int(low), int(high), x.dtype)
    else:
        fresh = jax.random.uniform(what, x.shape, x.dtype, low, high)
    return jnp.where(jax.random.bernoulli(whether, rate, x.shape), fresh, x)


def in_batches(function: Callable[[Tree], Array], rows: Tree, size: int = BATCH) -> np.ndarray:
    """Return `function(rows)` as a float64 array, leading axis [row], made in batches of one shape.

    The last batch is filled up with copies of the last row. Raises ValueError for rows without a shared leading axis.
    """
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(rows)}
    if len(lengths) != 1 or not all(lengths) or 0 in (num := lengths.pop()):
        raise ValueError(f"points need one leading axis [row], at least one long; got {jax.tree.map(np.shape, rows)}")
    steps = np.arange(min(size, num[0]))
    picks = [np.minimum(start + steps, num[0] - 1) for start in range(0, num[0], size)]
    parts = [np.asarray(function(_take(rows, pick)), np.float64) for pick in picks]
    return np.concatenate(parts)[: num[0]]


def _take(rows: Tree, pick: np.ndarray) -> Tree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[pick]), rows)


@jax.jit
def _negative_energies(energy: Any, x: Tree) -> Array:
    values = jax.vmap(energy)(x)
    if values.ndim != 1:
        raise ValueError(f"an energy must return a scalar for one point; this one returned shape {values.shape[1:]}")
    return -values / temperature(energy)


@jax.jit
def _negative_slopes(energy: Any, x: Tree) -> Array:
    return -jnp.linalg.norm(flat_rows(slopes(energy, x))[0], axis=1)


@jax.jit
def _largest_probabilities(classifier: Any, x: Tree) -> Array:
    return jnp.max(jax.nn.softmax(jax.vmap(partial(class_logits, classifier))(x)), axis=1)
