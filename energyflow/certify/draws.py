"""Judging potentials and landscapes by their draws: how far from the test rows, at the horizon they are for and beyond.

No likelihood exists. The energy distance sees what is missing and what is too much alike, where the distance to the
nearest row would call collapsed draws good.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from energyflow import recipe
from energyflow.certify.summary import NUM_DRAWS, opening, plain, rows_of
from energyflow.energies.fields import is_field
from energyflow.energy import kind
from energyflow.fit import Progress
from energyflow.loaders import Dataset
from energyflow.spec import Spec
from energyflow.stats import energy_distance
from energyflow.types import as_key

FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Of the horizon: too short, right, and too long."""


def certify_draws(
    spec: Spec, data: Dataset, reached: Progress, ended: str, folder: Path, *, progress: bool
) -> dict[str, Any]:
    """Draw at several horizons; writes samples.npz, returns the summary."""
    energy, key = reached.best, jax.random.fold_in(as_key(spec.seed), 2**31 - 1)
    parts = {part: data.part_x(part, spec.seed) for part in ("train", "test")}
    horizon = recipe.horizon(spec)
    test = parts["test"][:NUM_DRAWS]
    blocks, rows, levels = [], [], {}
    for factor in tqdm(FACTORS, disable=not progress, desc="certifying", unit="horizon"):
        drawn = recipe.draw(spec, energy, key, NUM_DRAWS, data.dim, factor * horizon)
        x = data.scaling.from_z(np.asarray(drawn.position))
        blocks.append(x)
        distance = energy_distance(x, test) if np.isfinite(x).all() else np.inf
        rows.append(
            {"horizon": factor * horizon, "energy_distance": distance, "gradients_per_draw": drawn.num_gradients}
        )
        if factor == 1 and drawn.levels is not None:
            levels = {"levels": {"rows": rows_of(drawn.levels)}}
    chosen = FACTORS.index(1.0)
    arrays = {"samples": blocks[chosen][:256], "data": parts["test"][:256], "at_horizons": np.stack(blocks)[:, :256]}
    if not is_field(energy):
        judged = recipe.judged(spec, data.dim, energy)
        values = jax.jit(lambda energy, z: jax.vmap(energy)(z))
        groups = {"samples": blocks[chosen]} | {part: x[: 4 * NUM_DRAWS] for part, x in parts.items()}
        arrays |= {f"energy_{name}": values(judged, data.scaling.to_z(x)) for name, x in groups.items()}
    np.savez(folder / "samples.npz", **arrays)
    floor = energy_distance(parts["train"][:NUM_DRAWS], test)
    found = rows[chosen] | {"floor": floor, "num": NUM_DRAWS, "horizons": rows}
    summary = opening(data, reached, ended, kind(energy)) | {
        "sampler": recipe.describe(spec, 1.0, False),
        "draws": found,
        **levels,
    }
    return plain(summary | {"headline": headline(summary)})


def headline(summary: dict[str, Any]) -> str:
    """Return the run in one sentence: how far its draws are from the test rows, and that it claims no likelihood."""
    found = summary["draws"]
    best = min(found["horizons"], key=lambda row: row["energy_distance"])
    said = "" if best["horizon"] == found["horizon"] else f" (horizon {best['horizon']:.3g} is nearer)"
    words = {"tempered": "potential", "density": "ladder of densities, each given the next"}
    word = words.get(summary["kind"], summary["kind"])
    judged = (
        f"Draws at horizon {found['horizon']:.3g} have energy distance {found['energy_distance']:.4f} from the test "
        f"rows{said}; training rows have {found['floor']:.4f}. No likelihood is claimed: this is a {word}."
    )
    if summary["stopped"].startswith("diverged"):
        return f"Training {summary['stopped']}. {judged}"
    return judged
