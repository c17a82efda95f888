"""What every summary holds, and how it becomes JSON."""

from importlib.metadata import version
from typing import Any

import numpy as np

from energyflow.fit import Progress
from energyflow.loaders import Dataset

NUM_DRAWS = 1024
"""Of draws and of test rows compared: the energy distance takes the square of both."""


def opening(data: Dataset, reached: Progress, ended: str, kind: str) -> dict[str, Any]:
    """Return what was trained, on what, and how it ended."""
    return {
        "name": data.name,
        "version": version("energyflow-jax"),
        "kind": kind,
        "steps": int(reached.state.step),
        "best_step": int(reached.best_step),
        "stopped": ended,
        "data": _describe(data),
    }


def _describe(data: Dataset) -> dict[str, Any]:
    scaling = data.scaling.describe()
    return {
        "dim": data.dim,
        "shape": list(data.shape),
        "num_train": len(data.train),
        "num_validation": len(data.validation),
        "num_test": len(data.test),
        "description": f"{scaling['data_units']}; {scaling['whitening']} whitening",
    }


def rows_of(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Return {name: values (n,)} as n rows."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def plain(value: Any) -> Any:
    """Return JSON-ready values: NumPy scalars as Python's, what is not finite as None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.floating, np.integer, np.bool_)):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
