"""Floor 2: energies to use and to test with: analytic ones with exact log Z and draws, networks, transforms."""

from energyflow.energies.analytic import funnel, gaussian
from energyflow.energies.bases import bernoulli_base, categorical_base, uniform_spins
from energyflow.energies.discrete import rbm, rbm_marginal
from energyflow.energies.fitted import drawn_noise, gaussian_base, mixture_base
from energyflow.energies.flows import flow
from energyflow.energies.lattices import ising
from energyflow.energies.mixtures import eight_gaussians, gaussian_mixture, gmm40, student_mixture
from energyflow.energies.modules import from_apply, from_nnx, to_nnx
from energyflow.energies.nets import classifier_energy, cnn, mlp, residual_cnn
from energyflow.energies.rings import rings
from energyflow.energies.transforms import bounded, transformed
from energyflow.energies.wells import double_well, four_wells, many_well
from energyflow.energies.zoo import stiff_gaussian, zoo

__all__ = [
    "bernoulli_base",
    "bounded",
    "categorical_base",
    "classifier_energy",
    "cnn",
    "double_well",
    "drawn_noise",
    "eight_gaussians",
    "flow",
    "four_wells",
    "from_apply",
    "from_nnx",
    "funnel",
    "gaussian",
    "gaussian_base",
    "gaussian_mixture",
    "gmm40",
    "ising",
    "many_well",
    "mixture_base",
    "mlp",
    "rbm",
    "rbm_marginal",
    "residual_cnn",
    "rings",
    "stiff_gaussian",
    "student_mixture",
    "to_nnx",
    "transformed",
    "uniform_spins",
    "zoo",
]
