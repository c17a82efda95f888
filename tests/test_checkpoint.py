"""Laws of checkpoints: bitwise what was saved, refused by name where it is another model's, never half a file."""

import os
import re
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from energyflow import checkpoint
from energyflow.checkpoint import load, save


class Pair(NamedTuple):
    first: Any
    second: Any


def keys(implementation, num=3):
    return jax.random.split(jax.random.key(7, impl=implementation), num)


TREES = {
    "nested": {
        "a": Pair(jnp.arange(3.0), [jnp.int32(4), None]),
        "b": {"c": (jnp.array([True, False]),)},
        "": jnp.ones(1),
    },
    "odd values": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45, 1 / 3]),
    "empty": {"none": None, "rows": jnp.zeros((0, 3)), "tuple": ()},
    "small floats": {"bfloat16": jnp.arange(5, dtype=jnp.bfloat16) / 3, "float16": jnp.ones(2, jnp.float16)},
    "integers": (jnp.uint8([0, 255]), jnp.int8(-128), jnp.uint32(2**32 - 1)),
    "threefry": keys("threefry2x32"),
    "rbg": Pair(keys("rbg"), keys("threefry2x32", 1)[0]),
    "unsafe_rbg": keys("unsafe_rbg"),
    "one array": jnp.float32(2.5),
}


def words(leaf):
    """Return the bits of a leaf."""
    return np.asarray(jax.random.key_data(leaf) if checkpoint._is_key(leaf) else leaf).tobytes()


@pytest.mark.core
@pytest.mark.parametrize("name", TREES)
def test_what_was_saved_is_loaded_bit_for_bit(name, tmp_path):
    tree = TREES[name]
    file = save(tmp_path / "new folder" / "file.npz", tree)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    for like in (tree, shapes):  # shapes alone cannot lend their values
        loaded = load(file, like)
        assert jax.tree.structure(loaded) == jax.tree.structure(tree)
        for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(tree), strict=True):
            assert isinstance(ours, jax.Array)
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            assert words(ours) == words(theirs)


def test_keys_go_on_with_the_numbers_of_their_implementation(tmp_path):
    for implementation in ("threefry2x32", "threefry4x32", "philox2x32", "philox4x32", "rbg", "unsafe_rbg"):
        key = jax.random.key(3, impl=implementation)
        loaded = load(save(tmp_path / implementation, key), jax.random.key(0, impl=implementation))
        assert np.array_equal(jax.random.normal(loaded, (8,)), jax.random.normal(jax.random.clone(key), (8,)))


def test_leaves_that_are_no_jax_arrays_keep_their_kind(tmp_path):
    """A float64 NumPy array or a Python float would lose half of its digits as a JAX array."""
    tree = {"array": np.array([1 / 3]), "number": 1 / 3, "count": 2**40, "flag": True, "scalar": np.float64(1 / 3)}
    like = {"array": np.zeros(1), "number": 0.0, "count": 0, "flag": False, "scalar": np.float64(0)}
    loaded = load(save(tmp_path / "file.npz", tree), like)
    assert loaded == tree
    assert jax.tree.map(type, loaded) == jax.tree.map(type, tree)


OTHERS = {
    "a leaf less": ({"a": jnp.ones(3)}, "['b'][0] is missing in the model"),
    "a leaf more": ({"a": jnp.ones(3), "b": (jnp.ones(2), 1)}, "['b'][1] is missing in the file"),
    "shape": (
        {"a": jnp.ones(4), "b": (jnp.ones(2),)},
        "['a'] is [[3], 'float32'] there and [[4], 'float32'] here",
    ),
    "dtype": (
        {"a": jnp.ones(3), "b": (jnp.ones(2, jnp.int32),)},
        "['b'][0] is [[2], 'float32'] there and [[2], 'int32'] here",
    ),
    "key": (
        {"a": keys("rbg"), "b": (jnp.ones(2),)},
        "['a'] is [[3], 'float32'] there and [[3], 'key<rbg>'] here",
    ),
}


@pytest.mark.core
@pytest.mark.parametrize("name", OTHERS)
def test_the_first_leaf_that_differs_is_named(name, tmp_path):
    like, message = OTHERS[name]
    file = save(tmp_path / "file.npz", {"a": jnp.ones(3), "b": (jnp.ones(2),)})
    with pytest.raises(ValueError, match=re.escape(f"file.npz is a checkpoint of another model: {message}")):
        load(file, like)


def test_keys_of_another_implementation_stay_what_they_were(tmp_path):
    saved = keys("rbg")
    loaded = load(save(tmp_path / "file.npz", saved), keys("threefry2x32"))
    assert loaded.dtype == saved.dtype and jnp.array_equal(jax.random.key_data(loaded), jax.random.key_data(saved))


def test_what_is_no_checkpoint_or_only_a_part_of_one_is_refused(tmp_path):
    whole = save(tmp_path / "whole.npz", jnp.arange(1000.0)).read_bytes()
    np.savez(tmp_path / "foreign.npz", a=np.ones(3))
    for name, content in {"text.npz": b"not a checkpoint", "cut.npz": whole[:2000], "empty.npz": b""}.items():
        (tmp_path / name).write_bytes(content)
    for name in ("text.npz", "cut.npz", "empty.npz", "foreign.npz"):
        with pytest.raises(ValueError, match=f"{name} is not a checkpoint, or only a part of one"):
            load(tmp_path / name, jnp.zeros(1000))


def test_a_file_of_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    file = save(tmp_path / "file.npz", jnp.ones(3))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format 99; this version reads 1"):
        load(file, jnp.ones(3))


@pytest.mark.core
def test_a_write_that_fails_midway_leaves_the_file_before(tmp_path, monkeypatch):
    file = save(tmp_path / "file.npz", jnp.arange(3.0))
    before = file.read_bytes()

    def dies(stream, **arrays):
        stream.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", dies)
    with pytest.raises(OSError, match="no space left"):
        save(file, jnp.zeros(3))
    with pytest.raises(OSError, match="no space left"):
        save(tmp_path / "fresh.npz", jnp.zeros(3))
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert not (tmp_path / "fresh.npz").exists()
    assert np.array_equal(load(file, jnp.zeros(3)), [0, 1, 2])
    assert np.array_equal(load(save(file, jnp.ones(3)), jnp.zeros(3)), np.ones(3))


SWAPPED = """
import sys
import jax.numpy as jnp, numpyro.distributions as dist
import energyflow as ef
energy = ef.tilt(lambda x: x.sum(), dist.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1))
if sys.argv[2] == "save":
    ef.save(sys.argv[1], energy)
else:
    print(ef.load(sys.argv[1], energy).base.base_dist.scale.tolist())
"""


def test_distributions_keep_their_fields_in_another_process(tmp_path):
    """NumPyro flattens in the order of a set of strings: by place, loc and scale would trade places now and then."""

    def run(action, hash_seed):
        command = [sys.executable, "-c", SWAPPED, str(tmp_path / "energy.npz"), action]
        env = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()

    run("save", 0)
    assert [run("load", seed) for seed in (1, 2, 3)] == ["[1.0, 1.0]"] * 3
