"""Floor 6: how good draws are beside data, in features of your choice: distances, coverage, memorisation.

Each function takes features of draws and of data, arrays (n, ...) and (m, ...) with points flattened: raw values, or
what a classifier's last layer makes of them. A figure belongs to its features and to its numbers of rows, so quote the
same figure for held-out data beside it. `stats.energy_distance` is another, in the data's own units.
"""

from typing import Any

import numpy as np
from scipy.spatial.distance import cdist


def frechet_distance(draws: Any, data: Any) -> float:
    """Return `|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))` of the means and covariances of two sets of features.

    The squared Wasserstein distance of two Gaussians; on features of an Inception network it is the FID (Heusel et al.
    2017). It is biased upwards by an amount that falls as 1 / n: compare equal numbers of rows, several per feature.
    Raises ValueError for fewer than two rows, features of two dimensions or values that are not finite.
    """
    x, y = _features(draws, data)
    root = _root(np.cov(x, rowvar=False))
    cross = np.linalg.eigvalsh(root @ np.atleast_2d(np.cov(y, rowvar=False)) @ root)
    traces = x.var(axis=0, ddof=1).sum() + y.var(axis=0, ddof=1).sum()
    return float(np.square(x.mean(axis=0) - y.mean(axis=0)).sum() + traces - 2 * np.sqrt(cross.clip(0)).sum())


def maximum_mean_discrepancy(draws: Any, data: Any, bandwidth: float) -> float:
    """Return the squared maximum mean discrepancy under the kernel `exp(-|x - y|^2 / (2 bandwidth^2))`.

    Its unbiased estimate, about 0 and of either sign for one law (Gretton et al. 2012). With CLIP features, a bandwidth
    of 10 and a factor of 1000 it is the CMMD (Jayasumana et al. 2024), which assumes no Gaussian features.
    Raises ValueError as `frechet_distance` does, and for a bandwidth that is not positive.
    """
    x, y = _features(draws, data)
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive; got {bandwidth}")

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        total = sum(np.exp(cdist(block, b, "sqeuclidean") / (-2 * bandwidth**2)).sum() for block in _blocks(a, b))
        return float((total - len(a)) / (len(a) * (len(a) - 1)) if same else total / (len(a) * len(b)))

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def precision_recall(draws: Any, data: Any, k: int = 3) -> tuple[float, float]:
    """Return the share of draws that lie where data do, and of data where draws do (Kynkaanniemi et al. 2019).

    A set lies within the balls around its points that reach to their k-th nearest neighbour in it. Precision falls with
    poor draws, recall with missing modes. Raises ValueError as `frechet_distance` does, and for k out of range.
    """
    x, y = _features(draws, data)
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(f"k must be at least 1 and below both numbers of rows, {len(x)} and {len(y)}; got {k}")
    return _share_within(x, y, k), _share_within(y, x, k)


def memorisation(draws: Any, train: Any, held_out: Any) -> float:
    """Return the share of draws that are nearer to a training row than to any held-out row.

    About .5 for draws that favour neither, as many rows of each being compared, and towards 1 for copies: near .5 says
    that nothing was memorised, not that the draws are good. Raises ValueError as `frechet_distance` does.
    """
    x, seen = _features(draws, train)
    _, unseen = _features(draws, held_out)
    rows = min(len(seen), len(unseen))
    near, far = (_nearest(x, rows_of[:rows]) for rows_of in (seen, unseen))
    return float(np.mean((near < far) + 0.5 * (near == far)))


def _features(draws: Any, data: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(z, np.float64).reshape(len(z), -1) for z in (draws, data))
    if min(len(x), len(y)) < 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"need two rows or more of one dimension; got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("the quality of draws needs finite values")
    return x, y


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.atleast_2d(covariance))
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def _blocks(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    return np.array_split(a, -(-len(a) * len(b) // 10**7))


def _nearest(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.concatenate([cdist(block, rows).min(axis=1) for block in _blocks(x, rows)])


def _share_within(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """Return the share of x within a ball around some row of y."""
    radii = np.concatenate([np.partition(cdist(block, y), k, axis=1)[:, k] for block in _blocks(y, y)])
    return float(np.concatenate([(cdist(block, y) <= radii).any(axis=1) for block in _blocks(x, y)]).mean())
