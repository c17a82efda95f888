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


class Dataset(NamedTuple):
    """Raw rows (n, d) float64 of each part, the shape of one point before flattening, and the scaling.

    The scaling is fitted on the training part alone; the test part is used for nothing but the final figures.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    shape: tuple[int, ...]
    scaling: Scaling

    @property
    def dim(self) -> int:
        """Dimensions of one point, flattened."""
        return self.train.shape[1]

    def batch(self, step: int, batch_size: int, seed: int) -> np.ndarray:
        """Return the whitened batch of one step, (batch_size, d) float32: a function of (seed, step) alone.

        Rows come from shuffled epochs without replacement (the last partial batch of an epoch is topped up from the
        next), dequantised with fresh noise, so a run that resumes at a step sees the batches it would have seen.
        """
        positions = step * batch_size + np.arange(batch_size)
        epochs, offsets = np.divmod(positions, len(self.train))
        orders = {e: np.random.default_rng([seed, 1, e]).permutation(len(self.train)) for e in np.unique(epochs)}
        rows = np.array([orders[e][o] for e, o in zip(epochs, offsets, strict=True)])
        return self.scaling.to_z(self.scaling.to_x(self.train[rows], np.random.default_rng([seed, 2, step])))

    def batches(self, batch_size: int, seed: int, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yield the batches of steps start..stop-1."""
        for step in range(start, stop):
            yield self.batch(step, batch_size, seed)

    def part_x(self, part: str, seed: int) -> np.ndarray:
        """Return "train", "validation" or "test" in data units (n, d), dequantised once by `seed`."""
        order = ("train", "validation", "test").index(part)
        return self.scaling.to_x(getattr(self, part), np.random.default_rng([seed, 3, order]))


def load_dataset(source: str, seed: int, *, whiten: str = "auto") -> Dataset:
    """Load "digits" (scikit-learn's 8x8 digits, levels 0..16) or a file of rows, and split it.

    source: a .npy, .npz or IDX file (MNIST's format, gzipped or not) of one array (n, ...) of numbers; integers are
    dequantised, floats are not. The test part is `x_test` of an .npz file that holds `x_train` and `x_test`, the t10k
    file beside an IDX file of training images, and else a quarter of the rows (450 of the 1797 digits); a tenth of the
    rest is held out for early stopping; what is split, by `seed`. The number of levels is read off all rows: it says
    what values there are, and fits nothing.
    whiten: "full" (Cholesky of the training covariance), "diagonal", "auto" (full where there are at least 5 rows a
    dimension), or "none".
    Raises ValueError, in one sentence, for a file that cannot be data.
    """
    if source == "digits":
        raw, own_test, name, levels = load_digits(return_X_y=True)[0].reshape(-1, 8, 8), None, "digits", 17
    else:
        (raw, own_test), name = _read(Path(source)), Path(source).stem
        highest = max(raw.max(), raw.max() if own_test is None else own_test.max())
        levels = int(highest) + 1 if np.issubdtype(raw.dtype, np.integer) else 0
        levels = 256 if raw.dtype == np.uint8 and levels > 32 else levels
    shape = raw.shape[1:]
    rows = raw.reshape(len(raw), -1).astype(np.float64)
    rows = rows[np.random.default_rng([seed, 0]).permutation(len(rows))]
    if own_test is None:
        test, rows = np.split(rows, [450 if source == "digits" else max(1, len(rows) // 4)])
    else:
        test = own_test.reshape(len(own_test), -1).astype(np.float64)
    validation, train = np.split(rows, [max(1, len(rows) // 10)])
    return Dataset(name, train, validation, test, shape, _fit_scaling(train, levels, seed, whiten))


def _read(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the rows of a file, and the test rows where the file, or the one beside it, names them."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a .npy, .npz or IDX file, or the word digits")
    if _is_idx(path):
        beside = path.with_name(path.name.replace("train-", "t10k-", 1))
        rows, test = _read_idx(path), _read_idx(beside) if beside != path and beside.exists() else None
    else:
        rows, test = _read_numpy(path)
    for part in (rows,) if test is None else (rows, test):
        _require_rows(path, part)
    if test is not None and (test.shape[1:], test.dtype) != (rows.shape[1:], rows.dtype):
        raise ValueError(f"{path}: rows of shape {rows.shape[1:]} to train on, of {test.shape[1:]} to test on")
    return rows, test


def _read_numpy(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with path.open("rb") as file:
            data = np.load(file, allow_pickle=False)
            if not isinstance(data, np.lib.npyio.NpzFile):
                return data, None
            names = data.files
            if {"x_train", "x_test"} <= set(names):
                return data["x_train"], data["x_test"]
            if len(names) == 1:
                return data[names[0]], None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        reason = "" if "pickle" in str(error) else f": {error}"  # NumPy's advice there is to load it unsafely
        raise ValueError(f"{path} is not a .npy or .npz file of numbers{reason}") from None
    raise ValueError(f"{path} holds {len(names)} arrays ({', '.join(names)}); it must hold one, or x_train and x_test")


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
