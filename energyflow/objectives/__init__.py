"""Floor 5: training objectives, one file per family."""

from energyflow.objectives.contrastive import contrastive
from energyflow.objectives.score import (
    denoising_score_matching,
    finite_difference_score_matching,
    score_matching,
    sliced_score_matching,
)
from energyflow.objectives.stateless import stateless

__all__ = [
    "contrastive",
    "denoising_score_matching",
    "finite_difference_score_matching",
    "score_matching",
    "sliced_score_matching",
    "stateless",
]
