"""Floor 7: pictures of chains: where they went, whether they agree, and what their moves cost them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from scipy.special import kolmogi
from scipy.stats import rankdata

from energyflow.chains import Trace
from energyflow.diagnostics.export import named_draws, with_chain_axis
from energyflow.energy import as_energy
from energyflow.plots.style import (
    BLUE,
    GREY,
    INK,
    MANY,
    PALE,
    VERMILLION,
    YELLOW,
    label,
    legend,
    lines_by_colour,
    new_axes,
    panels,
    shared_bins,
    tidy,
)

DEPTHS = LinearSegmentedColormap.from_list("depths", ["#3B4654", "#8FA0B3", "#D3DBE3", "#F8F9FA"])


def landscape(
    energy: Any, low: Any, high: Any, paths: Any = None, points: Any = None, *, depth: float = 12.0
) -> Figure:
    """Draw a 2-D energy as a map of depths, dark where it is low, with the ways of chains and data points over it.

    energy: an energy or plain function of one point (2,). low, high: corners of the window, scalars or (2,).
    paths: a Trace or an array (chain, draw, 2); a ring marks each start, a disc each end. points: (n, 2).
    depth: nats above the lowest energy in the window where the colour scale ends.
    Raises ValueError for an empty window, an energy finite nowhere in it, or points that are not 2-D.
    """
    low, high = (np.broadcast_to(np.asarray(corner, np.float64), (2,)) for corner in (low, high))
    if not (high > low).all():
        raise ValueError(f"the window needs high > low on both axes; got {low} and {high}")
    x, y = (np.linspace(a, b, 200) for a, b in zip(low, high, strict=True))
    grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    values = np.asarray(_values(as_energy(energy), jnp.asarray(grid, dtype=float)), np.float64).reshape(200, 200)
    values = np.ma.masked_invalid(values)
    if values.count() == 0:
        raise ValueError("the energy is finite nowhere in the window")
    figure = Figure(figsize=(6.6, 5.6), layout="constrained")
    ax = figure.subplots()
    tidy(ax)
    levels = np.linspace(0, depth, 13)
    filled = ax.contourf(x, y, values - values.min(), levels, cmap=DEPTHS, extend="max")
    bar = figure.colorbar(filled, ax=ax, shrink=0.8)
    bar.set_label("energy above its minimum (nats)", fontsize=9.5, color=INK)
    bar.ax.tick_params(labelsize=9)
    if points is not None:
        edge = {"markeredgecolor": INK, "markeredgewidth": 0.3}
        ax.plot(*_planar(points).reshape(-1, 2).T, "o", color=YELLOW, markersize=3, label="data", **edge)
        legend(ax, loc="upper right", markerscale=2, frameon=True, edgecolor="none")
    if paths is not None:
        _draw_paths(ax, _planar(paths.position if isinstance(paths, Trace) else paths))
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    label(ax, "$x_0$", "$x_1$")
    return figure


@jax.jit
def _values(energy: Any, x: Any) -> Any:
    return jax.vmap(energy)(x)


def _planar(points: Any) -> np.ndarray:
    points = np.asarray(points)
    if points.shape[-1:] != (2,) or points.ndim < 2:
        raise ValueError(f"a landscape shows points of shape (2,); got an array {points.shape}")
    return points


def _draw_paths(ax: Any, paths: np.ndarray) -> None:
    paths = paths.reshape(-1, *paths.shape[-2:])
    outline = [Stroke(linewidth=1.8, foreground="white"), Normal()]
    for path, colour in zip(paths, lines_by_colour(len(paths)), strict=True):
        ax.plot(*path.T, color=colour, linewidth=0.9, path_effects=outline)
        ax.plot(*path[0], "o", color="white", markeredgecolor=colour, markeredgewidth=1.8, markersize=7, zorder=3)
        ax.plot(*path[-1], "o", color=colour, markeredgecolor="white", markersize=7, zorder=3)


def flat_draws(draws: Trace | Any) -> tuple[np.ndarray, list[str]]:
    """Return draws as (chain, draw, dim) with the name of each dim; a Trace of one chain gets its chain axis."""
    position = with_chain_axis(draws).position if isinstance(draws, Trace) else draws
    named = named_draws(position)
    x = np.concatenate([v.reshape(*v.shape[:2], -1) for v in named.values()], axis=-1)
    return x, [f"{name}[{i}]" for name, v in named.items() for i in range(int(np.prod(v.shape[2:])))]


def rank_plot(draws: Trace | Any, dims: Sequence[int] | None = None, *, probability: float = 0.99) -> Figure:
    """Draw, per dim and chain, the share of its draws under each rank of the pooled draws, less what is expected.

    draws: a Trace, or an array or pytree [chain, draw, ...]. dims: which, the first four by default.
    Chains that sample the same distribution all stay in the band with the given probability; one that sits too high in
    the distribution dips below it, one that is too wide crosses it. The band is Kolmogorov's over the chains' effective
    length, the autocorrelation within chains counted (after Sailynoja, Burkner and Vehtari 2022).
    Raises ValueError for fewer than two chains.
    """
    x, names = flat_draws(draws)
    chains, length, _ = x.shape
    if chains < 2:
        raise ValueError("ranks compare chains; this needs at least two")
    dims = range(min(4, len(names))) if dims is None else dims
    figure, axes = panels(len(dims), 2, 2.4)
    grid = np.linspace(0, 1, 201)
    for ax, dim in zip(axes, dims, strict=True):
        ranks = rankdata(x[:, :, dim]).reshape(chains, length)
        shares = [np.searchsorted(np.sort(chain), grid * x[:, :, dim].size, "right") / length - grid for chain in ranks]
        effective = length / autocorrelation_time(ranks)
        band = kolmogi((1 - probability) / chains) * np.sqrt((1 - 1 / chains) / effective)
        outside = [bool(np.abs(share).max() > band) for share in shares]
        ax.axhspan(-band, band, color=PALE, linewidth=0)
        for share, out, colour in zip(shares, outside, lines_by_colour(chains), strict=True):
            if chains > MANY:
                ax.plot(grid, share, color=VERMILLION if out else GREY, linewidth=1.0 if out else 0.5, zorder=2 + out)
            else:
                ax.plot(grid, share, color=colour, linewidth=1.3)
        left = (
            f"{sum(outside)} of {chains} chains leave the band" if any(outside) else f"all {chains} chains in the band"
        )
        ax.set_xlim(0, 1)
        label(ax, "", "share below rank,\nless expected" if ax in axes[::2] else "", f"{names[dim]}: {left}")
    for ax in axes[-2:]:
        ax.set_xlabel("rank among all draws (0 lowest, 1 highest)", fontsize=9.5, color=INK)
    return figure


def autocorrelation_time(x: np.ndarray) -> float:
    """Return the integrated autocorrelation time within chains (chain, draw), in draws, at least 1 (Sokal 1997)."""
    length = x.shape[1]
    spectrum = np.fft.rfft(x - x.mean(axis=1, keepdims=True), 2 * length, axis=1)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :length].mean(axis=0)
    if not covariance[0] > 0:
        return float(length)
    times = 2 * np.cumsum(covariance / covariance[0]) - 1
    settled = np.flatnonzero(np.arange(length) >= 5 * times)
    return float(np.clip(times[settled[0]] if settled.size else times.max(), 1, length))


def trace_plot(draws: Trace | Any, dims: Sequence[int] | None = None, *, num_chains: int = 4) -> Figure:
    """Draw the values of some dims over draws, one line a chain, with each chain's histogram beside.

    draws: a Trace, or an array or pytree [chain, draw, ...]. dims: which, the first three by default. num_chains: how
    many chains are shown, the first ones.
    """
    x, names = flat_draws(draws)
    shown = x[:num_chains]
    dims = range(min(3, len(names))) if dims is None else dims
    figure, axes = new_axes(len(dims), 2, 1.7 * len(dims) + 0.5, sharey="row", width_ratios=[5, 1])
    for (left, right), dim in zip(axes, dims, strict=True):
        edges = shared_bins([chain for chain in shown[:, :, dim]])
        for chain, colour in zip(shown[:, :, dim], lines_by_colour(len(shown)), strict=True):
            left.plot(np.arange(len(chain)), chain, color=colour, linewidth=0.9, alpha=0.85)
            density = np.histogram(chain[np.isfinite(chain)], edges, density=True)[0]
            right.stairs(density, edges, orientation="horizontal", color=colour, linewidth=1.3)
        left.set_xlim(0, max(x.shape[1] - 1, 1))
        left.tick_params(labelbottom=dim == dims[-1])
        right.set(xlim=(0, None), xticks=[])
        right.spines["bottom"].set_visible(False)
        label(left, "draw" if dim == dims[-1] else "", names[dim])
    of = f"chains 0 to {len(shown) - 1}" if len(shown) > 1 else "one chain"
    label(axes[0, 0], "draw" if len(dims) == 1 else "", names[dims[0]], f"{of} of {len(x)}" if len(x) > 1 else of)
    label(axes[0, 1], title="histogram")
    return figure


def energy_trace(trace: Trace) -> Figure:
    """Draw the log density of each chain over its draws; of many chains, their median, middle 90 % and three of them.

    Chains at home wander around one level; a steady climb says that they had not arrived, one line apart from the rest
    that a chain is stuck elsewhere. Raises ValueError where the trace kept no log density.
    """
    if trace.logdensity is None:
        raise ValueError("this trace kept no log density; keep the field `logdensity` when sampling")
    values = np.asarray(with_chain_axis(trace).logdensity, np.float64)
    figure, ((ax,),) = new_axes(1, 1, 2.8)
    time = np.arange(values.shape[1])
    if len(values) > MANY:
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95], axis=0)
        ax.fill_between(time, low, high, color=PALE, linewidth=0, label="middle 90 % of chains")
        for chain, colour in zip(values[:3], lines_by_colour(3), strict=True):
            ax.plot(time, chain, color=colour, linewidth=0.8, alpha=0.7)
        ax.plot(time, middle, color=INK, linewidth=1.6, label=f"median of {len(values)} chains")
        legend(ax, loc="lower right", ncols=2)
    else:
        for i, (chain, colour) in enumerate(zip(values, lines_by_colour(len(values)), strict=True)):
            ax.plot(time, chain, color=colour, linewidth=0.9, alpha=0.85, label=f"chain {i}")
        legend(ax, loc="upper left", bbox_to_anchor=(1, 1))
    ax.set_xlim(0, max(len(time) - 1, 1))
    label(ax, "draw", "unnormalised\nlog density (nats)")
    return figure


def acceptance_plot(trace: Trace) -> Figure:
    """Draw the mean acceptance rate of each chain, the mean over all, and which chains met divergent transitions.

    Raises ValueError for a kernel without an accept step.
    """
    stats = with_chain_axis(trace).stats
    if stats.acceptance_rate is None:
        raise ValueError("these chains have no acceptance rate: their kernel has no accept step, or it was not kept")
    rates = np.asarray(stats.acceptance_rate, np.float64).mean(axis=1)
    chains = np.arange(len(rates))
    figure, ((ax,),) = new_axes(1, 1, 2.6)
    ax.axhline(rates.mean(), color=GREY, linewidth=1, linestyle="--", label=f"mean {rates.mean():.2f}")
    ax.plot(chains, rates, "o", color=BLUE, markersize=6 if len(rates) <= 64 else 3, label="a chain")
    if stats.is_divergent is not None and np.any(stats.is_divergent):
        share = np.asarray(stats.is_divergent).mean(axis=1)
        ax.plot(chains[share > 0], rates[share > 0], "x", color=VERMILLION, markersize=9, label="with divergences")
    ax.set(ylim=(0, 1.02), xlim=(-0.7, len(rates) - 0.3))
    ax.xaxis.get_major_locator().set_params(integer=True)
    legend(ax, loc="upper left", bbox_to_anchor=(1, 1))
    label(ax, "chain", "mean acceptance rate")
    return figure
