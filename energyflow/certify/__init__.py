"""Floor 8: after training, judge what was trained as what it is, and say it in one sentence."""

from pathlib import Path
from typing import Any

from energyflow import recipe
from energyflow.certify.density import certify_density
from energyflow.certify.draws import certify_draws
from energyflow.fit import Progress
from energyflow.loaders import Dataset
from energyflow.spec import Spec

__all__ = ["certify"]


def certify(
    spec: Spec, data: Dataset, reached: Progress, ended: str, folder: Path, *, progress: bool
) -> dict[str, Any]:
    """Evaluate the best averaged weights; writes the files that their kind has and returns the summary.

    A density is judged by a bracket of its log Z and by long chains; a potential or a landscape by the draws that it is
    for, since it has no likelihood.
    """
    judge = certify_density if recipe.method(spec).draw is None else certify_draws
    return judge(spec, data, reached, ended, folder, progress=progress)
