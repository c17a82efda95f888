"""Floor 8: the page around the sections: one file, its style and pictures inside it, readable in light and in dark."""

import os
from collections.abc import Callable
from html import escape
from pathlib import Path
from string import Template

from energyflow.report import sections
from energyflow.report.classes import classes
from energyflow.report.folder import Run, read_run
from energyflow.report.horizons import horizons
from energyflow.report.levels import levels

SECTIONS = (
    ("Certified numbers", sections.certified_numbers),
    ("Comparison", sections.comparisons),
    ("Classes", classes),
    ("Samples beside data", sections.samples),
    ("Horizons", horizons),
    ("Levels of noise", levels),
    ("log Z", sections.log_z),
    ("Sampler", sections.sampler),
    ("Training", sections.training),
    ("Energies of samples, training and test rows", sections.energies),
    ("Settings", sections.settings),
    ("How to reproduce", sections.reproduction),
)


OF_DENSITIES = sections.certified_numbers, sections.comparisons, sections.log_z, sections.sampler
"""What applies to a density alone: a potential, a landscape or a ladder has no likelihood, and no chains."""

RECORDED: dict[Callable[[Run], str], str] = {horizons: "draws", classes: "classifier", levels: "levels"}
"""What applies where the summary has this entry."""


def applies(section: Callable[[Run], str], run: Run) -> bool:
    """Return whether a section has anything to say of what was trained."""
    if section in RECORDED:
        return RECORDED[section] in run.summary
    return section not in OF_DENSITIES or sections.is_density(run)


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<h1>$title</h1>
$body
</main>
</body>
</html>
""")

STYLE = """
:root { --ink: #1d2126; --quiet: #59626c; --paper: #ffffff; --line: #d9dee3; --soft: #f3f5f7;
  --good: #00694c; --note: #005a92; --caution: #8a5200; --bad: #a62a00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --quiet: #a3acb5; --paper: #15181c; --line: #353c44; --soft: #1f242a;
    --good: #4fd0a5; --note: #6cbcf0; --caution: #f0b352; --bad: #ff8f66; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .7rem; padding-top: .9rem; border-top: 1px solid var(--line); }
p, ul { margin: .5rem 0; max-width: 48rem; }
.headline { font-size: 1.15rem; }
.quiet, figcaption { color: var(--quiet); font-size: .9rem; }
.absent { color: var(--quiet); font-style: italic; }
.warning { color: var(--caution); }
.badge { display: inline-block; margin: .15rem .3rem .15rem 0; padding: .15rem .65rem; border: 1.5px solid;
  border-radius: .4rem; }
.good { color: var(--good); } .note { color: var(--note); } .caution { color: var(--caution); }
.bad { color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-size: .93rem; font-variant-numeric: tabular-nums; }
table.full { min-width: 44rem; }
th, td { padding: .32rem 1.1rem .32rem 0; text-align: left; vertical-align: top; font-weight: normal;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--quiet); font-size: .85rem; vertical-align: bottom; }
figure { margin: 1.1rem 0; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; border-radius: .3rem; }
@media (prefers-color-scheme: dark) { img { padding: .5rem; } }
figcaption { margin-top: .35rem; max-width: 48rem; }
summary { cursor: pointer; color: var(--quiet); }
.command { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .92rem;
  overflow-x: auto; white-space: pre-wrap; padding: .7rem .9rem; background: var(--soft); border-radius: .3rem; }
"""


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    folder: holds any of spec.json, summary.json, metrics.jsonl, samples.npz, logz.npz and draws.nc. A file that is
    missing or cut off costs its section a sentence, not the report. The page loads nothing from elsewhere.
    Raises FileNotFoundError where the folder does not exist.
    """
    folder = Path(folder)
    page = render(read_run(folder), folder.resolve().name)
    path, draft = folder / "report.html", folder / "report.html.part"
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, path)
    return path


def render(run: Run, name: str) -> str:
    """Return the page of a run; `name` is its title where the summary has none."""
    title = f"{run.summary.get('name') or name}: energyflow report"
    body = [sections.opening(run)]
    chosen = [(heading, section) for heading, section in SECTIONS if applies(section, run)]
    body += [f"<section><h2>{escape(heading)}</h2>{section(run)}</section>" for heading, section in chosen]
    return PAGE.substitute(title=escape(title), style=STYLE, body="\n".join(body))
