"""After training: bracket log Z, draw and judge samples, compare with classical densities, and say it in one sentence."""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from energyflow import recipe
from energyflow.chains import Trace, sample_chains
from energyflow.comparisons import baselines
from energyflow.diagnostics import check, to_netcdf
from energyflow.energy import logdensity
from energyflow.fit import Progress
from energyflow.kernels import bind, is_adjusted, mala
from energyflow.loaders import Dataset
from energyflow.logz import LogZ, bits_per_dimension, bracket, log_likelihood
from energyflow.logz.likelihood import Likelihood
from energyflow.spec import Spec

DRAW_CHAINS = 64


def certify(
    spec: Spec, data: Dataset, reached: Progress, ended: str, folder: Path, *, progress: bool
) -> dict[str, Any]:
    """Evaluate the best averaged weights; writes samples.npz, draws.nc and logz.npz, returns the summary.

    The chains that judge the model are MALA chains from the end points of the annealing, whatever sampler trained it:
    a model trained by an unadjusted sampler is judged as the density it is.
    """
    began = time.perf_counter()
    energy, keys = reached.best, jax.random.split(jax.random.fold_in(jax.random.key(spec.seed), 2**31 - 1), 3)
    with tqdm(total=4, disable=not progress, desc="certifying", unit="part") as bar:
        log_z = bracket(keys[0], energy, num_temperatures=spec.temperatures, num_chains=spec.annealing_chains)
        np.savez(
            folder / "logz.npz",
            forward=log_z.forward,
            reverse=log_z.reverse,
            betas=log_z.betas,
            acceptance=log_z.acceptance,
        )
        bar.update(1)
        trace, step = _draw(keys[1], energy, log_z, spec)
        to_netcdf(trace, folder / "draws.nc", name="z")
        bar.update(1)
        likelihoods = {part: _likelihood(energy, data, log_z, part, spec.seed) for part in ("train", "test")}
        _save_samples(folder, energy, data, trace, spec.seed)
        bar.update(1)
        compared = _compare(data, likelihoods["test"], log_z, spec.seed)
        bar.update(1)
    summary = {
        "name": data.name,
        "version": version("energyflow-jax"),
        "steps": int(reached.state.step),
        "best_step": int(reached.best_step),
        "stopped": ended,
        "seconds": round(time.perf_counter() - began, 1),
        "data": _describe(data),
        "sampler": _sampler(spec, energy, trace, step),
        "log_z": _log_z(log_z),
        "test_log_likelihood": _sides(likelihoods["test"]),
        "train_log_likelihood": _sides(likelihoods["train"]),
        "bits_per_dimension": _bits(data, likelihoods["test"]),
        "check": check(trace)._asdict(),
        "comparisons": compared,
    }
    return _plain(summary | {"headline": headline(summary)})


def _draw(key: Any, energy: Any, log_z: LogZ, spec: Spec) -> tuple[Trace, float]:
    """Draw from 64 chains started at annealing end points resampled by weight, at the step annealing ended with."""
    pick, move = jax.random.split(key)
    weights = jnp.asarray(log_z.forward - log_z.forward.max(), jnp.float32)
    rows = jax.random.categorical(pick, weights, shape=(DRAW_CHAINS,))
    step = float(log_z.steps[-1])
    start = log_z.position[rows]
    return sample_chains(move, mala(step), logdensity(energy), start, spec.draws, warmup=200, thin=4), step


def _likelihood(energy: Any, data: Dataset, log_z: LogZ, part: str, seed: int) -> Likelihood:
    z = data.scaling.to_z(data.part_x(part, seed))
    return log_likelihood(energy, z, log_z, -data.scaling.log_det)


def _save_samples(folder: Path, energy: Any, data: Dataset, trace: Trace, seed: int) -> None:
    last = trace.position[:, -4:].reshape(-1, trace.position.shape[-1])
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
    """Compare per test point on the conservative side, log Z at its upper side."""
    ours, rows = test.unnormalised - log_z.upper, []
    for baseline in baselines(data.part_x("train", seed), data.part_x("test", seed), seed):
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


def _describe(data: Dataset) -> dict[str, Any]:
    scaling = data.scaling.describe()
    return {
        "dim": data.dim,
        "shape": list(data.shape),
        "num_train": len(data.train),
        "num_validation": len(data.validation),
        "num_test": len(data.test),
        "description": f"{scaling['data_units']}; {scaling['whitening']} whitening",
    }


def _sampler(spec: Spec, energy: Any, trace: Trace, step: float) -> dict[str, Any]:
    kernel, density = recipe.build_kernel(spec), logdensity(energy)
    adjusted = is_adjusted(kernel, density, jax.tree.map(lambda x: x[0, 0], trace.position))
    temperature = float(bind(kernel, density).temperature)
    rate = float(np.mean(trace.stats.acceptance_rate))
    return recipe.describe(spec, temperature, adjusted) | {"acceptance_rate": rate, "step_size": step}


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
    log_z, test = summary["log_z"], summary["test_log_likelihood"]
    if summary["stopped"].startswith("diverged"):
        return f"Training {summary['stopped']}. What follows judges the best weights before that."
    if log_z["verdict"] not in ("bracketed", "approximate") or log_z["gap"] > 0.5:
        return (
            f"No likelihood is claimed: log Z is only known to {log_z['gap']:.2f} nats ({log_z['verdict']}), with "
            f"{log_z['ess']:.0f} effective chains of {log_z['num_chains']}."
        )
    rivals = [row for row in summary["comparisons"] if row["difference"] is not None]
    best = max(rivals, key=lambda row: row["test_log_likelihood"])
    distance = best["difference"] / max(best["difference_stderr"], 1e-12)
    word = "above" if distance > 2 else "below" if distance < -2 else "not distinguishable from"
    return (
        f"Test log-likelihood {test['lower']:.2f} to {test['upper']:.2f} nats; its conservative side is {word} the best "
        f"classical density ({best['name']}, {best['test_log_likelihood']:.2f}): difference {best['difference']:.2f} "
        f"+- {best['difference_stderr']:.2f}."
    )


def _plain(value: Any) -> Any:
    """Return JSON-ready values: NumPy scalars as Python's, what is not finite as None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.floating, np.integer, np.bool_)):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
