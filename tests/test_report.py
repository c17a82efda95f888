"""The report of a run: everything the run left is in it, nothing is fetched from elsewhere, and a gap is a sentence."""

import json
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest

from energyflow.chains import ChainState, Trace
from energyflow.diagnostics import to_netcdf
from energyflow.report import write_report
from energyflow.report.folder import read_run
from energyflow.report.markup import compared, duration, number
from energyflow.report.page import RECORDED, SECTIONS
from energyflow.report.sections import flatten
from energyflow.report.verdicts import LOG_Z, PROVENANCE
from energyflow.types import Stats

pytestmark = pytest.mark.core

SPEC = {
    "settings": {"sampler": "mala", "hidden": [256, 256], "seed": 3, "<script>": "a & b"},
    "command": "energyflow train digits --seed 3",
}
SIDES = {"lower": 22.125, "estimate": 22.25, "upper": 22.5, "stderr": 0.5, "num_points": 20}
SUMMARY = {
    "name": "digits",
    "version": "0.1.0",
    "steps": 400,
    "best_step": 300,
    "stopped": "finished",
    "seconds": 133.2,
    "headline": "At least 22.12 nats per test row, and <b>no more</b> is claimed.",
    "data": {"dim": 4, "shape": [2, 2], "num_train": 30, "num_validation": 5, "num_test": 20, "description": "tiny"},
    "sampler": {"kernel": "mala", "negatives": "pcd", "temperature": 1.0, "adjusted": True, "step_size": 0.0831},
    "log_z": {
        "lower": 3.0,
        "estimate": 3.125,
        "upper": 3.25,
        "stderr": 0.03,
        "gap": 0.25,
        "ess": 41.5,
        "num_chains": 60,
        "num_temperatures": 10,
        "num_gradients": 1234567,
        "verdict": "approximate",
        "provenance": "approximate",
    },
    "test_log_likelihood": SIDES,
    "train_log_likelihood": SIDES | {"lower": 27.125},
    "bits_per_dimension": {"lower": 3.25, "estimate": 3.375, "upper": 3.5},
    "check": {"verdict": "healthy", "problems": [], "numbers": {"r_hat": 1.002, "r_hat_dim": 2.0, "ess": 230.0}},
    "comparisons": [
        {"name": "mixture", "test_log_likelihood": 20.3, "difference": 2.0, "difference_stderr": 0.5, "note": "of ten"},
        {"name": "full Gaussian", "test_log_likelihood": 21.5, "difference": 0.6, "difference_stderr": 0.5, "note": ""},
        {"name": "rival", "test_log_likelihood": 30.0, "difference": -8.0, "difference_stderr": 0.5, "note": ""},
        {"name": "box", "test_log_likelihood": None, "difference": None, "difference_stderr": None, "note": "outside"},
    ],
}
HEADINGS = [heading for heading, section in SECTIONS if section not in RECORDED]
FILES = ("spec.json", "summary.json", "metrics.jsonl", "samples.npz", "logz.npz", "draws.nc")


class Page(HTMLParser):
    """What a reader and a browser find in a page: words, addresses, headings, pictures; and that tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.words, self.addresses, self.tags, self.alts, self.open = [], [], [], [], []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self.alts += [value for name, value in attrs if name == "alt"]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture
def folder(tmp_path, seed):
    """A run folder as a finished run leaves it, its last line of metrics cut off."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4, 60, 4)).astype(np.float32)
    shape = x.shape[:2]
    stats = Stats(np.full(shape, 0.6), np.ones(shape), np.zeros(shape, bool), np.ones(shape, np.int32))
    trace = Trace(x, -0.5 * np.sum(x**2, axis=-1), stats, ChainState(None, 60))
    to_netcdf(trace, tmp_path / "draws.nc", name="z")
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    rows = [{"step": 10 * i, "gap": float(rng.normal()), "acceptance_rate": 0.6} for i in range(40)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 400, "ga')
    energies = {f"energy_{part}": rng.normal(size=30) for part in ("samples", "train", "test")}
    np.savez(tmp_path / "samples.npz", samples=rng.normal(size=(30, 4)), data=rng.normal(size=(20, 4)), **energies)
    annealed = {"forward": rng.normal(3, 1, 60), "reverse": rng.normal(4, 1, 60)}
    np.savez(tmp_path / "logz.npz", **annealed, betas=np.linspace(0, 1, 11), acceptance=np.full(10, 0.6))
    return tmp_path


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are made but not turned into pixels, which is most of the time a report takes."""
    monkeypatch.setattr("energyflow.report.markup.png", lambda figure: "")


@pytest.fixture
def undrawn(monkeypatch):
    """No figure is made: for tests of words only."""
    monkeypatch.setattr("energyflow.report.sections.picture", lambda draw, alt, caption: "")


def page_of(folder):
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def change(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_full_folder_fills_every_section(folder):
    page = page_of(folder)
    assert all(heading in page.text for heading in HEADINGS)
    assert "could not be drawn" not in page.text and "missing" not in page.text and "incomplete" not in page.text
    assert page.alts == [
        "Samples beside data",
        "The annealing path and its values",
        "Ranks by chain",
        "Traces by chain",
        "Log density by chain",
        "Acceptance by chain",
        "Training curves",
        "Histograms of energies",
    ]
    assert plt.get_fignums() == []


@pytest.mark.usefixtures("undrawn")
def test_the_numbers_of_the_summary_are_in_it_and_the_conservative_sides_are_bold(folder):
    page = page_of(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    for text in ("22.12", "22.25", "22.50", "27.12", "3.250", "3.375", "3.500", "1 234 567", "41.5 of 60"):
        assert text in page.text
    bold = re.findall(r"<td><strong>(.*?)</strong></td>", html)
    assert bold == ["22.12", "27.12", "3.500", "3.25"]
    assert "2 min 13 s" in page.text and SPEC["command"] in page.text
    assert LOG_Z["approximate"] in page.text and PROVENANCE["approximate"] in page.text
    assert 'class="badge note">log Z' in html and 'class="badge good">training' in html


def test_the_page_loads_nothing_from_elsewhere(folder):
    page = page_of(folder)
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//cdn|@import|url\(", re.sub(r'src="data:[^"]*"', "", html))
    assert "script" not in page.tags and "link" not in page.tags


@pytest.mark.usefixtures("undrawn")
def test_text_of_the_run_is_escaped(folder):
    page = page_of(folder)
    assert SUMMARY["headline"] in page.text and "b" not in page.tags
    assert "<script> a & b" in page.text


@pytest.mark.usefixtures("undrawn")
def test_comparisons_are_said_in_words(folder):
    text = page_of(folder).text
    for name, value, words in [
        ("mixture", "+2.00 ± 0.50", "better by more than 2 standard errors"),
        ("full Gaussian", "+0.60 ± 0.50", "not distinguishable"),
        ("rival", "\N{MINUS SIGN}8.00 ± 0.50", "worse by more than 2 standard errors"),
        ("box", "\N{EN DASH} ± \N{EN DASH}", "cannot be compared"),
    ]:
        assert re.search(rf"{name} \S+ {re.escape(value)} {words}", text), name


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize(
    ("name", "sentence", "lost"),
    [
        ("spec.json", "spec.json is missing: the settings are not known.", 0),
        ("summary.json", "summary.json is missing: this run has not been judged, and nothing here is certified.", 0),
        ("metrics.jsonl", "metrics.jsonl is missing: there are no training curves.", 1),
        ("samples.npz", "samples.npz is missing: there are no samples to show.", 2),
        ("logz.npz", "logz.npz is missing: the annealing path cannot be shown.", 1),
        ("draws.nc", "draws.nc is missing: the chains cannot be shown.", 4),
    ],
)
def test_a_missing_file_costs_its_section_a_sentence(folder, name, sentence, lost):
    (folder / name).unlink()
    page = page_of(folder)
    assert sentence in page.text and len(page.alts) == 8 - lost
    assert all(heading in page.text for heading in HEADINGS)
    assert "could not be drawn" not in page.text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", [name for name in FILES if name != "metrics.jsonl"])
def test_a_file_cut_in_half_counts_as_unreadable(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"{name} cannot be read (" in page_of(folder).text


def test_an_empty_folder_still_has_a_report(tmp_path):
    page = page_of(tmp_path)
    assert page.alts == [] and page.text.count("is missing") >= len(FILES)
    with pytest.raises(FileNotFoundError, match="no run folder"):
        write_report(tmp_path / "elsewhere")


def test_a_cut_line_of_metrics_is_skipped(folder):
    rows = read_run(folder).metrics
    assert [row["step"] for row in rows] == [10 * i for i in range(40)]


def test_draws_survive_the_file(folder):
    trace = read_run(folder).draws
    assert trace is not None and trace.position["z"].shape == (4, 60, 4)
    np.testing.assert_allclose(trace.logdensity, -0.5 * np.sum(trace.position["z"] ** 2, axis=-1), rtol=1e-5)
    assert trace.stats.acceptance_rate.mean() == pytest.approx(0.6) and not trace.stats.is_divergent.any()


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize(
    ("verdict", "provenance", "colour"),
    [
        ("bracketed", "exact", "good"),
        ("wide", "approximate", "caution"),
        ("one-sided", "none", "caution"),
        ("unusable", "approximate", "bad"),
        ("inconsistent", "exact", "bad"),
    ],
)
def test_every_verdict_is_coloured_and_explained(folder, verdict, provenance, colour):
    upper = None if verdict == "one-sided" else 3.25
    found = SUMMARY["log_z"] | {"verdict": verdict, "provenance": provenance, "upper": upper}
    change(folder, "summary.json", log_z=found)
    text = page_of(folder).text
    assert LOG_Z[verdict] in text and PROVENANCE[provenance] in text and "could not be drawn" not in text
    badge = f'class="badge {colour}">log Z: <strong>{verdict}'
    assert badge in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_diverged_and_chains_that_disagree_are_called_bad(folder):
    problem = "chains disagree: R-hat 2.000 in z[1], chain 3 furthest from the others"
    judged = {"verdict": "chains disagree", "problems": [problem], "numbers": {"r_hat": 2.0, "r_hat_dim": 1.0}}
    change(folder, "summary.json", check=judged, stopped="diverged: step 12: gap 1e9")
    page = page_of(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert 'class="badge bad">training: <strong>diverged: step 12' in html
    assert 'class="badge bad">sampler: <strong>chains disagree' in html
    assert page.text.count(problem) == 2 and "largest R-hat 2" in page.text


@pytest.mark.usefixtures("undrawn")
def test_an_unadjusted_sampler_is_named(folder):
    change(folder, "summary.json", sampler=SUMMARY["sampler"] | {"adjusted": False})
    assert "The kernel of training has no accept step" in page_of(folder).text


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize(
    ("dim", "shape", "picture"),
    [(2, [2], "Both panels show the same window"), (5, [5], "The first dims"), (12, [2, 2, 3], "One scale for both")],
)
def test_samples_are_drawn_as_what_they_are(folder, seed, dim, shape, picture):
    rng = np.random.default_rng(seed)
    np.savez(folder / "samples.npz", samples=rng.normal(size=(30, dim)), data=rng.normal(size=(20, dim)))
    change(folder, "summary.json", data=SUMMARY["data"] | {"shape": shape, "dim": dim})
    page = page_of(folder)
    assert picture in page.text and "samples.npz is incomplete: there are no energies to compare." in page.text
    assert "could not be drawn" not in page.text


@pytest.mark.usefixtures("undrawn")
def test_energies_say_what_differs(folder):
    energies = {"energy_train": np.repeat([0.0, 2.0], 50), "energy_test": np.repeat([1.0, 3.0], 50)}
    np.savez(
        folder / "samples.npz", samples=np.zeros((3, 4)), data=np.ones((3, 4)), energy_samples=[1.0, 1.0], **energies
    )
    text = page_of(folder).text
    # Each group of 100 has variance 1: a difference of 1 with standard error sqrt(2 / 100).
    assert "test rows less that of training rows: +1.00 ± 0.14 nats, higher by more than 2 standard errors" in text
    assert "model samples less that of training rows: 0.00 ± 0.10 nats, not distinguishable" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (22.125, "22.12"),
        (-44.4, "\N{MINUS SIGN}44.40"),
        (float("inf"), "\N{INFINITY}"),
        (float("-inf"), "\N{MINUS SIGN}\N{INFINITY}"),
        (float("nan"), "not a number"),
        (1234567, "1\u2009234\u2009567"),
        (0.00012, "0.00012"),
        (0.0, "0.00"),
    ],
)
def test_numbers_are_written_for_people(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12, "12 s"), (133.2, "2 min 13 s"), (60, "1 min 0 s"), (7260, "2 h 1 min"), (None, "\N{EN DASH}")],
)
def test_durations_are_written_for_people(seconds, text):
    assert duration(seconds) == text


def test_a_difference_without_an_error_is_not_judged():
    assert compared(3.0, None) == compared(None, 1.0) == compared(float("inf"), 1.0) == "cannot be compared"


def test_settings_are_flattened_in_order():
    tree = {"a": {"b": 1, "c": {"d": [1, 2]}}, "command": "x", "e": {}, "f": {"command": "y"}}
    assert list(flatten(tree)) == [("a.b", 1), ("a.c.d", [1, 2]), ("e", {}), ("f.command", "y")]


# What only some runs have


@pytest.mark.usefixtures("unrendered")
def test_classes_are_judged_where_there_are_any(folder):
    bins = {"edges": [0.0, 0.5, 1.0], "count": [0, 20], "confidence": [None, 0.9], "accuracy": [None, 0.8125]}
    figures = {"accuracy": 0.8125, "nll": 0.4375, "brier": 0.25, "calibration_error": 0.0875}
    more = {"calibration_floor": 0.0625, "num_rows": 20, "linear_accuracy": 0.75, "reliability": bins}
    change(folder, "summary.json", classifier=figures | more)
    page = page_of(folder)
    assert "Classes" in page.text and "Accuracy by confidence" in page.alts
    assert all(figure in page.text for figure in ("0.812", "0.438", "0.250", "0.087", "0.062", "0.750"))
    change(folder, "summary.json", classifier=None)
    assert "No test row has a label" in page_of(folder).text


@pytest.mark.usefixtures("undrawn")
def test_levels_of_noise_are_a_row_each(folder):
    assert "Levels of noise" not in page_of(folder).text
    rows = [{"sigma": 0.0, "share": 0.625, "acceptance_rate": 0.5}, {"sigma": 1.0, "share": 0.375}]
    rows[1]["acceptance_rate"] = None  # never visited
    free = {"corrected": 3.0625, "corrected_error": 0.0625, "imbalance": 0.25, "imbalance_error": 0.125}
    found = {"rows": rows, "level_moves": 0.75, "drift": -0.5, "log_z": free}
    distances = {"energy_distance": 0.0125, "floor": 0.0025, "num": 700}
    change(folder, "summary.json", levels=found | distances)
    text = page_of(folder).text
    assert "0.625" in text and "share of 0.75 of the rounds" in text and "700 draws of the clean level" in text
    assert "3.06 \N{PLUS-MINUS SIGN} 0.06 nats, beside the bracket [3.00, 3.25]" in text
    change(folder, "summary.json", levels=found | {"log_z": None})
    text = page_of(folder).text
    assert "say nothing of log Z" in text and "Too few of their draws" in text
    change(folder, "summary.json", levels={"rows": [{"sigma": 1.0, "jump_distance": 0.375}]})
    assert "distance of a move" in page_of(folder).text and "Chains over" not in page_of(folder).text
