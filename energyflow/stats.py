"""Floor 1: statistics of log weights, as pure functions of arrays, finished in float64 (NumPy)."""

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    stderr: float


def log_mean_exp(log_weights: Any) -> Estimate:
    """Return log(mean(exp(w))) and its delta-method standard error, sd(e^w) / (mean(e^w) sqrt(n)).

    log_weights: (n,). The error is itself unreliable when few weights dominate: read it beside
    `effective_sample_size`.
    """
    w = np.asarray(log_weights, np.float64)
    value = np.logaddexp.reduce(w) - np.log(w.size)
    relative = np.exp(w - value)
    stderr = relative.std(ddof=1) / np.sqrt(w.size) if w.size > 1 else np.inf
    return Estimate(float(value), float(stderr))


def effective_sample_size(log_weights: Any) -> float:
    """Return (sum w)^2 / sum w^2 of n log weights: a number of draws between 1 and n (Kong 1992)."""
    w = np.asarray(log_weights, np.float64)
    return float(np.exp(2 * np.logaddexp.reduce(w) - np.logaddexp.reduce(2 * w)))


def bennett_acceptance_ratio(forward: Any, reverse: Any) -> Estimate:
    """Combine both directions of one annealing path into log Z (Bennett 1976; Crooks 1999).

    forward: (n,) log weights from the base, `log Z_0 + log w`. reverse: (m,) `log Z_0 - log w~` from the target; the
    reverse must mirror the forward order of weighting and moving. Solves
    `sum_i s(F_i - C - M) = sum_j s(C - R_j + M)` with M = log(n/m), s the logistic function. The standard error is
    Shirts and Chodera's (2008), for independent chains.
    """
    f, r = np.asarray(forward, np.float64), np.asarray(reverse, np.float64)
    shift = np.log(f.size / r.size)

    def balance(c: float) -> float:
        return expit(f - c - shift).sum() - expit(c - r + shift).sum()

    low, high = min(f.min(), r.min()) - 50.0, max(f.max(), r.max()) + 50.0
    c = brentq(balance, low, high, xtol=1e-10)
    assert isinstance(c, float)
    a, b = expit(f - c - shift), expit(c - r + shift)
    variance = (np.mean(a**2) / np.mean(a) ** 2 - 1) / f.size + (np.mean(b**2) / np.mean(b) ** 2 - 1) / r.size
    return Estimate(c, float(np.sqrt(max(variance, 0.0))))


def pareto_k(log_weights: Any) -> float:
    """Return the shape k of a generalised Pareto fitted to the largest weights (Vehtari, Simpson, Gelman et al. 2024).

    log_weights: (n,). Over 0.7 the mean of the weights, and the error that they report of themselves, cannot be
    believed at this n; over 1 the mean does not exist. The tail is the largest min(0.2 n, 3 sqrt(n)) weights; the fit
    is Zhang and Stephens' (2009), shrunk towards 0.5 as if by ten more weights. Infinite with fewer than 25 weights,
    minus infinity where the tail is one value.
    """
    w = np.sort(np.asarray(log_weights, np.float64))
    if w.size < 25:
        return float("inf")
    num = int(np.ceil(min(0.2 * w.size, 3 * np.sqrt(w.size))))
    tail = np.exp(w[-num:] - w[-1]) - np.exp(w[-num - 1] - w[-1])
    if not tail[-1] > 0:
        return -np.inf
    prior, size = 3, 30 + int(np.sqrt(num))
    quartile = tail[int(num / 4 + 0.5) - 1]
    theta = 1 / tail[-1] + (1 - np.sqrt(size / (np.arange(1, size + 1) - 0.5))) / prior / max(quartile, 1e-300)
    shapes = np.log1p(-theta[:, None] * tail).mean(axis=1)
    profile = num * (np.log(-theta / shapes) - shapes - 1)
    posterior = 1 / np.exp(profile - profile[:, None]).sum(axis=1)
    k = np.log1p(-(theta @ posterior / posterior.sum()) * tail).mean()
    return float((num * k + 10 * 0.5) / (num + 10))
