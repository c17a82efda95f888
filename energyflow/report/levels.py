"""The section of a report on energies of several noise levels: what chains did at each."""

from typing import Any

from energyflow.report.folder import Run, get
from energyflow.report.markup import number, paragraph, table

COLUMNS = {
    "sigma": ("noise", 3),
    "share": ("share of draws", 3),
    "acceptance_rate": ("acceptance rate", 2),
    "jump_distance": ("distance of a move", 3),
}


def levels(run: Run) -> str:
    """A row a level, in the order of the chains' way, and for chains over levels what they say of log Z."""
    found = get(run.summary, "levels") or {}
    rows = found.get("rows") or []
    if not rows:
        return paragraph("It was not recorded what chains did at each level.", "absent")
    names = [name for name in COLUMNS if name in rows[0]]
    cells = [(str(i), *(number(row[name], COLUMNS[name][1]) for name in names)) for i, row in enumerate(rows, 1)]
    parts = [table(("", *(COLUMNS[name][0] for name in names)), cells)]
    if "level_moves" in found:
        parts += [paragraph(_moves(found)), paragraph(_log_z(found, get(run.summary, "log_z")))]
    return "".join(parts)


def _moves(found: dict[str, Any]) -> str:
    text = (
        f"Chains over points and levels changed their level in a share of {number(found['level_moves'])} of the "
        f"rounds, and their energy drifted by {number(found['drift'])} standard deviations."
    )
    if "energy_distance" not in found:
        return text + " Too few of their draws are of the clean level to be compared with rows."
    return text + (
        f" Their {number(found['num'])} draws of the clean level have energy distance "
        f"{number(found['energy_distance'], 4)} from the test rows, where training rows have "
        f"{number(found['floor'], 4)}."
    )


def _log_z(found: dict[str, Any], bracket: Any) -> str:
    free = found.get("log_z")
    if not free:
        return "They did not visit both the clean level and the noisiest, and so say nothing of log Z."
    sides = f"[{number(get(bracket, 'lower'))}, {number(get(bracket, 'upper'))}]"
    return (
        f"log Z of the clean level by their visits of the noisiest: {number(free['corrected'])} "
        f"\N{PLUS-MINUS SIGN} {number(free['corrected_error'])} nats, beside the bracket {sides}. The clean level's "
        f"log Z less the noisiest's, 0 at the optimum, is {number(free['imbalance'])} \N{PLUS-MINUS SIGN} "
        f"{number(free['imbalance_error'])}."
    )
