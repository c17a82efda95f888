"""Floor 1: what draws of several chains are worth: R-hat and effective sample size, as functions of NumPy arrays."""

from functools import lru_cache

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import ndtri

RUNAWAY = 1e15
"""Beyond any scale a variable is written in, while squares of distances are still finite in float32."""


def plain_r_hat(draws: np.ndarray) -> np.ndarray:
    """Return R-hat (Gelman and Rubin 1992) per dim of draws (chain, draw, dim), for chains too short to split."""
    length = draws.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):  # chains that left for infinity have no ratio, and need none
        within = draws.var(axis=1, ddof=1, dtype=float).mean(axis=0)
        between = draws.mean(axis=1, dtype=float).var(axis=0, ddof=1) if len(draws) > 1 else np.zeros_like(within)
        return np.sqrt((length - 1) / length + between / np.maximum(within, np.finfo(float).tiny))


def rank_statistics(draws: np.ndarray) -> tuple[float, float]:
    """Return R-hat and the bulk effective sample size of draws (chain, draw), both rank-normalised.

    Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021). R-hat is that of half chains, of the draws or of their
    distances from the median, whichever is larger: near 1 at stationarity, infinite where half chains never move but
    differ, NaN where nothing moves. The effective sample size counts independent draws, autocorrelations summed over
    Geyer's (1992) initial monotone sequence; it is at most N log10(N).
    """
    half = draws.shape[1] // 2
    halves = np.concatenate([draws[:, :half], draws[:, -half:]])
    order = np.argsort(halves, axis=None)
    in_order = halves.ravel()[order]
    scores = _normal_scores(in_order, order).reshape(halves.shape)
    middle = in_order[(order.size - 1) // 2 : order.size // 2 + 1].mean()
    away = np.abs(in_order - middle)
    outward = np.argsort(away, kind="stable")  # a falling and a rising run: a merge
    folded = _normal_scores(away[outward], order[outward]).reshape(halves.shape)
    return max(_r_hat(scores), _r_hat(folded)), _ess(scores)


def _normal_scores(in_order: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return normal scores of the ranks, ties averaged, float64 (Blom 1958), of values sorted by `order`."""
    edges = np.concatenate([[0], np.flatnonzero(in_order[1:] != in_order[:-1]) + 1, [order.size]])
    scores = np.empty(order.size)
    scores[order] = np.repeat(_quantiles(order.size)[edges[:-1] + edges[1:] - 1], np.diff(edges))
    return scores


@lru_cache(maxsize=1)
def _quantiles(size: int) -> np.ndarray:
    """Return the scores of the ranks 1, 1.5, ..., size: those that ties can have."""
    return ndtri((np.arange(1, size + 0.5, 0.5) - 0.375) / (size + 0.25))


def suspect_dims(draws: np.ndarray, num: int = 1) -> np.ndarray:
    """Return the dims of draws (chain, draw, dim) that may mix worst: where to spend the sorting.

    Of the draws and of their distances from the median, both bounded by v / (1 + |v|) so that tails count no more than
    in ranks: the `num` dims whose half chains differ most; and of the draws the `num` whose batch means, a tenth of a
    chain each, vary most. One pass over 8000 draws or more, 125 of a chain, where ranks sort every dim: what that
    misses has forgotten itself after a few draws. All dims where they or the draws are few.
    """
    if draws.shape[2] <= 3 * num or draws.shape[1] < 20:
        return np.arange(draws.shape[2])
    draws = draws[:, :: max(draws.shape[1] // max(125, 8000 // len(draws)), 1)]
    chains, length, dims = draws.shape
    rows = draws.reshape(-1, dims)
    some = rows[:: max(len(rows) // 500, 1)]
    middle = np.median(some, axis=0)
    width = np.median(np.abs(some - middle), axis=0)
    size = length // 10
    v = (draws[:, -10 * size :] - middle) / np.where(width > 0, width, 1)
    away = np.abs(v)
    v /= 1 + away
    away /= 1 + away
    squares = np.einsum("cnd,cnd->d", v, v) / (chains * 10 * size)  # of both; bounded by 1, so none cancels

    def batch_means(x: np.ndarray, num: int) -> np.ndarray:
        return x.reshape(chains, num, -1, dims).mean(axis=2).reshape(-1, dims)

    found = []
    for x, num_batches in ((v, 2), (away, 2), (v, 10)):
        means = batch_means(x, num_batches)
        spread = np.maximum(squares - np.square(means.mean(axis=0)), np.finfo(np.float32).tiny)
        found.append(np.argsort(means.var(axis=0) / spread)[-num:])
    return np.unique(found)


def _r_hat(x: np.ndarray) -> float:
    length = x.shape[1]
    within, between = x.var(axis=1, ddof=1).mean(), x.mean(axis=1).var(ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.sqrt((length - 1) / length + between / within))


def _ess(x: np.ndarray) -> float:
    chains, length = x.shape
    size = next_fast_len(2 * length, real=True)
    spectrum = np.asarray(rfft(x - x.mean(axis=1, keepdims=True), size))
    power = np.square(np.abs(spectrum)).mean(axis=0)
    covariance = np.asarray(irfft(power, size))[:length] / length
    within = covariance[0] * length / (length - 1)
    total = covariance[0] + (x.mean(axis=1).var(ddof=1) if chains > 1 else 0.0)
    rho = 1 - (within - covariance) / total
    rho[0] = 1.0
    pairs = rho[: (length - 1) // 2 * 2].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs < 0)
    num = int(negative[0]) if negative.size else len(pairs) - 1
    time = -1 + 2 * np.minimum.accumulate(pairs[:num]).sum() + max(rho[2 * num], 0.0)
    return float(x.size / max(time, 1 / np.log10(x.size)))
