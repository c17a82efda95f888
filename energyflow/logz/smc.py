"""Sequential Monte Carlo: particles carried from base to target by weighing, resampling and moving.

Independent groups of particles run on one frozen schedule, so the mean of their Z is unbiased and their scatter is its
error. The schedule is placed beforehand by a group of its own, to equal effective sample sizes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from energyflow.energy import as_energy
from energyflow.logz.particles import increment, persistent, ratios_of, stage, tempered
from energyflow.logz.path import Path, annealing_path, checked_schedule, pilot, require_annealing_kernel
from energyflow.stats import log_mean_exp
from energyflow.types import Kernel, Key, Tree, as_key

_MAX_STAGES = 1000


class Smc(NamedTuple):
    """Evidence by sequential Monte Carlo.

    log_z: log of the mean of the groups' Z. stderr: its standard error, from the scatter between groups (infinite for
    one group). group_log_z: (G,). betas: (K+1,) from 0 to 1. ess: (K,) effective particles of a group where it is
    weighed to betas[1:], mean over groups. acceptance: (K,) of the moves there. position: the particles at beta 1,
    leading axis [group * particle], equally weighted within a group. num_gradients: everything, the schedule included.
    """

    log_z: float
    stderr: float
    group_log_z: np.ndarray
    betas: np.ndarray
    ess: np.ndarray
    acceptance: np.ndarray
    position: Tree
    num_gradients: int
    mode: str

    def __str__(self) -> str:
        groups = len(self.group_log_z)
        size = len(jax.tree.leaves(self.position)[0]) // groups
        return (
            f"log Z = {self.log_z:.3f} +- {self.stderr:.3f} ({self.mode} SMC, {groups} groups of {size} particles)\n"
            f"{len(self.betas) - 1} temperatures, ESS {self.ess.min():.1f} to {self.ess.max():.1f}, acceptance "
            f"{self.acceptance.min():.2f} to {self.acceptance.max():.2f}, {self.num_gradients} gradients"
        )


def smc(
    key: Key | int,
    target: Any,
    base: Any,
    kernel: Kernel,
    *,
    num_particles: int = 256,
    num_groups: int = 8,
    num_steps: int = 10,
    mode: str = "adaptive",
    target_ess: float = 0.5,
    betas: Any = None,
    tune: bool = True,
) -> Smc:
    """Estimate log Z of exp(-E/T) by sequential Monte Carlo from `base` (Del Moral, Doucet and Jasra 2006).

    target: an energy or a plain function of one point. base: a normalised NumPyro distribution over one point that
    covers it; None for a tilted energy's own. kernel: one with an accept step, `num_steps` transitions a temperature.
    mode: "adaptive" places each temperature where the weights' ESS is `target_ess` of the particles, by bisection in a
    group that is not counted (Jasra et al. 2011); "fixed" takes `betas`, (K+1,) from 0 to 1; "persistent" adapts too,
    then weighs and resamples the particles of all temperatures together (Karamanis et al. 2025: less variance, some
    bias at few particles). tune: fit a step size per temperature beforehand, where the kernel has one.
    Raises ValueError for landscapes, kernels without an accept step, parallel tempering, and bad schedules or modes.
    """
    if mode not in ("adaptive", "fixed", "persistent"):
        raise ValueError(f'mode must be "adaptive", "fixed" or "persistent"; got {mode!r}')
    if (betas is None) == (mode == "fixed"):
        raise ValueError('mode "fixed" needs betas, and the other modes place their own: give betas with "fixed" alone')
    pilot_key, place_key, base_key, run_key = jax.random.split(as_key(key), 4)
    path, kernel = annealing_path(target, base), as_energy(kernel)
    position = path.base.sample(base_key, (num_groups, num_particles))
    require_annealing_kernel(kernel, path.at(1.0), jax.tree.map(lambda x: x[0, 0], position))
    found = pilot(pilot_key, path, kernel) if tune and "step_size" in getattr(kernel, "keywords", {}) else None
    steps_at = functools.partial(_steps_at, found)
    spent = 0 if found is None else found.num_gradients
    if mode == "fixed":
        schedule = checked_schedule(betas)
    else:
        schedule, cost = _place(place_key, path, kernel, steps_at, num_particles, num_steps, target_ess)
        spent += cost
    run = persistent if mode == "persistent" else tempered
    group_log_z, ess, acceptance, position, cost = run(run_key, path, kernel, steps_at, schedule, position, num_steps)
    log_z, stderr = log_mean_exp(group_log_z)
    position = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), position)
    return Smc(log_z, stderr, group_log_z, schedule, ess, acceptance, position, spent + cost, mode)


def _steps_at(found: Any, beta: float) -> Any:
    return None if found is None else jnp.asarray(found.steps(np.array([0.0, beta]))[0], float)


def _place(
    key: Key, path: Path, kernel: Kernel, steps_at: Any, num_particles: int, num_steps: int, target_ess: float
) -> tuple[np.ndarray, int]:
    """Carry one group up the path, each beta where its weights reach the target; returns the betas and the cost."""
    position = path.base.sample(jax.random.fold_in(key, 0), (1, num_particles))
    ratios, betas, spent = ratios_of(path, position), [0.0], 0
    while betas[-1] < 1:
        delta = float(increment(ratios[0], 1.0 - betas[-1], target_ess))
        if not delta > 1e-9 or len(betas) > _MAX_STAGES:
            raise ValueError(
                f"the weights' ESS falls below the target at once beyond beta {betas[-1]:.3g}: use a base that covers "
                "the target, more particles or a smaller target_ess"
            )
        beta = betas[-1] + delta if betas[-1] + delta < 1 - 1e-6 else 1.0
        stage_key = jax.random.fold_in(key, len(betas))
        moved = stage(stage_key, path, kernel, steps_at(beta), position, ratios, beta - betas[-1], beta, num_steps)
        position, ratios, _, _, _, cost = moved
        spent += int(cost)
        betas.append(beta)
    return np.array(betas), spent
