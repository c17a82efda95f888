"""Floor 1: saving and loading pytrees: one file, written whole or not at all, compared with what it is loaded into."""

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from energyflow.types import Tree

FORMAT = 1


def save(path: str | Path, tree: Tree) -> Path:
    """Write every leaf of `tree` (arrays, typed keys, numbers) to one file.

    The file appears under its name only when it is complete: a process killed while saving leaves the one before.
    Structure is not stored, only the names, shapes and dtypes of the leaves; `load` needs a tree of the same structure.
    """
    path = Path(path)
    leaves = _named(tree)
    arrays: dict[str, Any] = {f"leaf{i}": _to_numpy(leaf) for i, leaf in enumerate(leaves.values())}
    manifest = {"format": FORMAT, "leaves": [[name, *_spec(leaf)] for name, leaf in leaves.items()]}
    arrays["manifest"] = np.frombuffer(json.dumps(manifest).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    return path


def load(path: str | Path, like: Tree) -> Tree:
    """Read a file of `save` into the structure of `like` (its leaves may be arrays or `jax.ShapeDtypeStruct`s).

    Bitwise what was saved; typed keys keep the implementation they were saved with, whatever that of `like`, and what
    is a NumPy array or a Python number in `like` stays one. Raises ValueError for a file that `save` did not write or
    that is cut off, and for one of another model (other names, shapes, dtypes), naming the first leaf that differs.
    """
    stored = _read(Path(path))
    wanted = _named(like)
    for name in [*wanted, *stored]:
        if name not in stored or name not in wanted:
            where = "the file" if name not in stored else "the model"
            raise ValueError(f"{path} is a checkpoint of another model: {name} is missing in {where}")
        ours, theirs = _spec(wanted[name]), stored[name][0]
        both_keys = ours[1].startswith("key<") and theirs[1].startswith("key<")
        if ours[0] != theirs[0] or not (both_keys or _canonical(ours[1]) == _canonical(theirs[1])):
            raise ValueError(f"{path} is a checkpoint of another model: {name} is {theirs} there and {list(ours)} here")
    pairs = zip(wanted, jax.tree.leaves(like), strict=True)
    leaves = [_from_numpy(stored[name][0][1], stored[name][1], leaf) for name, leaf in pairs]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _read(path: Path) -> dict[str, Any]:
    """Return {name: ([shape, dtype], array)} of a file of `save`."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            manifest = json.loads(file["manifest"].tobytes())
            leaves = [(name, spec, file[f"leaf{i}"]) for i, (name, *spec) in enumerate(manifest["leaves"])]
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        raise ValueError(f"{path} is not a checkpoint, or only a part of one") from None
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{path} has format {manifest.get('format')}; this version reads {FORMAT}")
    return {name: (spec, array) for name, spec, array in leaves}


def _named(tree: Tree) -> dict[str, Any]:
    return {name or "leaf": leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for name, leaf in _paths(tree)}


def _paths(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, leaf) in the order of `jax.tree.leaves`.

    NumPyro flattens a distribution in the order of a set of strings, which differs from process to process: two arrays
    of one shape would trade places. Its leaves go by their field's name instead of their place.
    """
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_distribution):
        name = prefix + jax.tree_util.keystr(path)
        if not _is_distribution(node):
            yield name, node
            continue
        children, _ = node.tree_flatten()
        for field, child in zip(type(node).gather_pytree_data_fields(), children, strict=True):
            yield from _paths(child, f"{name}.{field}")


def _is_distribution(node: Any) -> bool:
    return hasattr(type(node), "gather_pytree_data_fields")


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _spec(leaf: Any) -> tuple[Any, str]:
    return list(leaf.shape), str(leaf.dtype)


def _canonical(dtype: str) -> str:
    """Return the dtype JAX would hold: float64 is float32 unless x64 is enabled."""
    return dtype if dtype.startswith("key<") else str(jax.dtypes.canonicalize_dtype(dtype))


def _to_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _from_numpy(dtype: str, array: np.ndarray, like: Any) -> Any:
    if _is_key(like):
        implementation = dtype.removeprefix("key<").removesuffix(">")
        names = {
            "fry": "threefry2x32",
            "fry4": "threefry4x32",
            "phx2": "philox2x32",
            "phx4": "philox4x32",
            "urbg": "unsafe_rbg",
        }
        return jax.random.wrap_key_data(jnp.asarray(array), impl=names.get(implementation, implementation))
    if array.dtype.kind == "V":  # NumPy reads bfloat16 and its kin back as raw bytes
        array = array.view(like.dtype)
    if isinstance(like, np.ndarray):
        return array
    return type(like)(array[()]) if isinstance(like, (np.generic, bool, int, float, complex)) else jnp.asarray(array)
