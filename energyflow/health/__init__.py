"""Floor 7: what ails a run in training, by name, and a guard that goes back, repairs it and goes on.

for state, metrics in guard(state, objective, optimizer, batches):  # optimizer = slowable(optax.adam(1e-3))
    ...                                                            # as with `train`; what cannot be repaired raises
"""

from energyflow.health.detectors import (
    Alarm,
    energy_explosion,
    examine,
    long_run_collapse,
    mode_collapse,
    oscillation,
    out_of_distribution,
    poor_samples,
    watch,
)
from energyflow.health.guarding import Event, guard
from energyflow.health.remedies import REMEDIES, Run, slowable
from energyflow.health.views import View, look

__all__ = [
    "REMEDIES",
    "Alarm",
    "Event",
    "Run",
    "View",
    "energy_explosion",
    "examine",
    "guard",
    "long_run_collapse",
    "look",
    "mode_collapse",
    "oscillation",
    "out_of_distribution",
    "poor_samples",
    "slowable",
    "watch",
]
