"""Floor 6: results split by chain, to see which of them is the odd one."""

import numpy as np
import pandas as pd

from energyflow.chains import Trace
from energyflow.diagnostics.export import named_draws, with_chain_axis


def by_chain(trace: Trace) -> pd.DataFrame:
    """Return one row per chain: mean and sd of every dim, mean log density, acceptance, jump and divergences.

    trace: a Trace of `sample_chains` (of `sample`: one chain). Columns: "mean x[0]", "sd x[0]" and so on for every dim,
    and of what the trace holds "logdensity", "acceptance_rate", "jump_distance" (means over the chain's transitions)
    and "divergences" (a number of draws). Raises ValueError for arrays without a chain and a draw axis.
    """
    trace = with_chain_axis(trace)
    columns: dict[str, np.ndarray] = {}
    for name, x in named_draws(trace.position).items():
        flat = x.reshape(*x.shape[:2], int(np.prod(x.shape[2:])))
        for i in range(flat.shape[2]):
            columns[f"mean {name}[{i}]"] = flat[..., i].mean(axis=1, dtype=float)
            columns[f"sd {name}[{i}]"] = flat[..., i].std(axis=1, dtype=float)
    stats = {
        "logdensity": trace.logdensity,
        "acceptance_rate": trace.stats.acceptance_rate,
        "jump_distance": trace.stats.jump_distance,
    }
    columns |= {name: np.mean(value, axis=1, dtype=float) for name, value in stats.items() if value is not None}
    if trace.stats.is_divergent is not None:
        columns["divergences"] = np.sum(trace.stats.is_divergent, axis=1)
    return pd.DataFrame(columns).rename_axis("chain")
