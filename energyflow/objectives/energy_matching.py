"""Energy Matching: one potential that carries a source to the data and is a density among them (Balcerak et al. 2025).

Straight paths lead from draws of a source at t = 0 to rows of the data at t = 1, and `-grad V` is fitted to their
velocities: `transport_matching`. Then `energy_matching` goes on with that near the source, and near the data makes
`exp(-V/T)` their density by contrast with chains: a second, much shorter phase. Draws come from `transport_langevin`;
from t = 1 on, any kernel on `logdensity(V)` may go on. Far from the data V is a way there, and no density.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, register_dataclass

from energyflow import couplings
from energyflow.chains import count_chains, require_floats
from energyflow.energies.fields import gradient_field, slopes
from energyflow.energy import as_energy, kind, require_one_point
from energyflow.kernels.langevin import temperature_ramp
from energyflow.rows import flat_rows
from energyflow.transport import transport_run
from energyflow.types import Array, Key, Negatives, Objective, Scalar, Tree


def transport_matching(source: Any, coupling: couplings.Coupling = couplings.exact, *, sigma: float = 0.0) -> Objective:
    """Return the regression of `-grad V` on the velocities of straight paths from a source to the data.

    `mean |grad V(x_t) + x1 - x0|^2` over rows and dims, with `x_t = (1 - t) x0 + t x1 + sigma z`, t uniform in [0, 1),
    x1 the rows, x0 as many draws of the source, and the pairs by `coupling`. source: anything with `sample(key, shape)`
    over one point, a NumPyro distribution, say. sigma: noise on the paths, which smooths V between few of them.
    A `field` is fitted in the place of `grad V`, without differentiating twice.
    Metrics: `transport`, the loss; it does not go to 0 where paths cross.
    Raises TypeError for a source that cannot draw. Refuses, when training starts, draws of another shape than the rows,
    and an energy that claims to be a density already: give `tempered(energy, T)`, or `landscape(energy)`.
    """
    flow = _Flow(_checked(source), as_energy(coupling), sigma, 1.0)
    return Objective(Partial(_init_transport, flow), Partial(_transport, flow))


def energy_matching(
    source: Any,
    coupling: couplings.Coupling = couplings.exact,
    *,
    negatives: Negatives | None = None,
    weight: float = 1.0,
    onset: float = 0.8,
    sigma: float = 0.0,
    trim: float = 0.0,
    floor: float | None = None,
) -> Objective:
    """Return transport matching that fades towards the data, plus `weight (mean V(data) - mean V(negatives))` there.

    A row of the regression counts `1 - temperature_ramp(t)`: in full until `onset`, not at all at t = 1. A random half
    of the batch is transported and the other contrasted, so that the two are independent.
    negatives: where the model's samples come from; None is `transport_run(source, onset=onset)`. At temperature T,
    `short_run(mala(dt * T), 200, start=from_either(from_data(), from_source(source)))` has an accept step. weight: of
    the contrast, not divided by T. trim: share of the negatives left out of their mean, those of the highest energy.
    floor: below `-floor` the contrast has no gradient, so that negatives gone astray pull no further.
    Metrics: `transport`, `gap = E_model - E_data` (with `trim`), both energies, and those of the negative phase.
    Raises as `transport_matching` does, and ValueError for an onset or a trim outside its range or a floor that is not
    positive; refuses, when training starts, energies that are not `tempered` and batches of one row.
    """
    if not 0 <= onset <= 1:
        raise ValueError(f"onset must be a time between 0 and 1; got {onset}")
    if not 0 <= trim < 1:
        raise ValueError(f"trim must be a share of the negatives, at least 0 and below 1; got {trim}")
    if floor is not None and not floor > 0:
        raise ValueError(f"floor must be positive; got {floor}")
    flow = _Flow(_checked(source), as_energy(coupling), sigma, onset)
    chains = transport_run(source, onset=onset) if negatives is None else negatives
    contrast = _Contrast(Negatives(*map(as_energy, chains)), weight, trim, jnp.inf if floor is None else floor)
    return Objective(Partial(_init_matching, flow, contrast), Partial(_matching, flow, contrast))


@register_dataclass
@dataclass(frozen=True, eq=False)
class _Flow:
    source: Any
    coupling: Any
    sigma: Any
    onset: Any


@register_dataclass
@dataclass(frozen=True, eq=False)
class _Contrast:
    negatives: Negatives
    weight: Any
    trim: Any
    floor: Any


def _transport(flow: _Flow, energy: Any, batch: Tree, key: Key, state: None) -> Any:
    loss = _regression(flow, as_energy(energy), batch, key)
    return loss, (state, {"transport": loss})


def _regression(flow: _Flow, energy: Any, batch: Tree, key: Key) -> Scalar:
    source_key, pair_key, time_key, noise_key = jax.random.split(key, 4)
    draws = jax.lax.stop_gradient(flow.source.sample(source_key, (count_chains(batch),)))
    pairs = flow.coupling(pair_key, draws, batch)
    (x0, _), (x1, unravel) = map(flat_rows, pairs)
    t = jax.random.uniform(time_key, (len(x1), 1), x1.dtype)
    x = (1 - t) * x0 + t * x1 + flow.sigma * jax.random.normal(noise_key, x1.shape, x1.dtype)
    gates = 1 - temperature_ramp(t, 1.0, flow.onset)
    falls, _ = flat_rows(slopes(energy, jax.vmap(unravel)(x)))
    return jnp.mean(gates * (falls + x1 - x0) ** 2)


def _matching(flow: _Flow, contrast: _Contrast, energy: Any, batch: Tree, key: Key, state: Any) -> Any:
    half_key, flow_key, chain_key = jax.random.split(key, 3)
    energy = as_energy(energy)
    first, second = _halves(half_key, batch)
    transport = _regression(flow, energy, first, flow_key)
    still = jax.lax.stop_gradient(energy)
    fake, log_weights, state, metrics = contrast.negatives.draw(chain_key, still, second, state)
    data = jnp.mean(jax.vmap(energy)(second))
    model = _trimmed_mean(jax.vmap(energy)(fake), log_weights, contrast.trim)
    loss = transport + jnp.maximum(contrast.weight * (data - model), -contrast.floor)
    metrics = metrics | {"transport": transport, "gap": model - data, "energy_data": data, "energy_model": model}
    return loss, (state, metrics)


def _trimmed_mean(values: Array, log_weights: Array | None, trim: Any) -> Scalar:
    """Return the mean without the share `trim` of the values, the highest."""
    order = jnp.argsort(values)
    kept = jnp.arange(float(len(values))) < jnp.maximum(jnp.round((1 - trim) * len(values)), 1)
    logits = jnp.zeros(len(values)) if log_weights is None else log_weights[order]
    return jnp.sum(jax.nn.softmax(jnp.where(kept, logits, -jnp.inf)) * jnp.where(kept, values[order], 0.0))


def _halves(key: Key, batch: Tree) -> tuple[Tree, Tree]:
    rows = jax.random.permutation(key, count_chains(batch))
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    return jax.tree.map(lambda x: x[first], batch), jax.tree.map(lambda x: x[second], batch)


def _checked(source: Any) -> Any:
    if not callable(getattr(source, "sample", None)):
        raise TypeError(f"source must have sample(key, shape), as NumPyro's distributions; got {type(source).__name__}")
    require_one_point(source)
    return source


def _init_transport(flow: _Flow, key: Key, energy: Any, batch: Tree) -> None:
    if kind(energy) == "density":
        raise ValueError(
            "transport matching trains a potential whose exp(-V) is not the density of its data: give "
            "ef.tempered(energy, T) where energy matching follows, or ef.landscape(energy) for the flow alone"
        )
    _require_rows(flow, key, energy, batch)


def _init_matching(flow: _Flow, contrast: _Contrast, key: Key, energy: Any, batch: Tree) -> Any:
    if kind(energy) != "tempered":
        raise ValueError(
            f"energy matching trains a density at a temperature of its own, and this energy is a {kind(energy)}: give "
            "ef.tempered(energy, T), with T the temperature of the noise near the data"
        )
    source_key, half_key, chain_key = jax.random.split(key, 3)
    _require_rows(flow, source_key, energy, batch)
    if count_chains(batch) < 2:
        raise ValueError("energy matching halves its batches, and this one has a single row: give two or more")
    return contrast.negatives.init(chain_key, energy, _halves(half_key, batch)[1])


def _require_rows(flow: _Flow, key: Key, energy: Any, batch: Tree) -> None:
    require_floats(batch)
    drawn = jax.eval_shape(lambda key: flow.source.sample(key, (count_chains(batch),)), key)
    shapes = [jax.tree.map(jnp.shape, x) for x in (drawn, batch)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the source must draw points like the data's; {shapes[0]} against a batch of {shapes[1]}")
    jax.eval_shape(gradient_field(energy), jax.tree.map(lambda x: x[0], batch))
