"""Floor 6: what a classifier's probabilities and features are worth: accuracy, calibration, a linear probe.

Logits are `log p(y|x)` up to a constant, shape (n, num_classes); of probabilities give the logarithm. `batch_logits`
gives those of an energy.
"""

import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from energyflow.energies.classifiers import class_logits
from energyflow.energy import as_energy
from energyflow.evaluation.scores import in_batches
from energyflow.types import Array, Tree


class Reliability(NamedTuple):
    """How often a classifier is right where it is how sure, in bins of equal width.

    edges: (num_bins + 1,), over [0, 1]. count: rows in each bin, by the probability of the class they are given to.
    confidence, accuracy: the mean of that probability and the share of rows given the right class; NaN in empty bins.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


class Classification(NamedTuple):
    """What the logits of n rows are worth; made by `classification`.

    accuracy: share of rows whose likeliest class is theirs. nll: mean of `-log p(y|x)`, nats. brier: mean of the
    squared distance of the probabilities from the class, over all classes, 0 to 2. calibration_error: the expected
    calibration error, mean of |accuracy - confidence| over the bins of `reliability`, weighted by their rows.
    calibration_floor: what that error would be on average, to first order, if every probability were true: it is never
    negative, so it is above 0 for a finite number of rows. num_rows: n.
    """

    accuracy: float
    nll: float
    brier: float
    calibration_error: float
    calibration_floor: float
    num_rows: int
    reliability: Reliability

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.4f}, NLL {self.nll:.4f} nats, Brier {self.brier:.4f}, calibration error "
            f"{self.calibration_error:.4f} ({self.calibration_floor:.4f} if calibrated), {self.num_rows} rows"
        )


def classification(logits: Any, labels: Any, num_bins: int = 15) -> Classification:
    """Return accuracy, likelihood, Brier score and calibration of logits (n, num_classes) for labels (n,), integers.

    The calibration error is that of the likeliest class, in `num_bins` bins of equal width, closed above (Guo et al.
    2017). It depends on their number: quote both. Raises ValueError for logits that are NaN or +inf or impossible in
    every class, for labels that are not one of the classes a row, and for fewer than one bin.
    """
    logits, labels = _checked(logits, labels)
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1; got {num_bins}")
    log_p = log_softmax(logits, axis=1)
    p, rows = np.exp(log_p), np.arange(len(labels))
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.searchsorted(edges, confidence) - 1, 0, num_bins - 1)
    count, sure, correct, spread = (
        np.bincount(bins, weights, num_bins) for weights in (None, confidence, right, confidence * (1 - confidence))
    )
    filled = np.where(count > 0, count, np.nan)
    return Classification(
        accuracy=float(right.mean()),
        nll=float(-log_p[rows, labels].mean()),
        brier=float((np.square(p).sum(axis=1) - 2 * p[rows, labels] + 1).mean()),
        calibration_error=float(np.abs(correct - sure).sum() / len(labels)),
        calibration_floor=float(np.sqrt(2 * spread.clip(0) / np.pi).sum() / len(labels)),
        num_rows=len(labels),
        reliability=Reliability(edges, count, sure / filled, correct / filled),
    )


def batch_logits(classifier: Any, x: Tree) -> np.ndarray:
    """Return the logits (n, num_classes) of points, leading axis [row]. classifier: see `class_logits`."""
    return in_batches(partial(_logits, as_energy(classifier)), x)


def classify(classifier: Any, x: Tree, labels: Any, num_bins: int = 15) -> Classification | None:
    """Return the `classification` of those points whose label is not -1, None where there are none."""
    known = np.asarray(labels) >= 0
    if not known.any():
        return None
    return classification(batch_logits(classifier, x)[known], np.asarray(labels)[known], num_bins)


@jax.jit
def _logits(classifier: Any, x: Tree) -> Array:
    return jax.vmap(partial(class_logits, classifier))(x)


def linear_probe(features: Any, labels: Any, test_features: Any, test_labels: Any, strength: float = 1.0) -> float:
    """Return the test accuracy of a linear classifier of features (Alain and Bengio 2016).

    features: (n, ...), flattened and scaled to mean 0 and spread 1 by the training rows. The classifier is logistic
    regression with the penalty `|w|^2 / (2 strength)` on its weights and none on its offsets, beside the summed loss of
    all rows. Compare with the probe of raw values, and of the same network before training.
    Raises ValueError for features that are not finite or not of one width, fewer than two classes, labels that are not
    one a row, a strength that is not positive, and where the classifier does not settle in 2000 steps.
    """
    x, test_x = (np.asarray(part, np.float64).reshape(len(part), -1) for part in (features, test_features))
    y, test_y = np.asarray(labels), np.asarray(test_labels)
    if x.shape[1] != test_x.shape[1] or not (np.isfinite(x).all() and np.isfinite(test_x).all()):
        raise ValueError(f"need finite features of one width; got {x.shape} to train on and {test_x.shape} to test on")
    if y.shape != x.shape[:1] or test_y.shape != test_x.shape[:1] or not len(test_y) or len(np.unique(y)) < 2:
        raise ValueError(f"need one label a row, two classes or more; got {y.shape} for {len(x)} and {test_y.shape}")
    if not strength > 0:
        raise ValueError(f"strength must be positive; got {strength}")
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            probe.fit(x, y)
        except ConvergenceWarning:
            raise ValueError("the linear probe did not settle in 2000 steps: give it a lower strength") from None
    return float(np.mean(probe.predict(test_x) == test_y))


def _checked(logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim != 2 or not len(logits) or logits.shape[1] < 2:
        raise ValueError(f"logits are (n, num_classes), of two classes or more; got {logits.shape}")
    if np.isnan(logits).any() or np.isposinf(logits).any() or np.isneginf(logits).all(axis=1).any():
        raise ValueError("logits must not be NaN or +inf, nor -inf for every class of a row")
    if labels.shape != logits.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are one integer a row, ({len(logits)},); got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels are 0 to {logits.shape[1] - 1} for {logits.shape[1]} classes; got {labels.min()} to {labels.max()}"
        )
    return logits, labels
