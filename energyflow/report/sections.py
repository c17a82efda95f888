"""Floor 8: the sections of a report, each a pure function from what a run left to HTML."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from energyflow import plots
from energyflow.logz.result import LogZ
from energyflow.report.folder import Run, get
from energyflow.report.markup import (
    badge,
    bullets,
    compared,
    duration,
    is_finite,
    number,
    paragraph,
    picture,
    table,
)
from energyflow.report.verdicts import LOG_Z, NUMBERS, PROVENANCE, STOPPED, grade


def opening(run: Run) -> str:
    """The headline, the verdicts in colour and in words, and what was trained."""
    summary = run.summary
    if not summary:
        return absence(run, "summary.json", "this run has not been judged, and nothing here is certified")
    parts = [paragraph(str(summary.get("headline") or "This run has no headline."), "headline")]
    verdicts = {"training": summary.get("stopped") or "unknown"}
    if is_density(run):
        verdicts = {
            "log Z": get(summary, "log_z", "verdict") or "not estimated",
            "sampler": get(summary, "check", "verdict") or "not checked",
        } | verdicts
    parts.append("<p>" + " ".join(badge(name, str(word), grade(str(word))) for name, word in verdicts.items()) + "</p>")
    stopped = str(verdicts["training"])
    problems = get(summary, "check", "problems") or []
    words = [
        LOG_Z.get(str(verdicts.get("log Z"))),
        f"Sampler: {problems[0]}." if problems else None,
        STOPPED.get(stopped),
    ]
    parts.append(paragraph(" ".join(filter(None, words))))
    return "".join(parts) + paragraph(_what_was_trained(summary), "quiet")


def is_density(run: Run) -> bool:
    """Whether the run is judged by likelihood and chains; a potential or a landscape is by its draws."""
    return "draws" not in run.summary


def _what_was_trained(summary: dict[str, Any]) -> str:
    data, sampler = get(summary, "data") or {}, get(summary, "sampler") or {}
    best = summary.get("best_step")
    rows = "/".join(number(data.get(f"num_{part}")) for part in ("train", "validation", "test"))
    return (
        f"Data: {data.get('description') or 'not described'}; {number(data.get('dim'))} dimensions, {rows} rows to "
        f"train, validate and test. {_how(sampler)} "
        f"{number(summary.get('steps'))} steps{f' (best: {number(best)})' if best is not None else ''} in "
        f"{duration(summary.get('seconds'))}, energyflow {summary.get('version') or 'of unknown version'}."
    )


def _how(sampler: dict[str, Any]) -> str:
    objective = sampler.get("objective") or "contrastive"
    if sampler.get("chains"):
        return f"Objective: {objective}, {sampler['chains']}."
    if "kernel" not in sampler and objective != "contrastive":
        return f"Objective: {objective}, no sampler."
    name = "" if objective == "contrastive" else f"Objective: {objective}. "
    return f"{name}Sampler: {sampler.get('kernel') or 'unknown'}, negatives: {sampler.get('negatives') or 'unknown'}."


def certified_numbers(run: Run) -> str:
    """Both sides of the likelihoods and of log Z, the conservative side in bold."""
    if not run.summary:
        return absence(run, "summary.json", "there are no certified numbers")
    kinds = [
        ("test log-likelihood (nats per row)", "test_log_likelihood", 1),
        ("training log-likelihood (nats per row)", "train_log_likelihood", 1),
        ("bits per dimension (lower is better)", "bits_per_dimension", 3),
        ("log Z (nats)", "log_z", 3),
    ]
    rows, strong = [], []
    for name, key, conservative in kinds:
        found = run.summary.get(key)
        if isinstance(found, dict):
            strong.append((len(rows), conservative))
            points = number(found.get("num_points")) if "num_points" in found else ""
            digits = 3 if key == "bits_per_dimension" else 2
            sides = [number(found.get(side), digits) for side in ("lower", "estimate", "upper")]
            rows.append((name, *sides, number(found["stderr"]) if "stderr" in found else "", points))
    if not rows:
        return paragraph("No log-likelihood was computed for this run.", "absent")
    provenance = get(run.summary, "log_z", "provenance")
    text = (
        "The conservative side is bold: whatever the true log Z between the two sides, the model is no worse than that."
    )
    if provenance == "approximate":
        text += " It is approximate here; see log Z below."
    header = ("", "lower side", "estimate", "upper side", "standard error", "rows")
    return table(header, rows, strong=strong) + paragraph(text, "quiet")


def comparisons(run: Run) -> str:
    """The conservative side against simpler models on the same test rows."""
    if not run.summary:
        return absence(run, "summary.json", "there is nothing to compare")
    found = run.summary.get("comparisons")
    if not found:
        return paragraph("This run was compared with no other model.", "absent")
    rows = [
        (
            str(row.get("name")),
            number(row.get("test_log_likelihood")),
            _plus_minus(row.get("difference"), row.get("difference_stderr")),
            compared(row.get("difference"), row.get("difference_stderr")),
            str(row.get("note") or ""),
        )
        for row in found
    ]
    header = ("baseline", "its test log-likelihood (nats)", "this model less baseline (nats)", "this model is", "note")
    text = (
        "The difference is the conservative side of this model less the baseline, per test row, with the standard "
        "error of the paired difference."
    )
    return table(header, rows) + paragraph(text, "quiet")


def _plus_minus(value: Any, stderr: Any) -> str:
    sign = "+" if is_finite(value) and value > 0 else ""
    return f"{sign}{number(value)} \N{PLUS-MINUS SIGN} {number(stderr)}"


def samples(run: Run) -> str:
    """Model samples beside test data: images, points of the plane, or histograms of the first dims."""
    arrays = run.samples
    if not {"samples", "data"} <= arrays.keys():
        return absence(run, "samples.npz", "there are no samples to show")
    drawn, data = (np.asarray(arrays[name]) for name in ("samples", "data"))
    shape = get(run.summary, "data", "shape") or get(run.spec, "data", "shape") or data.shape[1:]
    titles = [f"model samples (n = {len(drawn)})", f"test data (n = {len(data)})"]
    if len(shape) in (2, 3):
        limits = float(data.min()), float(data.max())
        text = f"One scale for both: {number(limits[0])} is black, {number(limits[1])} white."
        return picture(
            lambda: plots.sample_grid([drawn, data], shape, titles, limits=limits), "Samples beside data", text
        )
    if data.reshape(len(data), -1).shape[1] == 2:
        text = "Both panels show the same window: look for regions that one of them lacks."
        return picture(lambda: plots.scatter_2d(drawn, data), "Samples beside data", text)
    text = "The first dims, one at a time; agreement here is necessary, not sufficient."
    return picture(lambda: plots.marginals(drawn, data), "Histograms of samples over data", text)


def log_z(run: Run) -> str:
    """What log Z is, what it rests on and what it cost."""
    found = get(run.summary, "log_z")
    parts = [_bracket_in_words(found)]
    if "betas" not in run.logz:
        return "".join(parts) + absence(run, "logz.npz", "the annealing path cannot be shown")
    caption = (
        "Left: the path from the base to the model, and how often its moves were accepted. Right: log Z by single "
        "chains. The two histograms cross at log Z; the less they overlap, the fewer chains the bracket rests on."
    )
    return "".join(parts) + picture(
        lambda: plots.annealing_plot(_as_log_z(run)), "The annealing path and its values", caption
    )


def _bracket_in_words(found: Any) -> str:
    if not isinstance(found, dict):
        return paragraph("No log Z was estimated, so nothing here is a normalised density.", "absent")
    value = f"{number(found.get('estimate'))} \N{PLUS-MINUS SIGN} {number(found.get('stderr'))}"
    sides = f"[{number(found.get('lower'))}, {number(found.get('upper'))}]"
    result = f"log Z = {value} nats, between the sides {sides}, {number(found.get('gap'))} nats apart."
    chains = f"{number(found.get('ess'), 1)} of {number(found.get('num_chains'))}"
    cost = (
        f"Effective chains: {chains}, each over {number(found.get('num_temperatures'))} annealing moves; "
        f"{number(found.get('num_gradients'))} energy gradients in all."
    )
    origin = PROVENANCE.get(str(found.get("provenance")), "It is not known where the reverse chains began.")
    return paragraph(f"{result} {cost}") + paragraph(origin)


def _as_log_z(run: Run) -> LogZ:
    found, arrays = get(run.summary, "log_z") or {}, run.logz
    fields: dict[str, Any] = dict.fromkeys(LogZ._fields) | {"betas": arrays["betas"], "log_z": found.get("estimate")}
    fields |= {name: found.get(name) for name in ("lower", "upper", "stderr", "ess", "verdict", "provenance")}
    for name in ("log_z", "lower", "upper", "stderr", "ess"):
        fields[name] = float("nan") if fields[name] is None else float(fields[name])
    fields |= {name: _unless_empty(arrays.get(name)) for name in ("forward", "reverse", "acceptance", "steps")}
    return LogZ(**fields)


def _unless_empty(values: np.ndarray | None) -> np.ndarray | None:
    return values if values is not None and values.dtype != object and np.size(values) else None


def sampler(run: Run) -> str:
    """Whether the chains behind the samples can be trusted."""
    parts, checked = [], get(run.summary, "check")
    settings = get(run.summary, "sampler")
    if isinstance(checked, dict):
        verdict, problems = str(checked.get("verdict")), [str(p) for p in checked.get("problems") or []]
        parts.append(f"<p>{badge('check', verdict, grade(verdict))}</p>")
        parts.append(bullets(problems) if problems else paragraph("No problem was found in the draws."))
    else:
        parts.append(paragraph("The draws of this run were not checked.", "absent"))
    facts = dict(settings or {}) | dict(get(checked, "numbers") or {})
    rows = [(NUMBERS.get(str(k), str(k)), _setting(v)) for k, v in facts.items() if not str(k).endswith("_dim")]
    if rows:
        parts.append(table((), rows))
    if settings and settings.get("adjusted") is False:
        text = (
            "The kernel of training has no accept step: it samples a distribution near the model's. The model is "
            "judged as the density it is, by chains with an accept step."
        )
        parts.append(paragraph(text, "warning"))
    if run.draws is None:
        return "".join(parts) + absence(run, "draws.nc", "the chains cannot be shown")
    return "".join(parts) + "".join(_chain_pictures(run))


def _chain_pictures(run: Run) -> Iterator[str]:
    trace, numbers = run.draws, get(run.summary, "check", "numbers") or {}
    assert trace is not None
    count = sum(int(np.prod(v.shape[2:])) for v in trace.position.values())
    worst = [int(numbers[name]) for name in ("r_hat_dim", "ess_dim") if is_finite(numbers.get(name))]
    dims = [dim for dim in dict.fromkeys([*worst, *range(count)]) if dim < count][:4]
    first = "The dims with the largest R-hat and the smallest ESS come first. " if worst else ""
    yield picture(
        lambda: plots.rank_plot(trace, dims),
        "Ranks by chain",
        f"{first}Chains that sample the same distribution stay in the grey band (99 % of the time, all of them). "
        "Chains too short to tell may stay in it too: read R-hat and the ESS above beside it.",
    )
    yield picture(
        lambda: plots.trace_plot(trace, dims[:3]),
        "Traces by chain",
        "Good chains look like overlapping noise; a chain on a level of its own has not mixed.",
    )
    yield picture(
        lambda: plots.energy_trace(trace),
        "Log density by chain",
        "A level line means the chains are at home; a climb or a fall means that they are still on their way.",
    )
    if trace.stats.acceptance_rate is not None:
        yield picture(
            lambda: plots.acceptance_plot(trace),
            "Acceptance by chain",
            "A chain near 0 is stuck; all chains near 1 take steps too small to travel.",
        )


def training(run: Run) -> str:
    """The metrics over training steps."""
    if not run.metrics:
        return absence(run, "metrics.jsonl", "there are no training curves")
    best = run.summary.get("best_step")
    caption = (
        "The gap is the alarm: it tends to 0, and growth without end means that the negative chains lag behind the "
        "model. Thick lines are running medians."
    )
    best = best if isinstance(best, int) else None
    return picture(lambda: plots.training_curves(run.metrics, best_step=best), "Training curves", caption)


def energies(run: Run) -> str:
    """Energies of samples, training and test rows: overfitting, and drift of long chains."""
    names = {"model samples": "energy_samples", "training rows": "energy_train", "test rows": "energy_test"}
    groups = {name: np.asarray(run.samples[key]) for name, key in names.items() if key in run.samples}
    if not groups:
        return absence(run, "samples.npz", "there are no energies to compare")
    caption = "An energy is minus the log density but for one constant. Dashed: the means."
    parts = [picture(lambda: plots.energy_histogram(groups), "Histograms of energies", caption)]
    meanings = [
        ("test rows", "training rows", "a higher energy of test rows is overfitting"),
        ("model samples", "training rows", "a difference is drift of long chains, or a fit that has not arrived"),
    ]
    sentences = [_difference(groups, *meaning) for meaning in meanings if meaning[0] in groups and meaning[1] in groups]
    return "".join(parts) + (bullets(sentences) if sentences else "")


def _difference(groups: dict[str, np.ndarray], one: str, other: str, meaning: str) -> str:
    a, b = groups[one], groups[other]
    value, stderr = float(a.mean() - b.mean()), float(np.sqrt(a.var() / a.size + b.var() / b.size))
    words = compared(value, stderr, "higher", "lower")
    return f"Mean energy of {one} less that of {other}: {_plus_minus(value, stderr)} nats, {words} ({meaning})."


def settings(run: Run) -> str:
    """Every setting of the run."""
    if not run.spec:
        return absence(run, "spec.json", "the settings are not known")
    rows = [(name.removeprefix("settings."), _setting(value)) for name, value in flatten(run.spec)]
    return f"<details open><summary>{len(rows)} settings</summary>{table((), rows)}</details>"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("outer.inner", value) of a nested dict, in its order; the command line has a section of its own."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        elif prefix or name != "command":
            yield f"{prefix}{name}", value


def _setting(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, list | tuple):
        return ", ".join(_setting(item) for item in value)
    if isinstance(value, float):
        return number(value, 0) if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def reproduction(run: Run) -> str:
    """The command line that made the run."""
    command = run.spec.get("command")
    version = run.summary.get("version")
    if not command:
        return paragraph("The command line of this run was not recorded.", "absent")
    line = command if isinstance(command, str) else shlex.join(str(part) for part in command)
    before = f"With energyflow {version}:" if version else "The version of energyflow was not recorded."
    return paragraph(before) + paragraph(line, "command")


def absence(run: Run, name: str, consequence: str) -> str:
    """One sentence on a file that is not there, or lacks what a section needs."""
    return paragraph(f"{name} {run.absent.get(name, 'is incomplete')}: {consequence}.", "absent")
