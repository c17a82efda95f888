"""`energyflow score`: its figures are those of the library on the run's own coordinates, and what it cannot compare."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import energyflow as ef
import tiny
from energyflow import arguments, recipe
from energyflow.cli import main
from energyflow.evaluation import OodReport, energy_score, ood_report
from energyflow.loaders import load_dataset
from energyflow.runs import read_spec

pytestmark = tiny.LENIENT


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Rows like those of `tiny.rows`, and rows between its two groups."""
    folder = tmp_path_factory.mktemp("rows")
    tiny.rows(folder / "like.npy")
    np.save(folder / "between.npy", np.random.default_rng(1).normal(0, 0.3, (60, 2)) + [0.0, 4.0])
    return folder


def score(*words):
    return main(["score", *map(str, words)])


def refused(capsys, *words):
    assert score(*words) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("energyflow: ") and captured.err.count("\n") == 1
    return captured.err


def test_figures_are_those_of_the_library(finished_run, files, tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert score(finished_run, "--ood", files / "between.npy", "--out", out, "--seed", 3) == 0
    text, record = capsys.readouterr().out, json.loads(out.read_text())
    done = ef.load_run(finished_run)
    test = load_dataset(done.spec.data, done.spec.seed).part_x("test", 0)
    x = done.scaling.to_x(np.load(files / "between.npy"), np.random.default_rng(0))
    expected = ood_report(*(energy_score(done.energy, done.scaling.to_z(rows)) for rows in (test, x)), seed=3)
    found = record["scores"]["energy"]
    for figure in ("auroc", "aupr"):  # of the rows in another order, whose resamples are others
        np.testing.assert_allclose(found[figure]["estimate"], getattr(expected, figure).estimate, atol=1e-6)
        np.testing.assert_allclose(found[figure]["lower"], getattr(expected, figure).lower, atol=0.05)
    assert record["num_in"] == len(test) == 100 and record["num_out"] == len(x) == 60 and record["background"] is None
    assert set(record["scores"]) == {"energy", "gradient norm"} and list(found) == list(OodReport._fields[:3])
    assert f"test rows of {finished_run} (100) against {files / 'between.npy'} (60)\nscore " in text
    assert f"\nenergy         {found['auroc']['estimate']:.3f} [" in text and text.endswith(f"figures: {out}\n")
    log_density = [done.log_density(rows) for rows in (test, x)]
    assert ood_report(*log_density).auroc.estimate == pytest.approx(found["auroc"]["estimate"], abs=1e-6)


def test_nothing_is_written_unless_asked(finished_run, files, capsys):
    before = sorted(path.name for path in finished_run.iterdir())
    assert score(finished_run, "--ood", files / "between.npy", "--id", files / "like.npy") == 0
    first = capsys.readouterr().out
    assert first.startswith(f"{files / 'like.npy'} (400) against ")
    assert sorted(path.name for path in finished_run.iterdir()) == before
    assert score(finished_run, "--ood", files / "between.npy", "--id", files / "like.npy", "--json") == 0
    assert capsys.readouterr().out == first + f"figures: {finished_run / 'score.json'}\n"
    (finished_run / "score.json").unlink()


def test_rows_of_one_law_are_not_told_apart_and_swapped_files_mirror_the_figure(finished_run, files, tmp_path):
    for name, words in {
        "same": ("--id", files / "like.npy", "--ood", files / "like.npy"),
        "right": ("--id", files / "like.npy", "--ood", files / "between.npy"),
        "wrong": ("--id", files / "between.npy", "--ood", files / "like.npy"),
    }.items():
        assert score(finished_run, *words, "--out", tmp_path / name) == 0
    found = {
        name: {key: value["auroc"] for key, value in json.loads((tmp_path / name).read_text())["scores"].items()}
        for name in ("same", "right", "wrong")
    }
    for key in ("energy", "gradient norm"):
        assert found["same"][key]["estimate"] == pytest.approx(0.5, abs=1e-12)
        assert found["right"][key]["estimate"] + found["wrong"][key]["estimate"] == pytest.approx(1, abs=1e-12)


def moved(run, folder):
    """Copy a run, with another scaling of raw values."""
    shutil.copytree(run, folder)
    with np.load(folder / "scaling.npz") as file:
        arrays = dict(file)
    np.savez(folder / "scaling.npz", **(arrays | {"leaf1": np.asarray(-20.0)}))
    return folder


def test_the_run_itself_as_background_leaves_nothing(finished_run, files, tmp_path):
    words = ("--ood", files / "between.npy", "--out", tmp_path / "out.json", "--background")
    assert score(finished_run, *words, finished_run) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["scores"]["likelihood ratio"]["auroc"] == {"estimate": 0.5, "lower": 0.5, "upper": 0.5}
    assert record["background"] == str(finished_run)
    # Another scaling alone is another model, because the same rows are elsewhere in its coordinates.
    assert score(finished_run, *words, moved(finished_run, tmp_path / "moved")) == 0
    other = json.loads((tmp_path / "out.json").read_text())["scores"]
    assert other["likelihood ratio"]["auroc"]["estimate"] != 0.5 and other["energy"] == record["scores"]["energy"]


def test_a_background_without_a_network_is_the_gaussian_of_the_data(finished_run, files, tmp_path):
    done, plain = ef.load_run(finished_run), tmp_path / "plain"
    shutil.copytree(finished_run, plain)
    network = jax.tree.map(lambda leaf: 0 * leaf, done.energy.energy)
    ef.save(plain / "energy.npz", dataclasses.replace(done.energy, energy=network))
    words = ("--id", files / "like.npy", "--ood", files / "between.npy", "--background", plain)
    assert score(finished_run, *words, "--out", tmp_path / "out.json") == 0
    found = json.loads((tmp_path / "out.json").read_text())["scores"]["likelihood ratio"]["auroc"]["estimate"]
    sets = [done.scaling.to_x(np.load(files / name), np.random.default_rng(0)) for name in ("like.npy", "between.npy")]
    z = [done.scaling.to_z(x) for x in sets]
    ratio = [done.log_density(x) + np.square(rows).sum(axis=1) / 2 for x, rows in zip(sets, z, strict=True)]
    assert found == pytest.approx(ood_report(*ratio).auroc.estimate, abs=1e-4)


def test_what_cannot_be_scored_is_said_in_one_sentence(finished_run, files, tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "wide.npy", rng.normal(size=(30, 3)))
    np.save(tmp_path / "levels.npy", rng.integers(5, size=(30, 2)))
    assert "nowhere is not a run folder" in refused(capsys, tmp_path / "nowhere", "--ood", files / "like.npy")
    assert "missing.npy does not exist" in refused(capsys, finished_run, "--ood", files / "missing.npy")
    sentence = refused(capsys, finished_run, "--ood", tmp_path / "wide.npy")
    assert f"wide.npy has 3 values a row; the run in {finished_run} takes 2" in sentence
    sentence = refused(capsys, finished_run, "--ood", files / "like.npy", "--id", tmp_path / "levels.npy")
    assert "levels.npy has integers and the run in" in sentence and "takes floats" in sentence
    sentence = refused(capsys, finished_run, "--ood", files / "like.npy", "--background", tmp_path)
    assert "is not a run folder" in sentence
    sentence = refused(capsys, moved(finished_run, tmp_path / "moved"), "--ood", files / "like.npy")
    assert "has changed since the run in" in sentence and "give rows by --id" in sentence
    with pytest.raises(SystemExit) as stop:
        score(finished_run)
    assert stop.value.code == 2


def test_a_landscape_is_scored_by_what_it_has_and_takes_no_background(finished_run, files, tmp_path, capsys):
    """A run folder whose spec and weights are those of a field, before any training."""
    folder = tmp_path / "eqm"
    shutil.copytree(finished_run, folder)
    record = json.loads((folder / "spec.json").read_text())
    record["settings"] |= {"objective": "eqm", "whiten": "full"}
    (folder / "spec.json").write_text(json.dumps(record))
    ef.save(folder / "energy.npz", recipe.build_energy(read_spec(folder), 2))
    capsys.readouterr()
    assert score(folder, "--ood", files / "between.npy") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["gradient"]
    sentence = refused(capsys, folder, "--ood", files / "between.npy", "--background", finished_run)
    assert "a likelihood ratio needs a density, and this energy is a landscape" in sentence
    sentence = refused(capsys, finished_run, "--ood", files / "between.npy", "--background", folder)
    assert "a likelihood ratio needs a density" in sentence


@pytest.mark.core
def test_help_shows_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["score", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    fields = dataclasses.fields(arguments.Score)
    assert all(f"--{field.name}" in text for field in fields if field.name != "folder")
