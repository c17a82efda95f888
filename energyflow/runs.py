"""Run folders: start, resume and certify a training run, and load what it left.

A run is a folder: spec.json, scaling.npz, metrics.jsonl, checkpoint.npz, energy.npz (the weights that were evaluated),
samples.npz, draws.nc, logz.npz, summary.json and report.html.
"""

import dataclasses
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from energyflow import checkpoint, recipe
from energyflow.certify import certify
from energyflow.chains import advance_chains
from energyflow.energy import logdensity, require_density
from energyflow.evaluation import batch_logits
from energyflow.fit import fit
from energyflow.loaders import Dataset, Scaling
from energyflow.spec import Spec
from energyflow.types import Key, as_key


class Run(NamedTuple):
    """What a finished run left: its spec, what it trained (over whitened coordinates), scaling and summary.

    energy: what is judged, a function of one point. trained: the weights as they were trained, which are the same but
    for energies of several noise levels and of a flow beside them.
    """

    folder: Path
    spec: Spec
    energy: Any
    trained: Any
    scaling: Scaling
    summary: dict[str, Any]

    def log_density(self, x: Any) -> np.ndarray:
        """Return the normalised log densities (n,) of rows x (n, ...) in data units, with the central log Z.

        The bracket of log Z, `summary["log_z"]`, shifts them all by the same unknown amount.
        """
        require_density(self.energy, "a log density")
        if self.summary.get("log_z") is None:
            raise ValueError("this run trained a potential or a ladder of levels, which has no log Z")
        z = self.scaling.to_z(np.asarray(x, np.float64).reshape(len(x), -1))
        values = -np.asarray(jax.vmap(self.energy)(z), np.float64)
        return values - self.summary["log_z"]["estimate"] - self.scaling.log_det

    def class_probabilities(self, x: Any) -> np.ndarray:
        """Return p(y|x), (n, num_classes), of rows x (n, ...) in data units, for a run that trained a classifier."""
        z = self.scaling.to_z(np.asarray(x, np.float64).reshape(len(x), -1))
        return softmax(batch_logits(self.energy, z), axis=1)

    def sample(self, key: Key | int, num: int) -> np.ndarray:
        """Return `num` new draws (num, d) in data units.

        Of a density: kept chains, resampled and moved 200 more transitions; of a potential or a landscape: from noise.
        """
        key = as_key(key)
        if recipe.method(self.spec).draw is not None:
            dim = len(self.scaling.center)
            drawn = recipe.draw(self.spec, self.trained, key, num, dim, recipe.horizon(self.spec))
            return self.scaling.from_z(np.asarray(drawn.position))
        pick, move = jax.random.split(key)
        with np.load(self.folder / "samples.npz") as file:
            kept = self.scaling.to_z(file["samples"])
        rows = np.asarray(jax.random.randint(pick, (num,), 0, len(kept)))
        kernel = recipe.SAMPLERS["mala"].build(self.summary["sampler"]["step_size"])
        z, _ = advance_chains(move, kernel, logdensity(self.energy), jnp.asarray(kept[rows]), 200)
        return self.scaling.from_z(np.asarray(z))


def start_run(spec: Spec, folder: Path, *, command: str = "", progress: bool = True) -> str:
    """Train `spec` in a new folder and certify the result. Returns how training ended (see `energyflow.fit.fit`).

    Raises FileExistsError where the folder holds a run already, ValueError for data that cannot be used.
    """
    spec.validate()
    if (folder / "spec.json").exists():
        raise FileExistsError(f"{folder} holds a run already; resume it, or choose another --out")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose another --out")
    if spec.data != "digits":
        spec = dataclasses.replace(spec, data=str(Path(spec.data).resolve()))
    data = recipe.read_data(spec)
    spec = recipe.settled(spec, data)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(folder / "scaling.npz", data.scaling)
    record = {"settings": spec.to_dict(), "version": version("energyflow-jax"), "command": command}
    record["data"] = {
        "name": data.name,
        "shape": list(data.shape),
        "rows": _rows(data),
        "scaling": data.scaling.describe(),
    }
    _write_json(folder / "spec.json", record)
    return _train_and_certify(spec, data, folder, resume=False, progress=progress)


def resume_run(folder: Path, *, progress: bool = True) -> str:
    """Go on with the run in `folder` from its last checkpoint. Returns how training ended.

    Raises ValueError for a folder that is no run, and where the data are no longer those that the run began with.
    """
    spec = read_spec(folder)
    data = recipe.read_data(spec)
    scaling = read_scaling(folder)
    if not scaling.agrees(data.scaling):
        raise ValueError(f"{spec.data} has changed since the run in {folder} began: restore it, or start a new run")
    spec, data = recipe.settled(spec, data), data._replace(scaling=scaling)
    return _train_and_certify(spec, data, folder, resume=True, progress=progress)


def _train_and_certify(spec: Spec, data: Dataset, folder: Path, *, resume: bool, progress: bool) -> str:
    began = time.perf_counter()
    reached, ended = fit(spec, data, folder, resume=resume, progress=progress)
    if ended in ("interrupted", "terminated"):
        return ended
    checkpoint.save(folder / "energy.npz", reached.best)
    summary = certify(spec, data, reached, ended, folder, progress=progress)
    _write_json(folder / "summary.json", summary | {"seconds": round(time.perf_counter() - began, 1)})
    return ended


def read_spec(folder: Path) -> Spec:
    """Return the spec of a run folder. Raises ValueError where there is none."""
    path = folder / "spec.json"
    if not path.exists():
        raise ValueError(f"{folder} is not a run folder: it has no spec.json")
    return Spec.from_dict(json.loads(path.read_text())["settings"])


def load_run(folder: str | Path) -> Run:
    """Load a finished run. Raises ValueError for a folder that is not one, or whose training has not ended."""
    folder = Path(folder)
    spec = read_spec(folder)
    if not (folder / "summary.json").exists():
        raise ValueError(f"{folder} has not finished: resume it first")
    shape = json.loads((folder / "spec.json").read_text())["data"]["shape"]
    dim = int(np.prod(shape))
    trained = checkpoint.load(folder / "energy.npz", recipe.build_energy(spec, dim))
    summary = json.loads((folder / "summary.json").read_text())
    return Run(folder, spec, recipe.judged(spec, dim, trained), trained, read_scaling(folder), summary)


def read_scaling(folder: Path) -> Scaling:
    """Return the scaling a run was trained with."""
    with np.load(folder / "scaling.npz") as file:
        levels, low, high, center, factor = (file[f"leaf{i}"] for i in range(5))
    return Scaling(int(levels), float(low), float(high), center, factor)


def _rows(data: Dataset) -> dict[str, int]:
    return {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}


def _write_json(path: Path, value: Any) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    part.replace(path)
