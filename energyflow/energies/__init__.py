"""Floor 2: energies to use and to test with: analytic ones with exact log Z and draws, networks, transforms."""

from energyflow.energies.analytic import funnel, gaussian
from energyflow.energies.bases import bernoulli_base, categorical_base, uniform_spins
from energyflow.energies.classifiers import class_logits, classifier_energy
from energyflow.energies.discrete import rbm, rbm_marginal
from energyflow.energies.fields import (
    dot_energy,
    field,
    line_energy,
    mlp_field,
    mlp_velocity,
    norm_energy,
    residual_mlp_field,
    sum_landscapes,
)
from energyflow.energies.fitted import drawn_noise, gaussian_base, mixture_base
from energyflow.energies.flows import flow
from energyflow.energies.interacting import interacting
from energyflow.energies.lattices import ising
from energyflow.energies.levels import level_mlp, level_mlp_field
from energyflow.energies.mixtures import eight_gaussians, gaussian_mixture, gmm40, student_mixture
from energyflow.energies.modules import from_apply, from_nnx, to_nnx
from energyflow.energies.multiscale import average_pool, multiscale, multiscale_cnn, pooled_shapes
from energyflow.energies.nets import cnn, mlp, residual_cnn
from energyflow.energies.noisy import noise_conditional_mlp
from energyflow.energies.rings import rings
from energyflow.energies.transforms import bounded, transformed
from energyflow.energies.unet import unet_field
from energyflow.energies.wells import double_well, four_wells, many_well
from energyflow.energies.zoo import stiff_gaussian, zoo

__all__ = [
    "average_pool",
    "bernoulli_base",
    "bounded",
    "categorical_base",
    "class_logits",
    "classifier_energy",
    "cnn",
    "dot_energy",
    "double_well",
    "drawn_noise",
    "eight_gaussians",
    "field",
    "flow",
    "four_wells",
    "from_apply",
    "from_nnx",
    "funnel",
    "gaussian",
    "gaussian_base",
    "gaussian_mixture",
    "gmm40",
    "interacting",
    "ising",
    "level_mlp",
    "level_mlp_field",
    "line_energy",
    "many_well",
    "mixture_base",
    "mlp",
    "mlp_field",
    "mlp_velocity",
    "multiscale",
    "multiscale_cnn",
    "noise_conditional_mlp",
    "norm_energy",
    "pooled_shapes",
    "rbm",
    "rbm_marginal",
    "residual_cnn",
    "residual_mlp_field",
    "rings",
    "stiff_gaussian",
    "student_mixture",
    "sum_landscapes",
    "to_nnx",
    "transformed",
    "unet_field",
    "uniform_spins",
    "zoo",
]
