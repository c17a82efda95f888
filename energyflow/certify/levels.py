"""Judging an energy of points and noise levels: by chains over both, and by the log Z that they give away."""

from typing import Any

import jax
import numpy as np

from energyflow import recipe
from energyflow.certify.summary import NUM_DRAWS, rows_of
from energyflow.fit import Progress
from energyflow.joint_levels import free_log_z, joint_chain
from energyflow.kernels import mala
from energyflow.loaders import Dataset
from energyflow.spec import Spec
from energyflow.stats import energy_distance
from energyflow.types import Key

NUM_CHAINS, NUM_ROUNDS, WARMUP = 128, 200, 50


def judge_levels(key: Key, spec: Spec, data: Dataset, reached: Progress) -> dict[str, Any]:
    """Return what chains that go on from those of training do at each level, and log Z by their end at the noise.

    The energy distance is that of their points of the clean level from the test rows.
    """
    levels, chains = recipe.method(spec).levels, reached.state.objective_state
    assert levels is not None
    settings = recipe.level_chains(spec)
    chain_key, log_z_key, pick_key = jax.random.split(key, 3)
    rows = np.linspace(0, len(chains.level) - 1, min(NUM_CHAINS, len(chains.level))).astype(int)
    trace = joint_chain(
        chain_key,
        reached.best,
        levels,
        chains.position[rows],
        chains.level[rows],
        mala(settings.step_size),
        NUM_ROUNDS,
        num_steps=settings.num_steps,
        step_scales=chains.steps.scales,
        target_acceptance=settings.acceptance,
        warmup=WARMUP,
    )
    share = np.bincount(trace.level.ravel(), minlength=len(levels.sigmas)) / trace.level.size
    table = {"sigma": levels.sigmas, "share": share, "acceptance_rate": trace.acceptance_rate}
    found: dict[str, Any] = {"rows": rows_of(table), "level_moves": trace.level_moves, "drift": trace.energy_drift}
    if min(share[0], share[-1]) > 0:
        free = free_log_z(log_z_key, reached.best, levels, trace.position, trace.level)
        value, stderr = free.corrected
        found["log_z"] = free._asdict() | {"corrected": value, "corrected_error": stderr}
    clean = data.scaling.from_z(trace.at(0))
    if len(clean) >= 2:
        test, train = (data.part_x(part, spec.seed)[:NUM_DRAWS] for part in ("test", "train"))
        picked = np.asarray(jax.random.permutation(pick_key, len(clean)))[:NUM_DRAWS]
        distances = energy_distance(clean[picked], test), energy_distance(train, test)
        found |= dict(zip(("energy_distance", "floor"), distances, strict=True)) | {"num": len(picked)}
    return found
