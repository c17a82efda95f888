"""Floor 7: pictures of a model: how it was trained, what it draws, and what its log Z rests on."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from scipy.ndimage import median_filter

from energyflow.logz.result import LogZ
from energyflow.plots.style import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    INK,
    PALE,
    SKY,
    VERMILLION,
    WIDTH,
    hidden_note,
    histogram,
    label,
    legend,
    lines_by_colour,
    new_axes,
    panels,
    shared_bins,
    tidy,
)

CURVES = (
    ("energy_data", "energy_model"),
    "gap",
    "validation_log_likelihood",
    "validation_energy_distance",
    ("accuracy", "validation_accuracy"),
    ("cross_entropy", "validation_cross_entropy"),
    ("level_moves", "largest_level"),
    "acceptance_rate",
    "step_size",
    "travel",
    "gradient_norm",
)
"""What `training_curves` shows by default; names in brackets share a panel."""
LABELS = {
    "energy_data": "mean energy (nats)",
    "energy_model": "mean energy (nats)",
    "gap": "gap E(model) - E(data) (nats)",
    "validation_log_likelihood": "validation log-likelihood (nats)",
    "validation_energy_distance": "validation energy distance",
    "cross_entropy": "cross entropy (nats)",
    "level_moves": "moves of level, and the fullest level",
    "acceptance_rate": "acceptance rate",
    "step_size": "step size (log scale)",
    "travel": "distance travelled per update",
    "gradient_norm": "gradient norm (log scale)",
}
LOGARITHMIC = {"step_size", "gradient_norm"}


def annealing_plot(logz: LogZ) -> Figure:
    """Draw the schedule, the acceptance along the path, and both directions' per-chain values with the bracket.

    The two histograms cross at log Z (Crooks 1999): where they do not overlap, neither side has seen the other's
    region, and the bracket rests on few chains. Infinite sides are not marked.
    Raises ValueError where neither direction was run.
    """
    sides = [("forward", logz.forward, BLUE), ("reverse", logz.reverse, VERMILLION)]
    sides = [(name, np.asarray(values, np.float64), colour) for name, values, colour in sides if values is not None]
    if not sides:
        raise ValueError("there are neither forward nor reverse values to show")
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=[2, 3])
    top, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[:, 1])
    bottom = figure.add_subplot(grid[1, 0], sharex=top)
    for ax in (top, bottom, right):
        tidy(ax)
    top.tick_params(labelbottom=False)
    betas = np.asarray(logz.betas)
    top.plot(np.arange(len(betas)), betas, color=INK, linewidth=1.6)
    label(top, "", "inverse\ntemperature", "annealing path: base at 0, model at 1")
    if logz.acceptance is not None:
        bottom.plot(np.arange(1, len(logz.acceptance) + 1), logz.acceptance, color=INK, linewidth=1)
    bottom.set_ylim(0, 1.02)
    label(bottom, "annealing move", "acceptance\nrate")
    _draw_bracket(right, logz, sides)
    return figure


def _draw_bracket(ax: Any, logz: LogZ, sides: list[tuple[str, np.ndarray, str]]) -> None:
    marks = [("lower", logz.lower, BLUE, ":"), ("log Z", logz.log_z, INK, "-"), ("upper", logz.upper, VERMILLION, ":")]
    marks = [mark for mark in marks if np.isfinite(mark[1])]
    edges = shared_bins([values for _, values, _ in sides], include=[value for _, value, *_ in marks])
    if np.isfinite(logz.lower) and np.isfinite(logz.upper):
        ax.axvspan(*sorted((logz.lower, logz.upper)), color=PALE, linewidth=0)
    for name, values, colour in sides:
        histogram(ax, values, edges, colour, f"{name}, {values.size} chains{hidden_note(values, edges)}")
    for name, value, colour, style in marks:
        ax.axvline(value, color=colour, linestyle=style, linewidth=1.6, label=f"{name} {value:.2f}")
    ax.set(xlim=(edges[0], edges[-1]), yticks=[])
    ax.spines["left"].set_visible(False)
    legend(ax, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2)
    label(ax, "log Z by a single chain (nats)", "density of chains", "forward and reverse must overlap")


def training_curves(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str | tuple[str, ...]] = CURVES, *, best_step: int | None = None
) -> Figure:
    """Draw metrics over training steps, one panel a name; names in a tuple share a panel.

    rows: dicts of a metrics file, with `step` (the row's number where it is missing). Values that are missing or not
    finite are left out, and so are names that have none. Over 200 values get a running median. best_step: marked by a
    line where given. Raises ValueError where nothing is left.
    """
    groups = [(name,) if isinstance(name, str) else tuple(name) for name in names]
    series = {name: _series(rows, name) for group in groups for name in group}
    groups = [shown for group in groups if (shown := [name for name in group if series[name].size])]
    if not groups:
        raise ValueError("no metric to draw: none of the names has a value")
    figure, axes = panels(len(groups), 3, 2.3)
    for ax, group in zip(axes, groups, strict=True):
        for name, colour in zip(group, lines_by_colour(len(group)), strict=True):
            _draw_curve(ax, series[name], colour, name)
        if LOGARITHMIC.issuperset(group) and all((series[name][1] > 0).all() for name in group):
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_locator(NullLocator())
        if group == ["gap"]:
            ax.axhline(0, color=GREY, linewidth=1)
        if best_step is not None:
            ax.axvline(best_step, color=GREY, linewidth=1, linestyle="--", label="best step")
        if len(group) > 1 or ax is axes[0] and best_step is not None:
            legend(ax)
        label(ax, "training step" if ax in axes[-3:] else "", title=LABELS.get(group[0], group[0].replace("_", " ")))
    return figure


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Return (steps, values) as an array (2, n), size 0 where no row has a finite value."""
    pairs = [(row.get("step", i), row.get(name)) for i, row in enumerate(rows)]
    pairs = [pair for pair in pairs if all(isinstance(v, (int, float)) and np.isfinite(v) for v in pair)]
    return np.asarray(pairs, np.float64).reshape(-1, 2).T


def _draw_curve(ax: Any, series: np.ndarray, colour: str, name: str) -> None:
    (steps, values), name = series, name.removeprefix("energy_")
    if len(steps) <= 200:
        ax.plot(steps, values, ".-" if len(steps) < 15 else "-", color=colour, linewidth=1.3, label=name)
        return
    ax.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
    ax.plot(steps, median_filter(values, len(steps) // 20, mode="nearest"), color=colour, linewidth=1.6, label=name)


def sample_grid(
    images: Sequence[Any],
    shape: Sequence[int],
    titles: Sequence[str],
    *,
    limits: tuple[float, float] | None = None,
    rows: int = 8,
    columns: int = 8,
) -> Figure:
    """Draw blocks of images side by side, all on one grey (or colour) scale.

    images: per block an array (n, ...) of n images with prod(shape) values each; the first rows * columns are shown.
    shape: (height, width), with 1 or 3 channels last or first. titles: one a block. limits: values drawn black and
    white, the pooled range by default. Raises ValueError for another shape or unequal numbers of blocks and titles.
    """
    blocks = [_as_images(np.asarray(block), tuple(shape)) for block in images]
    if len(blocks) != len(titles):
        raise ValueError(f"each block needs a title; got {len(blocks)} blocks and {len(titles)} titles")
    finite = np.concatenate([block[np.isfinite(block)] for block in blocks])
    low, high = (finite.min(), finite.max()) if limits is None else limits
    figure, axes = new_axes(1, len(blocks), 9.0 / len(blocks) + 0.3)
    figure.set_layout_engine("constrained", wspace=0.06)
    for ax, block, title in zip(axes[0], blocks, titles, strict=True):
        scaled = np.clip((block[: rows * columns] - low) / ((high - low) or 1.0), 0, 1)
        ax.imshow(_mosaic(scaled, columns), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set_axis_off()
        label(ax, title=title)
    return figure


def _as_images(block: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return (n, height, width) or (n, height, width, 3)."""
    block = block.reshape(len(block), *shape).astype(np.float64)
    if len(shape) == 3 and shape[-1] not in (1, 3) and shape[0] in (1, 3):
        block, shape = np.moveaxis(block, 1, -1), (*shape[1:], shape[0])
    if len(shape) == 3 and shape[-1] == 1:
        block, shape = block[..., 0], shape[:2]
    if not (len(shape) == 2 or len(shape) == 3 and shape[-1] == 3):
        raise ValueError(f"images need shape (height, width) with 1 or 3 channels; got {shape}")
    return block


def _mosaic(images: np.ndarray, columns: int) -> np.ndarray:
    height, width, *channels = images.shape[1:]
    rows = -(-len(images) // columns)
    canvas = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, *channels))
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = image
    return canvas


def energy_histogram(groups: Mapping[str, Any]) -> Figure:
    """Draw histograms of energies on one axis, with each group's mean: {label: values (n,)}.

    Test above train is overfitting; model samples away from train is a sampler that drifted from the training chains,
    or a fit that has not arrived. Raises ValueError where no value is finite.
    """
    values = {name: np.asarray(group, np.float64).ravel() for name, group in groups.items()}
    edges = shared_bins(list(values.values()))
    figure, ((ax,),) = new_axes(1, 1, 3.2)
    colours = cycle((VERMILLION, GREEN, BLUE, *COLOURS[3:]))
    for (name, group), colour in zip(values.items(), colours, strict=False):
        finite = group[np.isfinite(group)]
        mean = f", mean {finite.mean():.2f}" if finite.size else ""
        histogram(ax, group, edges, colour, f"{name}{mean}\n(n = {group.size}{hidden_note(group, edges)})")
        if finite.size:
            ax.axvline(finite.mean(), color=colour, linewidth=1.4, linestyle="--")
    ax.set(xlim=(edges[0], edges[-1]), yticks=[])
    ax.spines["left"].set_visible(False)
    legend(ax, loc="upper left", bbox_to_anchor=(1, 1))
    label(ax, "energy (nats; lower is more probable)", "density")
    return figure


def reliability_plot(edges: Any, count: Any, confidence: Any, accuracy: Any) -> Figure:
    """Draw how often a classifier is right where it is how sure, and how many rows each bin has.

    Arrays as in `energyflow.evaluation.Reliability`; bars of bins with fewer than ten rows are pale.
    Raises ValueError where no bin has a row.
    """
    edges, count, confidence, accuracy = (np.asarray(x, np.float64) for x in (edges, count, confidence, accuracy))
    if not count.any():
        raise ValueError("no bin has a row")
    figure, ((left, right),) = new_axes(1, 2, 3.2)
    colours = [BLUE if n >= 10 else PALE for n in count]
    left.bar(edges[:-1], accuracy, np.diff(edges), align="edge", color=colours, edgecolor=GREY, linewidth=0.5)
    left.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="as sure as right")
    left.plot(confidence, accuracy, "o", color=VERMILLION, markersize=4, label="mean of the bin")
    left.set(xlim=(0, 1), ylim=(0, 1.02))
    legend(left, loc="upper left")
    label(left, "probability of the class", "share of rows that are right")
    right.bar(edges[:-1], count, np.diff(edges), align="edge", color=SKY, edgecolor=GREY, linewidth=0.5)
    right.set(xlim=(0, 1), yscale="log", ylim=(0.5, 2 * count.max()))
    label(right, "probability of the class", "rows")
    return figure


def scatter_2d(samples: Any, data: Any) -> Figure:
    """Draw model samples (n, 2) beside data (m, 2) on the same axes, the data's range and a quarter more.

    Raises ValueError for points that are not 2-D.
    """
    return scatter_panels({"samples": samples, "data": data})


def scatter_panels(groups: Mapping[str, Any]) -> Figure:
    """Draw sets of points side by side: {title: points (n, 2)}, the last the data, whose range all axes have.

    Raises ValueError for points that are not 2-D.
    """
    groups = {name: np.asarray(points, np.float64) for name, points in groups.items()}
    for points in groups.values():
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"a scatter plot needs points (n, 2); got an array {points.shape}")
    *_, data = groups.values()
    low, high = data.min(axis=0), data.max(axis=0)
    low, high = low - 0.25 * (high - low), high + 0.25 * (high - low)
    panel = (WIDTH - 0.7) / len(groups)  # inches; the axes keep the aspect of the data, so the figure has to as well
    height = min(panel * float((high - low)[1] / (high - low)[0]), 7.0) + 0.8
    figure, axes = new_axes(1, len(groups), height, sharex=True, sharey=True)
    for ax, (name, points) in zip(axes[0], groups.items(), strict=True):
        inside = ((points >= low) & (points <= high)).all(axis=1)
        note = f", {np.sum(~inside)} outside the window" if not inside.all() else ""
        ax.plot(*points.T, ".", color=BLUE if points is data else VERMILLION, markersize=3, alpha=0.5)
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
        size = f" (n = {len(points)}{note})" if len(groups) < 4 else ""
        label(ax, "$x_0$", "$x_1$" if ax is axes[0, 0] else "", name + size)
    return figure


def marginals(samples: Any, data: Any, num: int = 6) -> Figure:
    """Draw histograms of the first `num` dims of model samples (n, d) over those of data (m, d)."""
    samples, data = (np.asarray(points, np.float64).reshape(len(points), -1) for points in (samples, data))
    figure, axes = panels(min(num, data.shape[1]), 3, 2.0)
    for dim, ax in enumerate(axes):
        edges = shared_bins([data[:, dim], samples[:, dim]])
        histogram(ax, data[:, dim], edges, BLUE, "data")
        histogram(ax, samples[:, dim], edges, VERMILLION, "samples")
        ax.set_yticks([])
        label(ax, f"$x_{{{dim}}}$", "density" if dim % 3 == 0 else "")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return figure
