"""Scores of points: closed forms, what cancels in a likelihood ratio, and the paradox that it resolves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.integrate import quad
from scipy.stats import chi2, ncx2

import energyflow as ef
from energyflow.energies.nets import MLP
from energyflow.evaluation.ood import ood_report
from energyflow.evaluation.scores import (
    BATCH,
    class_logits,
    class_probability_score,
    energy_score,
    gradient_norm_score,
    in_batches,
    likelihood_ratio,
    mutated,
)

POINTS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


def quadratic(x):
    return 2 * jnp.sum(x**2)


def test_the_energy_score_is_the_log_density_up_to_a_constant():
    squares = np.square(POINTS, dtype=np.float64).sum(axis=1)
    np.testing.assert_allclose(energy_score(quadratic, POINTS), -2 * squares, rtol=1e-6)
    np.testing.assert_allclose(energy_score(ef.tempered(quadratic, 4.0), POINTS), -squares / 2, rtol=1e-6)
    np.testing.assert_array_equal(
        energy_score(ef.landscape(quadratic), POINTS), energy_score(ef.frozen(quadratic), POINTS)
    )


def test_the_gradient_score_is_minus_the_length_of_the_gradient():
    lengths = np.linalg.norm(POINTS.astype(np.float64), axis=1)
    np.testing.assert_allclose(gradient_norm_score(quadratic, POINTS), -4 * lengths, rtol=1e-6)
    np.testing.assert_allclose(gradient_norm_score(ef.field(lambda x: 4 * x), POINTS), -4 * lengths, rtol=1e-6)
    pair = {"a": POINTS[:, :1], "b": POINTS[:, 1:]}
    found = gradient_norm_score(lambda x: quadratic(x["a"]) + quadratic(x["b"]), pair)
    np.testing.assert_allclose(found, -4 * lengths, rtol=1e-6)


def test_batches_of_any_length_are_scored_row_by_row(count_compilations):
    rows = np.arange(2 * BATCH + 5, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(energy_score(lambda x: x[0], rows), -rows[:, 0])
    in_batches(jnp.negative, rows, 7)
    with count_compilations() as made:
        in_batches(jnp.negative, rows[:400], 7)
    assert made.count == 0


def test_new_weights_compile_nothing(count_compilations):
    first, second = (ef.mlp(seed, 3, (8,)) for seed in (0, 1))
    before = energy_score(first, POINTS)
    with count_compilations() as made:
        after = energy_score(second, POINTS)
    assert made.count == 0 and not np.array_equal(before, after)


# Likelihood ratio


def test_a_constant_background_leaves_the_likelihood_and_the_energy_itself_nothing():
    constant = ef.tempered(lambda x: jnp.sum(0 * x) + 6, 3.0)
    np.testing.assert_allclose(likelihood_ratio(quadratic, constant, POINTS), energy_score(quadratic, POINTS) + 2)
    assert not likelihood_ratio(quadratic, quadratic, POINTS).any()


def test_each_energy_is_over_its_own_temperature():
    """The same density twice, written at temperatures 2 and 8: no point is likelier under one of them."""
    one, same = ef.tempered(quadratic, 2.0), ef.tempered(lambda x: 4 * quadratic(x), 8.0)
    np.testing.assert_allclose(likelihood_ratio(one, same, POINTS), 0, atol=1e-5)
    ignored = energy_score(ef.tempered(one.energy, 1.0), POINTS) - energy_score(ef.tempered(same.energy, 1.0), POINTS)
    assert np.ptp(ignored) > 1  # the negative control


# The paradox: 50 dimensions of background, in which outliers are narrower, and 2 of content, in which they lie apart.
BACKGROUND, NARROW, SHIFT, ROWS = 50, 0.8, 2.5, 2500


def data(x):
    return jnp.sum(x**2) / 2


def background(x):
    """The same background, and content of standard deviation 10."""
    return jnp.sum(x[2:] ** 2) / 2 + jnp.sum(x[:2] ** 2) / 200


def paradox(seed):
    rng = np.random.default_rng([seed, 4])
    inside, outside = rng.normal(size=(2, ROWS, 2 + BACKGROUND))
    outside[:, 2:] *= NARROW
    outside[:, :2] += SHIFT
    return inside, outside


def auroc_of_the_likelihood():
    """P(chi2_52 < .64 chi2_50 + ncx2_2(12.5)), the squared lengths of both sets, by quadrature over the second."""
    content = np.linspace(0, 120, 1201)
    weights = ncx2.pdf(content, 2, 2 * SHIFT**2)
    weights /= weights.sum()

    def passed(r):
        return np.dot(weights, chi2.cdf(NARROW**2 * r + content, 2 + BACKGROUND)) * chi2.pdf(r, BACKGROUND)

    return quad(passed, 5, 150)[0]


def test_the_likelihood_ranks_outliers_first_and_the_ratio_does_not(seed):
    """AUROC .35 and .98. The ratio sees |content|^2 alone: 1 - exp(-|shift|^2 / 4) / 2. Errors by Hanley and McNeil."""
    inside, outside = paradox(seed)
    likelihood = ood_report(*(energy_score(data, x) for x in (inside, outside))).auroc
    ratio = ood_report(*(likelihood_ratio(data, background, x) for x in (inside, outside))).auroc
    exact = {"likelihood": auroc_of_the_likelihood(), "ratio": 1 - np.exp(-(SHIFT**2) / 2) / 2}
    assert exact["likelihood"] == pytest.approx(0.35, abs=0.02) and exact["ratio"] == pytest.approx(0.98, abs=0.02)
    assert abs(likelihood.estimate - exact["likelihood"]) < 4.5 * np.sqrt(0.35 * 0.65 / ROWS)
    assert abs(ratio.estimate - exact["ratio"]) < 4.5 * np.sqrt(0.98 * 0.02 / ROWS)
    assert likelihood.upper < 0.5 < ratio.lower


def test_constants_change_no_figure_of_the_difference_and_every_one_of_the_quotient(seed):
    """Energies are known up to a constant, and so must be what is made of them."""
    sets = paradox(seed)

    def auroc(score):
        return ood_report(*(score(x) for x in sets), num_resamples=2).auroc.estimate

    def quotient(energy, x):
        return energy_score(background, x) / energy_score(energy, x)

    def raised(x):
        return data(x) + 4096

    with jax.enable_x64(True):
        plain, shifted = (auroc(lambda x, e=energy: likelihood_ratio(e, background, x)) for energy in (data, raised))
        assert shifted == pytest.approx(plain, abs=1e-6)  # a pair or two may change order by rounding
        plain, shifted = (auroc(lambda x, e=energy: quotient(e, x)) for energy in (data, raised))
        assert abs(plain - shifted) > 0.03


def test_what_has_no_score_is_refused():
    with pytest.raises(ValueError, match="a field has no energy"):
        energy_score(ef.field(lambda x: x), POINTS)
    with pytest.raises(ValueError, match="a likelihood ratio needs a density"):
        likelihood_ratio(quadratic, ef.landscape(quadratic), POINTS)
    with pytest.raises(ValueError, match=r"must return a scalar for one point; this one returned shape \(3,\)"):
        energy_score(lambda x: x, POINTS)
    with pytest.raises(ValueError, match="one leading axis"):
        energy_score(quadratic, POINTS[:0])
    with pytest.raises(ValueError, match="a classifier has an energy with `logits`"):
        class_probability_score(quadratic, POINTS)


# Mutations


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_a_value_is_replaced_at_the_rate_and_by_any_level_alike(rate, key):
    """A level of eight is left as it was with probability 1 - 7/8 rate, and the others are equally frequent."""
    levels, n = 8, 40_000
    found = np.asarray(mutated(key, np.full((n // 4, 4), 5), rate, 0, levels))
    expected = np.full(levels, rate / levels)
    expected[5] += 1 - rate
    error = np.sqrt(expected * (1 - expected) / n)
    assert (np.abs(np.bincount(found.ravel(), minlength=levels) / n - expected) <= 4.5 * error).all()
    assert jnp.issubdtype(found.dtype, jnp.integer)


def test_floats_are_replaced_within_their_range(key):
    n, rate = 40_000, 0.25
    found = np.asarray(mutated(key, np.full(n, 9.0, np.float32), rate, -1.0, 3.0))
    fresh = found[found != 9]
    assert abs(len(fresh) / n - rate) < 4.5 * np.sqrt(rate * (1 - rate) / n)
    assert fresh.min() >= -1 and fresh.max() < 3
    assert abs(fresh.mean() - 1) < 4.5 * 4 / np.sqrt(12 * len(fresh))


def test_a_mutation_needs_a_rate_and_a_range():
    with pytest.raises(ValueError, match="is a probability; got 1.5"):
        mutated(0, POINTS, 1.5, 0, 1)
    with pytest.raises(ValueError, match="low must be below high"):
        mutated(0, POINTS, 0.5, 1, 1)


# Classifiers

CLASSIFIER = ef.classifier_energy(MLP(3, (8,), num_outputs=4, rngs=nnx.Rngs(0)))
LOGITS = np.asarray(jax.vmap(CLASSIFIER.logits)(POINTS))


@pytest.mark.parametrize(
    "wrapped",
    [
        CLASSIFIER,
        CLASSIFIER.net,
        ef.frozen(CLASSIFIER),
        ef.tempered(CLASSIFIER, 2.0),
        ef.normalised(ef.tempered(CLASSIFIER, 2.0)),
        ef.landscape(CLASSIFIER),
    ],
)
def test_classes_are_found_inside_wrappers_and_a_temperature_leaves_them_alone(wrapped):
    expected = np.exp(LOGITS - LOGITS.max(axis=1, keepdims=True))
    expected = (expected / expected.sum(axis=1, keepdims=True)).max(axis=1)
    np.testing.assert_allclose(class_probability_score(wrapped, POINTS), expected, rtol=2e-6)


def test_a_joint_energy_agrees_with_its_logits():
    """p(y|x) is exp(-E(x, y)) over its sum, which is exp(-E(x))."""
    x, classes = jnp.asarray(POINTS[0]), jnp.arange(4)
    joint = jnp.exp(-jax.vmap(lambda y: CLASSIFIER(x, y))(classes) + CLASSIFIER(x))
    np.testing.assert_allclose(joint, jax.nn.softmax(class_logits(CLASSIFIER, x)), rtol=1e-5)


@pytest.mark.lenient("numpyro")
def test_a_tilt_leaves_the_classes_alone_and_a_box_is_entered_first():
    base = ef.energies.gaussian_base(POINTS)
    np.testing.assert_allclose(class_logits(ef.tilt(CLASSIFIER, base), POINTS[0]), LOGITS[0], rtol=1e-6)
    box = ef.bounded(CLASSIFIER, -9.0, 9.0)
    inside = box.constrain(jnp.asarray(POINTS[0]))
    np.testing.assert_allclose(class_logits(box, jnp.asarray(POINTS[0])), CLASSIFIER.logits(inside), rtol=1e-6)
