"""Straight keys draw JAX's numbers, in every way a kernel may ask for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from energyflow.kernels.keys import straight

DRAWS = {
    "normal": lambda key: jax.random.normal(key, (3, 5)),
    "scalar": lambda key: jax.random.uniform(key),
    "empty": lambda key: jax.random.normal(key, (0, 2)),
    "half": lambda key: jax.random.normal(key, (7,), jnp.bfloat16),
    "integers": lambda key: jax.random.randint(key, (9,), -3, 1000),
    "bytes": lambda key: jax.random.bits(key, (4,), jnp.uint8),
    "coins": lambda key: jax.random.bernoulli(key, 0.3, (50,)),
    "permutation": lambda key: jax.random.permutation(key, 20),
    "split": lambda key: jax.vmap(lambda k: jax.random.normal(k, (2,)))(jax.random.split(key, (4,))),
    "fold_in": lambda key: jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, 2**31 + 5), 7), (2,)),
    "folds": lambda key: jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(jnp.arange(-3, 3)),
}


@pytest.mark.core
@pytest.mark.parametrize("name", DRAWS)
def test_the_numbers_are_jaxs_bit_for_bit(name, key):
    """Under jit and over many keys, as chains draw them. The transformed ones may differ by what XLA fuses: 2 ulp."""
    keys = jax.random.split(key, 6)
    expected = jax.jit(jax.vmap(DRAWS[name]))(keys)
    drawn = jax.jit(jax.vmap(lambda k: DRAWS[name](straight(k))))(jax.random.clone(keys))
    assert drawn.dtype == expected.dtype and drawn.shape == expected.shape
    exact = jnp.issubdtype(expected.dtype, jnp.integer) or expected.dtype == bool
    ulp = 0 if exact else 2 * float(jnp.finfo(expected.dtype).eps)
    np.testing.assert_allclose(np.asarray(drawn, np.float64), np.asarray(expected, np.float64), rtol=ulp, atol=ulp)


@pytest.mark.core
def test_64_bit_numbers_are_jaxs(key):
    with jax.enable_x64(True):
        expected = jax.random.bits(key, (5,), jnp.uint64)
        drawn = jax.random.bits(straight(jax.random.clone(key)), (5,), jnp.uint64)
    assert np.array_equal(drawn, expected) and drawn.dtype == np.uint64


def test_other_keys_stay_as_they_are():
    for key in (jax.random.key(0, impl="rbg"), jax.random.PRNGKey(0), straight(jax.random.key(0))):
        assert straight(key) is key
