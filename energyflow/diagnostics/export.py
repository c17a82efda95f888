"""One adapter for both generations of ArviZ: 0.23 (Python 3.11) and 1.x (Python 3.12 and later).

They share a name and little else: each fails on, or silently misreads, the other's `from_dict`.
"""

import warnings
from pathlib import Path
from typing import Any

import arviz
import jax
import numpy as np
import pandas as pd

from energyflow.chains import ChainState, Trace
from energyflow.types import Stats

LEGACY = arviz.__version__.startswith("0.")
COLUMNS = ("mean", "sd", "mcse_mean", "ess_bulk", "ess_tail", "r_hat")
TAILS = (0.05, 0.95)


def to_arviz(trace: Trace | Any, name: str = "x") -> Any:
    """Return draws as ArviZ's container: InferenceData on 0.23, a DataTree on 1.x, with the same content.

    trace: a Trace, or an array or pytree of arrays leading with [chain, draw]. name: of the variable where the
    position is one array; pytrees use their paths ("w", "layer.bias").
    Groups: posterior, and for a Trace sample_stats with `lp` (log density), `acceptance_rate`, `diverging`,
    `jump_distance` and `num_gradients`. The model's energy is not called `energy`: ArviZ means the Hamiltonian by it.
    """
    if not isinstance(trace, Trace):
        return _from_groups({"posterior": named_draws(trace, name)})
    trace = with_chain_axis(trace)
    groups = {"posterior": named_draws(trace.position, name)}
    stats = {
        "lp": trace.logdensity,
        "acceptance_rate": trace.stats.acceptance_rate,
        "diverging": trace.stats.is_divergent,
        "jump_distance": trace.stats.jump_distance,
        "num_gradients": trace.stats.num_gradients,
    }
    stats = {key: np.asarray(value) for key, value in stats.items() if value is not None}
    return _from_groups(groups | ({"sample_stats": stats} if stats else {}))


def _from_groups(groups: dict[str, dict[str, np.ndarray]]) -> Any:
    container: Any = arviz.from_dict
    with warnings.catch_warnings():  # many short chains are as they should be, not two axes mixed up
        warnings.filterwarnings("ignore", "More chains|Found chain dimension to be longer", UserWarning)
        return container(**groups) if LEGACY else container(groups)


def with_chain_axis(trace: Trace) -> Trace:
    """Return a trace whose arrays lead with [chain, draw], that of `sample` (one chain, [draw]) included."""
    known = [v for v in (trace.logdensity, *trace.stats) if v is not None]
    if not known or np.ndim(known[0]) != 1:
        return trace
    return jax.tree.map(lambda v: np.asarray(v)[None], trace._replace(final=None))._replace(final=trace.final)


def named_draws(position: Any, name: str = "x") -> dict[str, np.ndarray]:
    """Return {path: array} of a pytree of draws; a lone array is called `name`. Typed keys and the like are refused."""
    leaves = jax.tree_util.tree_leaves_with_path(position)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") or name for path, _ in leaves]
    arrays = {label: np.asarray(leaf) for label, (_, leaf) in zip(names, leaves, strict=True)}
    for label, array in arrays.items():
        if array.ndim < 2:
            raise ValueError(f"draws of {label!r} need axes [chain, draw, ...]; their shape is {array.shape}")
    return arrays


def summary(trace: Trace | Any, name: str = "x") -> pd.DataFrame:
    """Return mean, sd, their Monte Carlo error, bulk and tail ESS and R-hat per dimension (Vehtari et al. 2021)."""
    data = to_arviz(trace, name)
    table: Any = arviz.summary(data, round_to="none")
    posterior = data["posterior"]
    draws = [np.asarray(posterior[label]) for label in posterior.data_vars]
    # The generations differ in what they call the tails: 5 % each, as in the paper.
    columns = [column for x in draws for column in x.reshape(*x.shape[:2], -1).transpose(2, 0, 1)]
    table["ess_tail"] = [float(arviz.ess(column, method="tail", prob=TAILS)) for column in columns]
    return table[list(COLUMNS)].astype(float)


def to_netcdf(trace: Trace | Any, path: str | Path, name: str = "x") -> Path:
    """Write `to_arviz(trace)` to a netCDF file that either generation of ArviZ reads. Returns the path."""
    data, path = to_arviz(trace, name), Path(path)
    data.to_netcdf(str(path), engine="h5netcdf")
    return path


def from_netcdf(path: str | Path) -> Any:
    """Read a file written by `to_netcdf`."""
    return arviz.from_netcdf(str(path), engine="h5netcdf")


def read_trace(path: str | Path) -> Trace:
    """Read draws written by `to_netcdf`, by either generation: a Trace whose position is {name: array}."""
    data = from_netcdf(path)
    position, stats = _variables(data["posterior"]), _variables(getattr(data, "sample_stats", None))
    data.close()
    kept: dict[str, Any] = {field: stats.get(field) for field in Stats._fields}
    kept["is_divergent"] = stats.get("diverging")
    return Trace(position, stats.get("lp"), Stats(**kept), ChainState(None, 0))


def _variables(group: Any) -> dict[str, np.ndarray]:
    return {} if group is None else {str(name): np.asarray(group[name]) for name in group.data_vars}
