"""Floor 1: statistics of log weights and of draws, as pure functions of arrays, finished in float64 (NumPy)."""

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.spatial.distance import cdist
from scipy.special import expit


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    stderr: float


def log_mean_exp(log_weights: Any) -> Estimate:
    """Return log(mean(exp(w))) and its delta-method standard error, sd(e^w) / (mean(e^w) sqrt(n)).

    log_weights: (n,), minus infinity for weights of zero; where all are, the value is so too and its error infinite.
    The error is itself unreliable when few weights dominate: read it beside `effective_sample_size`.
    """
    w = np.asarray(log_weights, np.float64)
    value = np.logaddexp.reduce(w) - np.log(w.size)
    if np.isneginf(value):
        return Estimate(-np.inf, np.inf)
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
    Shirts and Chodera's (2008), for independent chains. Weights may be zero; nan where a direction has no other.
    """
    f, r = np.asarray(forward, np.float64), np.asarray(reverse, np.float64)
    shift = np.log(f.size / r.size)

    def balance(c: float) -> float:
        return expit(f - c - shift).sum() - expit(c - r + shift).sum()

    some = f[np.isfinite(f)], r[np.isfinite(r)]
    if not all(x.size for x in some):
        return Estimate(np.nan, np.inf)
    low, high = np.concatenate(some).min() - 50.0, np.concatenate(some).max() + 50.0
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


class NestedVariances(NamedTuple):
    """Variances of draws in superchains, each of the shape of one draw.

    superchains: of the superchains' means. chains: of the chains' means about their superchain's, averaged (0 for one
    chain a superchain). draws: of the draws about their chain's mean, averaged (0 for one draw a chain).
    """

    superchains: np.ndarray
    chains: np.ndarray
    draws: np.ndarray


def superchain_labels(superchains: Any, num_chains: int) -> np.ndarray:
    """Return one superchain label per chain, (num_chains,) in 0..K-1.

    superchains: labels (num_chains,), or a number K of superchains, the chains of each side by side.
    Raises ValueError for fewer than two superchains, superchains of unequal size or labels of another shape.
    """
    given = np.asarray(superchains)
    if given.ndim == 0:
        if given < 1 or num_chains % given:
            raise ValueError(f"{num_chains} chains cannot be split into {given} superchains of equal size")
        given = np.repeat(np.arange(int(given)), num_chains // int(given))
    if given.shape != (num_chains,):
        raise ValueError(f"superchains need one label a chain, shape ({num_chains},); got shape {given.shape}")
    _, labels, sizes = np.unique(given, return_inverse=True, return_counts=True)
    if len(sizes) < 2 or len(set(sizes)) > 1:
        raise ValueError(f"need two or more superchains of equal size; their sizes are {sizes.tolist()}")
    return labels


def nested_variances(draws: Any, superchains: Any) -> NestedVariances:
    """Return the variances that nested R-hat compares (Margossian, Hoffman et al. 2024).

    draws: (chain, draw, ...), finite. superchains: as for `superchain_labels`.
    Raises ValueError where there is nothing to compare with: one chain a superchain and one draw a chain.
    """
    x = np.asarray(draws, np.float64)
    if x.ndim < 2:
        raise ValueError(f"draws need axes [chain, draw, ...]; their shape is {x.shape}")
    labels = superchain_labels(superchains, len(x))
    x = x[np.argsort(labels, kind="stable")].reshape(labels.max() + 1, -1, *x.shape[1:])
    size, length = x.shape[1:3]
    if size < 2 and length < 2:
        raise ValueError("nested R-hat needs two chains a superchain or two draws a chain")
    means = x.mean(axis=2)
    nothing = np.zeros(x.shape[3:])
    return NestedVariances(
        means.mean(axis=1).var(axis=0, ddof=1),
        means.var(axis=1, ddof=1).mean(axis=0) if size > 1 else nothing,
        x.var(axis=2, ddof=1).mean(axis=(0, 1)) if length > 1 else nothing,
    )


def nested_r_hat(draws: Any, superchains: Any) -> np.ndarray:
    """Return nested R-hat per component (Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and Gelman 2024).

    draws: (chain, draw, ...), one draw a chain is enough. superchains: labels (chain,) or a number of superchains side
    by side, all of one size. The chains of a superchain must have started at the same point and superchains at
    different, dispersed ones: then what is left between the superchains' means is what the chains remember of their
    starts. Nothing in the draws can verify that.
    Returns sqrt(1 + B/W), B the variance of the superchains' means, W the variance within superchains; infinite where W
    is 0 and B is not. At stationarity, B/W of superchains of M independent draws is near 1/M. Raises ValueError as
    `superchain_labels` and `nested_variances` do.
    """
    between, chains, within = nested_variances(draws, superchains)
    total = chains + within
    ratio = np.divide(between, total, out=np.where(between > 0, np.inf, np.nan), where=total > 0)
    return np.sqrt(1 + ratio)


def bfmi(energy: Any) -> np.ndarray:
    """Return the Bayesian fraction of missing information of every chain (Betancourt 2016).

    energy: (chain, draw) the HAMILTONIAN, potential plus kinetic energy, of a sampler with momenta at every draw; the
    model's energy alone says nothing of the kind. Under 0.3 the momenta are refreshed in steps too small for the
    spread of energies, as in funnels; independent energies give 2 (and good samplers about 1).
    Returns (chain,), NaN where the energy never changes. Raises ValueError unless there are two axes and two draws.
    """
    e = np.asarray(energy, np.float64)
    if e.ndim != 2 or e.shape[1] < 2:
        raise ValueError(f"BFMI needs energies (chain, draw), two draws or more; their shape is {e.shape}")
    spread = np.square(e - e.mean(axis=1, keepdims=True)).sum(axis=1)
    steps = np.square(np.diff(e, axis=1)).sum(axis=1)
    return np.divide(steps, spread, out=np.full(len(e), np.nan), where=spread > 0)


def energy_distance(x: Any, y: Any) -> float:
    """Return the energy distance `2 E|x - y| - E|x - x'| - E|y - y'|` of the laws of two sets of draws.

    x, y: (n, ...) and (m, ...), points flattened (Szekely and Rizzo 2013). It is 0 for one law and positive otherwise;
    this is its unbiased estimate, the U-statistic, which leaves a point's distance to itself out of the means. Draws of
    one law therefore scatter about 0, to both sides; the V-statistic, never negative, is larger by
    E|x - x'| / n + E|y - y'| / m. Takes (n + m)^2 distances, in blocks.
    Raises ValueError for fewer than two points, points of two dimensions or values that are not finite.
    """
    a, b = (np.asarray(z, np.float64).reshape(len(z), -1) for z in (x, y))
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"need two points or more of one dimension; got {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("the energy distance needs finite values")
    between = _sum_of_distances(a, b) / len(a) / len(b)
    return 2 * between - sum(_sum_of_distances(z, z) / len(z) / (len(z) - 1) for z in (a, b))


def _sum_of_distances(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(cdist(block, b).sum() for block in np.array_split(a, -(-len(a) * len(b) // 10**7))))
