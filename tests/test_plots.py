"""What each picture shows: the numbers in it are those it was given, bounds stand where they are, nothing is hidden."""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.special import kolmogorov

from energyflow import plots
from energyflow.chains import ChainState, Trace
from energyflow.logz.result import combine
from energyflow.plots.chains import autocorrelation_time
from energyflow.plots.style import MANY, png
from energyflow.types import Stats

pytestmark = pytest.mark.core


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def nothing_leaks_into_pyplot():
    yield
    assert plt.get_fignums() == []


def well(x):
    return jnp.sum((x - 1.0) ** 2)


def trace_of(x, rate=0.6, divergent=None):
    shape = x.shape[:2]
    rates = None if rate is None else np.full(shape, rate)
    divergent = np.zeros(shape, bool) if divergent is None else divergent
    stats = Stats(rates, np.ones(shape), divergent, np.ones(shape, np.int32))
    return Trace(x, -0.5 * np.sum(x**2, axis=-1), stats, ChainState(None, shape[1]))


def log_z(rng, provenance="exact", spread=1.0):
    """The two directions of a Gaussian work distribution: log Z = 0 exactly (Crooks 1999)."""
    forward = rng.normal(-(spread**2) / 2, spread, 200)
    reverse = None if provenance == "none" else rng.normal(spread**2 / 2, spread, 100)
    betas, acceptance = np.linspace(0, 1, 11), np.linspace(0.9, 0.5, 10)
    record = combine(
        forward,
        reverse,
        provenance,
        num_gradients=1000,
        position=None,
        betas=betas,
        acceptance=acceptance,
        steps=None,
    )
    return record


def drawn(line):
    return np.column_stack(line.get_data()).astype(float)


def texts(figure):
    """Every word in a picture: titles, axis labels and legends."""
    found = []
    for ax in figure.axes:
        found += [ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel()]
        found += [] if ax.get_legend() is None else [text.get_text() for text in ax.get_legend().get_texts()]
    return " | ".join(found)


def mass_of(ax, name):
    """The area under the outline called `name` in a density histogram."""
    (outline,) = [patch for patch in ax.patches if patch.get_label() == name]
    values, edges, _ = outline.get_data()
    return np.sum(values * np.diff(edges))


def outside(ax, values):
    """How many values the x axis does not reach."""
    low, high = ax.get_xlim()
    return int(len(values) - np.sum((values >= low) & (values <= high)))


def test_landscape_shows_depth_paths_and_points(rng):
    paths, points = rng.normal(size=(3, 7, 2)), rng.normal(size=(20, 2))
    figure = plots.landscape(well, -2.0, [3.0, 4.0], paths=paths, points=points, depth=6.0)
    ax, bar = figure.axes
    assert ax.get_xlim() == (-2, 3) and ax.get_ylim() == (-2, 4)
    assert "nats" in bar.get_ylabel() and bar.get_ylim() == (0, 6)
    data, *chains = ax.lines
    np.testing.assert_array_equal(drawn(data), points)
    for i in range(3):
        way, start, end = chains[3 * i : 3 * i + 3]
        np.testing.assert_array_equal(drawn(way), paths[i])
        np.testing.assert_array_equal(drawn(start), paths[i, :1])
        np.testing.assert_array_equal(drawn(end), paths[i, -1:])


def test_landscape_leaves_out_what_has_no_energy():
    figure = plots.landscape(lambda x: jnp.where(x[0] > 0, well(x), jnp.inf), -1.0, 1.0)
    filled = [path for path in figure.axes[0].collections[0].get_paths() if len(path.vertices)]
    # The grid has 200 columns over [-1, 1]: the first with x > 0 lies at 1/199.
    assert min(path.vertices[:, 0].min() for path in filled) == pytest.approx(1 / 199)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((well, 1.0, 1.0), "high > low"),
        ((lambda x: jnp.sum(x) * jnp.nan, 0.0, 1.0), "finite nowhere"),
        ((well, 0.0, 1.0, np.zeros((2, 5, 3))), "shape"),
    ],
)
def test_landscape_refuses(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        plots.landscape(*arguments)


def test_rank_plot_shows_every_chain_and_ends_at_zero(rng):
    figure = plots.rank_plot(trace_of(rng.normal(size=(4, 300, 3))))
    assert [len(ax.lines) for ax in figure.axes] == [4, 4, 4]
    for ax in figure.axes:
        curves = np.array([line.get_ydata() for line in ax.lines])
        # Over all draws the ranks are uniform: the chains' deviations cancel, up to the rank that a grid point cuts.
        np.testing.assert_allclose(curves.mean(axis=0), 0, atol=1 / 1200 + 1e-12)
        np.testing.assert_allclose(curves[:, -1], 0, atol=1e-12)
    assert "x[2]" in texts(figure)


def test_rank_plot_keeps_independent_chains_in_the_band_and_marks_a_shifted_one(rng):
    x = rng.normal(size=(32, 1000, 1))
    # Family-wise false alarm of the picture under test: 1e-6, which makes the band .09 wide.
    (ax,) = plots.rank_plot(x, probability=1 - 1e-6).axes
    assert ax.get_title(loc="left") == "x[0]: all 32 chains in the band"
    # Half a standard deviation moves this chain's curve by .19 at the median, six standard errors (.016) out of the
    # band, and the pooled one by .006: one of the others then leaves with probability 2e-5.
    x[3] += 0.5
    (ax,) = plots.rank_plot(x, probability=1 - 1e-6).axes
    assert ax.get_title(loc="left") == "x[0]: 1 of 32 chains leave the band"
    colours = [line.get_color() for line in ax.lines]
    assert [i for i, colour in enumerate(colours) if colour != colours[0]] == [3]


def test_rank_plot_band_is_kolmogorovs(rng):
    figure = plots.rank_plot(rng.normal(size=(2, 20_000, 1)), probability=0.99)
    (band,) = figure.axes[0].patches
    half_width = band.get_height() / 2
    # Two chains, each against the mean of both: sqrt(n / (1 - 1/2)) times the deviation follows Kolmogorov's law. The
    # autocorrelation time of 40000 independent draws is 1 within 10 %, so the half width is right within 5 %.
    low, high = (kolmogorov(np.sqrt(2 * 20_000) * half_width * factor) for factor in (1.05, 1 / 1.05))
    assert low < 0.01 / 2 < high


def test_rank_plot_needs_two_chains(rng):
    with pytest.raises(ValueError, match="at least two"):
        plots.rank_plot(rng.normal(size=(1, 50, 2)))


def test_autocorrelation_time_of_an_ar1_process(rng):
    a, chains, length = 0.8, 64, 2000
    noise, x = rng.normal(size=(chains, length)), np.empty((chains, length))
    x[:, 0] = noise[:, 0]
    for t in range(1, length):
        x[:, t] = a * x[:, t - 1] + np.sqrt(1 - a**2) * noise[:, t]
    # tau = (1 + a) / (1 - a) = 9. Sokal: relative variance about 2 (2 M + 1) / N with window M = 5 tau = 45; the window
    # leaves out a^45, the mean's removal tau / length.
    error = 9 * np.sqrt(2 * 91 / (chains * length))
    assert abs(autocorrelation_time(x) - 9) < 4.5 * error + 9 * (0.8**45 + 9 / length)
    assert autocorrelation_time(np.ones((2, 50))) == 50  # a frozen chain is one draw


def test_trace_plot_shows_the_draws(rng):
    x = rng.normal(size=(6, 40, 5))
    figure = plots.trace_plot(trace_of(x), dims=(4, 1), num_chains=3)
    left, right = figure.axes[0::2], figure.axes[1::2]
    for ax, dim in zip(left, (4, 1), strict=True):
        np.testing.assert_array_equal([line.get_ydata() for line in ax.lines], x[:3, :, dim])
    assert [len(ax.patches) for ax in right] == [3, 3]
    assert "chains 0 to 2 of 6" in texts(figure) and "x[4]" in texts(figure)


def test_energy_trace_shows_each_of_few_chains_and_a_summary_of_many(rng):
    few, many = (trace_of(rng.normal(size=(chains, 30, 2))) for chains in (4, MANY + 3))
    (ax,) = plots.energy_trace(few).axes
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines], few.logdensity)
    figure = plots.energy_trace(many)
    np.testing.assert_array_equal(figure.axes[0].lines[-1].get_ydata(), np.median(many.logdensity, axis=0))
    assert f"median of {MANY + 3} chains" in texts(figure) and "nats" in texts(figure)


def test_one_chain_without_a_chain_axis_is_a_trace_too(rng):
    many = trace_of(rng.normal(size=(1, 30, 2)))
    one = Trace(many.position[0], many.logdensity[0], Stats(*(v[0] for v in many.stats)), many.final)
    for plot in (plots.energy_trace, plots.acceptance_plot, plots.trace_plot):
        assert texts(plot(one)) == texts(plot(many))


def test_acceptance_plot_shows_the_mean_of_each_chain_and_divergences(rng):
    rates, divergent = rng.uniform(size=(5, 20)), np.zeros((5, 20), bool)
    divergent[[1, 4], 3] = True
    trace = trace_of(rng.normal(size=(5, 20, 1)), divergent=divergent)
    figure = plots.acceptance_plot(trace._replace(stats=trace.stats._replace(acceptance_rate=rates)))
    pooled, chains, marked = figure.axes[0].lines
    np.testing.assert_allclose(pooled.get_ydata(), rates.mean())
    np.testing.assert_allclose(chains.get_ydata(), rates.mean(axis=1))
    np.testing.assert_array_equal(marked.get_xdata(), [1, 4])


@pytest.mark.parametrize("plot", [plots.acceptance_plot, plots.energy_trace])
def test_what_a_trace_did_not_keep_is_refused(rng, plot):
    trace = trace_of(rng.normal(size=(2, 5, 1)), rate=None)._replace(logdensity=None)
    with pytest.raises(ValueError, match="no acceptance rate|no log density"):
        plot(trace)


def test_annealing_plot_shows_schedule_acceptance_and_marked_bounds(rng):
    record = log_z(rng)
    figure = plots.annealing_plot(record)
    schedule, values, acceptance = figure.axes
    np.testing.assert_array_equal(schedule.lines[0].get_ydata(), record.betas)
    np.testing.assert_array_equal(acceptance.lines[0].get_ydata(), record.acceptance)
    np.testing.assert_array_equal(acceptance.lines[0].get_xdata(), np.arange(1, 11))
    marks = [line.get_xdata()[0] for line in values.lines]
    np.testing.assert_array_equal(marks, [record.lower, record.log_z, record.upper])
    for name in ("forward, 200 chains", "reverse, 100 chains"):
        assert mass_of(values, name) == pytest.approx(1)
    assert f"lower {record.lower:.2f}" in texts(figure) and "(nats)" in texts(figure)


def test_annealing_plot_of_one_direction_marks_no_upper_side(rng):
    record = log_z(rng, "none")
    figure = plots.annealing_plot(record)
    assert [line.get_xdata()[0] for line in figure.axes[1].lines] == [record.lower, record.log_z]
    assert "reverse," not in texts(figure) and "upper" not in texts(figure)
    with pytest.raises(ValueError, match="neither"):
        plots.annealing_plot(record._replace(forward=None))


def test_annealing_plot_counts_what_it_cannot_show(rng):
    record = log_z(rng)
    record.forward[:2] = -np.inf, -1e6
    figure = plots.annealing_plot(record)
    hidden = outside(figure.axes[1], record.forward)
    assert hidden >= 2 and f"forward, 200 chains, {hidden} outside" in texts(figure)


def test_training_curves_show_every_finite_value(rng):
    rows = [
        {"step": 10 * i, "gap": float(rng.normal()), "energy_data": 1.0 * i, "energy_model": 2.0 * i} for i in range(30)
    ]
    rows[3]["gap"], rows[4]["gap"] = float("nan"), None
    rows[7]["validation_log_likelihood"] = 3.5
    names = (("energy_data", "energy_model"), "gap", "never_logged", "validation_log_likelihood")
    figure = plots.training_curves(rows, names, best_step=70)
    energies, gap, validation = figure.axes
    np.testing.assert_array_equal(drawn(energies.lines[1]), [(r["step"], r["energy_model"]) for r in rows])
    kept = [row for i, row in enumerate(rows) if i not in (3, 4)]
    np.testing.assert_array_equal(drawn(gap.lines[0]), [(row["step"], row["gap"]) for row in kept])
    np.testing.assert_array_equal(drawn(validation.lines[0]), [(70, 3.5)])
    assert all(ax.lines[-1].get_xdata()[0] == 70 for ax in figure.axes)
    assert "never" not in texts(figure) and "(nats)" in texts(figure) and "training step" in texts(figure)


def test_training_curves_of_long_runs_keep_the_values_under_their_median(rng):
    rows = [{"step": i, "step_size": float(np.exp(rng.normal()))} for i in range(500)]
    (ax,) = plots.training_curves(rows, ["step_size"]).axes
    raw, median = ax.lines
    np.testing.assert_array_equal(raw.get_ydata(), [row["step_size"] for row in rows])
    assert np.std(np.log(median.get_ydata())) < np.std(np.log(raw.get_ydata())) / 2
    assert ax.get_yscale() == "log"
    with pytest.raises(ValueError, match="no metric"):
        plots.training_curves(rows, ["gap"])


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (1, 3, 4), (3, 4, 3)])
def test_sample_grid_places_every_image(rng, shape):
    blocks = [rng.uniform(-1, 1, size=(n, int(np.prod(shape)))) for n in (7, 5)]
    figure = plots.sample_grid(blocks, shape, ["samples", "data"], limits=(-1, 1), rows=2, columns=4)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["samples", "data"]
    channels = (3,) if shape[-1] == 3 else ()
    for ax, block in zip(figure.axes, blocks, strict=True):
        canvas = np.asarray(ax.images[0].get_array())
        assert canvas.shape == (2 * 4 - 1, 4 * 5 - 1, *channels)
        for i, image in enumerate(block.reshape(-1, 3, 4, *channels)):
            top, left = 4 * (i // 4), 5 * (i % 4)
            np.testing.assert_allclose(canvas[top : top + 3, left : left + 4], (image + 1) / 2)


def test_sample_grid_refuses_other_shapes():
    with pytest.raises(ValueError, match="channels"):
        plots.sample_grid([np.zeros((2, 8))], (2, 2, 2), ["samples"])
    with pytest.raises(ValueError, match="title"):
        plots.sample_grid([np.zeros((2, 4))], (2, 2), ["samples", "data"])


def test_energy_histogram_marks_the_means_and_has_the_mass_it_says(rng):
    groups = {"samples": rng.normal(0, 1, 300), "train": rng.normal(1, 1, 200), "test": rng.normal(2, 1, 100)}
    figure = plots.energy_histogram(groups)
    (ax,) = figure.axes
    np.testing.assert_allclose([line.get_xdata()[0] for line in ax.lines], [g.mean() for g in groups.values()])
    for name, group in groups.items():
        label = f"{name}, mean {group.mean():.2f}\n(n = {len(group)})"
        assert label in texts(figure) and mass_of(ax, label) == pytest.approx(1)


def test_energy_histogram_says_what_lies_outside(rng):
    values = np.concatenate([rng.normal(size=997), [1e6, np.inf, np.nan]])
    figure = plots.energy_histogram({"samples": values})
    hidden = outside(figure.axes[0], values)
    assert hidden >= 3 and f"(n = 1000, {hidden} outside)" in texts(figure)
    with pytest.raises(ValueError, match="no finite value"):
        plots.energy_histogram({"samples": np.full(3, np.nan)})


def test_reliability_plot_has_a_bar_a_bin_and_the_means_on_it():
    edges, count = np.linspace(0, 1, 5), np.array([0, 3, 40, 100])
    confidence, accuracy = np.array([np.nan, 0.4, 0.6, 0.9]), np.array([np.nan, 2 / 3, 0.5, 0.85])
    left, right = plots.reliability_plot(edges, count, confidence, accuracy).axes
    assert [bar.get_height() for bar in right.patches] == list(count)
    np.testing.assert_allclose([bar.get_height() for bar in left.patches][1:], accuracy[1:])
    assert left.patches[1].get_facecolor() != left.patches[2].get_facecolor()  # three rows say little
    diagonal, means = left.lines
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    np.testing.assert_array_equal(means.get_xdata(), confidence)
    with pytest.raises(ValueError, match="no bin has a row"):
        plots.reliability_plot(edges, 0 * count, confidence, accuracy)


@pytest.mark.parametrize("tall", [0.3, 1.02, 1.5])
def test_scatter_2d_keeps_its_axes_inside_the_figure(rng, tall):
    data = rng.uniform(-1, 1, (200, 2)) * [1, tall]
    figure = plots.scatter_2d(data, data)
    png(figure)  # lays it out
    for ax in figure.axes:
        box = ax.get_tightbbox().transformed(figure.transFigure.inverted())
        assert min(box.x0, box.y0) >= 0 and max(box.x1, box.y1) <= 1


def test_scatter_2d_shows_both_on_the_same_window_and_counts_the_rest(rng):
    data, samples = rng.uniform(size=(50, 2)), rng.uniform(size=(40, 2))
    samples[:3] = 100.0
    figure = plots.scatter_2d(samples, data)
    left, right = figure.axes
    np.testing.assert_array_equal(drawn(left.lines[0]), samples)
    np.testing.assert_array_equal(drawn(right.lines[0]), data)
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() == right.get_ylim()
    assert "samples (n = 40, 3 outside the window)" in texts(figure) and "data (n = 50)" in texts(figure)
    with pytest.raises(ValueError, match="points"):
        plots.scatter_2d(np.zeros((3, 3)), data)


def test_marginals_show_the_first_dims(rng):
    figure = plots.marginals(rng.normal(size=(90, 9)), rng.normal(size=(70, 9)), num=4)
    assert [ax.get_xlabel() for ax in figure.axes] == [f"$x_{{{dim}}}$" for dim in range(4)]
    for ax in figure.axes:
        assert mass_of(ax, "data") == pytest.approx(1) and mass_of(ax, "samples") == pytest.approx(1)
        values, _, _ = ax.patches[1].get_data()
        assert ax.get_ylim()[0] == 0 and ax.get_ylim()[1] >= values.max()


def test_a_figure_becomes_a_png(rng):
    assert png(plots.energy_histogram({"samples": rng.normal(size=50)}), dpi=30).startswith("iVBORw0KGgo")
