"""Run folders: what a run leaves is complete and true; a run stopped in any way is the run that was not."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import energyflow as ef
import tiny
from energyflow import fit
from energyflow.fit import begin
from energyflow.loaders import load_dataset
from energyflow.runs import read_scaling, read_spec, resume_run, start_run
from energyflow.spec import Spec
from laws import assert_mean

pytestmark = tiny.LENIENT

FILES = {
    "spec.json",
    "scaling.npz",
    "metrics.jsonl",
    "checkpoint.npz",
    "energy.npz",
    "samples.npz",
    "draws.nc",
    "logz.npz",
    "summary.json",
    "report.html",
}
SIDES = {"lower", "estimate", "upper"}
SUMMARY = {
    "name": str,
    "version": str,
    "headline": str,
    "kind": str,
    "steps": int,
    "best_step": int,
    "stopped": str,
    "seconds": float,
    "data": {"dim", "shape", "num_train", "num_validation", "num_test", "description"},
    "sampler": {"objective", "kernel", "negatives", "temperature", "adjusted", "acceptance_rate", "step_size"},
    "log_z": SIDES
    | {"stderr", "gap", "ess", "num_chains", "num_temperatures", "num_gradients", "verdict", "provenance"},
    "test_log_likelihood": SIDES | {"stderr", "num_points"},
    "train_log_likelihood": SIDES | {"stderr", "num_points"},
    "bits_per_dimension": type(None),  # of data with levels only
    "check": {"verdict", "problems", "numbers", "notes"},
    "comparisons": list,
}
# A run whose steps are slow enough to be stopped in the middle, and that is not certified in these tests.
STOPPED = tiny.SETTINGS | {"steps": 300, "moves": 40, "chains": 256, "checkpoint_every": 5, "evaluate_every": 1000}


@pytest.fixture(scope="module", autouse=True)
def quickly():
    with tiny.quickly():
        yield


@pytest.fixture
def uncertified(monkeypatch):
    """Training alone, without the part that judges it."""
    monkeypatch.setattr("energyflow.runs.certify", lambda *_, **__: {"headline": "not judged"})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.rows(tmp_path_factory.mktemp("data") / "rows.npy")


@pytest.fixture(scope="module")
def whole(data, seed, tmp_path_factory):
    """The folder of `STOPPED`, trained without a stop."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("energyflow.runs.certify", lambda *_, **__: {})
        assert start_run(Spec(str(data), seed=seed, **STOPPED), folder, progress=False) == "finished"
    return folder


def steps_of(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def stop_after(monkeypatch, looks, *signals):
    """Have `signals` arrive after so many looks at the metrics, one every ten steps and at every checkpoint."""
    seen, trouble = [], fit.trouble

    def looking(*arguments):
        seen.append(None)
        if len(seen) == looks:
            for number in signals:
                signal.raise_signal(number)
        return trouble(*arguments)

    monkeypatch.setattr(fit, "trouble", looking)


@pytest.mark.core
def test_a_run_leaves_every_file_and_no_half_one(finished_run):
    assert {path.name for path in finished_run.iterdir()} == FILES


@pytest.mark.core
def test_the_summary_keeps_its_contract(finished_run):
    found = tiny.summary(finished_run)
    assert set(found) == set(SUMMARY)
    for name, expected in SUMMARY.items():
        if isinstance(expected, set):
            assert set(found[name]) == expected, name
        else:
            assert isinstance(found[name], expected), name
    assert (found["steps"], found["stopped"], found["name"]) == (40, "finished", "rows")
    assert found["data"]["num_train"] == 270 and found["data"]["shape"] == [2]
    assert [row["name"] for row in found["comparisons"]] == [
        "uniform on [-1, 1]",
        "full Gaussian",
        "kernel density",
        "Gaussian mixture",
    ]
    assert found["sampler"]["adjusted"] is True and found["sampler"]["temperature"] == 1.0


def test_the_sides_of_the_summary_belong_together(finished_run):
    """Each side of the likelihood uses the other side of log Z; the comparison is on the conservative one."""
    found = tiny.summary(finished_run)
    log_z, test = found["log_z"], found["test_log_likelihood"]
    assert log_z["lower"] < log_z["estimate"] < log_z["upper"]
    assert log_z["gap"] == pytest.approx(log_z["upper"] - log_z["lower"])
    assert test["estimate"] - test["lower"] == pytest.approx(log_z["upper"] - log_z["estimate"])
    assert test["upper"] - test["estimate"] == pytest.approx(log_z["estimate"] - log_z["lower"])
    for row in found["comparisons"]:
        if row["difference"] is not None:
            assert row["difference"] == pytest.approx(test["lower"] - row["test_log_likelihood"])
    assert (log_z["num_chains"], log_z["num_temperatures"]) == (64, 100)


def test_the_spec_of_a_folder_is_the_spec_that_was_asked_for(finished_run, seed):
    spec = read_spec(finished_run)
    decay = 20 * 2 / 270  # of two dimensions and 270 training rows
    assert spec == Spec(str(finished_run.parent / "rows.npy"), seed=seed, weight_decay=decay, **tiny.SETTINGS)
    assert Spec.from_dict(spec.to_dict()) == spec
    record = json.loads((finished_run / "spec.json").read_text())
    assert record["command"].startswith("energyflow train ") and record["data"]["rows"]["test"] == 100
    with pytest.raises(ValueError, match="the spec has settings this version does not know: momentum, wings"):
        Spec.from_dict(spec.to_dict() | {"wings": 2, "momentum": 0.9})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"batch_size": -3}, "batch_size must be at least 1; got -3"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"step_size": -0.1}, "step_size must be at least 0; got -0.1"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0; got nan"),
        ({"hidden": (16, 0)}, r"the widths of hidden layers must be at least 1; got \(16, 0\)"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\); got 1.0"),
        ({"annealing_chains": 1}, "annealing_chains must be at least 2; got 1"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_anything_is_written(tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        start_run(Spec(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.core
def test_metrics_hold_each_step_once_and_the_best_weights_are_those_of_the_best_score(finished_run):
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    scores = {line["step"]: line.get("validation_log_likelihood") for line in lines}
    assert scores[10] is None and scores[30] is None
    assert tiny.summary(finished_run)["best_step"] == max((20, 40), key=scores.get)
    assert {"gap", "acceptance_rate", "jump_distance", "gradient_norm", "step_size", "seconds"} <= set(lines[0])


def grid_of(run, num=400, reach=9.0):
    """Points of a grid over a box of `reach` standard deviations, and the area of a cell."""
    spread = reach * np.sqrt(np.diag(run.scaling.factor @ run.scaling.factor.T))
    axes = [np.linspace(c - s, c + s, num) for c, s in zip(run.scaling.center, spread, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    return points, np.prod([axis[1] - axis[0] for axis in axes])


@pytest.mark.core
def test_the_density_of_a_run_integrates_to_one_within_its_bracket(finished_run):
    """On a grid: integral of exp(log_density) = Z / exp(estimate), between the sides of log Z."""
    run = ef.load_run(finished_run)
    points, area = grid_of(run)
    log_integral = np.log(np.sum(np.exp(run.log_density(points))) * area)
    log_z = run.summary["log_z"]
    assert log_z["lower"] - log_z["estimate"] <= log_integral <= log_z["upper"] - log_z["estimate"]


def test_the_density_of_a_run_scores_the_test_rows_as_its_summary_says(finished_run, seed):
    run = ef.load_run(finished_run)
    rows = load_dataset(run.spec.data, seed).part_x("test", seed)
    assert run.log_density(rows).mean() == pytest.approx(run.summary["test_log_likelihood"]["estimate"], abs=1e-4)


def test_new_samples_have_the_moments_of_the_density(finished_run):
    run = ef.load_run(finished_run)
    samples = run.sample(3, 1000)
    assert samples.shape == (1000, 2)
    np.testing.assert_array_equal(run.sample(3, 1000), samples)
    points, area = grid_of(run)
    weights = np.exp(run.log_density(points)) * area
    weights /= weights.sum()
    assert_mean(samples, weights @ points)
    assert_mean(samples**2, weights @ points**2)


def test_an_energy_of_a_run_is_an_energy(finished_run):
    """What `load_run` returns goes into the rest of the library as it is."""
    run = ef.load_run(finished_run)
    result = ef.bracket(5, run.energy, num_temperatures=100, num_chains=64)
    log_z = run.summary["log_z"]
    assert result.lower < log_z["upper"] and log_z["lower"] < result.upper


def test_what_is_no_run_is_refused(tmp_path, finished_run):
    with pytest.raises(ValueError, match=f"{tmp_path} is not a run folder: it has no spec.json"):
        ef.load_run(tmp_path)
    for name in ("spec.json", "scaling.npz"):
        (tmp_path / name).write_bytes((finished_run / name).read_bytes())
    with pytest.raises(ValueError, match="has not finished: resume it first"):
        ef.load_run(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path, finished_run):
    for name in ("spec.json", "scaling.npz", "energy.npz", "summary.json", "checkpoint.npz"):
        (tmp_path / name).write_bytes((finished_run / name).read_bytes())
    record = json.loads((tmp_path / "spec.json").read_text())
    record["settings"]["hidden"] = [16, 16]
    (tmp_path / "spec.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="energy.npz is a checkpoint of another model: "):
        ef.load_run(tmp_path)
    with pytest.raises(ValueError, match="checkpoint.npz is a checkpoint of another model: "):
        resume_run(tmp_path, progress=False)


def test_a_folder_that_holds_a_run_is_left_alone(finished_run, data, tmp_path):
    before = (finished_run / "spec.json").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match="holds a run already; resume it, or choose another --out"):
        start_run(Spec(str(data)), finished_run)
    assert (finished_run / "spec.json").stat().st_mtime_ns == before
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file is a file; choose another --out"):
        start_run(Spec(str(data)), tmp_path / "file")


@pytest.mark.usefixtures("uncertified")
def test_data_that_changed_are_refused_on_resume(tmp_path, data, seed, monkeypatch):
    rows = np.load(data)
    np.save(tmp_path / "rows.npy", rows)
    stop_after(monkeypatch, 1, signal.SIGINT)
    spec = Spec(str(tmp_path / "rows.npy"), seed=seed, **tiny.SETTINGS)
    assert start_run(spec, tmp_path / "run", progress=False) == "interrupted"
    np.save(tmp_path / "rows.npy", rows + np.arange(2))
    with pytest.raises(ValueError, match="rows.npy has changed since the run in .* began: restore it, or start a new"):
        resume_run(tmp_path / "run", progress=False)
    np.save(tmp_path / "rows.npy", rows)
    assert resume_run(tmp_path / "run", progress=False) == "finished"


@pytest.mark.usefixtures("uncertified")
def test_a_relative_path_of_data_is_found_again_from_elsewhere(tmp_path, data, seed, monkeypatch):
    monkeypatch.chdir(data.parent)
    stop_after(monkeypatch, 1, signal.SIGINT)
    assert start_run(Spec("rows.npy", seed=seed, **tiny.SETTINGS), tmp_path / "run", progress=False) == "interrupted"
    monkeypatch.chdir(tmp_path)
    assert resume_run(tmp_path / "run", progress=False) == "finished"
    assert read_scaling(tmp_path / "run").log_det == load_dataset(str(data), seed).scaling.log_det


@pytest.mark.core
@pytest.mark.usefixtures("uncertified")
def test_a_run_stopped_by_signals_and_resumed_is_bitwise_the_run_that_was_not(whole, data, tmp_path, seed, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 7, signal.SIGINT)
        assert start_run(Spec(str(data), seed=seed, **STOPPED), folder, progress=False) == "interrupted"
    first = steps_of(folder)[-1]
    with monkeypatch.context() as patch:
        stop_after(patch, 7, signal.SIGTERM)
        assert resume_run(folder, progress=False) == "terminated"
    second = steps_of(folder)[-1]
    assert 0 < first < second < 300
    assert resume_run(folder, progress=False) == "finished"
    assert tiny.leaves(folder / "checkpoint.npz") == tiny.leaves(whole / "checkpoint.npz")
    assert tiny.leaves(folder / "energy.npz") == tiny.leaves(whole / "energy.npz")
    assert steps_of(folder) == sorted(set(steps_of(folder)))


def test_a_second_control_c_interrupts_at_once(data, tmp_path, seed, monkeypatch, request):
    # A shell ignores the signal in what it starts in the background.
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stop_after(monkeypatch, 2, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        start_run(Spec(str(data), seed=seed, **STOPPED), tmp_path / "run", progress=False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def killed(data, seed, folder, cache_dir, number):
    """Start a run of `STOPPED` in a process of its own and send it a signal in the middle; returns the process."""
    start = [
        sys.executable,
        "-m",
        "energyflow",
        "train",
        str(data),
        "--out",
        str(folder),
        "--quiet",
        "--seed",
        str(seed),
    ]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*start, *tiny.words(**STOPPED)], env=environment, **pipes)
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 240
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 12):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the run ended before it was to be stopped: {process.communicate()}")
        time.sleep(0.002)
    process.send_signal(number)
    return process


@pytest.mark.usefixtures("uncertified")
def test_a_run_killed_at_any_moment_and_resumed_is_bitwise_the_run_that_was_not(whole, data, tmp_path, seed):
    folder = tmp_path / "run"
    process = killed(data, seed, folder, tmp_path / "cache", signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    spec = read_spec(folder)
    reached = int(ef.load(folder / "checkpoint.npz", begin(spec, load_dataset(spec.data, seed))).state.step)
    assert 0 < reached < 300 and reached % 5 == 0 and not (folder / "summary.json").exists()
    assert resume_run(folder, progress=False) == "finished"
    assert tiny.leaves(folder / "checkpoint.npz") == tiny.leaves(whole / "checkpoint.npz")
    assert steps_of(folder) == steps_of(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_from_outside_end_a_run_with_their_exit_codes(data, tmp_path, seed, number, code, word):
    process = killed(data, seed, tmp_path / "a run", tmp_path / "cache", number)
    _, errors = process.communicate()
    assert process.returncode == code
    assert errors.startswith(f"energyflow: {word}") and "go on with: energyflow resume '" in errors
    assert errors.count("\n") == 1


@pytest.mark.usefixtures("uncertified")
def test_checkpoints_do_not_change_what_is_trained(whole, data, tmp_path, seed):
    """Negative control of the resume tests too: another seed is another run."""
    spec = Spec(str(data), seed=seed, **STOPPED | {"checkpoint_every": 1000})
    start_run(spec, tmp_path / "run", progress=False)
    ours, theirs = tiny.leaves(tmp_path / "run" / "checkpoint.npz"), tiny.leaves(whole / "checkpoint.npz")
    assert ours == theirs
    start_run(dataclasses.replace(spec, seed=seed + 1), tmp_path / "other", progress=False)
    assert tiny.leaves(tmp_path / "other" / "checkpoint.npz") != ours


@pytest.mark.usefixtures("uncertified")
def test_training_stops_when_patience_runs_out_and_keeps_the_best(data, tmp_path, seed, monkeypatch):
    """Scores rise to the second evaluation and fall from there: with a patience of 2, it ends at the fourth."""
    scores = iter([1.0, 2.0, 1.5, 1.9, 3.0])

    def scored(*_, **__):
        return ef.logz.likelihood.Likelihood(0.0, next(scores), 0.0, 0.0, np.zeros(1))

    monkeypatch.setattr(fit, "log_likelihood", scored)
    spec = Spec(str(data), seed=seed, **tiny.SETTINGS | {"evaluate_every": 4, "patience": 2})
    assert start_run(spec, tmp_path / "run", progress=False) == "early"
    assert steps_of(tmp_path / "run") == [4, 8, 10, 12, 16]
    reached = ef.load(tmp_path / "run" / "checkpoint.npz", begin(spec, load_dataset(spec.data, seed)))
    assert (int(reached.state.step), int(reached.best_step), float(reached.best_score)) == (16, 8, 2.0)
    assert resume_run(tmp_path / "run", progress=False) == "early"


@pytest.mark.usefixtures("uncertified")
def test_a_run_that_diverges_keeps_the_last_good_state_and_names_the_cause(data, tmp_path, seed, monkeypatch):
    """Unadjusted Langevin moves of a step that its energy cannot bear, after twelve that it can."""
    spec = Spec(str(data), seed=seed, sampler="ula", **tiny.SETTINGS)
    assert start_run(spec, tmp_path / "good", progress=False) == "finished"
    wild = dataclasses.replace(spec, step_size=1e3)
    ended = start_run(wild, tmp_path / "wild", progress=False)
    assert ended.startswith("diverged: step 1: ") and ended.endswith("; the state of step 0 is kept")
    assert "chains" in ended or "sampler" in ended
    good = ef.load(tmp_path / "wild" / "checkpoint.npz", begin(wild, load_dataset(wild.data, seed)))
    assert int(good.state.step) == 0
    assert (tmp_path / "wild" / "energy.npz").exists()
