"""One log Z by three roads that share nothing: NCE's constant, the annealing bracket, quadrature."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
import pytest

import energyflow as ef

pytestmark = [pytest.mark.lenient("numpyro", "numpyro_models", "optax")]


def test_noise_contrastive_estimation_annealing_and_quadrature_agree(key):
    """A network tilted off a Gaussian, log Z unknown in closed form; rows are drawn from its normalised grid.

    20 000 rows and twice as much noise leave NCE an error near .015; .05 is the tolerance asked of all three.
    """
    net = ef.tilt(ef.mlp(3, 2, (32, 32)), dist.Normal(jnp.zeros(2), jnp.full(2, 1.5)).to_event(1))
    grid = ef.log_z_quadrature(net, (-12.0, -12.0), (12.0, 12.0), num=400)
    annealed = ef.bracket(1, net, num_temperatures=200, num_chains=512)
    assert annealed.verdict in ("bracketed", "approximate")
    assert abs(annealed.log_z - grid) < 0.05 and annealed.lower - 0.05 < grid < annealed.upper + 0.05

    axis = jnp.linspace(-9, 9, 301)
    cells = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    pick_key, shift_key, init_key = jax.random.split(key, 3)
    mass = jnp.cumsum(jax.nn.softmax(-jax.vmap(net)(cells)))
    rows = cells[jnp.searchsorted(mass, mass[-1] * jax.random.uniform(pick_key, (40_000,)))]
    rows = rows + (axis[1] - axis[0]) * (jax.random.uniform(shift_key, rows.shape) - 0.5)
    objective, optimizer = ef.nce(dist.Normal(jnp.zeros(2), jnp.full(2, 2.0)).to_event(1), 2), optax.sgd(0.5)
    state = ef.init(init_key, ef.normalised(ef.frozen(net)), objective, optimizer, rows)
    step = ef.make_step(objective, optimizer, ema_decay=0.9)
    for _ in range(40):
        state, metrics = step(state, rows)
    assert abs(float(state.ema.log_z) - grid) < 0.05
    assert metrics["accuracy"] < 0.95
