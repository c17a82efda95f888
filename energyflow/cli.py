"""The command line. Parsing imports nothing heavy: `--help` and `--version` load neither jax nor blackjax.

Exit codes: 0 done; 1 a wrong input or a refusal, said in one sentence on stderr; 2 wrong usage; 3 training diverged
(the last good state was kept and judged); 4 the draws or the bracket failed their check (`check`, `logz`); 130
interrupted by Ctrl-C and 143 by SIGTERM (the run resumes).
"""

import dataclasses
import importlib
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import tyro

from energyflow.spec import Spec


@dataclass(frozen=True)
class Train:
    """Train an energy-based density on DATA and certify it: a run folder with a report."""

    data: Annotated[str, tyro.conf.Positional]
    """"digits", or a .npy/.npz file of rows."""
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
    temperatures: int = 4000
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


COMMANDS = Train | Resume | Sample | Logz | Check | Report


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--version"]:
        print(f"energyflow {version('energyflow-jax')}")
        return 0
    chosen = tyro.cli(COMMANDS, args=arguments, prog="energyflow", description=__doc__)
    if isinstance(chosen, Train):
        spec = dataclasses.replace(chosen.settings, data=chosen.data)
        chosen = dataclasses.replace(chosen, settings=spec)
    commands = importlib.import_module("energyflow.commands")
    try:
        return commands.run(chosen, arguments)
    except (ValueError, OSError) as error:
        print(f"energyflow: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("energyflow: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
