"""Floor 5: training objectives, one file per family."""

from energyflow.objectives.contrastive import contrastive
from energyflow.objectives.stateless import stateless

__all__ = ["contrastive", "stateless"]
