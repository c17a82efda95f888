"""A loss without state trains through the same step as every objective."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import energyflow as ef


def squared(energy, batch, key):
    """Least squares on the energies themselves: its gradient steps have a closed form."""
    values = jax.vmap(energy)(batch)
    return jnp.mean(values**2) / 2, {"mean_energy": jnp.mean(values)}


def level(c, x):
    return c - x


@pytest.mark.core
def test_a_plain_loss_trains_by_its_own_gradient():
    """`c <- c - rate (c - mean x)` from c_0: `c_n = m + (1 - rate)^n (c_0 - m)`."""
    rate, start, batch = 0.25, 5.0, jnp.array([1.0, 2.0, 6.0])
    objective, optimizer = ef.stateless(squared), optax.sgd(rate)
    state = ef.init(0, Partial(level, jnp.array(start)), objective, optimizer, batch)
    assert state.objective_state is None
    step = ef.make_step(objective, optimizer)
    for n in range(6):
        state, metrics = step(state, batch)
        before = 3 + 0.75**n * (start - 3)
        assert np.isclose(metrics["mean_energy"], before - 3, rtol=1e-5)
        assert np.isclose(metrics["gradient_norm"], abs(before - 3), rtol=1e-5)
        assert np.isclose(metrics["loss"], np.mean((before - np.asarray(batch)) ** 2) / 2, rtol=1e-5)
    assert np.isclose(state.energy.args[0], 3 + 0.75**6 * (start - 3), rtol=1e-6)


def test_every_step_has_a_key_of_its_own_and_settings_compile_nothing(count_compilations):
    def noisy(scale, energy, batch, key):
        noise = scale * jax.random.normal(key)
        return energy(batch[0]) * 0.0 + noise, {"noise": noise}

    optimizer, batch = optax.sgd(0.1), jnp.ones(3)
    first, second = (ef.stateless(Partial(noisy, scale)) for scale in (1.0, 2.0))
    state = ef.init(0, Partial(level, jnp.array(5.0)), first, optimizer, batch)
    step = ef.make_step(first, optimizer)
    state, a = step(state, batch)
    state, b = step(state, batch)
    assert a["noise"] != b["noise"]
    with count_compilations() as made:
        ef.make_step(second, optimizer)(state, batch)
    assert made.count == 0
