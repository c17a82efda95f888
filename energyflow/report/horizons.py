"""The section of a report on draws that are moved for a time: potentials and landscapes."""

from energyflow import plots
from energyflow.report.folder import Run, get
from energyflow.report.markup import number, paragraph, picture, table
from energyflow.report.sections import absence

RESTS = "moved on, they gather at a few points of rest, which are near rows and yet no draws of their law"
LADDER = "a time counts the moves at each level of noise; more of them bring draws nearer to what levels stand for"
CAPTION = "From left to right the draws are moved longer: too short, as they should be, and beyond."


def horizons(run: Run) -> str:
    """Draws moved too short, right and too long: their distance from the test rows, as a table and a picture."""
    found = get(run.summary, "draws") or {}
    rows = [
        (number(row.get("horizon")), number(row.get("energy_distance"), 4), number(row.get("gradients_per_draw"), 0))
        for row in found.get("horizons") or []
    ]
    is_ladder = get(run.summary, "kind") == "density"
    text = (
        f"Training rows have energy distance {number(found.get('floor'), 4)} from the test rows, which is what a "
        f"perfect sampler has, give or take chance. Draws are moved for a time of {number(found.get('horizon'))}; "
        f"{LADDER if is_ladder else RESTS}."
    )
    parts = [table(("time", "energy distance", "gradients a draw"), rows), paragraph(text, "quiet")]
    if "at_horizons" not in run.samples:
        return "".join(parts) + absence(run, "samples.npz", "the draws cannot be shown")
    blocks, data = run.samples["at_horizons"], run.samples["data"]
    titles = [f"time {row[0]}" for row in rows]
    shape = get(run.summary, "data", "shape") or data.shape[1:]
    if len(shape) in (2, 3):
        limits = float(data.min()), float(data.max())
        parts.append(
            picture(
                lambda: plots.sample_grid(list(blocks), shape, titles, limits=limits, rows=10, columns=5),
                "Draws at several times",
                CAPTION,
            )
        )
    elif data.reshape(len(data), -1).shape[1] == 2:
        groups = dict(zip(titles, blocks, strict=True)) | {"data": data}
        parts.append(picture(lambda: plots.scatter_panels(groups), "Draws at several times", CAPTION))
    return "".join(parts)
