"""What each command does; loaded only when one runs. Returns exit codes, documented in `energyflow.cli`."""

import json
import shlex
import sys
from collections.abc import Callable
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np

from energyflow import arguments as args, recipe
from energyflow.chains import SamplingStopped, Trace
from energyflow.diagnostics import check, read_trace, to_netcdf
from energyflow.energies.fields import is_field
from energyflow.evaluation import (
    class_probability_score,
    energy_score,
    gradient_norm_score,
    likelihood_ratio,
    ood_report,
    ood_table,
)
from energyflow.evidence import log_z
from energyflow.kernels import hmc, mala, nuts
from energyflow.loaders import load_dataset
from energyflow.logz import bracket
from energyflow.models import read_model
from energyflow.report import write_report
from energyflow.runs import Run, load_run, read_spec, resume_run, start_run
from energyflow.sampling import run as sample_target

STOPPED = {"interrupted": 130, "terminated": 143}


def run(chosen: Any, words: list[str]) -> int:
    """Run one parsed command; `words` are recorded by `train` so that the report can say how to reproduce it."""
    if isinstance(chosen, args.Train):
        return _train(chosen, "energyflow " + shlex.join(words))
    return _run(chosen)


@singledispatch
def _run(chosen: Any) -> int:
    raise TypeError(f"unknown command {chosen!r}")


def _train(chosen: args.Train, command: str) -> int:
    folder = chosen.out or Path("runs") / Path(chosen.settings.data).stem
    return _with_report(folder, lambda: start_run(chosen.settings, folder, command=command, progress=not chosen.quiet))


@_run.register
def _(chosen: args.Resume) -> int:
    return _with_report(chosen.folder, lambda: resume_run(chosen.folder, progress=not chosen.quiet))


def _with_report(folder: Path, train: Callable[[], str]) -> int:
    try:
        ended = train()
    except (KeyboardInterrupt, SamplingStopped):  # while starting or certifying, or at the second Ctrl-C
        if not (folder / "spec.json").exists():
            raise
        ended = "interrupted"
    if ended in STOPPED:
        print(f"energyflow: {ended}; go on with: energyflow resume {shlex.quote(str(folder))}", file=sys.stderr)
        return STOPPED[ended]
    report = write_report(folder)
    print(json.loads((folder / "summary.json").read_text())["headline"])
    print(f"report: {report}")
    return 3 if ended.startswith("diverged") else 0


@_run.register
def _(chosen: args.Sample) -> int:
    done = load_run(chosen.folder)
    out = chosen.out or chosen.folder / "new_samples.npy"
    np.save(out, done.sample(chosen.seed, chosen.num))
    print(f"{chosen.num} draws in data units: {out}")
    return 0


@_run.register
def _(chosen: args.Logz) -> int:
    if ":" in chosen.target and not Path(chosen.target).is_dir():
        target = read_model(chosen.target, chosen.data)
        if chosen.chains is None and chosen.temperatures is None:
            result: Any = log_z(chosen.seed, target)
        else:
            num_chains, moves = chosen.chains or 128, chosen.temperatures or 2000
            result = log_z(chosen.seed, target, budget=2 * moves * num_chains, num_chains=num_chains)
    else:
        done = load_run(Path(chosen.target))
        moves, num_chains = chosen.temperatures or 5000, chosen.chains or 512
        result = bracket(chosen.seed, done.energy, num_temperatures=moves, num_chains=num_chains)
    print(result)
    return 0 if result.verdict in ("bracketed", "approximate") else 4


@_run.register
def _(chosen: args.Run) -> int:
    kernel = {"auto": "auto", "nuts": nuts(0.1), "hmc": hmc(0.1, 3), "mala": mala(0.1)}[chosen.kernel]
    target = read_model(chosen.target, chosen.data)
    result = sample_target(chosen.seed, target, kernel, chains=chosen.chains, draws=chosen.draws, progress=True)
    print(result)
    if chosen.out is not None:
        print(f"draws: {to_netcdf(result.trace._replace(position=result.parameters), chosen.out)}")
    return 0 if result.verdict == "healthy" else 4


@_run.register
def _(chosen: args.Check) -> int:
    verdict = check(_read_draws(chosen.path))
    print(verdict)
    return 0 if verdict.verdict == "healthy" else 4


def _read_draws(path: Path) -> Trace | np.ndarray:
    path = path / "draws.nc" if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a finished run, a .nc file, or a .npy array [chain, draw, ...]")
    try:
        return np.load(path, allow_pickle=False) if path.suffix == ".npy" else read_trace(path)
    except (OSError, EOFError, ValueError, KeyError) as error:
        reason = "" if "pickle" in str(error) else f": {error}"  # NumPy's advice there is to load it unsafely
        raise ValueError(f"{path} does not hold draws{reason}") from None


@_run.register
def _(chosen: args.Score) -> int:
    done = load_run(chosen.folder)
    background = None if chosen.background is None else load_run(chosen.background)
    inside = _test_rows(done) if chosen.id is None else _rows_of(chosen.id, done)
    sides = [inside, _rows_of(chosen.ood, done)]
    if background is not None:
        _require_alike(background, len(done.scaling.center), done.scaling.levels > 0, str(chosen.folder))
    per_side = [_scores(done, background, rows, [chosen.seed, 4, side]) for side, rows in enumerate(sides)]
    reports = {name: ood_report(*(side[name] for side in per_side), seed=chosen.seed) for name in per_side[0]}
    names = [f"test rows of {chosen.folder}" if chosen.id is None else chosen.id, chosen.ood]
    print(" against ".join(f"{name} ({len(rows)})" for name, rows in zip(names, sides, strict=True)))
    print(ood_table(reports))
    if chosen.json or chosen.out is not None:
        out = chosen.out or chosen.folder / "score.json"
        record: dict[str, Any] = {"run": str(chosen.folder), "in": names[0], "out": names[1], "seed": chosen.seed}
        record |= {"background": chosen.background and str(chosen.background)}
        record |= {"num_in": len(sides[0]), "num_out": len(sides[1]), "scores": {}}
        for name, report in reports.items():
            record["scores"][name] = {figure: getattr(report, figure)._asdict() for figure in report._fields[:3]}
        out.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        print(f"figures: {out}")
    return 0


def _scores(done: Run, background: Run | None, raw: np.ndarray, seed: list[int]) -> dict[str, np.ndarray]:
    """Return every score of raw rows that the run has; both runs see the same noise of dequantising."""

    def placed(run: Run) -> np.ndarray:
        return run.scaling.to_z(run.scaling.to_x(raw, np.random.default_rng(seed)))

    z = placed(done)
    found = {} if is_field(done.energy) else {"energy": energy_score(done.energy, z)}
    found["gradient norm"] = gradient_norm_score(done.energy, z)
    if recipe.method(done.spec).labelled:
        found["class probability"] = class_probability_score(done.energy, z)
    if background is not None:
        found["likelihood ratio"] = likelihood_ratio(done.energy, background.energy, z, placed(background))
    return found


def _test_rows(done: Run) -> np.ndarray:
    data = recipe.read_data(done.spec)
    if not done.scaling.agrees(data.scaling):
        raise ValueError(f"{done.spec.data} has changed since the run in {done.folder} began: give rows by --id")
    return data.test


def _rows_of(source: str, done: Run) -> np.ndarray:
    data = load_dataset(source, 0, whiten="none")
    _require_alike(done, data.dim, data.scaling.levels > 0, source)
    return np.concatenate([data.train, data.validation, data.test])


def _require_alike(done: Run, dim: int, integers: bool, source: str) -> None:
    """Raise ValueError where `source` cannot be in the raw units of a run's data."""
    if dim != len(done.scaling.center):
        raise ValueError(f"{source} has {dim} values a row; the run in {done.folder} takes {len(done.scaling.center)}")
    if integers != (done.scaling.levels > 0):
        words = ("floats", "integers")
        raise ValueError(
            f"{source} has {words[integers]} and the run in {done.folder} takes {words[not integers]}: rows are "
            "compared in the same raw units"
        )


@_run.register
def _(chosen: args.Report) -> int:
    read_spec(chosen.folder)
    print(f"report: {write_report(chosen.folder)}")
    return 0
