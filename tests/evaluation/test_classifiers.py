"""Classifiers: scikit-learn's scores, calibration that is known by construction, probes whose answer is plain."""

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import binom
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss

from energyflow.evaluation.classifiers import classification, linear_probe

DIGITS, LABELS = load_digits(return_X_y=True)


def two_classes(confidence):
    """Logits that give the first class these probabilities."""
    confidence = np.asarray(confidence, float)
    with np.errstate(divide="ignore"):
        return np.log(np.stack([confidence, 1 - confidence], axis=1))


def guo(p, labels, num_bins):
    """The definition, bin by bin."""
    confidence, right, total = p.max(axis=1), p.argmax(axis=1) == labels, 0.0
    for m in range(num_bins):
        rows = (confidence > m / num_bins) & (confidence <= (m + 1) / num_bins)
        if rows.any():
            total += rows.mean() * abs(right[rows].mean() - confidence[rows].mean())
    return total


def test_figures_on_digits_are_those_of_scikit_learn():
    model = LogisticRegression(max_iter=2000).fit(DIGITS[:300] / 16, LABELS[:300])
    x, y = DIGITS[300:] / 16, LABELS[300:]
    found, p = classification(model.decision_function(x), y), model.predict_proba(x)
    assert found.accuracy == pytest.approx(accuracy_score(y, model.predict(x)), abs=1e-9)
    assert found.nll == pytest.approx(log_loss(y, p), abs=1e-9)
    assert found.brier == pytest.approx(np.square(p - np.eye(10)[y]).sum(axis=1).mean(), abs=1e-9)
    assert found.calibration_error == pytest.approx(guo(p, y, 15), abs=1e-9)
    assert found.reliability.count.sum() == found.num_rows == len(y)
    assert found.calibration_floor < found.calibration_error  # a small training set and a weak penalty


def test_figures_by_hand():
    """Confidences .8 and .6, the first right: both bins are off, by .2 and by .6."""
    found = classification(two_classes([0.8, 0.6]), [0, 1], num_bins=5)
    expected = (0.5, -(np.log(0.8) + np.log(0.4)) / 2, (2 * 0.2**2 + 2 * 0.6**2) / 2, (0.2 + 0.6) / 2)
    assert found[:4] == pytest.approx(expected, abs=1e-12)
    assert str(found).startswith("accuracy 0.5000, NLL 0.5697 nats, Brier 0.4000, calibration error 0.4000 (")


@pytest.mark.parametrize(("confidence", "accuracy"), [(0.9, 0.6), (0.6, 0.9), (0.75, 0.75), (1.0, 0.5)])
def test_a_constant_confidence_is_off_by_its_gap(confidence, accuracy):
    labels = (np.arange(400) >= 400 * accuracy).astype(int)
    found = classification(two_classes(np.full(400, confidence)), labels)
    assert found.calibration_error == pytest.approx(abs(confidence - accuracy), abs=1e-12)
    filled = found.reliability.count > 0
    assert filled.sum() == 1 and np.isnan(found.reliability.accuracy[~filled]).all()
    assert found.reliability.accuracy[filled] == pytest.approx(accuracy)


def test_a_calibrated_classifier_has_the_error_of_its_finite_rows(seed):
    """Labels are drawn from the probabilities: the error of a bin is a binomial's mean deviation, known exactly."""
    levels, each, rng = np.array([0.55, 0.65, 0.75, 0.85, 0.95]), 60, np.random.default_rng([seed, 5])
    confidence = np.repeat(levels, each)
    count = np.arange(each + 1)
    deviations = [np.dot(binom.pmf(count, each, p), np.abs(count - each * p)) for p in levels]
    expected = sum(deviations) / len(confidence)
    found = [
        classification(two_classes(confidence), (rng.random(len(confidence)) > confidence).astype(int), num_bins=10)
        for _ in range(400)
    ]
    errors = np.array([one.calibration_error for one in found])
    assert abs(errors.mean() - expected) < 4.5 * errors.std(ddof=1) / 20
    assert found[0].calibration_floor == pytest.approx(expected, rel=0.03)
    # The negative control: the same labels, told with confidences that are .04 higher.
    bold = [
        classification(two_classes(confidence + 0.04), (rng.random(len(confidence)) > confidence).astype(int), 10)
        for _ in range(100)
    ]
    assert np.mean([one.calibration_error for one in bold]) > expected + 4.5 * errors.std(ddof=1) / 10


def test_offsets_of_logits_and_classes_without_probability_are_harmless():
    logits = np.random.default_rng(0).normal(size=(50, 3))
    logits[:, 2] = -np.inf
    labels = np.arange(50) % 2
    shifted = classification(logits + 1000, labels)
    np.testing.assert_allclose(shifted[:5], classification(log_softmax(logits, axis=1), labels)[:5], rtol=1e-9)


def test_what_is_no_classifier_is_refused():
    with pytest.raises(ValueError, match="two classes or more"):
        classification(np.zeros((3, 1)), [0, 0, 0])
    with pytest.raises(ValueError, match="must not be NaN"):
        classification([[np.nan, 0.0]], [0])
    with pytest.raises(ValueError, match="one integer a row"):
        classification(np.zeros((2, 2)), [0.0, 1.0])
    with pytest.raises(ValueError, match="labels are 0 to 1 for 2 classes; got 0 to 2"):
        classification(np.zeros((2, 2)), [0, 2])
    with pytest.raises(ValueError, match="num_bins must be at least 1"):
        classification(np.zeros((2, 2)), [0, 1], num_bins=0)


# Linear probes


def test_a_probe_separates_what_is_separable_whatever_its_units():
    rng = np.random.default_rng(1)
    labels = rng.integers(3, size=400)
    features = np.eye(3)[labels] + 0.1 * rng.normal(size=(400, 3))
    assert linear_probe(features[:200], labels[:200], features[200:], labels[200:]) == 1.0
    noisy = features + 0.5 * rng.normal(size=(400, 3))
    scaled = 1000 + noisy * [1e-3, 1.0, 1e3]
    plain, other = (linear_probe(x[:200], labels[:200], x[200:], labels[200:]) for x in (noisy, scaled))
    assert 0.7 < plain < 1 and other == pytest.approx(plain, abs=0.01)


def test_a_probe_of_nothing_is_right_by_chance(seed):
    """Test labels are independent of what is predicted: hits are binomial, whatever the probe is."""
    rng = np.random.default_rng([seed, 6])
    x, y = rng.normal(size=(2000, 5)), rng.integers(4, size=2000)
    assert abs(linear_probe(x[:300], y[:300], x[300:], y[300:]) - 0.25) < 4.5 * np.sqrt(0.25 * 0.75 / 1700)


def test_a_probe_of_digits_reads_pixels_as_they_come():
    images = DIGITS.reshape(-1, 8, 8)
    assert linear_probe(images[:1000], LABELS[:1000], images[1000:], LABELS[1000:]) > 0.9


def test_what_cannot_be_probed_is_refused():
    x, y = np.zeros((4, 2)), np.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match="finite features of one width"):
        linear_probe(x, y, x[:, :1], y)
    with pytest.raises(ValueError, match="one label a row, two classes or more"):
        linear_probe(x, np.zeros(4, int), x, y)
    with pytest.raises(ValueError, match="strength must be positive"):
        linear_probe(x, y, x, y, strength=0.0)
