"""The suite's own machinery: the counter counts, the strict flags bite, the exceptions are the true ones."""

import blackjax
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
import pytest

from conftest import ALLOWED, RELAXED, STRICT

pytestmark = pytest.mark.core


def test_a_fresh_shape_compiles_once_and_a_second_call_not_at_all(count_compilations):
    @jax.jit
    def f(x):
        return 2 * jnp.sin(x)

    first, second, other = jnp.ones(3), jnp.zeros(3), jnp.ones(4)
    for argument, expected in ((first, 1), (second, 0), (other, 1), (other, 0)):
        with count_compilations() as made:
            f(argument).block_until_ready()
        assert made.count == expected


def test_the_counter_stops_counting(count_compilations):
    with count_compilations() as made:
        pass
    jax.jit(lambda x: x - 7)(jnp.ones(3)).block_until_ready()
    assert made.count == 0


def test_the_key_is_this_tests_own(key, request, seed):
    assert request.node.nodeid.endswith("test_the_key_is_this_tests_own")
    assert not jnp.array_equal(jax.random.key_data(key), jax.random.key_data(jax.random.key(seed)))


def test_strict_flags_bite(key):
    jax.random.normal(key)
    with pytest.raises(jax.errors.KeyReuseError):
        jax.random.normal(key)
    with pytest.raises(ValueError, match="could not be broadcast"):
        jnp.ones((2, 3)) + jnp.ones(3)
    with pytest.raises(ValueError, match="dtype promotion path"):
        jnp.ones(3) * jnp.arange(3)


@pytest.mark.lenient("numpyro")
def test_a_marker_relaxes_only_what_it_names(key):
    assert (jnp.ones((2, 3)) + jnp.ones(3)).shape == (2, 3)
    with pytest.raises(ValueError, match="dtype promotion path"):
        jnp.ones(3) * jnp.arange(3)


def test_a_clone_may_be_used_again(key):
    assert jax.random.normal(jax.random.clone(key)) == jax.random.normal(key)


def logdensity(x):
    return -0.5 * jnp.sum(x**2)


def chains(algorithm):
    """Three transitions of two chains in the form that energyflow.chains uses: one key, folded with the step."""

    def one(key, x):
        def move(state, step):
            return algorithm.step(jax.random.fold_in(key, step), state)[0], None

        return jax.lax.scan(move, algorithm.init(x, jax.random.fold_in(key, 0)), jnp.arange(1, 4))[0].position

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 2), jnp.ones((2, 3)))


def adam():
    parameters = {"w": jnp.ones(3)}
    optimizer = optax.adam(0.1)
    return jax.jit(optimizer.update)(parameters, optimizer.init(parameters))


def draws():
    base = dist.Normal(jnp.zeros(3), 1.0).to_event(1)
    return base.log_prob(base.sample(jax.random.key(0), (2,)))


scale = jnp.ones(3)
PROGRAMS = {
    "adjusted_mclmc": lambda: chains(blackjax.adjusted_mclmc(logdensity, step_size=0.1, num_integration_steps=2)),
    "adjusted_mclmc_dynamic": lambda: chains(blackjax.adjusted_mclmc_dynamic(logdensity, step_size=0.1)),
    "barker": lambda: chains(blackjax.barker(logdensity, 0.1)),
    "dynamic_hmc": lambda: chains(blackjax.dynamic_hmc(logdensity, 0.1, scale)),
    "elliptical_slice": lambda: chains(blackjax.elliptical_slice(logdensity, mean=0 * scale, cov=jnp.eye(3))),
    "ghmc": lambda: chains(blackjax.ghmc(logdensity, 0.1, scale, 0.5, 0.1)),
    "hmc": lambda: chains(blackjax.hmc(logdensity, 0.1, scale, 2)),
    "mala": lambda: chains(blackjax.mala(logdensity, 0.1)),
    "mclmc": lambda: chains(blackjax.mclmc(logdensity, L=1.0, step_size=0.1)),
    "numpyro": draws,
    "nuts": lambda: chains(blackjax.nuts(logdensity, 0.1, scale)),
    "optax": adam,
    "slice_sampling": lambda: chains(blackjax.slice_sampling(logdensity)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_exceptions_are_the_true_ones(name):
    """Each strict flag alone, over each third-party program: it raises exactly where ALLOWED says so."""
    tripped = set()
    for flag in STRICT:
        for other, value in RELAXED.items():
            jax.config.update(other, STRICT[flag] if other == flag else value)
        try:
            if flag == "jax_debug_key_reuse":  # checked when a program runs, the promotions when it is traced
                jax.block_until_ready(PROGRAMS[name]())
            else:
                jax.eval_shape(PROGRAMS[name])
        except (jax.errors.KeyReuseError, ValueError):
            tripped.add(flag)
    assert tripped == set(ALLOWED.get(name, ()))
