"""Floor 2: every analytic energy under the name that benchmarks and tests give it."""

from typing import Protocol

import numpy as np
from jax import Array

from energyflow.energies.analytic import Banana, Gaussian, funnel, gaussian
from energyflow.energies.mixtures import eight_gaussians, gmm40, student_mixture
from energyflow.energies.rings import TwoMoons, rings
from energyflow.energies.wells import Himmelblau, MuellerBrown, double_well, four_wells, many_well
from energyflow.types import Key, Scalar

# The upper triangle, row by row, of a random precision of condition number 1e4, and its mean, as benchmarked.
# fmt: off
_STIFF_MEAN = (
    0.205404, 0.493013, -0.176406, -0.20593, 0.702463, 0.519908, -1.033676, -0.079181, 0.035287,
    -1.054485,
)
_STIFF_PRECISION = (
    24.1909434816, 6.9762894075, 7.0525046866, -26.9156680703, 5.7723237821, -8.2228398203, 10.4338998483,
    -9.8208788763, 23.6428179214, -5.400202454, 5.9613315632, -0.0012522035, -7.2815049407, 8.0292252685,
    2.492784675, -1.9833294018, -6.2914558686, 6.2017926912, -0.3108814571, 4.8761483703, -8.6919553511,
    -0.8654728323, -5.5709119049, 6.4470645236, -3.7480839399, 6.2092970675, -3.8441142381, 31.5835546345,
    -6.0919501024, 9.1731600779, -12.9537048836, 10.7765425138, -25.554626117, 6.4282789427, 13.547818547,
    6.3886498405, -6.8088074044, -10.1939950224, 2.4085422164, 0.2541167924, 10.0480354969, -10.8130385927,
    -0.0360370442, -10.3619298909, 3.9603050677, 14.6145154543, 0.972183655, 15.6413185227, -3.8851482306,
    13.1422382753, -5.4074594973, 3.741466353, 34.3780624433, -2.7271211834, 3.7508540742,
)
# fmt: on


class Analytic(Protocol):
    """An energy of points (dim,) with its exact log Z (of exp(-E/T), float64) and exact draws (num, dim)."""

    @property
    def dim(self) -> int: ...

    @property
    def log_z(self) -> float: ...

    def __call__(self, x: Array) -> Scalar: ...

    def sample(self, key: Key, num: int) -> Array: ...


def stiff_gaussian() -> Gaussian:
    """Return a 10-d Gaussian of condition number 1e4, unaligned with the axes, times exp(-1.25)."""
    upper = np.zeros((10, 10))
    upper[np.triu_indices(10)] = _STIFF_PRECISION
    return gaussian(_STIFF_MEAN, precision=upper + np.triu(upper, 1).T, offset=-1.25)


def zoo() -> dict[str, Analytic]:
    """Return every analytic energy by name; two-dimensional unless the name says otherwise.

    Builds all of them; only the means of the 40-component mixtures need JAX.
    """
    precision = [[9.9998006543, 0.0444239012], [0.0444239012, 0.1001993457]]
    corners = [[-4.0, -4.0], [4.0, -4.0], [4.0, 4.0], [-4.0, 4.0]]
    return {
        "double_well_2d": double_well(),
        "asym_double_well_2d": many_well(2),
        "four_wells": four_wells(),
        "himmelblau_beta0.05": Himmelblau(),
        "mueller_brown_beta0.05": MuellerBrown(),
        "ring_density": rings(4.0, 0.3),
        "rings": rings([1.0, 2.5, 4.0], 0.2),
        "two_moons_rezende_U1": TwoMoons(),
        "eight_gaussians_unnorm": eight_gaussians(),
        "banana": Banana(),
        "funnel_d2_s3": funnel(2, offset=2.5),
        "funnel_d10_s3": funnel(10, offset=2.5),
        "gauss_d2_kappa100": gaussian([-0.454671, -0.991647], precision=precision, offset=-1.25),
        "gauss_d10_kappa10000": stiff_gaussian(),
        "gmm40_fab_d2": gmm40(2, offset=0.75),
        "gmm40_d10": gmm40(10),
        "gmm40_d50": gmm40(50),
        "student_mixture_d2": student_mixture(corners, scales=[0.5, 1.0, 1.0, 1.5], weights=[0.1, 0.2, 0.3, 0.4]),
        "many_well_2": many_well(2),
        "many_well_32": many_well(32),
    }
