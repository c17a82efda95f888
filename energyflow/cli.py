"""The command line. Parsing imports nothing heavy: `--help` and `--version` load neither jax nor blackjax."""

import importlib
import sys
from importlib.metadata import version

import tyro

from energyflow.arguments import Check, Logz, Report, Resume, Run, Sample, Score, Train

COMMANDS = Train | Resume | Sample | Run | Logz | Check | Score | Report

ABOUT = """Train energy-based densities, sample them or a NumPyro model, and say what they are worth.

Exit codes: 0 done; 1 a wrong input or a refusal, said in one sentence on stderr; 2 wrong usage; 3 training diverged
(the last good state was kept and judged); 4 the draws or the bracket failed their check (`check`, `run`, `logz`); 130
interrupted by Ctrl-C and 143 by SIGTERM (the run resumes). `energyflow --version` prints the version.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (see `ABOUT`)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--version"]:
        print(f"energyflow {version('energyflow-jax')}")
        return 0
    chosen = tyro.cli(COMMANDS, args=arguments, prog="energyflow", description=ABOUT)
    try:
        commands = importlib.import_module("energyflow.commands")
        return commands.run(chosen, arguments)
    except (ValueError, OSError) as error:
        print(f"energyflow: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("energyflow: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
