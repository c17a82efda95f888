"""From a bracket of log Z to a bracket of the test log-likelihood."""

from typing import Any, NamedTuple

import jax
import numpy as np

from energyflow.energy import as_energy, logdensity, require_density
from energyflow.logz.result import LogZ
from energyflow.types import Tree


class Likelihood(NamedTuple):
    """Mean log-likelihood per point in nats: `lower` uses log Z's upper side, `upper` its lower side.

    stderr: of the mean over the points (the data's sampling error, not log Z's). unnormalised: (n,) per-point
    `-E(x)/T` plus the given log-determinant, float64; subtract a log Z to get per-point values.
    """

    lower: float
    estimate: float
    upper: float
    stderr: float
    unnormalised: np.ndarray


def log_likelihood(energy: Any, points: Tree, log_z: LogZ, log_det: float = 0.0) -> Likelihood:
    """Return the bracketed mean log-likelihood of `points`, leading axis [point].

    log_det: log |det| of the map from the coordinates of interest to the energy's, per point (0 for the same ones).
    Raises ValueError for a landscape.
    """
    require_density(as_energy(energy), "a likelihood")
    values = np.asarray(_values(logdensity(energy), points), np.float64) + log_det
    mean, stderr = float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size))
    return Likelihood(mean - log_z.upper, mean - log_z.log_z, mean - log_z.lower, stderr, values)


@jax.jit
def _values(density: Any, points: Tree) -> Any:
    return jax.vmap(density)(points)


def bits_per_dimension(nats: float, dim: int, cell: float) -> float:
    """Return bits per dimension of discrete data from the log-likelihood of its uniform dequantisation.

    nats: mean log density per point in coordinates where one level of one dimension is `cell` wide (levels 0..16 scaled
    to [-1, 1]: 2/17). dim: dimensions. An upper bound on the bits of the discrete model (Theis et al. 2016).
    """
    return -(nats / dim + np.log(cell)) / np.log(2)
