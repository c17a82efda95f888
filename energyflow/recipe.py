"""From a spec to the objects of a run: energy, objective, optimiser; one table row per sampler."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
import optax

from energyflow import kernels, negatives, stepsize
from energyflow.energies.nets import mlp
from energyflow.energy import Tilted, tilt
from energyflow.objectives import contrastive
from energyflow.spec import Spec
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


def build_energy(spec: Spec, dim: int) -> Tilted:
    """Return the energy in whitened coordinates: a standard Gaussian tilted by a multilayer perceptron.

    The network grows at most linearly, so Z is finite whatever its weights; in data units the base is the Gaussian of
    the training set's mean and covariance.
    """
    net = mlp(spec.seed, dim, spec.hidden, spec.activation)
    return tilt(net, dist.Normal(jnp.zeros(dim), jnp.ones(dim)).to_event(1))


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
    return negatives.pcd(kernel, moves, num_chains=spec.chains, start=negatives.from_base(), tuner=tuner)


def build_objective(spec: Spec) -> Objective:
    """Return the training objective."""
    return contrastive(build_negatives(spec), l2=spec.l2)


def build_optimizer(spec: Spec) -> optax.GradientTransformation:
    """Return AdamW with a cosine decay to 0 (Loshchilov and Hutter 2019)."""
    schedule = optax.cosine_decay_schedule(spec.learning_rate, spec.steps)
    return optax.adamw(schedule, weight_decay=spec.weight_decay)


def describe(spec: Spec, kernel_temperature: float, adjusted: bool) -> dict[str, Any]:
    """Return what a report says of the sampler."""
    return {
        "kernel": spec.sampler,
        "negatives": spec.negatives,
        "temperature": kernel_temperature,
        "adjusted": adjusted,
    }
