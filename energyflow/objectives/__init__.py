"""Floor 5: training objectives, one file per family."""

from energyflow.objectives.contrastive import contrastive
from energyflow.objectives.diffusion_assisted import diffusion_assisted
from energyflow.objectives.diffusion_cd import diffusion_contrastive
from energyflow.objectives.dual_score import dual_score_matching, normalise_at
from energyflow.objectives.energy_matching import energy_matching, transport_matching
from energyflow.objectives.equilibrium import equilibrium_matching
from energyflow.objectives.improved_cd import improved_contrastive, nearest_neighbour_entropy
from energyflow.objectives.joint import from_class_gaussians, joint, mutual_information, sharpness_aware
from energyflow.objectives.level_classification import noise_level_classification
from energyflow.objectives.nce import conditional_nce, flow_contrastive, maximum_likelihood, nce, ranking_nce
from energyflow.objectives.recovery import published_recovery, recovery_likelihood
from energyflow.objectives.score import (
    denoising_score_matching,
    finite_difference_score_matching,
    score_matching,
    sliced_score_matching,
)
from energyflow.objectives.stateless import in_turn, stateless
from energyflow.objectives.students import mean_flow, one_step, reverse_kl

__all__ = [
    "conditional_nce",
    "contrastive",
    "denoising_score_matching",
    "diffusion_assisted",
    "diffusion_contrastive",
    "dual_score_matching",
    "energy_matching",
    "equilibrium_matching",
    "finite_difference_score_matching",
    "flow_contrastive",
    "from_class_gaussians",
    "improved_contrastive",
    "in_turn",
    "joint",
    "maximum_likelihood",
    "mean_flow",
    "mutual_information",
    "nce",
    "nearest_neighbour_entropy",
    "noise_level_classification",
    "normalise_at",
    "one_step",
    "published_recovery",
    "ranking_nce",
    "recovery_likelihood",
    "reverse_kl",
    "score_matching",
    "sharpness_aware",
    "sliced_score_matching",
    "stateless",
    "transport_matching",
]
