"""Floor 6: from a spec to the objects of a run: data, energy, objective and optimiser, by tables of names."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from energyflow.loaders import Dataset, load_dataset
from energyflow.recipe.methods import METHODS, SPECIFIED, Drawn, Method, level_chains, standard_normal
from energyflow.recipe.samplers import SAMPLERS, Choice, build_kernel, build_negatives
from energyflow.spec import Spec
from energyflow.types import Key, Objective

__all__ = [
    "METHODS",
    "SAMPLERS",
    "Choice",
    "Drawn",
    "Method",
    "build_energy",
    "build_kernel",
    "build_negatives",
    "build_objective",
    "build_optimizer",
    "describe",
    "draw",
    "horizon",
    "level_chains",
    "judged",
    "method",
    "read_data",
    "settled",
]


DECAY = 20.0
"""Of weights: 1 for 20 rows a dimension, as the digits have."""


def method(spec: Spec) -> Method:
    """Return the row of `METHODS` of a spec."""
    return METHODS[spec.objective]


def read_data(spec: Spec) -> Dataset:
    """Return the data of a spec, with labels for methods that train on them.

    What starts at noise keeps the data's own shape unless asked otherwise. Raises ValueError for data that cannot be
    used, or lack labels that the method needs.
    """
    own_shape = spec.whiten == "auto" and method(spec).draw is not None
    whiten = "none" if own_shape else spec.whiten
    return load_dataset(spec.data, spec.seed, whiten=whiten, labelled=method(spec).labelled)


def settled(spec: Spec, data: Dataset) -> Spec:
    """Return the spec with what its data decide: the number of classes, and the weight decay of densities.

    That is `DECAY` times the dimensions over the training rows, at most 1: the more rows, the less is assumed.
    Raises ValueError where there are more labels than classes.
    """
    decay, classes = spec.weight_decay, spec.classes
    if decay is None:
        decay = min(1.0, DECAY * data.dim / len(data.train)) if method(spec).draw is None else 0.0
    if data.labels is not None:
        found = data.labels.num_classes
        if 0 < classes < found:
            raise ValueError(f"{spec.data} has labels up to {found - 1}, too many for classes = {classes}")
        classes = classes or found
    return dataclasses.replace(spec, weight_decay=decay, classes=classes)


def build_energy(spec: Spec, dim: int) -> Any:
    """Return the energy before training, over whitened coordinates (dim,)."""
    return method(spec).energy(spec, dim)


def judged(spec: Spec, dim: int, energy: Any) -> Any:
    """Return the density that a trained energy stands for, with a base; a potential or a landscape as it is."""
    return method(spec).judged(spec, dim, energy)


def horizon(spec: Spec) -> float:
    """Return the time that draws of a potential or a landscape are moved for."""
    return spec.horizon or method(spec).horizon


def draw(spec: Spec, energy: Any, key: Key, num: int, dim: int, time: float) -> Drawn:
    """Return `num` draws of a potential, a landscape or a ladder, whitened, moved from noise for `time`."""
    start_key, move_key = jax.random.split(key)
    move = method(spec).draw
    if move is None:
        raise ValueError(f"{spec.objective} trains a density: sample it by chains")
    return move(energy, move_key, standard_normal(dim).sample(start_key, (num,)), time)


def build_objective(spec: Spec, data: Dataset) -> Objective:
    """Return the training objective."""
    return method(spec).objective(spec, data)


def build_optimizer(spec: Spec) -> optax.GradientTransformation:
    """Return AdamW with a cosine decay to 0 (Loshchilov and Hutter 2019), of a spec that is settled."""
    schedule = optax.cosine_decay_schedule(spec.learning_rate, spec.steps)
    return optax.adamw(schedule, weight_decay=spec.weight_decay or 0.0, mask=_decays)


def _decays(weights: Any) -> Any:
    """A single number, such as a trained log Z, is no weight to keep small."""
    return jax.tree.map(lambda w: jnp.ndim(w) > 0, weights)


def describe(spec: Spec, kernel_temperature: float, adjusted: bool) -> dict[str, Any]:
    """Return what a report says of the objective, and of its sampler where it has one."""
    chains = method(spec).chains
    if chains == SPECIFIED:
        chosen = {"kernel": spec.sampler, "negatives": spec.negatives}
        return {"objective": spec.objective} | chosen | {"temperature": kernel_temperature, "adjusted": adjusted}
    return {"objective": spec.objective, "temperature": 1.0} | ({"chains": chains} if chains else {})
