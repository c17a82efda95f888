"""Floor 1: what each command of the command line takes, as plain data; light, so that `--help` is instant."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from energyflow.spec import Spec


@dataclass(frozen=True)
class Train:
    """Train an energy-based density on DATA and certify it: a run folder with a report."""

    out: Path | None = None
    """Run folder; runs/NAME under the current folder by default."""
    quiet: bool = False
    """No progress bars."""
    settings: Annotated[Spec, tyro.conf.OmitArgPrefixes] = field(default_factory=Spec)


@dataclass(frozen=True)
class Resume:
    """Go on with an interrupted or killed run from its last checkpoint."""

    folder: Annotated[Path, tyro.conf.Positional]
    quiet: bool = False
    """No progress bars."""


@dataclass(frozen=True)
class Sample:
    """Draw from a finished run, in data units, to a .npy file."""

    folder: Annotated[Path, tyro.conf.Positional]
    num: int = 1000
    """Draws."""
    seed: int = 0
    out: Path | None = None
    """File; FOLDER/new_samples.npy by default."""


@dataclass(frozen=True)
class Run:
    """Sample the posterior of a NumPyro model, FILE.py:MODEL, and judge the draws."""

    target: Annotated[str, tyro.conf.Positional]
    data: Path | None = None
    """A .npz file whose arrays are named as the model's parameters."""
    kernel: Literal["auto", "nuts", "hmc", "mala"] = "auto"
    chains: int = 8
    draws: int = 1000
    """Draws kept of each chain."""
    seed: int = 0
    out: Path | None = None
    """A .nc file (ArviZ) for the draws."""


@dataclass(frozen=True)
class Logz:
    """Bracket log Z: of a finished run again, or the evidence of a NumPyro model, FILE.py:MODEL."""

    target: Annotated[str, tyro.conf.Positional]
    data: Path | None = None
    """For a model: a .npz file whose arrays are named as its parameters."""
    temperatures: int | None = None
    """Annealing moves per direction; 5000, for a model what a trial asks for, or 2000 where chains are given."""
    chains: int | None = None
    """Chains per direction; 512, for a model what the budget allows, or 128 where temperatures are given."""
    seed: int = 1


@dataclass(frozen=True)
class Check:
    """Judge draws: of a run folder, or a .nc file (ArviZ), or a .npy array [chain, draw, ...]."""

    path: Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class Score:
    """Say how well a finished run tells rows of the data from other rows: AUROC, AUPR, FPR at 95 % TPR."""

    folder: Annotated[Path, tyro.conf.Positional]
    ood: str
    """File of rows that are none of the data, in its raw units."""
    id: str | None = None
    """File of rows of the data; the run's own test rows by default."""
    background: Path | None = None
    """Run folder of a background model, for the likelihood ratio."""
    seed: int = 0
    """Of dequantising and of the intervals."""
    json: bool = False
    """Write the figures to FOLDER/score.json too."""
    out: Path | None = None
    """Write them to this file instead."""


@dataclass(frozen=True)
class Report:
    """Write report.html of a run folder again."""

    folder: Annotated[Path, tyro.conf.Positional]
