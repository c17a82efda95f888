"""A run of seconds, whole from the command line to the report: what the tests of run folders share."""

import contextlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from energyflow.cli import main

# The optimiser, the base of a tilt, and the diagnostics; see ALLOWED in conftest.py.
LENIENT = [pytest.mark.lenient("optax", "numpyro"), pytest.mark.blackjax_promotes("dual_averaging")]
SETTINGS = {
    "steps": 40,
    "batch_size": 32,
    "chains": 64,
    "hidden": (16,),
    "evaluate_every": 20,
    "checkpoint_every": 10,
    "temperatures": 100,
    "annealing_chains": 64,
    "draws": 20,
    "thin": 5,
}


def rows(path: Path) -> Path:
    """Save 400 rows of two dimensions: two groups, and a second dimension that depends on the first."""
    rng = np.random.default_rng(0)
    side = np.sign(rng.normal(size=400))
    first = 3 * side + rng.normal(size=400)
    np.save(path, np.column_stack([first, 0.5 * first + rng.normal(size=400)]))
    return path


def words(**settings: object) -> list[str]:
    """Return `SETTINGS`, changed by `settings`, as words of the command line."""
    flat = []
    for name, value in (SETTINGS | settings).items():
        values = value if isinstance(value, tuple) else (value,)
        flat += ["--" + name.replace("_", "-"), *map(str, values)]
    return flat


_optimizers: dict[tuple, object] = {}


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """Compile a training step once for all runs of one length, and fit two mixtures instead of ten.

    An optimiser is part of the compiled step by identity, and a new one is built for every run.
    """
    recipe = importlib.import_module("energyflow.recipe")  # here, because conftest.py imports this module
    build = recipe.build_optimizer

    def shared(spec):
        settings = spec.learning_rate, spec.weight_decay, spec.steps, spec.objective
        if settings not in _optimizers:
            _optimizers[settings] = build(spec)
        return _optimizers[settings]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "build_optimizer", shared)
        patch.setattr("energyflow.comparisons.MIXTURES", [("diag", 5), ("full", 5)])
        yield


def train(folder: Path, seed: int) -> Path:
    """Train on `rows` in `folder`, by the command line; returns the run folder."""
    data, out = rows(folder / "rows.npy"), folder / "run"
    with quickly():
        assert main(["train", str(data), "--out", str(out), "--quiet", "--seed", str(seed), *words()]) == 0
    return out


def summary(folder: Path) -> dict:
    """Return the summary of a run folder."""
    return json.loads((folder / "summary.json").read_text())


def leaves(path: Path) -> dict[str, tuple[str, bytes]]:
    """Return {name: (dtype, bytes)} of a checkpoint: two of them are equal where they are bit for bit the same.

    The order of leaves in the file is not compared: NumPyro's distributions are flattened in one that differs from
    process to process.
    """
    with np.load(path) as file:
        manifest = json.loads(file["manifest"].tobytes())
        return {
            name: (f"{dtype}{shape}", file[f"leaf{i}"].tobytes())
            for i, (name, shape, dtype) in enumerate(manifest["leaves"])
        }
