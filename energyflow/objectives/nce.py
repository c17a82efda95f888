"""Noise-contrastive estimation: an energy learned by telling data from noise, without a sampler.

Noise is anything that draws and scores one point, `sample(key, shape)` and a normalised `log_prob(x)`: a NumPyro
distribution, say. How hard it is to tell from the data decides what is learned: at an accuracy over 0.95 the noise is
too easy, the loss is flat, and log Z comes out with a large error (Gutmann and Hyvarinen 2012; Lee et al. 2023).
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import log_softmax, softplus
from jax.tree_util import Partial, register_dataclass

from energyflow.chains import require_floats
from energyflow.energy import as_energy, logdensity, require_density, require_one_point
from energyflow.kernels.noise import normal_like
from energyflow.types import Array, Key, Objective, Scalar, Tree

CHANCE = 2 * math.log(2)
"""The conditional loss of an energy that cannot tell a row from its neighbour."""
TRIES = 50
"""Steps of the search for the first scale."""


def nce(noise: Any, num_noise: int = 1) -> Objective:
    """Return binary NCE, `mean softplus(-G(x)) + nu mean softplus(G(y))` (Gutmann and Hyvarinen 2010).

    `G = log p - log q - log nu`, with p as if normalised: give a `normalised` energy, whose constant becomes log Z, or
    let a network's own offset do so. noise: q, over one point. num_noise: nu, draws of it per row. Metrics:
    `accuracy`, of telling one row from one draw (0.5 where q is the model); over 0.95 the noise is too easy.
    Raises ValueError for fewer than one draw or a batch of distributions; refuses a landscape when training starts.
    """
    _check(noise, num_noise)
    return Objective(Partial(_require_density), Partial(_binary, _Noise(noise, num_noise)))


def flow_contrastive(num_noise: int = 1) -> Objective:
    """Return binary NCE whose noise is trained to be mistaken for the data (Gao et al. 2020).

    For `energyflow.with_noise(energy, noise)`, with a `normalised` energy: the energy descends the loss of `nce`, the
    noise (a `flow`, any pytree that draws and scores one point) ascends it, through its draws as through their density.
    At the optimum both are the data's density and the loss is 2 log 2. The noise wants a learning rate a few times
    lower, by `optax.partition`, and a start by `maximum_likelihood`. Metrics: `accuracy`, as of `nce`, which near 0.5
    tells that the noise has caught up; `noise_log_likelihood` of the batch. Raises as `nce` does.
    """
    if num_noise < 1:
        raise ValueError(f"num_noise must be at least 1; got {num_noise}")
    return Objective(Partial(_require_noise), Partial(_contest, _Noise(None, num_noise)))


def maximum_likelihood() -> Objective:
    """Return the mean of -log p, for energies that are normalised as they are: a `flow`, or any whose log Z is 0.

    Refuses a landscape when training starts; that log Z is 0 it has to believe.
    """
    return Objective(Partial(_require_density), Partial(_likelihood))


def ranking_nce(noise: Any, num_noise: int = 16) -> Objective:
    """Return ranking NCE: which of K + 1 points is the row (Ma and Collins 2018)?

    `-log softmax_0(a)`, `a_i = log p - log q` of the row and of K draws of its own. Its gradient is that of contrastive
    divergence with self-normalised importance sampling that includes the row. An offset of the energy changes nothing:
    no log Z comes of it. noise, num_noise: q and K. Metrics: `ess`, of the weights softmax(a), between 1 and K + 1, and
    `weight_of_data`, that of the row (1 / (K + 1) where q is the model). Raises as `nce` does.
    """
    _check(noise, num_noise)
    return Objective(Partial(_require_density), Partial(_ranking, _Noise(noise, num_noise)))


def conditional_nce(num_noise: int = 10, *, scale: float | None = None) -> Objective:
    """Return conditional NCE, `2 mean softplus(E(x) - E(y))` with `y = x + scale z` (Ceylan and Gutmann 2018).

    No log Z, no density of noise. As `scale` goes to 0 the loss tends to score matching, and its gradient is always
    twice that of contrastive divergence by one random-walk move with Barker's acceptance; both are blind to the weights
    of modes further apart than `scale`. num_noise: draws per row. scale: None starts at half the spread of the data and
    follows the energy, so that the loss stays between a half and nine tenths of 2 log 2, that of guessing. Metrics:
    `scale`, `accuracy` of telling rows from their neighbours. Raises ValueError for fewer than one draw or a scale that
    is not positive; refuses a landscape when training starts.
    """
    if num_noise < 1:
        raise ValueError(f"num_noise must be at least 1; got {num_noise}")
    if scale is not None and not scale > 0:
        raise ValueError(f"scale must be positive; got {scale}")
    start = Partial(_first_scale) if scale is None else Partial(_fixed_scale, scale)
    factors = (1.02, 0.98) if scale is None else (1.0, 1.0)
    return Objective(start, Partial(_conditional, _Noise(None, num_noise), factors))


@register_dataclass
@dataclass(frozen=True, eq=False)
class _Noise:
    law: Any
    num: int = field(metadata={"static": True})


def _log_ratios(law: Any, num: int, energy: Any, batch: Tree, key: Key) -> tuple[Array, Array, Array]:
    """Return log p/q of the rows, (B,), and of `num` draws of q for each, (B, num); and log q of the rows, (B,)."""
    density = logdensity(energy)
    known = jax.vmap(law.log_prob)(batch)
    draws = law.sample(key, (known.size * num,))  # in one axis: the energies are then products of matrices
    fake = jax.vmap(lambda y: density(y) - law.log_prob(y))(draws)
    return jax.vmap(density)(batch) - known, fake.reshape(known.size, num), known


def _told_apart(real: Array, fake: Array) -> tuple[Scalar, Scalar]:
    """Return the binary loss and the accuracy, of log ratios (B,) of the rows and (B, nu) of the noise."""
    log_nu = math.log(fake.shape[1])
    loss = jnp.mean(softplus(log_nu - real)) + fake.shape[1] * jnp.mean(softplus(fake - log_nu))
    return loss, 0.5 * (_share(real > 0) + _share(fake < 0))


def _binary(noise: _Noise, energy: Any, batch: Tree, key: Key, state: None) -> Any:
    law = jax.lax.stop_gradient(noise.law)
    real, fake, _ = _log_ratios(law, noise.num, energy, batch, key)
    loss, accuracy = _told_apart(real, fake)
    return loss, (state, {"accuracy": accuracy})


def _contest(noise: _Noise, pair: Any, batch: Tree, key: Key, state: None) -> Any:
    energy, law = pair.energy, pair.noise
    still = jax.lax.stop_gradient
    real, fake, known = _log_ratios(still(law), noise.num, energy, batch, key)
    loss, accuracy = _told_apart(real, fake)
    real, fake, _ = _log_ratios(law, noise.num, still(energy), batch, jax.random.clone(key))
    ascended, _ = _told_apart(real, fake)
    # The value is the loss; its gradient with respect to the noise has the other sign.
    return loss + still(ascended) - ascended, (state, {"accuracy": accuracy, "noise_log_likelihood": jnp.mean(known)})


def _likelihood(energy: Any, batch: Tree, key: Key, state: None) -> Any:
    return -jnp.mean(jax.vmap(logdensity(energy))(batch)), (state, {})


def _ranking(noise: _Noise, energy: Any, batch: Tree, key: Key, state: None) -> Any:
    law = jax.lax.stop_gradient(noise.law)
    real, fake, _ = _log_ratios(law, noise.num, energy, batch, key)
    log_weights = log_softmax(jnp.concatenate([real[:, None], fake], axis=1), axis=1)
    weights = jnp.exp(log_weights)
    metrics = {"ess": jnp.mean(1 / jnp.sum(weights**2, axis=1)), "weight_of_data": jnp.mean(weights[:, 0])}
    return -jnp.mean(log_weights[:, 0]), (state, metrics)


def _conditional(noise: _Noise, factors: tuple, energy: Any, batch: Tree, key: Key, scale: Array) -> Any:
    loss, accuracy = _neighbours(noise.num, energy, batch, key, scale)
    up, down = factors
    guessing = jax.lax.stop_gradient(loss) / CHANCE
    new = scale * jnp.where(guessing > 0.9, up, jnp.where(guessing < 0.5, down, 1.0))
    return loss, (new, {"accuracy": accuracy, "scale": scale})


def _neighbours(num: int, energy: Any, batch: Tree, key: Key, scale: Array) -> tuple[Scalar, Scalar]:
    """Return the conditional loss and the share of neighbours that are less likely than their row."""
    rows = jax.tree.map(lambda x: jnp.repeat(x, num, axis=0), batch)
    near = jax.tree.map(lambda x, z: x + scale.astype(x.dtype) * z, rows, normal_like(key, rows))
    here, there = (jax.vmap(logdensity(energy))(x) for x in (batch, near))
    falls = here[:, None] - there.reshape(-1, num)
    return 2 * jnp.mean(softplus(-falls)), _share(falls > 0)


def _share(is_so: Array) -> Array:
    return jnp.mean(is_so.astype(float))


def _fixed_scale(scale: float, key: Key, energy: Any, batch: Tree) -> Array:
    _require_density(key, energy, batch)
    return jnp.asarray(scale, float)


def _first_scale(key: Key, energy: Any, batch: Tree) -> Array:
    """Return a scale at which the energy as it is tells rows from neighbours, but not without fail."""
    _require_density(key, energy, batch)
    spreads = jnp.stack([jnp.mean(jnp.std(x, axis=0)) for x in jax.tree.leaves(batch)])
    first = 0.5 * jnp.mean(spreads)
    loss = jax.jit(lambda key, scale: _neighbours(1, as_energy(energy), batch, key, scale)[0])
    scale = first
    for i in range(TRIES):
        guessing = float(loss(jax.random.fold_in(key, i), scale)) / CHANCE
        if 0.5 <= guessing <= 0.9 or not 1e-3 < float(scale / first) < 1e3:
            break
        scale = scale * (1.2 if guessing > 0.9 else 0.5)
    return scale if 1e-3 < float(scale / first) < 1e3 else first


def _require_noise(key: Key, energy: Any, batch: Tree) -> None:
    if not hasattr(energy, "noise"):
        raise TypeError("flow-contrastive estimation trains energyflow.with_noise(energy, noise), and got no noise")
    _check(energy.noise, 1)
    _require_density(key, energy, batch)


def _check(noise: Any, num_noise: int) -> None:
    if num_noise < 1:
        raise ValueError(f"num_noise must be at least 1; got {num_noise}")
    for name in ("sample", "log_prob"):
        if not callable(getattr(noise, name, None)):
            raise TypeError(f"noise must have sample(key, shape) and log_prob(x); got {type(noise).__name__}")
    require_one_point(noise)


def _require_density(key: Key, energy: Any, batch: Tree) -> None:
    require_density(energy, "noise-contrastive estimation")
    require_floats(batch)
