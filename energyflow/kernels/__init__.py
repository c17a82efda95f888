"""Floor 2: kernels turn a log density into moves; swapping one is one token."""

from energyflow.kernels.algorithm import adapt, bind, is_adjusted, step_size, with_step_size
from energyflow.kernels.barker_walk import barker
from energyflow.kernels.continuous import (
    adjusted_mclmc,
    dynamic_hmc,
    elliptical_slice,
    ghmc,
    hmc,
    mala,
    nuts,
    rmh,
    slice_sampling,
)
from energyflow.kernels.langevin import langevin, langevin_temperature, mclmc, sgld, ula

__all__ = [
    "adapt",
    "adjusted_mclmc",
    "barker",
    "bind",
    "dynamic_hmc",
    "elliptical_slice",
    "ghmc",
    "hmc",
    "is_adjusted",
    "langevin",
    "langevin_temperature",
    "mala",
    "mclmc",
    "nuts",
    "rmh",
    "sgld",
    "slice_sampling",
    "step_size",
    "ula",
    "with_step_size",
]
