"""Objectives by name: what each trains, how, and as what it is judged."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from flax import nnx

from energyflow.descent import DescentDiverged, descend
from energyflow.diffusion import Diffusion, cumulative_diffusion, linear_diffusion, log_snr_diffusion
from energyflow.energies.classifiers import classifier_energy
from energyflow.energies.fields import dot_energy, residual_mlp_field
from energyflow.energies.fitted import mixture_base
from energyflow.energies.flows import flow
from energyflow.energies.levels import level_mlp, level_mlp_field
from energyflow.energies.nets import MLP, mlp
from energyflow.energies.noisy import noise_conditional_mlp
from energyflow.energy import condition, normalised, tempered, tilt, with_noise
from energyflow.kernels import mala
from energyflow.loaders import Dataset
from energyflow.objectives import (
    conditional_nce,
    contrastive,
    denoising_score_matching,
    diffusion_assisted,
    diffusion_contrastive,
    dual_score_matching,
    energy_matching,
    equilibrium_matching,
    finite_difference_score_matching,
    flow_contrastive,
    improved_contrastive,
    in_turn,
    joint,
    nce,
    noise_level_classification,
    ranking_nce,
    recovery_likelihood,
    score_matching,
    sliced_score_matching,
    transport_matching,
)
from energyflow.recipe.samplers import SAMPLERS, build_negatives
from energyflow.recovery import recovery_sample, with_initialiser
from energyflow.spec import Spec
from energyflow.stats import log_mean_exp
from energyflow.transport import transport_langevin
from energyflow.types import Array, Key, Objective, as_key


class Drawn(NamedTuple):
    """Draws, leading axis [draw], the gradients spent on each, and, of chains down noise levels, what each level did.

    levels: {"sigma", "acceptance_rate", "jump_distance": a number a level, from the noisiest down}.
    """

    position: Array
    num_gradients: float
    levels: dict[str, np.ndarray] | None = None


class Method(NamedTuple):
    """An objective by name: what it trains, (spec, dim) -> energy, its loss, (spec, data) -> objective, what is judged.

    judged: (spec, dim, trained) -> a density with a base. draw: for what is no density, (trained, key, starts, time) ->
    draws. horizon: its usual time. chains: in words, those that move while it trains, where they
    are not of the negative phase that the spec asks for, which is `SPECIFIED`; "" for none. labelled: whether batches
    are pairs of rows and labels. levels: the levels of a diffusion that what is trained is an energy of.
    """

    energy: Callable[[Spec, int], Any]
    objective: Callable[[Spec, Dataset], Objective]
    judged: Callable[[Spec, int, Any], Any] = lambda spec, dim, energy: energy
    draw: Callable[[Any, Key, Array, float], Drawn] | None = None
    horizon: float = 0.0
    chains: str = ""
    labelled: bool = False
    levels: Diffusion | None = None


SPECIFIED = "of the negative phase"


def standard_normal(dim: int) -> Any:
    """Return the base of densities over whitened coordinates (dim,)."""
    return dist.Normal(jnp.zeros(dim), jnp.ones(dim)).to_event(1)


def _tilted(spec: Spec, dim: int) -> Any:
    """Return a standard Gaussian, in whitened coordinates, tilted by a multilayer perceptron.

    The network grows at most linearly, so Z is finite whatever its weights; in data units the base is the Gaussian of
    the training set's mean and covariance.
    """
    return tilt(mlp(spec.seed, dim, spec.hidden, spec.activation), standard_normal(dim))


def _with_log_z(spec: Spec, dim: int) -> Any:
    """Return the same with a trained log Z, which starts at that of the network before training."""
    energy = _tilted(spec, dim)
    draws = energy.base.sample(as_key(spec.seed), (1024,))
    return normalised(energy, log_mean_exp(-jax.vmap(energy.energy)(draws)).value)


def _noise(spec: Spec, data: Dataset) -> Any:
    if spec.noise == "gaussian":
        return standard_normal(data.dim)
    rows = data.scaling.to_z(data.part_x("train", spec.seed))
    return mixture_base(rows, min(NOISE_COMPONENTS, len(rows) // 2), spec.seed)


def _contrastive(spec: Spec, data: Dataset) -> Objective:
    return contrastive(build_negatives(spec), l2=spec.l2)


def _classifier(spec: Spec, dim: int) -> Any:
    """Return the same with logits in the place of the network's value: p(x) and p(y|x) in one."""
    net = MLP(dim, spec.hidden, num_outputs=spec.classes, activation=spec.activation, rngs=nnx.Rngs(spec.seed))
    return tilt(classifier_energy(net), standard_normal(dim))


def _joint(spec: Spec, data: Dataset) -> Objective:
    return joint(build_negatives(spec), generative=spec.generative, l2=spec.l2)


def _improved(spec: Spec, data: Dataset) -> Objective:
    step = spec.step_size or SAMPLERS[spec.sampler].step_size
    return improved_contrastive(build_negatives(spec), step_size=step, kl=0.1, entropy=0.03, l2=spec.l2)


def _rungs(spec: Spec, dim: int) -> Any:
    return level_mlp(spec.seed, dim, NUM_RUNGS, spec.hidden, spec.activation)


def _guessed_rungs(spec: Spec, dim: int) -> Any:
    return with_initialiser(_rungs(spec, dim), level_mlp_field(spec.seed, dim, NUM_RUNGS, spec.hidden, spec.activation))


def _lowest_rung(spec: Spec, dim: int, energy: Any) -> Any:
    return condition(energy, 0)


def _recovery(diffusion: Diffusion, shared_noise: bool, spec: Spec, data: Dataset) -> Objective:
    moves, step = spec.moves or RECOVERY_MOVES, spec.step_size or _rung_step(data.dim)
    acceptance = spec.target_acceptance or 0.6
    return recovery_likelihood(
        diffusion, moves, step_size=step, target_acceptance=acceptance, shared_noise=shared_noise
    )


def _down_the_rungs(diffusion: Diffusion, energy: Any, key: Key, starts: Array, time: float) -> Drawn:
    moves, step = max(1, round(time)), _rung_step(starts.shape[1])
    drawn = recovery_sample(key, energy, diffusion, starts, num_steps=moves, step_size=step)
    levels = {"sigma": diffusion.sigmas[-2::-1], "jump_distance": drawn.jump_distance}
    levels |= {} if drawn.acceptance is None else {"acceptance_rate": drawn.acceptance}
    return Drawn(drawn.position / float(diffusion.alphas[0]), drawn.num_gradients / len(starts), levels)


def _rung_step(dim: int) -> float:
    return 0.6 * dim ** (-1 / 3)  # the power is MALA's (Roberts and Rosenthal 1998); at 64 and 2 dimensions 0.6 accept


def _points_and_levels(spec: Spec, dim: int) -> Any:
    return level_mlp(spec.seed, dim, len(JOINT_LEVELS.alphas), spec.hidden, spec.activation)


def _clean_level(spec: Spec, dim: int, energy: Any) -> Any:
    return with_noise(condition(energy, 0), standard_normal(dim))


class LevelChains(NamedTuple):
    """Of chains over points and levels: MALA's step at noise 1, its moves before a level is drawn, and its target."""

    step_size: float
    num_steps: int
    acceptance: float


def level_chains(spec: Spec) -> LevelChains:
    """Return the settings of chains over points and levels that a spec asks for."""
    return LevelChains(spec.step_size or 0.3, spec.moves or 10, spec.target_acceptance or 0.6)


def _assisted(spec: Spec, data: Dataset) -> Objective:
    step, moves, acceptance = level_chains(spec)
    return diffusion_assisted(JOINT_LEVELS, mala(step), moves, num_chains=spec.chains, target_acceptance=acceptance)


def _against_flow(spec: Spec, dim: int) -> Any:
    standard = jnp.stack([jnp.ones(dim), -jnp.ones(dim)])  # rows of mean 0 and spread 1: the data are whitened
    return with_noise(_with_log_z(spec, dim), flow(spec.seed, standard, (max(64, dim),), 2))


def _noisy(spec: Spec, dim: int) -> Any:
    return noise_conditional_mlp(spec.seed, dim, spec.hidden, spec.activation)


def _least_noisy(spec: Spec, dim: int, energy: Any) -> Any:
    """Return the density at the smallest noise level, with a base to anneal from."""
    return with_noise(condition(energy, spec.sigma), standard_normal(dim))


def _ladder(spec: Spec) -> np.ndarray:
    return np.geomspace(LARGEST_SIGMA, spec.sigma, NUM_LEVELS)


def _potential(spec: Spec, dim: int) -> Any:
    return tempered(mlp(spec.seed, dim, spec.hidden, spec.activation), TRANSPORT_TEMPERATURE)


def _transport(spec: Spec, data: Dataset) -> Objective:
    source = standard_normal(data.dim)
    return in_turn(round(0.9 * spec.steps), transport_matching(source), energy_matching(source, weight=0.1))


def _along_transport(energy: Any, key: Key, starts: Array, time: float) -> Drawn:
    moved = transport_langevin(key, energy, [time], starts)
    return Drawn(moved.position[-1], moved.num_gradients / len(starts))


def _field(spec: Spec, dim: int) -> Any:
    return residual_mlp_field(spec.seed, dim, spec.hidden[0], len(spec.hidden), spec.activation, skip=True)


def _downhill(energy: Any, key: Key, starts: Array, time: float) -> Drawn:
    try:
        found = descend(energy, starts, DESCENT_STEP, max(1, round(time / (EQM_SCALE * DESCENT_STEP))))
    except DescentDiverged as error:
        found = error.descent
    return Drawn(found.position, float(np.mean(found.num_gradients)))


def _equilibrium(spec: Spec, data: Dataset) -> Objective:
    return equilibrium_matching(scale=EQM_SCALE)


NOISE_COMPONENTS = 10
NUM_RUNGS, RECOVERY_MOVES = 6, 15
RUNGS, GUESSED_RUNGS = linear_diffusion(NUM_RUNGS), log_snr_diffusion(NUM_RUNGS)
JOINT_LEVELS = cumulative_diffusion(6)
LARGEST_SIGMA, NUM_LEVELS = 4.0, 16
TRANSPORT_TEMPERATURE = 0.05
EQM_SCALE, DESCENT_STEP = 4.0, 0.005
ON_RUNGS = "MALA at each level of noise given the next"
METHODS = {
    "contrastive": Method(_tilted, _contrastive, chains=SPECIFIED),
    "jem": Method(_classifier, _joint, chains=SPECIFIED, labelled=True),
    "improved-cd": Method(_tilted, _improved, chains=SPECIFIED),
    "dcd": Method(_tilted, lambda spec, data: diffusion_contrastive(spec.sigma**2)),
    "sm": Method(_tilted, lambda spec, data: score_matching()),
    "ssm": Method(_tilted, lambda spec, data: sliced_score_matching()),
    "fd-ssm": Method(_tilted, lambda spec, data: finite_difference_score_matching()),
    "dsm": Method(_tilted, lambda spec, data: denoising_score_matching(spec.sigma)),
    "nce": Method(_with_log_z, lambda spec, data: nce(_noise(spec, data), spec.num_noise or 1)),
    "ranking-nce": Method(_tilted, lambda spec, data: ranking_nce(_noise(spec, data), spec.num_noise or 16)),
    "conditional-nce": Method(_tilted, lambda spec, data: conditional_nce(spec.num_noise or 10)),
    "flow-nce": Method(
        _against_flow, lambda spec, data: flow_contrastive(spec.num_noise or 1), lambda spec, dim, pair: pair.energy
    ),
    "dual-sm": Method(_noisy, lambda spec, data: dual_score_matching(spec.sigma, LARGEST_SIGMA), _least_noisy),
    "levels": Method(_noisy, lambda spec, data: noise_level_classification(_ladder(spec), num_levels=2), _least_noisy),
    "drl": Method(
        _rungs,
        partial(_recovery, RUNGS, False),
        _lowest_rung,
        partial(_down_the_rungs, RUNGS),
        RECOVERY_MOVES,
        ON_RUNGS,
    ),
    "cdrl": Method(
        _guessed_rungs,
        partial(_recovery, GUESSED_RUNGS, True),
        _lowest_rung,
        partial(_down_the_rungs, GUESSED_RUNGS),
        RECOVERY_MOVES,
        ON_RUNGS,
    ),
    "da": Method(
        _points_and_levels,
        _assisted,
        _clean_level,
        chains="MALA at levels of noise, persistent, which draw their level anew",
        levels=JOINT_LEVELS,
    ),
    "em": Method(_potential, _transport, draw=_along_transport, horizon=2.0),
    "eqm": Method(_field, _equilibrium, draw=_downhill, horizon=1.7),
    "eqm-dot": Method(lambda spec, dim: dot_energy(_field(spec, dim)), _equilibrium, draw=_downhill, horizon=1.7),
}
