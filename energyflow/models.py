"""Floor 7: NumPyro models in files, `FILE.py:MODEL`, with their data in a .npz file."""

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from energyflow.bridge import Posterior, from_numpyro


def read_model(name: str, data: Path | None = None) -> Posterior:
    """Return the posterior of the model named `FILE.py:MODEL` given the arrays of a .npz file.

    The arrays are passed by name, so they must be named as the model's parameters; those without dimensions become
    Python numbers. Raises ValueError, saying which, for a file, a model or an array that is missing or not wanted, and
    as `from_numpyro` does.
    """
    file, _, attribute = name.rpartition(":")
    if not file or not attribute:
        raise ValueError(f"a model is named FILE.py:MODEL; got {name!r}")
    model = _load(Path(file), attribute)
    arrays = _arrays(data) if data is not None else {}
    parameters = inspect.signature(model).parameters.values()
    required = {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    known = {p.name for p in parameters} if all(p.kind is not p.VAR_KEYWORD for p in parameters) else set(arrays)
    for problem, names in (("needs", required - set(arrays)), ("does not take", set(arrays) - known)):
        if names:
            holds = f"{data} holds {', '.join(sorted(arrays)) or 'nothing'}" if data else "no data file was given"
            raise ValueError(f"{attribute} {problem} {', '.join(sorted(names))}; {holds}")
    return from_numpyro(model, **arrays)


def _load(path: Path, attribute: str) -> Callable:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; a model is named FILE.py:MODEL")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = getattr(module, attribute, None)
    if not callable(model):
        functions = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise ValueError(f"{path} has no function {attribute!r}; it defines {', '.join(functions) or 'none'}")
    return model


def _arrays(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError):  # TypeError: a .npy file, which is one array
        raise ValueError(f"{path} is not a .npz file of named arrays; write one with numpy.savez") from None
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ValueError(f"array {name!r} of {path} has dtype {array.dtype}; numbers are needed")
        if not np.isfinite(array).all():
            raise ValueError(f"array {name!r} of {path} has values that are not finite: remove or impute them")
    return {name: array.item() if array.ndim == 0 else array for name, array in arrays.items()}
