"""Judging a density: its draws, a bracket of log Z, classical densities beside it, all in one sentence."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from energyflow import recipe
from energyflow.certify.classes import judge_classes
from energyflow.certify.levels import judge_levels
from energyflow.certify.summary import opening, plain
from energyflow.chains import Trace, sample_chains
from energyflow.comparisons import baselines
from energyflow.diagnostics import check, to_netcdf
from energyflow.energy import kind, logdensity
from energyflow.fit import Progress
from energyflow.kernels import bind, is_adjusted, mala, step_size
from energyflow.loaders import Dataset
from energyflow.logz import LogZ, bits_per_dimension, bracket, log_likelihood
from energyflow.logz.likelihood import Likelihood
from energyflow.spec import Spec
from energyflow.tuning import Tuned, tune
from energyflow.types import Array, Key, as_key

DRAW_CHAINS = 64


def certify_density(
    spec: Spec, data: Dataset, reached: Progress, ended: str, folder: Path, *, progress: bool
) -> dict[str, Any]:
    """Evaluate the best averaged weights; writes samples.npz, draws.nc and logz.npz, returns the summary.

    The chains that judge the model are long MALA chains, whatever sampler trained it: a model trained by an unadjusted
    sampler is judged as the density it is. They start from the base and from training rows, so that they agree only
    where they mix; their check supports the draws that the reverse annealing starts from.
    """
    energy = recipe.judged(spec, data.dim, reached.best)
    keys = jax.random.split(jax.random.fold_in(as_key(spec.seed), 2**31 - 1), 3)
    with tqdm(total=4, disable=not progress, desc="certifying", unit="part") as bar:
        trace, tuned = _draw(keys[1], energy, data, spec)
        to_netcdf(trace, folder / "draws.nc", name="z")
        bar.update(1)
        reverse_start = _spread(trace, spec.annealing_chains)
        log_z = bracket(
            keys[0],
            energy,
            num_temperatures=spec.temperatures,
            num_chains=spec.annealing_chains,
            approximate=reverse_start,
        )
        values = {name: getattr(log_z, name) for name in ("forward", "reverse", "betas", "acceptance")}
        np.savez(folder / "logz.npz", **values)
        bar.update(1)
        likelihoods = {part: _likelihood(energy, data, log_z, part, spec.seed) for part in ("train", "test")}
        _save_samples(folder, energy, data, trace, spec.seed)
        bar.update(1)
        compared = _compare(data, likelihoods["test"], log_z, spec.seed)
        bar.update(1)
    summary = opening(data, reached, ended, kind(energy)) | {
        "sampler": _sampler(spec, energy, trace, tuned),
        "log_z": _log_z(log_z),
        "test_log_likelihood": _sides(likelihoods["test"]),
        "train_log_likelihood": _sides(likelihoods["train"]),
        "bits_per_dimension": _bits(data, likelihoods["test"]),
        "check": check(trace)._asdict(),
        "comparisons": compared,
    }
    if data.labels is not None:
        summary["classifier"] = judge_classes(energy, data, spec.seed)
    if recipe.method(spec).levels is not None:
        summary["levels"] = judge_levels(keys[2], spec, data, reached)
    return plain(summary | {"headline": headline(summary)})


def _draw(key: Key, energy: Any, data: Dataset, spec: Spec) -> tuple[Trace, Tuned]:
    """Tune MALA, then draw from 64 long chains started half at the base and half at training rows."""
    base_key, row_key, tune_key, move_key = jax.random.split(key, 4)
    rows = data.scaling.to_z(data.part_x("train", spec.seed))
    picked = jax.random.choice(row_key, len(rows), (DRAW_CHAINS // 2,), replace=len(rows) < DRAW_CHAINS // 2)
    start = jnp.concatenate([energy.base.sample(base_key, (DRAW_CHAINS // 2,)), jnp.asarray(rows)[picked]])
    tuned = tune(tune_key, mala(0.1), logdensity(energy), start)
    warmup = spec.draws * spec.thin // 4
    trace = sample_chains(
        move_key, tuned.kernel, logdensity(energy), tuned.position, spec.draws, warmup=warmup, thin=spec.thin
    )
    return trace, tuned


def _spread(trace: Trace, num: int) -> Array:
    """Return about `num` draws of all chains, as far apart in time as they can be, (m, d)."""
    chains, draws = trace.position.shape[:2]
    times = np.linspace(0, draws - 1, max(1, num // chains)).astype(int)
    return jnp.asarray(np.moveaxis(trace.position[:, times], 0, 1).reshape(-1, trace.position.shape[-1]))


def _likelihood(energy: Any, data: Dataset, log_z: LogZ, part: str, seed: int) -> Likelihood:
    z = data.scaling.to_z(data.part_x(part, seed))
    return log_likelihood(energy, z, log_z, -data.scaling.log_det)


def _save_samples(folder: Path, energy: Any, data: Dataset, trace: Trace, seed: int) -> None:
    last = _spread(trace, 4 * DRAW_CHAINS)
    parts = {part: data.part_x(part, seed) for part in ("train", "test")}
    values = jax.jit(lambda energy, z: jax.vmap(energy)(z))
    np.savez(
        folder / "samples.npz",
        samples=data.scaling.from_z(last),
        data=parts["test"][: len(last)],
        energy_samples=values(energy, last),
        energy_train=values(energy, data.scaling.to_z(parts["train"])),
        energy_test=values(energy, data.scaling.to_z(parts["test"])),
    )


def _compare(data: Dataset, test: Likelihood, log_z: LogZ, seed: int) -> list[dict[str, Any]]:
    """Compare per test point with log Z at its upper side; the classical densities also fit the held-out rows."""
    ours, rows = test.unnormalised - log_z.upper, []
    fitted_on = np.concatenate([data.part_x("train", seed), data.part_x("validation", seed)])
    for baseline in baselines(fitted_on, data.part_x("test", seed), seed):
        finite = np.isfinite(baseline.log_density).all()
        gap = ours - baseline.log_density if finite else np.array([np.nan, np.nan])
        rows.append(
            {
                "name": baseline.name,
                "test_log_likelihood": baseline.log_density.mean() if finite else None,
                "difference": gap.mean() if finite else None,
                "difference_stderr": gap.std(ddof=1) / np.sqrt(len(gap)) if finite else None,
                "note": baseline.note,
            }
        )
    return rows


def _sampler(spec: Spec, energy: Any, trace: Trace, tuned: Tuned) -> dict[str, Any]:
    kernel, density = recipe.build_kernel(spec), logdensity(energy)
    adjusted = is_adjusted(kernel, density, jax.tree.map(lambda x: x[0, 0], trace.position))
    temperature = float(bind(kernel, density).temperature)
    rate = float(np.mean(trace.stats.acceptance_rate))
    return recipe.describe(spec, temperature, adjusted) | {
        "acceptance_rate": rate,
        "step_size": float(step_size(tuned.kernel)),
    }


def _log_z(log_z: LogZ) -> dict[str, Any]:
    return {
        "lower": log_z.lower,
        "estimate": log_z.log_z,
        "upper": log_z.upper,
        "stderr": log_z.stderr,
        "gap": log_z.gap,
        "ess": log_z.ess,
        "num_chains": len(log_z.forward),
        "num_temperatures": len(log_z.betas) - 1,
        "num_gradients": log_z.num_gradients,
        "verdict": log_z.verdict,
        "provenance": log_z.provenance,
    }


def _sides(part: Likelihood) -> dict[str, Any]:
    return {name: getattr(part, name) for name in ("lower", "estimate", "upper", "stderr")} | {
        "num_points": len(part.unnormalised)
    }


def _bits(data: Dataset, test: Likelihood) -> dict[str, float] | None:
    cell = data.scaling.cell
    if cell is None:
        return None
    low, mid, high = (bits_per_dimension(nats, data.dim, cell) for nats in (test.upper, test.estimate, test.lower))
    return {"lower": low, "estimate": mid, "upper": high}


def headline(summary: dict[str, Any]) -> str:
    """Return the run in one sentence: a bracketed figure and who it beats, or why nothing is claimed."""
    if summary["stopped"].startswith("diverged"):
        return f"Training {summary['stopped']}. What follows judges the best weights before that."
    found = summary.get("classifier")
    if not found:
        return _of_likelihood(summary)
    rows, share, error = found["num_rows"], 100 * found["accuracy"], found["calibration_error"]
    classes = (
        f"Of {rows} labelled test rows {share:.1f} % are given their class, at a calibration error of {error:.3f}."
    )
    return f"{_of_likelihood(summary)} {classes}"


def _of_likelihood(summary: dict[str, Any]) -> str:
    log_z, test = summary["log_z"], summary["test_log_likelihood"]
    if log_z["verdict"] not in ("bracketed", "approximate") or log_z["gap"] > 0.5:
        return (
            f"No likelihood is claimed: log Z is only known to {log_z['gap']:.2f} nats ({log_z['verdict']}), with "
            f"{log_z['ess']:.0f} effective chains of {log_z['num_chains']}."
        )
    rivals = [row for row in summary["comparisons"] if row["difference"] is not None]
    best = max(rivals, key=lambda row: row["test_log_likelihood"])
    distance = best["difference"] / max(best["difference_stderr"], 1e-12)
    word = "above" if distance > 2 else "below" if distance < -2 else "not distinguishable from"
    rival = f"{best['name']}, {best['test_log_likelihood']:.2f}"
    return (
        f"Test log-likelihood {test['lower']:.2f} to {test['upper']:.2f} nats; its conservative side is {word} the "
        f"best classical density ({rival}): difference {best['difference']:.2f} +- {best['difference_stderr']:.2f}."
    )
