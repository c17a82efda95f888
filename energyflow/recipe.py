"""From a spec to the objects of a run: energy, objective, optimiser; one table row per sampler and per objective."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

from energyflow import kernels, negatives, stepsize, walkers
from energyflow.descent import DescentDiverged, descend
from energyflow.diffusion import Diffusion, linear_diffusion, log_snr_diffusion
from energyflow.energies.fields import dot_energy, residual_mlp_field
from energyflow.energies.fitted import mixture_base
from energyflow.energies.flows import flow
from energyflow.energies.levels import level_mlp, level_mlp_field
from energyflow.energies.nets import mlp
from energyflow.energies.noisy import noise_conditional_mlp
from energyflow.energy import Conditioned, condition, normalised, tempered, tilt, with_noise
from energyflow.loaders import Dataset
from energyflow.objectives import (
    conditional_nce,
    contrastive,
    denoising_score_matching,
    diffusion_contrastive,
    dual_score_matching,
    energy_matching,
    equilibrium_matching,
    finite_difference_score_matching,
    flow_contrastive,
    improved_contrastive,
    in_turn,
    nce,
    noise_level_classification,
    ranking_nce,
    recovery_likelihood,
    score_matching,
    sliced_score_matching,
    transport_matching,
)
from energyflow.recovery import recovery_sample, with_initialiser
from energyflow.spec import Spec
from energyflow.stats import log_mean_exp
from energyflow.transport import transport_langevin
from energyflow.types import Array, Kernel, Key, Negatives, Objective


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
    """An objective by name: what it trains, (spec, dim) -> energy, its loss, (spec, data) -> objective, what is judged.

    judged: (spec, dim, trained) -> a density with a base. draw: for what is no density, (trained, key, starts, time) ->
    draws and gradients a draw. horizon: its usual time.
    """

    energy: Callable[[Spec, int], Any]
    objective: Callable[[Spec, Dataset], Objective]
    judged: Callable[[Spec, int, Any], Any] = lambda spec, dim, energy: energy
    draw: Callable[[Any, Key, Array, float], tuple[Array, float]] | None = None
    horizon: float = 0.0


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


def _down_the_rungs(diffusion: Diffusion, energy: Any, key: Key, starts: Array, time: float) -> tuple[Array, float]:
    moves, step = max(1, round(time)), _rung_step(starts.shape[1])
    ladder = energy.energy if isinstance(energy, Conditioned) else energy  # judged as its lowest level
    drawn = recovery_sample(key, ladder, diffusion, starts, num_steps=moves, step_size=step)
    return drawn.position / float(diffusion.alphas[0]), drawn.num_gradients / len(starts)


def _rung_step(dim: int) -> float:
    return 0.6 * dim ** (-1 / 3)  # the power is MALA's (Roberts and Rosenthal 1998); at 64 and 2 dimensions 0.6 accept


def _against_flow(spec: Spec, dim: int) -> Any:
    standard = jnp.stack([jnp.ones(dim), -jnp.ones(dim)])  # rows of mean 0 and spread 1: the data are whitened
    return with_noise(_with_log_z(spec, dim), flow(spec.seed, standard, (max(64, dim),), 2))


def _noisy(spec: Spec, dim: int) -> Any:
    return noise_conditional_mlp(spec.seed, dim, spec.hidden, spec.activation)


def _least_noisy(spec: Spec, dim: int, energy: Any) -> Any:
    """Return the density at the smallest noise level, with a base to anneal from."""
    return with_noise(condition(energy, spec.sigma), _base(dim))


def _ladder(spec: Spec) -> np.ndarray:
    return np.geomspace(LARGEST_SIGMA, spec.sigma, NUM_LEVELS)


def _potential(spec: Spec, dim: int) -> Any:
    return tempered(mlp(spec.seed, dim, spec.hidden, spec.activation), TRANSPORT_TEMPERATURE)


def _transport(spec: Spec, data: Dataset) -> Objective:
    source = _base(data.dim)
    return in_turn(round(0.9 * spec.steps), transport_matching(source), energy_matching(source, weight=0.1))


def _along_transport(energy: Any, key: Key, starts: Array, time: float) -> tuple[Array, float]:
    moved = transport_langevin(key, energy, [time], starts)
    return moved.position[-1], moved.num_gradients / len(starts)


def _field(spec: Spec, dim: int) -> Any:
    return residual_mlp_field(spec.seed, dim, spec.hidden[0], len(spec.hidden), spec.activation, skip=True)


def _downhill(energy: Any, key: Key, starts: Array, time: float) -> tuple[Array, float]:
    try:
        found = descend(energy, starts, DESCENT_STEP, max(1, round(time / (EQM_SCALE * DESCENT_STEP))))
    except DescentDiverged as error:
        found = error.descent
    return found.position, float(np.mean(found.num_gradients))


def _equilibrium(spec: Spec, data: Dataset) -> Objective:
    return equilibrium_matching(scale=EQM_SCALE)


WITH_NEGATIVES = "contrastive", "improved-cd"
NOISE_COMPONENTS = 10
NUM_RUNGS, RECOVERY_MOVES = 6, 15
RUNGS, GUESSED_RUNGS = linear_diffusion(NUM_RUNGS), log_snr_diffusion(NUM_RUNGS)
LARGEST_SIGMA, NUM_LEVELS = 4.0, 16
TRANSPORT_TEMPERATURE = 0.05
EQM_SCALE, DESCENT_STEP = 4.0, 0.005
METHODS = {
    "contrastive": Method(_tilted, _contrastive),
    "improved-cd": Method(_tilted, _improved),
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
        _rungs, partial(_recovery, RUNGS, False), _lowest_rung, partial(_down_the_rungs, RUNGS), RECOVERY_MOVES
    ),
    "cdrl": Method(
        _guessed_rungs,
        partial(_recovery, GUESSED_RUNGS, True),
        _lowest_rung,
        partial(_down_the_rungs, GUESSED_RUNGS),
        RECOVERY_MOVES,
    ),
    "em": Method(_potential, _transport, draw=_along_transport, horizon=2.0),
    "eqm": Method(_field, _equilibrium, draw=_downhill, horizon=1.7),
    "eqm-dot": Method(lambda spec, dim: dot_energy(_field(spec, dim)), _equilibrium, draw=_downhill, horizon=1.7),
}


def build_energy(spec: Spec, dim: int) -> Any:
    """Return the energy before training, over whitened coordinates (dim,)."""
    return METHODS[spec.objective].energy(spec, dim)


def judged(spec: Spec, dim: int, energy: Any) -> Any:
    """Return the density that a trained energy stands for, with a base; a potential or a landscape as it is."""
    return METHODS[spec.objective].judged(spec, dim, energy)


def horizon(spec: Spec) -> float:
    """Return the time that draws of a potential or a landscape are moved for."""
    return spec.horizon or METHODS[spec.objective].horizon


def draw(spec: Spec, energy: Any, key: Key, num: int, dim: int, time: float) -> tuple[Array, float]:
    """Return `num` draws of a potential or a landscape, whitened, moved from noise for `time`, and gradients a draw."""
    start_key, move_key = jax.random.split(key)
    move = METHODS[spec.objective].draw
    if move is None:
        raise ValueError(f"{spec.objective} trains a density: sample it by chains")
    return move(energy, move_key, _base(dim).sample(start_key, (num,)), time)


def whitening(spec: Spec) -> str:
    """Return how data are whitened; what starts at noise keeps the data's own shape unless asked otherwise."""
    if spec.whiten == "auto" and METHODS[spec.objective].draw is not None:
        return "none"
    return spec.whiten


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
    decay = spec.weight_decay
    if decay is None:
        decay = 1.0 if METHODS[spec.objective].draw is None else 0.0
    return optax.adamw(schedule, weight_decay=decay, mask=_decays)


def _decays(weights: Any) -> Any:
    """A single number, such as a trained log Z, is no weight to keep small."""
    return jax.tree.map(lambda w: jnp.ndim(w) > 0, weights)


def describe(spec: Spec, kernel_temperature: float, adjusted: bool) -> dict[str, Any]:
    """Return what a report says of the objective, and of its sampler where it has one."""
    if spec.objective not in WITH_NEGATIVES:
        return {"objective": spec.objective, "temperature": 1.0}
    return {
        "objective": spec.objective,
        "kernel": spec.sampler,
        "negatives": spec.negatives,
        "temperature": kernel_temperature,
        "adjusted": adjusted,
    }
