"""Judging a classifier that is a density too: whether its classes are right, and how sure it should have been."""

from typing import Any

import numpy as np

from energyflow.evaluation import classify, linear_probe
from energyflow.loaders import Dataset

PROBED = 5000
"""Rows that the linear classifier beside it is fitted to, at most."""


def judge_classes(energy: Any, data: Dataset, seed: int) -> dict[str, Any] | None:
    """Return accuracy, likelihood and calibration on the labelled test rows, None where no test row has a label.

    Beside them the accuracy of a linear classifier of the whitened rows.
    """
    assert data.labels is not None
    z = {part: data.scaling.to_z(data.part_x(part, seed)) for part in ("train", "test")}
    found = classify(energy, z["test"], data.labels.test)
    if found is None:
        return None
    figures = found._asdict()
    bins = figures.pop("reliability")._asdict()
    linear = _linear_accuracy(z, data.labels.train, data.labels.test)
    return figures | {"linear_accuracy": linear, "reliability": {name: list(v) for name, v in bins.items()}}


def _linear_accuracy(z: dict[str, np.ndarray], train: np.ndarray, test: np.ndarray) -> float | None:
    rows, known = np.flatnonzero(train >= 0)[:PROBED], test >= 0
    try:
        return linear_probe(z["train"][rows], train[rows], z["test"][known], test[known])
    except ValueError:  # one class among the labelled rows, or a fit that does not settle
        return None
