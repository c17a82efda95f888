"""Floor 5: training objectives, one file per family."""

from energyflow.objectives.contrastive import contrastive
from energyflow.objectives.nce import conditional_nce, flow_contrastive, maximum_likelihood, nce, ranking_nce
from energyflow.objectives.score import (
    denoising_score_matching,
    finite_difference_score_matching,
    score_matching,
    sliced_score_matching,
)
from energyflow.objectives.stateless import stateless
from energyflow.objectives.students import mean_flow, one_step, reverse_kl

__all__ = [
    "conditional_nce",
    "contrastive",
    "denoising_score_matching",
    "finite_difference_score_matching",
    "flow_contrastive",
    "maximum_likelihood",
    "mean_flow",
    "nce",
    "one_step",
    "ranking_nce",
    "reverse_kl",
    "score_matching",
    "sliced_score_matching",
    "stateless",
]
