"""Floor 7: pictures, as pure functions from arrays, traces and results to a matplotlib `Figure`.

Save one with `figure.savefig("picture.png")`. Nothing here touches pyplot's global state.
"""

from energyflow.plots.chains import acceptance_plot, energy_trace, landscape, rank_plot, trace_plot
from energyflow.plots.model import (
    annealing_plot,
    energy_histogram,
    marginals,
    reliability_plot,
    sample_grid,
    scatter_2d,
    scatter_panels,
    training_curves,
)

__all__ = [
    "acceptance_plot",
    "annealing_plot",
    "energy_histogram",
    "energy_trace",
    "landscape",
    "marginals",
    "rank_plot",
    "reliability_plot",
    "sample_grid",
    "scatter_2d",
    "scatter_panels",
    "trace_plot",
    "training_curves",
]
