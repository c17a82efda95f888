"""Training a run in its folder: steps, metrics, checkpoints, early stopping, and stopping when asked.

Everything a step depends on is a function of the spec and the checkpoint, so a run killed at any point and resumed is,
from its last checkpoint on, bit for bit the run that was not.
"""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from energyflow import checkpoint, recipe
from energyflow.evaluation import classify
from energyflow.loaders import Dataset
from energyflow.logz import bracket, log_likelihood
from energyflow.spec import Spec
from energyflow.stats import energy_distance
from energyflow.training import TrainState, init, make_step, train, trouble
from energyflow.types import as_key

LOG_EVERY = 10
VALIDATION_DRAWS = 512


class Progress(NamedTuple):
    """What a checkpoint holds: the train state and the best averaged weights so far, by the validation rows.

    since_best: evaluations since the best one. stopped_early: 1 once patience ran out.
    """

    state: TrainState
    best: Any
    best_score: Any
    best_step: Any
    since_best: Any
    stopped_early: Any


def begin(spec: Spec, data: Dataset) -> Progress:
    """Return the progress before the first step."""
    energy = recipe.build_energy(spec, data.dim)
    batch = jax.tree.map(jnp.asarray, data.batch(0, spec.batch_size, spec.seed))
    state = init(spec.seed, energy, recipe.build_objective(spec, data), recipe.build_optimizer(spec), batch)
    zero = jnp.zeros((), jnp.int32)
    return Progress(state, jax.tree.map(jnp.array, state.ema), jnp.float32(-jnp.inf), zero, zero, zero)


def fit(
    spec: Spec, data: Dataset, folder: Path, *, resume: bool = False, progress: bool = True
) -> tuple[Progress, str]:
    """Train until the steps are done, patience runs out, training diverges or someone asks to stop.

    Writes metrics.jsonl and checkpoint.npz in `folder`; `resume` goes on from the checkpoint there. Returns the
    progress and how it ended: "finished", "early", "interrupted" (Ctrl-C), "terminated" (SIGTERM) or "diverged: ..."
    (then with the last good state).
    """
    path, now = folder / "checkpoint.npz", begin(spec, data)
    if resume and path.exists():
        now = checkpoint.load(path, now)
    first = int(now.state.step)
    if int(now.stopped_early) or first >= spec.steps:
        return now, "early" if int(now.stopped_early) else "finished"
    checkpoint.save(path, now)
    _truncate(folder / "metrics.jsonl", first)
    step = make_step(recipe.build_objective(spec, data), recipe.build_optimizer(spec), ema_decay=spec.ema_decay)
    batches = data.batches(spec.batch_size, spec.seed, first, spec.steps)
    with (
        _stop_requests() as stop,
        open(folder / "metrics.jsonl", "a", buffering=1) as log,
        tqdm(total=spec.steps, initial=first, disable=not progress, desc="training", unit="step") as bar,
    ):
        return _loop(spec, data, now, train(now.state, step, batches), path, log, bar, stop)


def _loop(
    spec: Spec, data: Dataset, now: Progress, stream: Any, path: Path, log: IO, bar: tqdm, stop: list[int]
) -> tuple[Progress, str]:
    good, gaps, recent, began = now, [], [], time.perf_counter()
    for state, metrics in stream:
        recent.append(metrics)
        now, n = now._replace(state=state), int(state.step)
        last = n == spec.steps
        evaluating = last or n % spec.evaluate_every == 0
        saving = evaluating or n % spec.checkpoint_every == 0 or bool(stop)
        if saving or n % LOG_EVERY == 0:
            row: dict[str, Any] = _floats(metrics)
            before = gaps.copy()
            if trouble(row, gaps):
                if not int(good.best_step):  # the best weights are still the random ones of the start
                    good, _ = _evaluate(spec, data, good)
                reason = _first_trouble(recent, before)
                return good, f"diverged: {reason}; the state of step {int(good.state.step)} is kept"
            recent = []
            if evaluating:
                now, scores = _evaluate(spec, data, now)
                row |= scores
            log.write(json.dumps(row | {"step": n, "seconds": round(time.perf_counter() - began, 3)}) + "\n")
            bar.set_postfix({name: f"{row[name]:.3g}" for name in ("gap", "acceptance_rate") if name in row})
        bar.update(1)
        if saving:
            checkpoint.save(path, now)
            good = now
        if stop:
            return now, "terminated" if signal.SIGTERM in stop else "interrupted"
        if int(now.stopped_early):
            return now, "early"
    return now, "finished"


def _floats(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _first_trouble(recent: list[dict[str, Any]], gaps: list[float]) -> str:
    """Name the step and the cause of what went wrong since the last look: bad chains spoil the loss a step later."""
    reasons = ((int(metrics["step"]), trouble(_floats(metrics), gaps.copy())) for metrics in recent)
    return next(f"step {step}: {reason}" for step, reason in reasons if reason)


def _evaluate(spec: Spec, data: Dataset, now: Progress) -> tuple[Progress, dict[str, float]]:
    """Score the averaged weights on the validation rows, keep the best, and return the score by its name.

    Densities by the log-likelihood (short forward annealing), of rows and labels where rows are labelled, and of labels
    alone where nothing else is trained; what has no density by the energy distance of its draws.
    """
    key, points = jax.random.fold_in(as_key(spec.seed), now.state.step), data.part_x("validation", spec.seed)
    if recipe.method(spec).draw is None:
        energy = recipe.judged(spec, data.dim, now.state.ema)
        log_z = bracket(key, energy, num_temperatures=300, num_chains=128, reverse=False)
        z = data.scaling.to_z(points)
        score = log_likelihood(energy, z, log_z, -data.scaling.log_det).estimate
        named = {"validation_log_likelihood": score}
        if data.labels is not None:
            found = classify(energy, z, data.labels.validation)
            if found is not None:
                score = (score if spec.generative else 0.0) - found.nll
                named |= {"validation_accuracy": found.accuracy, "validation_cross_entropy": found.nll}
    else:
        drawn = recipe.draw(spec, now.state.ema, key, VALIDATION_DRAWS, data.dim, recipe.horizon(spec))
        draws = np.asarray(drawn.position)
        distance = (
            energy_distance(data.scaling.from_z(draws), points[:VALIDATION_DRAWS])
            if np.isfinite(draws).all()
            else np.inf
        )
        score, named = -distance, {"validation_energy_distance": distance}
    if score > float(now.best_score):
        best = jax.tree.map(jnp.array, now.state.ema)
        zero = jnp.zeros((), jnp.int32)
        return now._replace(best=best, best_score=jnp.float32(score), best_step=now.state.step, since_best=zero), named
    since = now.since_best + 1
    early = jnp.int32(spec.patience > 0 and int(since) >= spec.patience)
    return now._replace(since_best=since, stopped_early=early), named


def _truncate(path: Path, step: int) -> None:
    """Drop metrics rows after `step` (and a half-written last line): the run is about to make them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    path.write_text("".join(f"{line}\n" for line in kept))


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM as requests to stop at the next step; a second Ctrl-C interrupts at once."""
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: Any) -> None:
        requests.append(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, request)
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
