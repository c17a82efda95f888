"""Maximum likelihood by contrast: data energies down, model energies up (Hinton 2002)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from energyflow.energy import as_energy, require_density, temperature
from energyflow.types import Array, Key, Negatives, Objective, Scalar, Tree


def contrastive(negatives: Negatives, *, l2: float = 0.0, conditional: bool = False) -> Objective:
    """Return the objective `(mean E(data) - mean E(negatives)) / T`, whose gradient is that of -log-likelihood.

    negatives: where the model's samples come from (`cd`, `pcd`, `replay`, `short_run`). l2: weight of
    `mean E(data)^2 + mean E(negatives)^2`, which pins the energy's free offset at 0 (Du and Mordatch 2019); it biases
    the density when large. Metrics: `gap = E_model - E_data` (near 0 where the model fits its data; a regulariser holds
    it open; growth is the alarm), both energies, those of the negative phase, and where it knows log Z (`jarzynski`)
    `log_likelihood`, the mean over the batch.
    conditional: batches are tuples `(x, *cond)` and the energy is `E(x, *cond)`, that of x given the rest; the negative
    phase has to be conditional too.
    Refuses a landscape when training starts.
    """
    negatives = Negatives(*map(as_energy, negatives))  # of plain functions too
    call = _call_with if conditional else _call
    return Objective(Partial(_init, negatives), Partial(_loss, negatives, l2, Partial(call)))


def _call(energy: Any, row: Tree) -> Scalar:
    return energy(row)


def _call_with(energy: Any, row: tuple) -> Scalar:
    return energy(*row)


def _init(negatives: Negatives, key: Key, energy: Any, batch: Tree) -> Any:
    require_density(energy, "contrastive training")
    return negatives.init(key, energy, batch)


def _loss(negatives: Negatives, l2: Any, call: Any, energy: Any, batch: Tree, key: Key, state: Any) -> Any:
    energy = as_energy(energy)
    fake, log_weights, state, metrics = negatives.draw(key, jax.lax.stop_gradient(energy), batch, state)
    data, model = (jax.vmap(Partial(call, energy))(rows) for rows in (batch, fake))
    gap = _mean(model, log_weights) - jnp.mean(data)
    penalty = l2 * (jnp.mean(data**2) + _mean(model**2, log_weights))
    metrics = metrics | {"gap": gap, "energy_data": jnp.mean(data), "energy_model": _mean(model, log_weights)}
    scale = jax.lax.stop_gradient(temperature(energy))
    if "log_z" in metrics:
        metrics["log_likelihood"] = -jnp.mean(data) / scale - metrics["log_z"]
    return -gap / scale + penalty, (state, metrics)


def _mean(values: Array, log_weights: Array | None) -> Array:
    if log_weights is None:
        return jnp.mean(values)
    return jnp.sum(jax.nn.softmax(log_weights) * values)
