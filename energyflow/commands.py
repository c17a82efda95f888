"""What each command does; loaded only when one runs. Returns exit codes, documented in `energyflow.cli`."""

import json
import shlex
import sys
from collections.abc import Callable
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np

from energyflow import arguments as args
from energyflow.chains import SamplingStopped, Trace
from energyflow.diagnostics import check, read_trace, to_netcdf
from energyflow.evidence import log_z
from energyflow.kernels import hmc, mala, nuts
from energyflow.logz import bracket
from energyflow.models import read_model
from energyflow.report import write_report
from energyflow.runs import load_run, read_spec, resume_run, start_run
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
def _(chosen: args.Report) -> int:
    read_spec(chosen.folder)
    print(f"report: {write_report(chosen.folder)}")
    return 0
