"""Floor 1: variance-preserving diffusions at a few levels, from data to a standard normal distribution.

    x_t = alpha_t x_0 + sigma_t z,    alpha_t^2 + sigma_t^2 = 1,    levels t = 0 ... T

so that from one level to the next `x_{t+1} = a x_t + s z'` with a = alpha_{t+1} / alpha_t and s^2 = 1 - a^2. Bring the
data to mean 0 and a standard deviation of about 1 first.
"""

from typing import Any, NamedTuple

import numpy as np


class Diffusion(NamedTuple):
    """How much of a datum and of noise a point of each level holds: alphas, sigmas, (T + 1,)."""

    alphas: np.ndarray
    sigmas: np.ndarray

    @property
    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the step that leads to each level but the first: a and s, (T,) and (T,)."""
        shrink = self.alphas[1:] / self.alphas[:-1]
        return shrink, np.sqrt(1 - shrink**2)


def linear_diffusion(num_levels: int = 6, first: float = 1e-4, last: float = 0.02) -> Diffusion:
    """Return `num_levels` levels of the diffusion of 1000 steps with variances from `first` to `last`, and its end.

    The levels are equally many steps apart, from step 1 to step 501, and the end is step 1000 (Gao et al. 2021 take 6).
    Raises ValueError for fewer than two levels or variances out of order.
    """
    if num_levels < 2 or not 0 < first <= last < 1:
        raise ValueError(f"need two levels or more and 0 < first <= last < 1; got {num_levels}, {first} and {last}")
    alphas = np.sqrt(np.cumprod(1 - np.linspace(first, last, 1000)))
    return _levels(alphas[np.r_[np.linspace(0, 500, num_levels).round().astype(int), 999]])


def log_snr_diffusion(num_levels: int = 6, low: float = -5.1, high: float = 9.8) -> Diffusion:
    """Return levels whose log signal-to-noise ratio follows a cosine from `high` to `low` (Zhu et al. 2024).

    `alpha^2 = sigmoid(-2 log tan(a t + b))` at T + 1 equally spaced t. Raises ValueError for fewer than two levels or a
    range out of order.
    """
    if num_levels < 2 or not low < high:
        raise ValueError(f"need two levels or more and low < high; got {num_levels}, {low} and {high}")
    start, end = np.arctan(np.exp(-high / 2)), np.arctan(np.exp(-low / 2))
    return _levels(np.cos(np.linspace(start, end, num_levels + 1)))  # sigmoid(-2 log tan u) = cos(u)^2


def cumulative_diffusion(num_levels: int = 6, first: float = 0.01, last: float = 0.3) -> Diffusion:
    """Return the clean data and `num_levels` levels whose step variances are squared cumulative sums.

    `beta_t = min((b_1 + ... + b_t)^2, .999)` with b equally spaced from `first` to `last` (Zhang, Tan and Ou 2023).
    Raises ValueError for no level or numbers that are not positive.
    """
    if num_levels < 1 or not 0 < first <= last:
        raise ValueError(f"need a level or more and 0 < first <= last; got {num_levels}, {first} and {last}")
    variances = np.minimum(np.cumsum(np.linspace(first, last, num_levels)) ** 2, 0.999)
    return _levels(np.r_[1.0, np.sqrt(np.cumprod(1 - variances))])


def checked_diffusion(diffusion: Any) -> Diffusion:
    """Return the levels as float64. Raises ValueError unless alphas fall within [0, 1] and alpha^2 + sigma^2 = 1."""
    alphas, sigmas = (np.asarray(x, np.float64) for x in diffusion)
    if alphas.ndim != 1 or alphas.shape != sigmas.shape or len(alphas) < 2:
        raise ValueError(f"a diffusion has two levels or more; got shapes {alphas.shape} and {sigmas.shape}")
    if not (np.diff(alphas) < 0).all() or not np.allclose(alphas**2 + sigmas**2, 1, atol=1e-6) or alphas[-1] < 0:
        raise ValueError("the alphas of a diffusion must decrease from at most 1 and have alpha^2 + sigma^2 = 1")
    return Diffusion(alphas, sigmas)


def _levels(alphas: np.ndarray) -> Diffusion:
    return Diffusion(alphas, np.sqrt(1 - alphas**2))
