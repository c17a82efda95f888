"""The adapter gives the same numbers on ArviZ 0.23 and 1.x: literals below were read off both."""

import numpy as np
import pytest
from scipy.special import ndtri

from energyflow.chains import ChainState, Trace
from energyflow.diagnostics import from_netcdf, read_trace, summary, to_arviz, to_netcdf
from energyflow.types import Stats

pytestmark = pytest.mark.core

GOLDEN = {  # mean, sd, mcse_mean, ess_bulk, ess_tail, r_hat of `lattice()`, on ArviZ 0.23.4 and on 1.3.0
    "x[0]": (0.00633118723903, 0.942456503431, 0.0522824170448, 321.219921762, 375.700922525, 0.994843214984),
    "x[1]": (0.444673406224, 1.00544269607, 0.0825139641069, 183.532464384, 312.089776839, 1.07166300411),
}
STATS = ["acceptance_rate", "diverging", "jump_distance", "lp", "num_gradients"]


def lattice():
    """Four chains of 100 draws of two dimensions without a random number; the chains differ in the second."""
    points = ndtri(np.arange(1, 801) * 0.6180339887498949 % 1).reshape(2, 4, 100).transpose(1, 2, 0)
    x = np.empty_like(points)
    x[:, 0] = points[:, 0]
    for t in range(1, 100):
        x[:, t] = 0.5 * x[:, t - 1] + points[:, t]
    return x + np.arange(4)[:, None, None] * np.array([0.0, 0.3])


def trace_of(position, shape=(4, 100)):
    stats = Stats(
        np.full(shape, 0.75), np.ones(shape), np.arange(np.prod(shape)).reshape(shape) == 7, np.full(shape, 3)
    )
    return Trace(position, np.linspace(-1, 0, np.prod(shape)).reshape(shape), stats, ChainState(None, 100))


def variables(group):
    return sorted(map(str, group.data_vars))


def test_a_summary_has_the_same_numbers_on_both_generations():
    table = summary(lattice())
    assert list(table.columns) == ["mean", "sd", "mcse_mean", "ess_bulk", "ess_tail", "r_hat"]
    assert list(table.index) == list(GOLDEN)
    np.testing.assert_allclose(table.to_numpy(), np.array(list(GOLDEN.values())), rtol=1e-9)


def test_a_summary_of_a_pytree_keeps_the_order_of_its_rows():
    x = lattice()
    table = summary({"w": x, "b": x[..., 0], "layer": {"c": x[..., None, :]}})
    assert list(table.index) == ["b", "layer.c[0, 0]", "layer.c[0, 1]", "w[0]", "w[1]"]
    rows = [GOLDEN[f"x[{i}]"] for i in (0, 0, 1, 0, 1)]
    np.testing.assert_allclose(table.to_numpy(), np.array(rows), rtol=1e-9)


def test_an_array_becomes_a_posterior_and_nothing_else():
    x = lattice()
    data = to_arviz(x, "theta")
    posterior = data["posterior"]
    assert variables(posterior) == ["theta"] and getattr(data, "sample_stats", None) is None
    assert posterior["theta"].dims[:2] == ("chain", "draw")
    np.testing.assert_array_equal(posterior["theta"].values, x)


def test_a_trace_brings_its_statistics_under_arvizs_names():
    x = lattice()
    trace = trace_of({"w": x, "b": x[..., 0]})
    data = to_arviz(trace)
    assert variables(data["posterior"]) == ["b", "w"] and variables(data["sample_stats"]) == STATS
    np.testing.assert_array_equal(data["sample_stats"]["lp"].values, trace.logdensity)
    np.testing.assert_array_equal(data["sample_stats"]["diverging"].values, trace.stats.is_divergent)


def test_nothing_is_called_energy():
    """ArviZ computes a BFMI from a variable of that name, which is a Hamiltonian there."""
    data = to_arviz(trace_of(lattice()))
    assert not any("energy" in name for name in STATS + variables(data["posterior"]) + variables(data["sample_stats"]))


def test_a_statistic_that_was_not_kept_is_left_out():
    trace = trace_of(lattice())
    trace = trace._replace(logdensity=None, stats=trace.stats._replace(acceptance_rate=None))
    assert variables(to_arviz(trace)["sample_stats"]) == ["diverging", "jump_distance", "num_gradients"]


def test_a_trace_of_one_chain_gets_a_chain_axis():
    x = lattice()[0]
    trace = trace_of(x, (100,))
    assert to_arviz(trace)["posterior"]["x"].shape == (1, 100, 2)


def test_many_short_chains_are_no_reason_to_warn():
    x = np.zeros((64, 3, 2))
    assert to_arviz(x)["posterior"]["x"].shape == (64, 3, 2)


def test_a_netcdf_file_brings_everything_back(tmp_path):
    x = lattice()
    trace = trace_of({"w": x, "b": x[..., 0].astype(np.float32)})
    path = to_netcdf(trace, tmp_path / "draws.nc")
    data = from_netcdf(path)
    assert variables(data["sample_stats"]) == STATS
    data.close()
    back = read_trace(path)
    assert sorted(back.position) == ["b", "w"]
    for ours, theirs in [
        (trace.position["w"], back.position["w"]),
        (trace.position["b"], back.position["b"]),
        (trace.logdensity, back.logdensity),
        *zip(trace.stats, back.stats, strict=True),
    ]:
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_draws_without_statistics_come_back_without(tmp_path):
    back = read_trace(to_netcdf(lattice(), tmp_path / "draws.nc", name="z"))
    assert list(back.position) == ["z"] and back.logdensity is None and back.stats == Stats(None, None, None, None)


@pytest.mark.parametrize("draws", [np.zeros(10), {"a": np.zeros((2, 3)), "b": np.zeros(3)}, 1.0])
def test_draws_without_a_chain_and_a_draw_axis_are_refused(draws):
    with pytest.raises(
        ValueError, match=r"draws of '[xb]' need axes \[chain, draw, ...\]; their shape is \((10,|3,|)\)"
    ):
        to_arviz(draws)
