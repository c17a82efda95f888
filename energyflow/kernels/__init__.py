"""Floor 2: kernels turn a log density into moves; swapping one is one token."""

from energyflow.kernels.algorithm import adapt, bind, is_adjusted, name_of, step_size, with_settings, with_step_size
from energyflow.kernels.conditionals import block_gibbs, gibbs
from energyflow.kernels.continuous import (
    adjusted_mclmc,
    dynamic_hmc,
    elliptical_slice,
    ghmc,
    hmc,
    mala,
    nuts,
    slice_sampling,
)
from energyflow.kernels.discrete import dmala, dula, gibbs_with_gradients
from energyflow.kernels.ladders import geometric_ladder, tune_ladder
from energyflow.kernels.langevin import (
    langevin,
    langevin_temperature,
    mclmc,
    ramped_langevin,
    sgld,
    temperature_ramp,
    ula,
)
from energyflow.kernels.metropolis import barker, rmh
from energyflow.kernels.tempering import parallel_tempering

__all__ = [
    "adapt",
    "adjusted_mclmc",
    "barker",
    "bind",
    "block_gibbs",
    "dmala",
    "dula",
    "dynamic_hmc",
    "elliptical_slice",
    "geometric_ladder",
    "ghmc",
    "gibbs",
    "gibbs_with_gradients",
    "hmc",
    "is_adjusted",
    "langevin",
    "langevin_temperature",
    "mala",
    "mclmc",
    "name_of",
    "nuts",
    "parallel_tempering",
    "ramped_langevin",
    "rmh",
    "sgld",
    "slice_sampling",
    "step_size",
    "temperature_ramp",
    "tune_ladder",
    "ula",
    "with_settings",
    "with_step_size",
]
