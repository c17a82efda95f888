"""Floor 8: reading a run folder, whatever a run that was cut short left of it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from energyflow.chains import Trace
from energyflow.diagnostics import read_trace


class Run(NamedTuple):
    """What a run folder holds; what it lacks is empty, or None for `draws`, and `absent` says why.

    spec, summary: nested dicts. metrics: a list of dicts. samples, logz: {name: array}. draws: a Trace.
    absent: {file name: "is missing" or "cannot be read (why)"}.
    """

    spec: dict[str, Any]
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    samples: dict[str, np.ndarray]
    logz: dict[str, np.ndarray]
    draws: Trace | None
    absent: dict[str, str]


def read_run(folder: str | Path) -> Run:
    """Read every file of a run folder that is there and whole.

    Raises FileNotFoundError where the folder itself does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no run folder at {folder}")
    absent: dict[str, str] = {}

    def read(name: str, reader: Callable[[Path], Any], empty: Any) -> Any:
        if not (folder / name).is_file():
            absent[name] = "is missing"
            return empty
        try:
            return reader(folder / name)
        except Exception as error:  # a file cut off anywhere raises whatever its library pleases
            absent[name] = f"cannot be read ({type(error).__name__})"
            return empty

    return Run(
        read("spec.json", _read_json, {}),
        read("summary.json", _read_json, {}),
        read("metrics.jsonl", _read_rows, []),
        read("samples.npz", _read_arrays, {}),
        read("logz.npz", _read_arrays, {}),
        read("draws.nc", read_trace, None),
        absent,
    )


def _read_json(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; those that do not parse are skipped: a killed run leaves half a line."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file) as archive:
        return {name: archive[name] for name in archive.files}


def get(tree: Any, *names: str) -> Any:
    """Return `tree[names[0]][names[1]]...`, None where a level is missing or no dict."""
    for name in names:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree
