"""Floor 1: what each command of the command line takes, as plain data; light, so that `--help` is instant."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

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
class Logz:
    """Bracket log Z of a finished run again, with another budget or seed."""

    folder: Annotated[Path, tyro.conf.Positional]
    temperatures: int = 5000
    """Annealing moves per direction."""
    chains: int = 512
    """Chains per direction."""
    seed: int = 1


@dataclass(frozen=True)
class Check:
    """Judge draws: of a run folder, or a .nc file (ArviZ), or a .npy array [chain, draw, ...]."""

    path: Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class Report:
    """Write report.html of a run folder again."""

    folder: Annotated[Path, tyro.conf.Positional]
