"""The command line as a new user meets it: light help, one sentence for what is wrong, documented exit codes."""

import json
import re
import signal
import subprocess
import sys
from typing import get_args

import jax
import numpy as np
import pytest
import tyro
from scipy.special import logsumexp

import energyflow as ef
import tiny
from energyflow import fit
from energyflow.cli import ABOUT, COMMANDS, main
from energyflow.loaders import load_dataset
from energyflow.recipe import SAMPLERS, build_kernel
from energyflow.spec import Activation, Phase, Sampler, Spec

pytestmark = tiny.LENIENT

UNADJUSTED = {"ula", "sgld", "mclmc"}
QUICK = {"mala", "hmc", "barker", "ula"}  # the others take seconds of compilation each, and train in test_training.py
MARKS = [pytest.mark.slow, pytest.mark.blackjax_promotes("nuts", "dynamic_hmc")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.rows(tmp_path_factory.mktemp("data") / "rows.npy")


@pytest.fixture
def quickly():
    with tiny.quickly():
        yield


def parsed(*words):
    return tyro.cli(COMMANDS, args=list(map(str, words))).settings


def python(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300)


# What loads before a command runs


@pytest.mark.core
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"]])
def test_help_and_version_load_nothing_heavy(words):
    code = f"""
import sys
from energyflow.cli import main
try:
    code = main({words!r})
except SystemExit as stop:
    code = stop.code
heavy = {{"jax", "jaxlib", "numpy", "scipy", "arviz", "matplotlib", "numpyro", "blackjax", "flax", "optax", "sklearn"}}
print("loaded:", sorted(heavy & sys.modules.keys()), code)
"""
    done = python("-c", code)
    assert done.stdout.endswith("loaded: [] 0\n") and done.stderr == ""


@pytest.mark.core
@pytest.mark.parametrize("module", ["energyflow", "energyflow.cli"])
def test_it_runs_as_a_module(module):
    done = python("-m", module, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"energyflow {ef.__version__}\n", "")


@pytest.mark.core
def test_help_names_every_command_and_every_exit_code(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(command in text for command in ("train", "resume", "sample", "logz", "check", "score", "report"))
    assert re.findall(r"\b\d+\b", ABOUT) == ["0", "1", "2", "3", "4", "130", "143"]


@pytest.mark.core
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["tarin", "digits"],
        ["train", "digits", "--sampler", "gibbs"],
        ["train", "digits", "--negatives", "none"],
        ["train", "digits", "--activation", "step"],
        ["train", "digits", "--steps", "many"],
        ["train", "digits", "--no-such-thing", "1"],
        ["resume"],
    ],
)
def test_wrong_usage_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and "Traceback" not in captured.err + captured.out


@pytest.mark.core
def test_flags_reach_the_spec():
    spec = parsed("train", "rows.npy", "--sampler", "hmc", "--negatives", "cd", "--hidden", 8, 4, "--seed", 3)
    assert spec == Spec("rows.npy", sampler="hmc", negatives="cd", hidden=(8, 4), seed=3)
    assert parsed("train") == Spec("digits")


@pytest.mark.core
def test_what_the_command_line_offers_is_what_there_is():
    assert set(get_args(Sampler)) == set(SAMPLERS)
    for activation in get_args(Activation):
        ef.mlp(0, 2, (3,), activation)
    with pytest.raises(ValueError, match="choose from " + ", ".join(get_args(Activation))):
        ef.mlp(0, 2, (3,), "step")


# Wrong input: exit code 1 and one sentence


def refused(capsys, *words):
    """Run a command that must refuse; returns its sentence."""
    assert main(list(map(str, words))) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("energyflow: ") and captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.core
@pytest.mark.parametrize("command", ["resume", "sample", "logz", "check", "report"])
def test_a_folder_that_is_no_run_is_said_to_be_none(command, tmp_path, capsys):
    assert "nowhere" in refused(capsys, command, tmp_path / "nowhere")
    sentence = refused(capsys, command, tmp_path)
    assert "is not a run folder: it has no spec.json" in sentence or "draws.nc does not exist" in sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.core
def test_data_that_cannot_be_used_leave_no_folder(tmp_path, capsys):
    rows = np.random.default_rng(0).normal(size=(50, 2))
    rows[7, 1] = np.nan
    np.save(tmp_path / "nan.npy", rows)
    out = tmp_path / "run"
    sentence = refused(capsys, "train", tmp_path / "nan.npy", "--out", out)
    assert "nan.npy has 1 values that are not finite, the first in row 7: remove them" in sentence
    assert "does not exist" in refused(capsys, "train", tmp_path / "missing.npy", "--out", out)
    assert "steps must be at least 1; got 0" in refused(capsys, "train", "digits", "--steps", 0, "--out", out)
    assert not out.exists()


def test_a_run_is_never_overwritten(finished_run, capsys):
    sentence = refused(capsys, "train", finished_run.parent / "rows.npy", "--out", finished_run)
    assert "holds a run already; resume it, or choose another --out" in sentence


def test_a_checkpoint_of_another_model_is_refused(finished_run, tmp_path, capsys):
    for path in finished_run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    record = json.loads((tmp_path / "spec.json").read_text())
    record["settings"]["hidden"] = [17]
    (tmp_path / "spec.json").write_text(json.dumps(record))
    for command, name in [("resume", "checkpoint.npz"), ("sample", "energy.npz"), ("logz", "energy.npz")]:
        sentence = refused(capsys, command, tmp_path)
        assert f"{name} is a checkpoint of another model: " in sentence and "17" in sentence and "16" in sentence


@pytest.mark.core
@pytest.mark.parametrize("name", ["draws.npy", "draws.nc"])
def test_a_file_without_draws_is_refused(name, tmp_path, capsys):
    (tmp_path / name).write_text("no draws")
    assert f"{name} does not hold draws" in refused(capsys, "check", tmp_path / name)
    np.save(tmp_path / "flat.npy", np.zeros(10))
    assert "need axes [chain, draw, ...]" in refused(capsys, "check", tmp_path / "flat.npy")


# Commands on a finished run


def test_sample_writes_draws_in_data_units(finished_run, tmp_path, capsys):
    out = tmp_path / "samples.npy"
    assert main(["sample", str(finished_run), "--num", "50", "--seed", "4", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"50 draws in data units: {out}\n"
    np.testing.assert_array_equal(np.load(out), ef.load_run(finished_run).sample(4, 50))


def test_logz_prints_a_bracket_that_meets_the_one_of_the_run(finished_run, capsys):
    before = tiny.summary(finished_run)["log_z"]
    code = main(["logz", str(finished_run), "--temperatures", "100", "--chains", "64", "--seed", "9"])
    text = capsys.readouterr().out
    lower, upper = map(float, re.search(r"^\[(\S+), (\S+)\]", text, re.MULTILINE).groups())
    assert text.count("\n") == 3 and (code == 0) == ("(approximate)" in text)
    assert lower < before["upper"] and before["lower"] < upper


def test_logz_that_is_not_known_exits_with_4(finished_run, capsys):
    """Two chains are fewer than the five effective ones that a bracket takes."""
    assert main(["logz", str(finished_run), "--temperatures", "20", "--chains", "2"]) == 4
    assert "(unusable)" in capsys.readouterr().out


@pytest.mark.core
def test_check_of_a_run_says_what_its_summary_says(finished_run, capsys):
    expected = tiny.summary(finished_run)["check"]
    assert main(["check", str(finished_run)]) == (0 if expected["verdict"] == "healthy" else 4)
    text = capsys.readouterr().out
    assert text.startswith(expected["verdict"] + ": ") and "acceptance_rate" in text
    main(["check", str(finished_run / "draws.nc")])
    assert capsys.readouterr().out == text


def test_check_of_draws_tells_healthy_from_frozen(tmp_path, capsys, seed):
    x = np.random.default_rng([seed, 60]).normal(size=(4, 400, 3))
    np.save(tmp_path / "draws.npy", x)
    assert main(["check", str(tmp_path / "draws.npy")]) == 0
    assert capsys.readouterr().out.startswith("healthy: r_hat ")
    x[1] = x[1, :1]
    np.save(tmp_path / "draws.npy", x)
    assert main(["check", str(tmp_path / "draws.npy")]) == 4
    assert "1 of 4 chains never moved (chain 1 first)" in capsys.readouterr().out


def test_report_is_written_again(finished_run, capsys):
    path = finished_run / "report.html"
    path.unlink()
    assert main(["report", str(finished_run)]) == 0
    assert capsys.readouterr().out == f"report: {path}\n" and path.stat().st_size > 10_000


# Training


@pytest.mark.usefixtures("quickly")
def test_a_run_that_diverges_is_kept_judged_and_exits_with_3(data, tmp_path, seed, capsys):
    words = ["train", str(data), "--out", str(tmp_path / "run"), "--quiet", "--seed", str(seed)]
    assert main([*words, "--sampler", "ula", *tiny.words(step_size=1e3, learning_rate=2e-3)]) == 3
    output = capsys.readouterr().out
    assert output.startswith("Training diverged: step 1: ") and "the state of step 0 is kept" in output
    assert (tmp_path / "run" / "report.html").exists()
    summary = tiny.summary(tmp_path / "run")
    assert summary["stopped"].startswith("diverged") and summary["sampler"]["adjusted"] is False
    assert np.isfinite(ef.load_run(tmp_path / "run").log_density(np.zeros((1, 2)))).all()


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_was_stopped_says_how_to_go_on(data, tmp_path, seed, capsys, monkeypatch, number, code):
    trouble = fit.trouble

    def stopping(*arguments):
        signal.raise_signal(number)
        return trouble(*arguments)

    folder = tmp_path / "a run"
    monkeypatch.setattr(fit, "trouble", stopping)
    assert main(["train", str(data), "--out", str(folder), "--quiet", "--seed", str(seed), *tiny.words()]) == code
    error = capsys.readouterr().err
    assert error.endswith(f"; go on with: energyflow resume '{folder}'\n") and error.count("\n") == 1


@pytest.mark.usefixtures("quickly")
def test_control_c_while_certifying_says_how_to_go_on(data, tmp_path, seed, capsys, monkeypatch):
    def certify(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("energyflow.runs.certify", certify)
    folder = tmp_path / "run"
    assert main(["train", str(data), "--out", str(folder), "--quiet", "--seed", str(seed), *tiny.words()]) == 130
    assert capsys.readouterr().err == f"energyflow: interrupted; go on with: energyflow resume {folder}\n"


def gain(data, seed, folder, *words):
    """Train; returns how much better than its base the best energy scores the training rows, and the last metrics.

    In nats a row; log Z of both is summed on a grid.
    """
    settings = tiny.words(
        steps=150, chains=128, learning_rate=0.03, hidden=(32, 32), evaluate_every=150, weight_decay=0.0
    )
    spec = parsed("train", data, *settings, *words, "--seed", seed)
    dataset = load_dataset(spec.data, spec.seed)
    folder.mkdir()
    reached, ended = fit.fit(spec, dataset, folder, progress=False)
    assert ended == "finished"
    axis = np.linspace(-7, 7, 141)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)
    z = dataset.scaling.to_z(dataset.part_x("train", 0))
    density = ef.logdensity(reached.state.ema)
    values, on_grid = (np.asarray(jax.vmap(density)(points), float) for points in (z, grid))
    base = -0.5 * np.sum(z.astype(float) ** 2, axis=1) - np.log(2 * np.pi)
    log_z = logsumexp(on_grid) + 2 * np.log(axis[1] - axis[0])
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return float(np.mean(values - log_z - base)), metrics[-1]


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else MARKS) for n in SAMPLERS])
def test_every_sampler_is_one_flag_and_trains(name, data, tmp_path, seed):
    """Two groups six standard deviations apart: training starts from a Gaussian 0.5 nats a row below their density."""
    # Ten moves of h = .01 lag behind weights that learn this fast: of 24 seeds 8 gained less than 0.2.
    moves = ["--moves", 40] if name in ("ula", "sgld") else []
    better, metrics = gain(data, seed, tmp_path / "run", "--sampler", name, *moves)
    assert better > 0.2
    assert ("acceptance_rate" in metrics) == (name not in UNADJUSTED)
    assert metrics["sampler_temperature"] == pytest.approx(1.0)
    assert np.isfinite(list(metrics.values())).all()


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n != "replay" else []) for n in get_args(Phase) if n != "pcd"]
)
def test_every_negative_phase_is_one_flag_and_trains(name, data, tmp_path, seed):
    better, _ = gain(data, seed, tmp_path / "run", "--negatives", name)
    assert better > 0.2


@pytest.mark.usefixtures("quickly")
def test_without_a_learning_rate_nothing_is_gained(data, tmp_path, seed):
    """The negative control of the two tests above."""
    better, _ = gain(data, seed, tmp_path / "run", "--learning-rate", 0.0)
    assert better < 0.05


@pytest.mark.core
@pytest.mark.parametrize("name", [name for name in SAMPLERS if "slice" not in name])
def test_a_step_size_on_the_command_line_reaches_the_kernel(name):
    kernel = build_kernel(parsed("train", "digits", "--sampler", name, "--step-size", 0.0625))
    assert float(ef.kernels.step_size(kernel)) == 0.0625


@pytest.mark.slow
def test_digits_train_in_a_fresh_process(tmp_path):
    """The README's command, shortened: a report, a bracket, and bits a dimension."""
    words = ["train", "digits", "--out", str(tmp_path / "run"), "--steps", "60", "--temperatures", "300"]
    done = python("-m", "energyflow", *words, "--annealing-chains", "64", "--draws", "30", "--thin", "5")
    assert done.returncode == 0 and done.stdout.endswith(f"report: {tmp_path / 'run' / 'report.html'}\n")
    found = tiny.summary(tmp_path / "run")
    assert found["headline"] == done.stdout.splitlines()[0]
    assert found["data"]["num_test"] == 450 and found["data"]["shape"] == [8, 8]
    bits, test = found["bits_per_dimension"], found["test_log_likelihood"]
    assert bits["lower"] == pytest.approx(-(test["upper"] / 64 + np.log(2 / 17)) / np.log(2))
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr


SLOW_OBJECTIVES = "ssm", "nce", "levels", "em", "drl", "cdrl", "dcd", "improved-cd", "da"


@pytest.mark.lenient("numpyro_models")
@pytest.mark.parametrize(
    "objective",
    [
        "eqm",
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_OBJECTIVES),
    ],
)
def test_each_kind_of_objective_trains_and_is_judged_as_what_it_is(objective, data, tmp_path, seed):
    folder = tmp_path / objective
    words = tiny.words(objective=objective, steps=20, hidden=(16, 16))
    with tiny.quickly():
        assert main(["train", str(data), "--out", str(folder), "--quiet", "--seed", str(seed), *words]) == 0
    done, page = ef.load_run(folder), (folder / "report.html").read_text()
    assert np.isfinite(done.sample(0, 5)).all()
    if objective in ("eqm", "em", "drl", "cdrl"):
        assert {"log_z", "test_log_likelihood", "check"}.isdisjoint(done.summary)
        assert len(done.summary["draws"]["horizons"]) == 5 and "No likelihood is claimed" in done.summary["headline"]
        assert "Horizons" in page and "Certified numbers" not in page
        with pytest.raises(ValueError, match="landscape|potential|ladder"):
            done.log_density(np.zeros((1, 2)))
    else:
        assert done.summary["kind"] == "density" and done.summary["log_z"] and "Certified numbers" in page
        assert done.summary["sampler"]["objective"] == objective and "Horizons" not in page
    assert ("Levels of noise" in page) == (objective in ("drl", "cdrl", "da"))
    if objective == "da":
        rows = done.summary["levels"]["rows"]
        assert sum(row["share"] for row in rows) == pytest.approx(1) and len(rows) == 7


def labelled(path):
    """Save rows of three far groups of the plane with their labels, a fifth of them unknown."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 400)
    x = np.array([[0, 0], [6, 0], [0, 6]])[y] + rng.normal(size=(400, 2))
    np.savez(path, x=x, y=np.where(rng.random(400) < 0.2, -1, y))
    return path


def test_a_classifier_trains_as_a_density_and_is_judged_as_both(data, tmp_path, seed, capsys):
    folder = tmp_path / "jem"
    words = tiny.words(objective="jem", steps=100, learning_rate=0.01)
    source = str(labelled(tmp_path / "labelled.npz"))
    assert refused(capsys, "train", data, "--objective", "jem", "--out", folder).count("has no labels") == 1
    assert (
        refused(capsys, "train", source, "--out", folder, "--objective", "jem", "--classes", 2).count("too many") == 1
    )
    assert not folder.exists()
    with tiny.quickly():
        assert main(["train", source, "--out", str(folder), "--quiet", "--seed", str(seed), *words]) == 0
    done, page = ef.load_run(folder), (folder / "report.html").read_text()
    assert done.spec.classes == 3 and done.summary["kind"] == "density" and done.summary["log_z"]
    found, test = done.summary["classifier"], load_dataset(source, seed, labelled=True)
    known = test.labels.test >= 0
    assert found["num_rows"] == known.sum() < len(known) and found["num_rows"] == sum(found["reliability"]["count"])
    p = done.class_probabilities(test.part_x("test", seed)[known])
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert found["accuracy"] == pytest.approx(np.mean(p.argmax(axis=1) == test.labels.test[known]))
    assert found["accuracy"] > 0.9 and found["linear_accuracy"] > 0.9  # the groups are six apart; chance is a third
    assert "Classes" in page and "are given their class" in done.summary["headline"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"accuracy", "cross_entropy", "gap", "validation_accuracy", "validation_cross_entropy"} <= set(rows[-1])
    np.save(tmp_path / "far.npy", np.random.default_rng(1).normal(size=(50, 2)) + 9)
    capsys.readouterr()
    assert main(["score", str(folder), "--ood", str(tmp_path / "far.npy")]) == 0
    assert "class probability" in capsys.readouterr().out


def test_weighted_walkers_are_a_negative_phase_of_the_command_line(data, tmp_path, seed):
    folder = tmp_path / "walkers"
    with tiny.quickly():
        words = tiny.words(negatives="jarzynski", steps=20)
        assert main(["train", str(data), "--out", str(folder), "--quiet", "--seed", str(seed), *words]) == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"log_z", "log_likelihood", "ess"} <= set(rows[-1])
