"""Data in: arrays from files, dequantised, scaled and whitened by maps that are written down and can be undone.

Three coordinate systems: raw (pixel counts, or whatever the file holds), data units x (dequantised, scaled to [-1, 1]),
and whitened coordinates z, in which networks and chains work. log p(x) = log p(z) - log_det.
"""

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits


class Scaling(NamedTuple):
    """The maps between coordinates, as data.

    levels: number of integer levels that are dequantised with U[0, 1) noise, 0 for continuous data. low, high: range of
    the raw data mapped to [-1, 1]. center (d,), factor (d, d) or (d,): z = factor^-1 (x - center), a Cholesky factor or
    standard deviations.
    """

    levels: int
    low: float
    high: float
    center: np.ndarray
    factor: np.ndarray

    def to_x(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return raw (n, d) rows in data units, float64, dequantised with fresh noise from `rng`."""
        noise = rng.random(raw.shape) if self.levels else 0.0
        return 2 * (raw + noise - self.low) / (self.high - self.low) - 1

    def to_raw(self, x: Any) -> np.ndarray:
        """Undo `to_x`: (n, d) rows in raw units, float64; of dequantised data the levels, within their range."""
        raw = (np.asarray(x, np.float64) + 1) / 2 * (self.high - self.low) + self.low
        return np.clip(np.floor(raw), 0, self.levels - 1) if self.levels else raw

    def to_z(self, x: np.ndarray) -> np.ndarray:
        """Return data-unit rows (n, d) whitened, float32."""
        centred = x - self.center
        white = centred / self.factor if self.factor.ndim == 1 else np.linalg.solve(self.factor, centred.T).T
        return white.astype(np.float32)

    def from_z(self, z: Any) -> np.ndarray:
        """Undo `to_z`: (n, d) rows in data units, float64."""
        z = np.asarray(z, np.float64)
        return (z * self.factor if self.factor.ndim == 1 else z @ self.factor.T) + self.center

    @property
    def log_det(self) -> float:
        """The log of |det dx/dz|: log p(x) = log p(z) - log_det."""
        diagonal = self.factor if self.factor.ndim == 1 else np.diag(self.factor)
        return float(np.log(np.abs(diagonal)).sum())

    @property
    def cell(self) -> float | None:
        """Width of one level in data units; None for continuous data."""
        return 2.0 / (self.high - self.low) if self.levels else None

    @property
    def is_plain(self) -> bool:
        """Whether whitened coordinates are the data units."""
        return self.factor.ndim == 1 and not self.center.any() and bool((self.factor == 1).all())

    def agrees(self, other: "Scaling") -> bool:
        """Return whether the other was fitted to the same data, to the rounding of a fit."""
        pairs = zip(self, other, strict=True)
        return all(np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-6, atol=0) for a, b in pairs)

    def describe(self) -> dict[str, Any]:
        """Return what a spec records of it."""
        return {
            "levels": self.levels,
            "raw_range": [self.low, self.high],
            "data_units": "x = 2 (raw + U[0, 1) - low) / (high - low) - 1" if self.levels else "x in [-1, 1], linear",
            "whitening": "full" if self.factor.ndim == 2 else "no" if self.is_plain else "diagonal",
            "log_det": self.log_det,
        }


class Labels(NamedTuple):
    """Integer classes (n,) of the rows of each part, from 0 on, -1 where unknown."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def num_classes(self) -> int:
        """One more than the highest class of any part."""
        return 1 + max(int(part.max()) for part in self)


class Dataset(NamedTuple):
    """Raw rows (n, d) float64 of each part, the shape of one point before flattening, and the scaling.

    The scaling is fitted on the training part alone; the test part is used for nothing but the final figures. labels:
    of the rows, None where they were not asked for.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    shape: tuple[int, ...]
    scaling: Scaling
    labels: Labels | None = None

    @property
    def dim(self) -> int:
        """Dimensions of one point, flattened."""
        return self.train.shape[1]

    def batch(self, step: int, batch_size: int, seed: int) -> Any:
        """Return the whitened batch of one step, (batch_size, d) float32: a function of (seed, step) alone.

        Where there are labels, a pair with those, (batch_size,) int32. Rows come from shuffled epochs without
        replacement (the last partial batch of an epoch is topped up from the next), dequantised with fresh noise, so a
        run that resumes at a step sees the batches it would have seen.
        """
        positions = step * batch_size + np.arange(batch_size)
        epochs, offsets = np.divmod(positions, len(self.train))
        orders = {e: np.random.default_rng([seed, 1, e]).permutation(len(self.train)) for e in np.unique(epochs)}
        rows = np.array([orders[e][o] for e, o in zip(epochs, offsets, strict=True)])
        z = self.scaling.to_z(self.scaling.to_x(self.train[rows], np.random.default_rng([seed, 2, step])))
        return z if self.labels is None else (z, self.labels.train[rows])

    def batches(self, batch_size: int, seed: int, start: int, stop: int) -> Iterator[Any]:
        """Yield the batches of steps start..stop-1."""
        for step in range(start, stop):
            yield self.batch(step, batch_size, seed)

    def part_x(self, part: str, seed: int) -> np.ndarray:
        """Return "train", "validation" or "test" in data units (n, d), dequantised once by `seed`."""
        order = ("train", "validation", "test").index(part)
        return self.scaling.to_x(getattr(self, part), np.random.default_rng([seed, 3, order]))


class _Read(NamedTuple):
    """Raw rows (n, ...) and their labels or None; those to test on, where a file says which."""

    rows: np.ndarray
    labels: np.ndarray | None = None
    test: np.ndarray | None = None
    test_labels: np.ndarray | None = None


def load_dataset(source: str, seed: int, *, whiten: str = "auto", labelled: bool = False) -> Dataset:
    """Load "digits" (scikit-learn's 8x8 digits, levels 0..16) or a file of rows, and split it.

    source: a .npy, .npz or IDX file (MNIST's format, gzipped or not) of one array (n, ...) of numbers; integers are
    dequantised, floats are not. The test part is `x_test` of an .npz file that holds `x_train` and `x_test`, the t10k
    file beside an IDX file of training images, and else a quarter of the rows (450 of the 1797 digits); a tenth of the
    rest is held out for early stopping; what is split, by `seed`. The number of levels is read off all rows: it says
    what values there are, and fits nothing.
    whiten: "full" (Cholesky of the training covariance), "diagonal", "auto" (full where there are at least 5 rows a
    dimension), or "none".
    labelled: with labels, which are those of the digits, `y_train` and `y_test` or `y` of an .npz file, or the file of
    labels beside an IDX file of images; integers from 0 on, or -1 for rows of an unknown class.
    Raises ValueError, in one sentence, for a file that cannot be data, or whose labels cannot be labels.
    """
    if source == "digits":
        rows, labels = map(np.asarray, load_digits(return_X_y=True))
        read, name, levels = _Read(rows.reshape(-1, 8, 8), labels), "digits", 17
    else:
        read, name = _read(Path(source)), Path(source).stem
        highest = max(part.max() for part in (read.rows, read.test) if part is not None)
        levels = int(highest) + 1 if np.issubdtype(read.rows.dtype, np.integer) else 0
        levels = 256 if read.rows.dtype == np.uint8 and levels > 32 else levels
    order = np.random.default_rng([seed, 0]).permutation(len(read.rows))
    num_test = 0 if read.test is not None else 450 if source == "digits" else max(1, len(order) // 4)
    num_validation = max(1, (len(order) - num_test) // 10)
    parts = np.split(order, [num_test, num_test + num_validation])
    flat = read.rows.reshape(len(order), -1).astype(np.float64)
    test, validation, train = (flat[part] for part in parts)
    if read.test is not None:
        test = read.test.reshape(len(read.test), -1).astype(np.float64)
    data = Dataset(name, train, validation, test, read.rows.shape[1:], _fit_scaling(train, levels, seed, whiten))
    if not labelled:
        return data
    known = _labels_of(source, read.labels, len(order))
    test_labels, validation_labels, train_labels = (known[part] for part in parts)
    if read.test is not None:
        test_labels = _labels_of(source, read.test_labels, len(test))
    return data._replace(labels=Labels(train_labels, validation_labels, test_labels))


def _labels_of(source: str, labels: np.ndarray | None, num: int) -> np.ndarray:
    if labels is None:
        raise ValueError(
            f"{source} has no labels: give an .npz file with y beside x, or y_train and y_test beside x_train and "
            "x_test, or an IDX file with its file of labels beside it"
        )
    if labels.shape != (num,) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < -1 or labels.max() < 1:
        raise ValueError(
            f"{source}: labels are one integer a row, ({num},), from 0 on for two classes or more, and -1 where "
            f"unknown; got {labels.dtype} of shape {labels.shape}"
        )
    return labels.astype(np.int32)


def _read(path: Path) -> _Read:
    """Return the rows of a file, and the test rows where the file, or the one beside it, names them."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a .npy, .npz or IDX file, or the word digits")
    read = _read_images(path) if _is_idx(path) else _read_numpy(path)
    for part in (read.rows,) if read.test is None else (read.rows, read.test):
        _require_rows(path, part)
    if read.test is not None and (read.test.shape[1:], read.test.dtype) != (read.rows.shape[1:], read.rows.dtype):
        raise ValueError(
            f"{path}: rows of shape {read.rows.shape[1:]} to train on, of {read.test.shape[1:]} to test on"
        )
    return read


def _read_images(path: Path) -> _Read:
    """Return the images of an IDX file, and what lies beside it by the names of MNIST's files."""
    test = path.with_name(path.name.replace("train-", "t10k-", 1))
    own = _Read(_read_idx(path), _labels_beside(path))
    if test == path or not test.exists():
        return own
    return own._replace(test=_read_idx(test), test_labels=_labels_beside(test))


def _labels_beside(path: Path) -> np.ndarray | None:
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1", 1))
    return _read_idx(beside) if beside != path and beside.exists() else None


def _read_numpy(path: Path) -> _Read:
    try:
        with path.open("rb") as file:
            data = np.load(file, allow_pickle=False)
            if not isinstance(data, np.lib.npyio.NpzFile):
                return _Read(data)
            names = set(data.files)
            found = {name: data[name] for name in names & {"x_train", "y_train", "x_test", "y_test", "x", "y"}}
            if {"x_train", "x_test"} <= names:
                return _Read(found["x_train"], found.get("y_train"), found["x_test"], found.get("y_test"))
            if names == {"x", "y"}:
                return _Read(found["x"], found["y"])
            if len(names) == 1:
                return _Read(data[names.pop()])
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        reason = "" if "pickle" in str(error) else f": {error}"  # NumPy's advice there is to load it unsafely
        raise ValueError(f"{path} is not a .npy or .npz file of numbers{reason}") from None
    raise ValueError(
        f"{path} holds {len(names)} arrays ({', '.join(sorted(names))}); it must hold one, or x and y, or x_train and "
        "x_test"
    )


def _is_idx(path: Path) -> bool:
    return "-ubyte" in path.name or ".idx" in path.name


def _read_idx(path: Path) -> np.ndarray:
    """Read unsigned bytes in the format of LeCun's MNIST files: two zeros, the type 8, the rank, big-endian sizes."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a gzip file: {error}") from None
    rank = content[3] if len(content) > 3 else 0
    shape = tuple(np.frombuffer(content[4 : 4 + 4 * rank], ">i4")) if len(content) >= 4 + 4 * rank else ()
    if content[:3] != b"\x00\x00\x08" or len(content) != 4 + 4 * rank + int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{path} is not an IDX file of unsigned bytes, or is cut short")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _require_rows(path: Path, data: np.ndarray) -> None:
    if not (np.issubdtype(data.dtype, np.floating) or np.issubdtype(data.dtype, np.integer)):
        raise ValueError(f"{path} has dtype {data.dtype}; rows of integers or floats are needed")
    if data.ndim < 2 or len(data) < 20 or not data.size:
        raise ValueError(f"{path} has shape {data.shape}; at least 20 rows of shape (n, ...) are needed")
    bad = np.argwhere(~np.isfinite(data.reshape(len(data), -1)))
    if bad.size:
        raise ValueError(f"{path} has {len(bad)} values that are not finite, the first in row {bad[0][0]}: remove them")
    if np.issubdtype(data.dtype, np.integer) and data.min() < 0:
        raise ValueError(f"{path} holds negative integers; levels start at 0: shift them, or save floats")


def _fit_scaling(train: np.ndarray, levels: int, seed: int, whiten: str) -> Scaling:
    if whiten not in ("auto", "full", "diagonal", "none"):
        raise ValueError(f'whiten must be "auto", "full", "diagonal" or "none"; got {whiten!r}')
    n, dim = train.shape
    low, high = float(train.min()), float(train.max())
    if high <= low:
        raise ValueError("the training rows are all one value; there is no density to fit")
    low, high = (0.0, float(levels)) if levels else (low, high)
    raw_scaling = Scaling(levels, low, high, np.zeros(dim), np.ones(dim))
    if whiten == "none":
        return raw_scaling
    x = 2 * (train - low + (0.5 if levels else 0.0)) / (high - low) - 1
    # Dequantisation adds the variance of U[0, 1) to every dimension; continuous data get a floor of 1e-6.
    noise = (2 / (high - low)) ** 2 / 12 if levels else 1e-6
    if whiten == "diagonal" or (whiten == "auto" and n < 5 * dim):
        return raw_scaling._replace(center=x.mean(0), factor=np.sqrt(x.var(0) + noise))
    covariance = np.atleast_2d(np.cov(x.T)) + noise * np.eye(dim)
    return raw_scaling._replace(center=x.mean(0), factor=np.linalg.cholesky(covariance))
