"""Data in: arrays from files, dequantised, scaled and whitened by maps that are written down and can be undone.

Three coordinate systems: raw (pixel counts, or whatever the file holds), data units x (dequantised, scaled to [-1, 1]),
and whitened coordinates z, in which networks and chains work. log p(x) = log p(z) - log_det.
"""

import zipfile
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

    def describe(self) -> dict[str, Any]:
        """Return what a spec records of it."""
        return {
            "levels": self.levels,
            "raw_range": [self.low, self.high],
            "data_units": "x = 2 (raw + U[0, 1) - low) / (high - low) - 1" if self.levels else "x in [-1, 1], linear",
            "whitening": "full" if self.factor.ndim == 2 else "diagonal",
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
    """Load "digits" (scikit-learn's 8x8 digits, levels 0..16) or a .npy / .npz file of rows, and split it.

    source: a file holds one array (n, ...) of numbers; integers are dequantised, floats are not. A quarter of the rows
    (450 of the 1797 digits) is the test part, a tenth of the rest is held out for early stopping; both by `seed`. The
    number of levels is read off all rows: it says what values there are, and fits nothing.
    whiten: "full" (Cholesky of the training covariance), "diagonal", or "auto" (full where there are at least 5 rows a
    dimension).
    Raises ValueError, in one sentence, for a file that cannot be data.
    """
    if source == "digits":
        raw, name, levels = load_digits(return_X_y=True)[0].reshape(-1, 8, 8), "digits", 17
    else:
        raw, name = _read(Path(source)), Path(source).stem
        levels = int(raw.max()) + 1 if np.issubdtype(raw.dtype, np.integer) else 0
        levels = 256 if raw.dtype == np.uint8 and levels > 32 else levels
    shape = raw.shape[1:]
    rows = raw.reshape(len(raw), -1).astype(np.float64)
    order = np.random.default_rng([seed, 0]).permutation(len(rows))
    num_test = 450 if source == "digits" else max(1, len(rows) // 4)
    num_validation = max(1, (len(rows) - num_test) // 10)
    test, validation, train = np.split(rows[order], [num_test, num_test + num_validation])
    return Dataset(name, train, validation, test, shape, _fit_scaling(train, levels, seed, whiten))


def _read(path: Path) -> np.ndarray:
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a .npy or .npz file, or the word digits")
    try:
        with path.open("rb") as file:
            data = np.load(file, allow_pickle=False)
            names = data.files if isinstance(data, np.lib.npyio.NpzFile) else []
            data = data[names[0]] if len(names) == 1 else data
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        reason = "" if "pickle" in str(error) else f": {error}"  # NumPy's advice there is to load it unsafely
        raise ValueError(f"{path} is not a .npy or .npz file of numbers{reason}") from None
    if isinstance(data, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} holds {len(names)} arrays ({', '.join(names)}); it must hold one")
    if not (np.issubdtype(data.dtype, np.floating) or np.issubdtype(data.dtype, np.integer)):
        raise ValueError(f"{path} has dtype {data.dtype}; rows of integers or floats are needed")
    if data.ndim < 2 or len(data) < 20 or not data.size:
        raise ValueError(f"{path} has shape {data.shape}; at least 20 rows of shape (n, ...) are needed")
    bad = np.argwhere(~np.isfinite(data.reshape(len(data), -1)))
    if bad.size:
        raise ValueError(f"{path} has {len(bad)} values that are not finite, the first in row {bad[0][0]}: remove them")
    if np.issubdtype(data.dtype, np.integer) and data.min() < 0:
        raise ValueError(f"{path} holds negative integers; levels start at 0: shift them, or save floats")
    return data


def _fit_scaling(train: np.ndarray, levels: int, seed: int, whiten: str) -> Scaling:
    if whiten not in ("auto", "full", "diagonal"):
        raise ValueError(f'whiten must be "auto", "full" or "diagonal"; got {whiten!r}')
    n, dim = train.shape
    low, high = float(train.min()), float(train.max())
    if high <= low:
        raise ValueError("the training rows are all one value; there is no density to fit")
    low, high = (0.0, float(levels)) if levels else (low, high)
    raw_scaling = Scaling(levels, low, high, np.zeros(dim), np.ones(dim))
    x = 2 * (train - low + (0.5 if levels else 0.0)) / (high - low) - 1
    # Dequantisation adds the variance of U[0, 1) to every dimension; continuous data get a floor of 1e-6.
    noise = (2 / (high - low)) ** 2 / 12 if levels else 1e-6
    if whiten == "diagonal" or (whiten == "auto" and n < 5 * dim):
        return raw_scaling._replace(center=x.mean(0), factor=np.sqrt(x.var(0) + noise))
    covariance = np.atleast_2d(np.cov(x.T)) + noise * np.eye(dim)
    return raw_scaling._replace(center=x.mean(0), factor=np.linalg.cholesky(covariance))
