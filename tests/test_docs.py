"""The documents are true: every Python block of every page runs, links resolve, tables say what the code says.

A page is a user's program: its blocks run in order in one namespace, in a process of its own, without JAX's strict
flags but with warnings as errors.
"""

import dataclasses
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import energyflow as ef
from energyflow import arguments, recipe
from energyflow.spec import Spec

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")] if not path.parent.name.startswith("."))
COMMANDS = (ROOT / "docs" / "commandline.md").read_text()
# A whole run, with its mixtures and report; tests/test_runs.py has others in the default suite.
SLOW = {"docs/commandline.md"}
# Compiling is most of what a page costs, and nothing here needs fast code.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
RUNNER = "import runpy, sys, warnings; {filters}; runpy.run_path(sys.argv[1], run_name='__main__')"


def python_of(page: Path) -> str:
    """Return the page with every line blank that is not in a Python block, so that line numbers are the page's."""
    inside, lines = False, []
    for line in page.read_text().splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        inside = line == "```python" if fence else inside
    return "\n".join(lines)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def filters() -> str:
    """Return the warnings filters of pyproject.toml as code; the last one set is the first one asked."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    ignored = [entry.split(":")[1] for entry in settings["filterwarnings"] if entry.startswith("ignore:")]
    return "; ".join(
        ["warnings.simplefilter('error')", *(f"warnings.filterwarnings('ignore', {m!r})" for m in ignored)]
    )


def as_parameter(page: Path) -> Any:
    return pytest.param(page, marks=[pytest.mark.slow] if named(page) in SLOW else [], id=named(page))


@pytest.mark.parametrize("page", [as_parameter(page) for page in PAGES if python_of(page).strip()])
def test_every_block_of_a_page_runs(page, tmp_path):
    program = tmp_path / f"{page.stem}.py"
    program.write_text(python_of(page))
    settings = {"MPLBACKEND": "Agg", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"}
    command = [sys.executable, "-c", RUNNER.format(filters=filters()), str(program)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_the_pages_with_programs_are_found():
    assert {"README.md", "docs/guide.md", "docs/commandline.md"} <= {named(p) for p in PAGES if python_of(p).strip()}


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, by GitHub's rule: lower case, punctuation dropped, dashes for spaces."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_resolve(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            broken.append(link)
    assert not broken, f"{named(page)} links to {broken}"


def options(command: str) -> dict[str, str]:
    """Return {option: default as written} of a command's table in docs/commandline.md."""
    section = COMMANDS.split(f"## `energyflow {command}`\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `--([\w-]+)` \| ([^|]*?) ?\|", section, re.MULTILINE))


def settings(kind: type) -> Iterator[tuple[str, object]]:
    """Yield the options of a command and their defaults, its positional argument excepted."""
    for field in dataclasses.fields(kind):
        if field.name == "settings":
            yield from settings(Spec)
        elif field.name not in ("folder", "path", "target") and (kind, field.name) != (Spec, "data"):
            yield field.name.replace("_", "-"), field.default


def same(written: str, default: object) -> bool:
    if default is None or default is False or default is dataclasses.MISSING:
        return written == ""
    if isinstance(default, tuple):
        return written == " ".join(map(str, default))
    return written == default if isinstance(default, str) else float(written) == default


@pytest.mark.parametrize(
    "kind",
    [arguments.Train, arguments.Resume, arguments.Sample, arguments.Run, arguments.Logz, arguments.Score],
    ids=lambda kind: kind.__name__,
)
def test_the_options_of_a_command_are_documented_with_their_defaults(kind):
    documented, real = options(kind.__name__.lower()), dict(settings(kind))
    assert documented.keys() == real.keys()
    assert not {name: (documented[name], real[name]) for name in real if not same(documented[name], real[name])}


def test_the_samplers_are_documented_with_their_defaults():
    rows = re.findall(r"^\| `([\w-]+)`[^|]*\| ([^|]*?) ?\| (\d+) \| ([^|]*?) ?\|$", COMMANDS, re.MULTILINE)
    documented = {name: (float(step or 0), int(moves), float(rate or 0)) for name, step, moves, rate in rows}
    assert documented == {name: (c.step_size, c.moves, c.acceptance or 0.0) for name, c in recipe.SAMPLERS.items()}


def test_the_guide_lists_every_kernel():
    section = (ROOT / "docs" / "guide.md").read_text().split("## Kernels")[1].split("## Chains")[0]
    rows = " ".join(row.split("|")[1] for row in section.splitlines() if row.startswith("| `ef."))
    helpers = {"adapt", "bind", "is_adjusted", "langevin_temperature", "step_size", "with_step_size"}
    helpers |= {"name_of", "with_settings", "geometric_ladder", "tune_ladder", "temperature_ramp"}
    assert set(re.findall(r"`ef\.(\w+)\(", rows)) == set(ef.kernels.__all__) - helpers
