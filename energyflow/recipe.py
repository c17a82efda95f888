"""From a spec to the objects of a run: energy, objective, optimiser; one table row per sampler and per objective."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax

from energyflow import kernels, negatives, stepsize, walkers
from energyflow.energies.fitted import mixture_base
from energyflow.energies.nets import mlp
from energyflow.energy import normalised, tilt
from energyflow.loaders import Dataset
from energyflow.objectives import (
    conditional_nce,
    contrastive,
    denoising_score_matching,
    finite_difference_score_matching,
    nce,
    ranking_nce,
    score_matching,
    sliced_score_matching,
)
from energyflow.spec import Spec
from energyflow.stats import log_mean_exp
from energyflow.types import Kernel, Negatives, Objective


class Choice(NamedTuple):
    """A sampler by name: how to build it from a step size, its first step, moves a draw, acceptance (None: untuned)."""

    build: Callable[[float], Kernel]
    step_size: float
    moves: int
    acceptance: float | None


SAMPLERS = {
    "mala": Choice(kernels.mala, 0.1, 10, 0.6),
    "hmc": Choice(lambda step: kernels.hmc(step, 5), 0.2, 2, 0.8),
    "nuts": Choice(lambda step: kernels.nuts(step, max_num_doublings=3), 0.2, 2, 0.8),
    "barker": Choice(kernels.barker, 0.3, 10, 0.5),
    "ghmc": Choice(kernels.ghmc, 0.2, 10, 0.9),
    "dynamic-hmc": Choice(lambda step: kernels.dynamic_hmc(step, 9), 0.2, 2, 0.8),
    "adjusted-mclmc": Choice(lambda step: kernels.adjusted_mclmc(step, 5), 0.3, 1, 0.9),
    "rmh": Choice(kernels.rmh, 0.1, 20, 0.25),
    "elliptical-slice": Choice(lambda step: kernels.elliptical_slice(0.0, jnp.ones(())), 0.0, 4, None),
    "slice": Choice(lambda step: kernels.slice_sampling(1.0), 0.0, 4, None),
    "ula": Choice(kernels.ula, 0.01, 10, None),
    "sgld": Choice(kernels.sgld, 0.01, 10, None),
    "mclmc": Choice(kernels.mclmc, 0.5, 5, None),
}


class Method(NamedTuple):
    """An objective by name: what energy it trains, (spec, dim) -> energy, and the loss, (spec, data) -> objective."""

    energy: Callable[[Spec, int], Any]
    objective: Callable[[Spec, Dataset], Objective]


def _base(dim: int) -> Any:
    return dist.Normal(jnp.zeros(dim), jnp.ones(dim)).to_event(1)


def _tilted(spec: Spec, dim: int) -> Any:
    """Return a standard Gaussian, in whitened coordinates, tilted by a multilayer perceptron.

    The network grows at most linearly, so Z is finite whatever its weights; in data units the base is the Gaussian of
    the training set's mean and covariance.
    """
    return tilt(mlp(spec.seed, dim, spec.hidden, spec.activation), _base(dim))


def _with_log_z(spec: Spec, dim: int) -> Any:
    """Return the same with a trained log Z, which starts at that of the network before training."""
    energy = _tilted(spec, dim)
    draws = energy.base.sample(jax.random.key(spec.seed), (1024,))
    return normalised(energy, log_mean_exp(-jax.vmap(energy.energy)(draws)).value)


def _noise(spec: Spec, data: Dataset) -> Any:
    if spec.noise == "gaussian":
        return _base(data.dim)
    rows = data.scaling.to_z(data.part_x("train", spec.seed))
    return mixture_base(rows, min(NOISE_COMPONENTS, len(rows) // 2), spec.seed)


def _contrastive(spec: Spec, data: Dataset) -> Objective:
    return contrastive(build_negatives(spec), l2=spec.l2)


NOISE_COMPONENTS = 10
METHODS = {
    "contrastive": Method(_tilted, _contrastive),
    "sm": Method(_tilted, lambda spec, data: score_matching()),
    "ssm": Method(_tilted, lambda spec, data: sliced_score_matching()),
    "fd-ssm": Method(_tilted, lambda spec, data: finite_difference_score_matching()),
    "dsm": Method(_tilted, lambda spec, data: denoising_score_matching(spec.sigma)),
    "nce": Method(_with_log_z, lambda spec, data: nce(_noise(spec, data), spec.num_noise or 1)),
    "ranking-nce": Method(_tilted, lambda spec, data: ranking_nce(_noise(spec, data), spec.num_noise or 16)),
    "conditional-nce": Method(_tilted, lambda spec, data: conditional_nce(spec.num_noise or 10)),
}


def build_energy(spec: Spec, dim: int) -> Any:
    """Return the energy before training, over whitened coordinates (dim,)."""
    return METHODS[spec.objective].energy(spec, dim)


def build_kernel(spec: Spec) -> Kernel:
    """Return the kernel at its first step size."""
    choice = SAMPLERS[spec.sampler]
    return choice.build(spec.step_size or choice.step_size)


def build_negatives(spec: Spec) -> Negatives:
    """Return the negative phase, with a step tuner for kernels that have an accept step and a step size."""
    choice, kernel = SAMPLERS[spec.sampler], build_kernel(spec)
    moves = spec.moves or choice.moves
    tuner = None
    if choice.acceptance is not None:
        tuner = stepsize.by_acceptance(spec.target_acceptance or choice.acceptance)
    if spec.negatives == "cd":
        return negatives.cd(kernel, moves, tuner=tuner)
    if spec.negatives == "short-run":
        return negatives.short_run(kernel, moves, num_chains=spec.chains, tuner=tuner)
    if spec.negatives == "replay":
        num = min(spec.batch_size, spec.chains)
        return negatives.replay(kernel, moves, capacity=spec.chains, num_chains=num, tuner=tuner)
    if spec.negatives == "jarzynski":
        return walkers.jarzynski(kernel, moves, num_walkers=spec.chains, tuner=tuner)
    return negatives.pcd(kernel, moves, num_chains=spec.chains, start=negatives.from_base(), tuner=tuner)


def build_objective(spec: Spec, data: Dataset) -> Objective:
    """Return the training objective."""
    return METHODS[spec.objective].objective(spec, data)


def build_optimizer(spec: Spec) -> optax.GradientTransformation:
    """Return AdamW with a cosine decay to 0 (Loshchilov and Hutter 2019)."""
    schedule = optax.cosine_decay_schedule(spec.learning_rate, spec.steps)
    return optax.adamw(schedule, weight_decay=spec.weight_decay, mask=_decays)


def _decays(weights: Any) -> Any:
    """A single number, such as a trained log Z, is no weight to keep small."""
    return jax.tree.map(lambda w: jnp.ndim(w) > 0, weights)


def describe(spec: Spec, kernel_temperature: float, adjusted: bool) -> dict[str, Any]:
    """Return what a report says of the objective, and of its sampler where it has one."""
    if spec.objective != "contrastive":
        return {"objective": spec.objective, "temperature": 1.0}
    return {
        "objective": spec.objective,
        "kernel": spec.sampler,
        "negatives": spec.negatives,
        "temperature": kernel_temperature,
        "adjusted": adjusted,
    }
