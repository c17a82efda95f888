"""Floor 7: one look for every picture: a palette safe for colour-blind readers, quiet axes, nothing global.

Figures are made through matplotlib's objects, never through pyplot: nothing leaks, and no display is needed.
Colours: Okabe and Ito (2008).
"""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW = "#E69F00", "#56B4E9", "#F0E442"
INK, GREY, PALE = "#222222", "#8C8C8C", "#E3E3E3"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK, GREY)
WIDTH = 9.0
"""Inches: a figure this wide fills a report's column at its natural text size."""
MANY = len(COLOURS)
"""More chains than this get a summary instead of a colour each."""


def new_axes(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """Return a figure `WIDTH` x `height` inches and its tidy axes, an array (rows, columns)."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        tidy(ax)
    return figure, axes


def tidy(ax: Axes) -> None:
    """Keep two spines and small grey ticks."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.tick_params(labelsize=9, color=GREY, labelcolor=INK)


def label(ax: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """Name the axes, units in brackets, and say over the picture what it shows."""
    ax.set_xlabel(x, fontsize=9.5, color=INK)
    ax.set_ylabel(y, fontsize=9.5, color=INK)
    ax.set_title(title, loc="left", fontsize=10, color=INK)


def legend(ax: Axes, **options: Any) -> None:
    """Add a plain legend."""
    ax.legend(**({"frameon": False, "fontsize": 9} | options))


def panels(num: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with `num` tidy axes in rows of `columns`, each row `height` inches; spare places stay empty."""
    columns = min(columns, num)
    rows = -(-num // columns)
    figure, axes = new_axes(rows, columns, height * rows)
    for ax in axes.flat[num:]:
        ax.remove()
    return figure, list(axes.flat[:num])


def shared_bins(values: Sequence[np.ndarray], include: Sequence[float] = ()) -> np.ndarray:
    """Return bin edges over the finite values and over `include`; 3 n^(1/3) bins for the smallest group of n, 10 to 40.

    Where a few values lie so far out that they would squeeze the rest into half the picture, the edges cover the middle
    99 % of the pooled values, and never more than ten interquartile ranges beyond the quartiles (annealing weights have
    long lower tails). Raises ValueError where none is finite.
    """
    finite = [v[np.isfinite(v)] for v in values]
    pooled = np.concatenate(finite) if finite else np.empty(0)
    if not pooled.size:
        raise ValueError("there is no finite value to show")
    low, high = pooled.min(), pooled.max()
    middle = np.quantile(pooled, [0.005, 0.995])
    if high - low > 2 * (middle[1] - middle[0]) > 0:
        low, high = middle
    first, third = np.quantile(pooled, [0.25, 0.75])
    if (reach := 10 * (third - first)) > 0:
        low, high = max(low, first - reach), min(high, third + reach)
    low, high = min([low, *include]), max([high, *include])
    margin = 0.03 * (high - low) or 0.5
    smallest = min(len(v) for v in finite if len(v))
    return np.linspace(low - margin, high + margin, int(np.clip(3 * smallest ** (1 / 3), 10, 40)) + 1)


def hidden_note(values: np.ndarray, edges: np.ndarray) -> str:
    """Return ", k outside" for the values that are not finite or beyond the edges; "" where there are none."""
    hidden = int(values.size - np.sum((values >= edges[0]) & (values <= edges[-1])))
    return f", {hidden} outside" if hidden else ""


def histogram(ax: Axes, values: np.ndarray, edges: np.ndarray, colour: str, name: str) -> None:
    """Draw one outlined density histogram of the finite values (n,), labelled `name`."""
    values = values[np.isfinite(values)]
    density = np.histogram(values, edges)[0] / (max(values.size, 1) * np.diff(edges))
    ax.stairs(density, edges, fill=True, color=colour, alpha=0.18)
    ax.stairs(density, edges, color=colour, linewidth=1.6, label=name)


def lines_by_colour(num: int) -> Iterator[str]:
    """Yield `num` colours, in the order of the palette."""
    return (COLOURS[i % MANY] for i in range(num))


def png(figure: Figure, dpi: int = 150) -> str:
    """Return the figure as the base64 text of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
