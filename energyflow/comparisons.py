"""Classical densities on the same split, fitted by scikit-learn: what a trained energy has to beat."""

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity

MIXTURES = [(kind, parts) for kind in ("diag", "full") for parts in (5, 10, 20, 40, 80)]

MOST_VALUES = 5_000_000


class Baseline(NamedTuple):
    """Per-point test log densities (n,) in data units, and how the model was chosen."""

    name: str
    log_density: np.ndarray
    note: str


def baselines(train: np.ndarray, test: np.ndarray, seed: int) -> list[Baseline]:
    """Fit uniform, full Gaussian, ten Gaussian mixtures and a kernel density to `train` (n, d), score `test` (m, d).

    Of the mixtures (diagonal and full covariances; 5, 10, 20, 40, 80 parts) the best *on the test rows* stands: the
    comparison is tilted in their favour. The kernel's bandwidth is cross-validated. Data of over 5 million numbers meet
    the first two alone: fitting the others would take hours.
    """
    dim = train.shape[1]
    uniform = np.full(len(test), -dim * np.log(2.0))
    out = [Baseline("uniform on [-1, 1]", np.where((np.abs(test) <= 1).all(1), uniform, -np.inf), "no parameters")]
    gaussian = GaussianMixture(1, reg_covar=1e-6, random_state=seed).fit(train)
    out.append(Baseline("full Gaussian", gaussian.score_samples(test), "maximum likelihood"))
    if train.size > MOST_VALUES:
        return out
    kernel = GridSearchCV(KernelDensity(), {"bandwidth": np.geomspace(0.05, 0.8, 9)}, cv=3).fit(train)
    bandwidth = kernel.best_params_["bandwidth"]
    out.append(Baseline("kernel density", kernel.best_estimator_.score_samples(test), f"bandwidth {bandwidth:.2g}"))
    scored = [(_mixture(train, kind, parts, seed).score_samples(test), kind, parts) for kind, parts in _fitting(train)]
    values, kind, parts = max(scored, key=lambda row: row[0].mean())
    note = f"best of {len(scored)} on the test rows: {parts} {kind} parts"
    return [*out, Baseline("Gaussian mixture", values, note)]


def _fitting(train: np.ndarray) -> list[tuple[str, int]]:
    return [(kind, parts) for kind, parts in MIXTURES if 2 * parts <= len(train)]


def _mixture(train: np.ndarray, kind: str, parts: int, seed: int) -> GaussianMixture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GaussianMixture(parts, covariance_type=kind, reg_covar=1e-3, random_state=seed).fit(train)
