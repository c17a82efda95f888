"""Samplers by name, and the negative phase that a spec asks for."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from energyflow import kernels, negatives, stepsize, walkers
from energyflow.spec import Spec
from energyflow.types import Kernel, Negatives


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
