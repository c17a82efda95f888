"""Couplings: optimal transport against another solver and against sorting, entropic transport against its plan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import energyflow as ef
from energyflow.couplings import exact, independent, sinkhorn
from laws import assert_mean, assert_not_mean

pytestmark = pytest.mark.core

COUPLINGS = {"independent": independent, "exact": exact, "sinkhorn": sinkhorn()}


def two(key, k=32, dim=3):
    a, b = jax.random.split(jax.random.clone(key))
    return jax.random.normal(a, (k, dim)), 1.0 + 0.5 * jax.random.normal(b, (k, dim))


def costs(x0, x1):
    return ((np.asarray(x0, np.float64)[:, None] - np.asarray(x1, np.float64)[None]) ** 2).sum(-1)


def paid(pair):
    return ((np.asarray(pair[0], np.float64) - np.asarray(pair[1], np.float64)) ** 2).sum()


def test_exact_transport_costs_what_another_solver_finds(key):
    for k, dim in [(1, 2), (7, 3), (64, 2)]:
        for i in range(5):
            x0, x1 = two(jax.random.fold_in(key, i), k, dim)
            square = costs(x0, x1)
            least = square[linear_sum_assignment(square)].sum()
            assert abs(paid(jax.jit(exact)(None, x0, x1)) / least - 1) < 1e-5
    assert paid(independent(None, x0, x1)) > 1.1 * least


def test_in_one_dimension_exact_transport_sorts(key):
    x0, x1 = two(key, 50, 1)
    a, b = jax.jit(exact)(key, x0, x1)
    order = np.argsort(np.asarray(a)[:, 0])
    np.testing.assert_array_equal(a, x0)
    np.testing.assert_array_equal(np.asarray(b)[order], np.sort(x1, axis=0))


@pytest.mark.parametrize("name", COUPLINGS)
def test_rows_move_whole(name, key):
    """Positions in parts are paired as the flat ones are, and no row is taken apart."""
    x0, x1 = two(key, 16, 4)
    parts = lambda x: {"a": x[:, 0], "b": x[:, 1:].reshape(-1, 3, 1)}  # noqa: E731
    a, b = COUPLINGS[name](jax.random.clone(key), parts(x0), parts(x1))
    flat = COUPLINGS[name](jax.random.clone(key), x0, x1)
    for found, wanted in zip((a, b), flat, strict=True):
        np.testing.assert_array_equal(found["a"], wanted[:, 0])
        np.testing.assert_array_equal(found["b"][..., 0], wanted[:, 1:])
    rows = {tuple(row) for row in np.asarray(x1).tolist()}
    assert {tuple(row) for row in np.asarray(flat[1]).tolist()} <= rows
    if name != "sinkhorn":
        assert len(np.unique(flat[1], axis=0)) == 16


def plan(square, regularisation, num=5000):
    """The entropic plan of uniform marginals, by plain iterations in float64."""
    kernel = np.exp(-square / (regularisation * square.mean()))
    v = np.ones(len(square))
    for _ in range(num):
        u = 1 / (kernel @ v)
        v = 1 / (kernel.T @ u)
    return u[:, None] * kernel * v


def test_sinkhorn_draws_from_the_entropic_plan(key):
    """What each row pays on average over 4000 draws; the plan of another regularisation is told apart."""
    x0, x1 = two(key, 5, 2)
    found = jax.jit(jax.vmap(lambda k: sinkhorn(0.2)(k, x0, x1)[1]))(jax.random.split(key, 4000))
    square = costs(x0, x1)
    row_costs = ((np.asarray(found, np.float64) - np.asarray(x0, np.float64)) ** 2).sum(-1)
    assert_mean(row_costs, (plan(square, 0.2) * square).sum(1))
    assert_not_mean(row_costs, (plan(square, 0.4) * square).sum(1))


def test_sinkhorn_lies_between_exact_and_independent(key):
    """On a grid, where the wrong neighbour costs 0.8 more or 18 regularisations: a chance of 24 exp(-18) of one."""
    rank_key, run_key = jax.random.split(key)
    x0, ranks = jnp.arange(24.0)[:, None], jax.random.permutation(rank_key, 24)
    x1 = x0[ranks] + 0.1
    np.testing.assert_array_equal(exact(None, x0, x1)[1], x0 + 0.1)
    tight = 0.8 / 18 / costs(x0, x1).mean()
    np.testing.assert_array_equal(sinkhorn(tight, 2000)(jax.random.clone(run_key), x0, x1)[1], x0 + 0.1)
    loose = jax.vmap(lambda k: sinkhorn(1e6)(k, x0, x1)[1])(jax.random.split(run_key, 2000))
    assert_mean((np.asarray(loose) == np.asarray(x1)[:1]).astype(float), 1 / 24)


@pytest.mark.parametrize("name", ["exact", "sinkhorn"])
@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_the_unit_of_length_does_not_matter(name, unit, key):
    """The squares of these lengths are no float32 numbers."""
    x0, x1 = two(key, 16, 2)
    pair = COUPLINGS[name](jax.random.clone(key), x0, x1)
    scaled = COUPLINGS[name](jax.random.clone(key), unit * x0, unit * x1)
    np.testing.assert_array_equal(scaled[1], unit * pair[1])


@pytest.mark.parametrize("name", ["exact", "sinkhorn"])
def test_rows_that_are_no_numbers_end_the_search_too(name, key):
    x0, x1 = two(key, 8, 2)
    run = jax.jit(COUPLINGS[name])
    for bad in (np.nan, np.inf, 3e38):
        _, b = run(jax.random.clone(key), x0.at[3, 0].set(bad), x1)
        assert np.isfinite(b).all()


def test_points_that_are_all_the_same_are_paired(key):
    for coupling in COUPLINGS.values():
        a, b = coupling(jax.random.clone(key), jnp.ones((4, 2)), jnp.ones((4, 2)))
        np.testing.assert_array_equal(a, b)


def test_new_settings_compile_nothing(key, count_compilations):
    run = jax.jit(lambda coupling, key, x0, x1: coupling(key, x0, x1))
    x0, x1 = two(key)
    run(sinkhorn(), jax.random.clone(key), x0, x1)
    with count_compilations() as made:
        run(sinkhorn(0.3, 7), jax.random.clone(key), x0, x1)
    assert made.count == 0


def test_what_cannot_be_paired_is_refused(key):
    for coupling in COUPLINGS.values():
        with pytest.raises(ValueError, match="same shapes"):
            coupling(key, jnp.ones((4, 2)), jnp.ones((5, 2)))
    for settings in ((0.0,), (-1.0,), (0.1, 0)):
        with pytest.raises(ValueError, match="must be positive"):
            ef.couplings.sinkhorn(*settings)
