"""Data in: splits that leak nothing, maps that invert, batches that a resumed run sees again, bad files named."""

import gzip
import re

import numpy as np
import pytest
from sklearn.datasets import load_digits

from energyflow.loaders import Scaling, load_dataset
from laws import assert_mean

pytestmark = pytest.mark.core


@pytest.fixture
def rng(seed):
    return np.random.default_rng([seed, 30])


@pytest.fixture(scope="module")
def digits(seed):
    return load_dataset("digits", seed)


def saved(path, array):
    np.save(path, array)
    return str(path)


def numbered(path, num=100, width=2):
    """Rows of floats, the first number of each its own index."""
    rows = np.random.default_rng(0).normal(size=(num, width))
    rows[:, 0] = np.arange(num)
    return saved(path, rows)


def test_digits_are_split_as_documented(digits):
    """1797 rows: 450 to test, a tenth of the other 1347 held out, every row in one part."""
    assert [len(part) for part in (digits.train, digits.validation, digits.test)] == [1213, 134, 450]
    assert (digits.name, digits.shape, digits.dim, digits.scaling.levels) == ("digits", (8, 8), 64, 17)
    rows = np.concatenate([digits.train, digits.validation, digits.test])
    original = load_digits(return_X_y=True)[0]
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], original[np.lexsort(original.T)])


def test_the_split_is_a_function_of_the_seed(digits, seed):
    again, other = load_dataset("digits", seed), load_dataset("digits", seed + 1)
    np.testing.assert_array_equal(again.test, digits.test)
    assert not np.array_equal(other.test, digits.test)


def test_levels_fill_their_cells(digits, seed):
    """A level k of 17 lands uniformly in [2k/17 - 1, 2(k+1)/17 - 1)."""
    x = digits.part_x("train", seed)
    cells = (x + 1) * 17 / 2
    np.testing.assert_array_equal(np.floor(cells), digits.train)
    assert digits.scaling.cell == 2 / 17
    assert_mean((cells - digits.train).ravel(), 0.5)
    assert_mean(((cells - digits.train).ravel() - 0.5) ** 2, 1 / 12)


def test_a_part_is_dequantised_once_and_a_batch_at_every_step(digits, seed):
    np.testing.assert_array_equal(digits.part_x("test", seed), digits.part_x("test", seed))
    assert not np.array_equal(digits.part_x("test", seed), digits.part_x("test", seed + 1))
    num = len(digits.train)
    first, second = (digits.batch(step, num, seed) for step in (0, 1))
    assert np.isin(first, second).mean() < 0.05  # in float32, two in a hundred thousand numbers may be the same


def test_whitened_digits_have_mean_zero_and_unit_covariance(digits, seed):
    z = digits.scaling.to_z(digits.part_x("train", seed)).astype(float)
    assert z.shape == (1213, 64)
    assert_mean(z, 0.0)
    assert_mean(z[:, :, None] * z[:, None, :], np.eye(64))


@pytest.mark.parametrize("whiten", ["full", "diagonal"])
def test_whitened_training_rows_of_floats_are_exactly_standard(tmp_path, rng, whiten):
    """No noise enters: what is left is the floor of 1e-6 on variances over 1e-2, and float32."""
    rows = rng.normal(size=(400, 3)) @ np.array([[1.0, 0, 0], [0.5, 1, 0], [0, -0.8, 2]]) + 40
    data = load_dataset(saved(tmp_path / "rows.npy", rows), 0, whiten=whiten)
    x = data.part_x("train", 0)
    assert x.min() == -1 and x.max() == 1
    z = data.scaling.to_z(x).astype(float)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-6)
    if whiten == "full":
        np.testing.assert_allclose(np.cov(z.T), np.eye(3), atol=1e-3)
    else:
        np.testing.assert_allclose(z.var(axis=0), 1, atol=1e-3)


@pytest.mark.parametrize("whiten", ["full", "diagonal"])
def test_the_maps_invert_each_other_and_their_determinant_is_the_true_one(seed, whiten):
    data = load_dataset("digits", seed, whiten=whiten)
    scaling, x = data.scaling, data.part_x("test", seed)
    z = scaling.to_z(x)
    assert z.dtype == np.float32
    size = np.abs(z) @ np.abs(scaling.factor).T if whiten == "full" else np.abs(z * scaling.factor)
    assert (np.abs(scaling.from_z(z) - x) <= np.finfo(np.float32).eps * size + 1e-9).all()
    columns = scaling.from_z(np.eye(64)) - scaling.from_z(np.zeros((1, 64)))
    assert scaling.log_det == pytest.approx(np.linalg.slogdet(columns)[1], rel=1e-9)


def test_full_whitening_takes_five_rows_a_dimension(tmp_path, rng):
    few, many = (saved(tmp_path / f"{n}.npy", rng.normal(size=(n, 10))) for n in (70, 80))
    assert load_dataset(few, 0).scaling.factor.ndim == 1  # 47 rows to train on
    assert load_dataset(many, 0).scaling.factor.ndim == 2  # 54


def test_a_batch_is_a_function_of_seed_and_step(tmp_path):
    data = load_dataset(numbered(tmp_path / "rows.npy"), 0)
    stream = list(data.batches(16, 7, 3, 9))
    assert [batch.shape for batch in stream] == [(16, 2)] * 6 and stream[0].dtype == np.float32
    for step, batch in enumerate(stream, 3):
        np.testing.assert_array_equal(batch, data.batch(step, 16, 7))
    assert not np.array_equal(data.batch(3, 16, 8), stream[0])


@pytest.mark.parametrize("batch_size", [16, 100])
def test_epochs_are_without_replacement(tmp_path, batch_size):
    """Every row comes once before any comes twice, whether or not a batch is larger than the data."""
    data = load_dataset(numbered(tmp_path / "rows.npy"), 0)
    num, scaling = len(data.train), data.scaling
    assert num == 68
    x = scaling.from_z(np.concatenate(list(data.batches(batch_size, 0, 0, 3 * num // batch_size + 1))))
    rows = np.rint((x[:, 0] + 1) / 2 * (scaling.high - scaling.low) + scaling.low).astype(int)
    epochs = rows[: 3 * num].reshape(3, num)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.sort(data.train[:, 0]))
    assert not np.array_equal(epochs[0], epochs[1])


def test_test_and_held_out_rows_never_influence_the_scaling(tmp_path, rng):
    rows = rng.normal(size=(200, 3))
    rows[:, 0] = np.arange(200)
    before = load_dataset(saved(tmp_path / "rows.npy", rows), 5)
    others = np.concatenate([before.test, before.validation])[:, 0].astype(int)
    changed = rows.copy()
    changed[others] = 1e4 * rng.normal(size=(len(others), 3))
    after = load_dataset(saved(tmp_path / "rows.npy", changed), 5)
    np.testing.assert_array_equal(after.train, before.train)
    for ours, theirs in zip(after.scaling, before.scaling, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(after.test, before.test)


@pytest.mark.parametrize(
    ("array", "levels", "shape"),
    [
        (np.arange(60, dtype=np.uint8).reshape(30, 2), 256, (2,)),
        (np.arange(30, dtype=np.uint8).reshape(30, 1), 30, (1,)),
        (np.arange(2 * 30, dtype=np.int64).reshape(30, 2), 60, (2,)),
        (np.arange(30 * 12, dtype=np.uint16).reshape(30, 2, 3, 2), 360, (2, 3, 2)),
        (np.linspace(0, 1, 60, dtype=np.float32).reshape(30, 2), 0, (2,)),
        (np.linspace(-7, 5, 30 * 16).reshape(30, 4, 4), 0, (4, 4)),
    ],
)
def test_files_of_every_kind(tmp_path, array, levels, shape):
    np.savez(tmp_path / "rows.npz", anything=array)
    for path in (saved(tmp_path / "rows.npy", array), str(tmp_path / "rows.npz")):
        data = load_dataset(path, 0)
        assert (data.name, data.shape, data.scaling.levels) == ("rows", shape, levels)
        assert (len(data.test), len(data.validation), len(data.train)) == (7, 2, 21)
        assert data.dim == int(np.prod(shape)) and (data.scaling.cell is None) == (levels == 0)
        assert np.isfinite(data.batch(0, 8, 0)).all()


def test_a_dimension_that_never_varies_stays_finite(tmp_path, rng):
    rows = np.column_stack([rng.normal(size=100), np.full(100, 3.0)])
    data = load_dataset(saved(tmp_path / "rows.npy", rows), 0)
    assert np.isfinite(data.batch(0, 50, 0)).all() and np.isfinite(data.scaling.log_det)


def test_what_is_recorded_says_what_was_done(digits):
    assert digits.scaling.describe() == {
        "levels": 17,
        "raw_range": [0.0, 17.0],
        "data_units": "x = 2 (raw + U[0, 1) - low) / (high - low) - 1",
        "whitening": "full",
        "log_det": digits.scaling.log_det,
    }
    plain = Scaling(0, -1.0, 1.0, np.zeros(2), np.full(2, 0.5))
    assert plain.describe()["whitening"] == "diagonal" and plain.log_det == pytest.approx(2 * np.log(0.5))


FLOATS = np.random.default_rng(0).normal(size=(50, 2))
NAN = FLOATS.copy()
NAN[[7, 9], 1] = np.nan
BAD = {
    "a NaN": (NAN, "has 2 values that are not finite, the first in row 7: remove them"),
    "an infinity": (
        np.where(FLOATS == FLOATS[3, 0], np.inf, FLOATS),
        "has 1 values that are not finite, the first in r",
    ),
    "one axis": (FLOATS[:, 0], "has shape (50,); at least 20 rows of shape (n, ...) are needed"),
    "no axis": (np.float64(3), "has shape (); at least 20 rows"),
    "nineteen rows": (FLOATS[:19], "has shape (19, 2); at least 20 rows of shape (n, ...) are needed"),
    "no columns": (np.zeros((50, 0)), "has shape (50, 0); at least 20 rows"),
    "truth values": (FLOATS > 0, "has dtype bool; rows of integers or floats are needed"),
    "complex numbers": (FLOATS + 1j, "has dtype complex128; rows of integers or floats are needed"),
    "words": (np.array([["a", "b"]] * 30), "has dtype <U1; rows of integers or floats are needed"),
    "negative integers": (np.arange(-5, 55).reshape(30, 2), "holds negative integers; levels start at 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_array_that_cannot_be_data_gets_its_sentence(tmp_path, name):
    array, sentence = BAD[name]
    path = saved(tmp_path / "rows.npy", array)
    with pytest.raises(ValueError, match=re.escape(f"{path} {sentence}")):
        load_dataset(path, 0)


@pytest.mark.parametrize("value", [2.5, 4])
def test_constant_data_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match="the training rows are all one value; there is no density to fit"):
        load_dataset(saved(tmp_path / "rows.npy", np.full((50, 2), value)), 0)


def write_text(path):
    path.write_text("1,2\n" * 30)


def write_objects(path):
    np.save(path, np.array([{}] * 30, dtype=object), allow_pickle=True)


def write_half(path):
    np.save(path, FLOATS)
    path.write_bytes(path.read_bytes()[:300])


def write_half_an_archive(path):
    with path.open("wb") as file:
        np.savez(file, FLOATS)
    path.write_bytes(path.read_bytes()[:-60])


NO_FILES = {
    "text": write_text,
    "objects": write_objects,
    "half a file": write_half,
    "half an archive": write_half_an_archive,
    "empty": lambda path: path.touch(),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("write", NO_FILES.values(), ids=NO_FILES)
def test_a_file_that_is_none_is_refused_by_name(tmp_path, write):
    path = tmp_path / "rows.npy"
    write(path)
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a .npy or .npz file of numbers")) as caught:
        load_dataset(str(path), 0)
    assert "pickle" not in str(caught.value)  # NumPy would have the file loaded unsafely


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(ValueError, match="rows.npy does not exist; give a .npy, .npz or IDX file, or the word digits"):
        load_dataset(str(tmp_path / "rows.npy"), 0)


@pytest.mark.parametrize("arrays", [{}, {"a": FLOATS, "b": FLOATS}])
def test_an_archive_holds_one_array(tmp_path, arrays):
    np.savez(tmp_path / "rows.npz", **arrays)
    sentence = f"holds {len(arrays)} arrays ({', '.join(arrays)}); it must hold one"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_dataset(str(tmp_path / "rows.npz"), 0)


def test_an_unknown_whitening_is_refused(tmp_path):
    with pytest.raises(ValueError, match='whiten must be "auto", "full", "diagonal" or "none"; got \'pca\''):
        load_dataset(numbered(tmp_path / "rows.npy"), 0, whiten="pca")


def idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_bring_their_own_test_part(tmp_path, seed, ending):
    train = np.random.default_rng(0).integers(0, 256, (50, 3, 2))
    idx(tmp_path / f"train-images-idx3-ubyte{ending}", train)
    test = idx(tmp_path / f"t10k-images-idx3-ubyte{ending}", 255 - train[:21])
    data = load_dataset(str(tmp_path / f"train-images-idx3-ubyte{ending}"), seed)
    assert (data.shape, data.scaling.levels) == ((3, 2), 256)
    np.testing.assert_array_equal(data.test, (255 - train[:21]).reshape(21, 6))
    rows = np.concatenate([data.train, data.validation])
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], (flat := train.reshape(50, 6))[np.lexsort(flat.T)])
    test.unlink()
    assert len(load_dataset(str(tmp_path / f"train-images-idx3-ubyte{ending}"), seed).test) == 12


def test_an_npz_of_two_parts_keeps_them_apart(tmp_path, seed):
    rows = np.random.default_rng(0).integers(0, 256, (60, 2), dtype=np.uint8)
    np.savez(tmp_path / "two.npz", x_train=rows[:40], x_test=rows[40:], y_test=np.zeros(20))
    data = load_dataset(str(tmp_path / "two.npz"), seed, whiten="none")
    np.testing.assert_array_equal(data.test, rows[40:])
    assert len(data.train) + len(data.validation) == 40
    np.testing.assert_allclose(data.part_x("test", seed), data.scaling.to_z(data.part_x("test", seed)), atol=1e-7)
    assert data.scaling.describe()["whitening"] == "no"


def test_an_idx_file_that_is_cut_short_is_named(tmp_path, seed):
    path = idx(tmp_path / "train-images-idx3-ubyte", np.ones((30, 4)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not an IDX file of unsigned bytes, or is cut short"):
        load_dataset(str(path), seed)
    bad = tmp_path / "train-images-idx3-ubyte.gz"
    bad.write_bytes(b"plain")
    with pytest.raises(ValueError, match="not a gzip file"):
        load_dataset(str(bad), seed)
    with pytest.raises(ValueError, match="does not exist; give a .npy, .npz or IDX file"):
        load_dataset(str(tmp_path / "fashion"), seed)


@pytest.mark.parametrize("levels", [0, 17])
def test_raw_units_come_back(rng, levels):
    raw = rng.integers(0, 17, (50, 3)) if levels else rng.normal(size=(50, 3))
    scaling = Scaling(levels, 0.0 if levels else -3.0, 17.0, np.zeros(3), np.ones(3))
    x = scaling.to_x(raw, rng)
    np.testing.assert_allclose(scaling.to_raw(x), raw, atol=1e-12)
    beyond = scaling.to_raw(np.array([[-1.5, 0.0, 1.5]]))
    assert (beyond.min() == 0 and beyond.max() == 16) if levels else (beyond.min() < -3 and beyond.max() > 17)


# Labels


def class_of(rows):
    """Return what the labels of these tests are: one function of the row, so that a row and its label cannot part."""
    return (rows.reshape(len(rows), -1).sum(axis=1) % 3).astype(np.int64)


@pytest.mark.parametrize("parts", ["one", "two", "idx"])
def test_labels_stay_with_their_rows_through_the_split_and_the_batches(tmp_path, seed, parts):
    rows = np.random.default_rng(0).integers(0, 256, (90, 3, 2), dtype=np.uint8)
    y, path = class_of(rows), tmp_path / "rows.npz"
    if parts == "one":
        np.savez(path, x=rows, y=y)
    elif parts == "two":
        np.savez(path, x_train=rows[:60], y_train=y[:60], x_test=rows[60:], y_test=y[60:])
    else:
        path = idx(tmp_path / "train-images-idx3-ubyte", rows[:60])
        idx(tmp_path / "train-labels-idx1-ubyte", y[:60])
        idx(tmp_path / "t10k-images-idx3-ubyte", rows[60:])
        idx(tmp_path / "t10k-labels-idx1-ubyte", y[60:])
    data, plain = (load_dataset(str(path), seed, whiten="none", labelled=which) for which in (True, False))
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(data.labels, part), class_of(getattr(data, part)))
        np.testing.assert_array_equal(getattr(data, part), getattr(plain, part))
    assert data.labels.num_classes == 3 and plain.labels is None
    z, labels = data.batch(2, 32, seed)
    raw = np.floor((z.astype(float) + 1) / 2 * data.scaling.levels)  # the noise of dequantising is below one level
    np.testing.assert_array_equal(labels, class_of(raw))
    np.testing.assert_array_equal(z, plain.batch(2, 32, seed))


def test_the_digits_have_labels(seed):
    data, digits = load_dataset("digits", seed, labelled=True), load_digits()
    assert data.labels.num_classes == 10
    of_row = {row.tobytes(): label for row, label in zip(digits.data, digits.target, strict=True)}
    assert [of_row[row.tobytes()] for row in data.test] == list(data.labels.test)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": np.eye(30)}, "has no labels: give"),
        ({"x": np.eye(30), "y": np.zeros(29, int)}, r"one integer a row, \(30,\).* got int64 of shape \(29,\)"),
        ({"x": np.eye(30), "y": np.ones(30)}, "got float64 of shape"),
        ({"x": np.eye(30), "y": np.arange(30) - 2}, "-1 where unknown"),
        ({"x": np.eye(30), "y": np.zeros(30, int)}, "two classes or more"),
        ({"x_train": np.eye(30), "x_test": np.eye(30), "y_train": np.arange(30) % 2}, "has no labels"),
    ],
)
def test_what_cannot_be_labels_is_said_where_labels_are_asked_for(tmp_path, seed, arrays, sentence):
    np.savez(tmp_path / "rows.npz", **arrays)
    with pytest.raises(ValueError, match=sentence):
        load_dataset(str(tmp_path / "rows.npz"), seed, labelled=True)
    assert load_dataset(str(tmp_path / "rows.npz"), seed).labels is None
