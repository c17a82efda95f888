"""Laws of the discrete kernels, held against whole transition matrices over 2^8 states in float64.

The matrix of a kernel is built from its proposal probabilities, which are public functions; the kernel itself is then
held against that matrix by its transition counts and by the acceptance rates that it reports.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from energyflow.chains import advance_chains, sample_chains
from energyflow.kernels.algorithm import bind, is_adjusted, is_reversible
from energyflow.kernels.conditionals import block_gibbs, gibbs
from energyflow.kernels.discrete import (
    dmala,
    dula,
    gibbs_with_gradients,
    joint_log_prob,
    single_log_probs,
    single_move,
)

RNG = np.random.default_rng(5)
UPPER = np.triu(RNG.normal(size=(8, 8)), 1)
FIELD = RNG.normal(size=8) / 2
WEIGHTS = 1.5 * RNG.normal(size=(8, 4))
CATEGORIES = RNG.normal(size=(16, 16)) / 2
RING = np.roll(np.eye(8), 1, axis=1)
BITS = np.array(list(itertools.product([0.0, 1.0], repeat=8)))
SPINS = 2 * BITS - 1
ONE_HOT = np.eye(4)[np.array(list(itertools.product(range(4), repeat=4)))]
JOINT = {"h": BITS[:, :3], "v": BITS[:, 3:]}


def quadratic(x):
    return x @ (UPPER @ x) + x @ jnp.asarray(FIELD)


def marginal_rbm(x):
    return x @ jnp.asarray(FIELD) + jnp.sum(jax.nn.softplus(x @ WEIGHTS))


def cubic_categories(x):
    flat = jnp.ravel(x)
    return flat @ (CATEGORIES @ flat) + flat[0] * flat[5] * flat[10]


def spin_glass(x):
    return 0.3 * quadratic(x)


def joint_rbm(x):
    return x["v"] @ (WEIGHTS[:5, :3] @ x["h"]) + x["v"] @ jnp.asarray(FIELD[:5]) + x["h"] @ jnp.asarray(FIELD[5:])


def ring(x):
    return 0.7 * x @ (RING @ x) + x @ jnp.asarray(FIELD)


TARGETS = {
    "quadratic": (quadratic, BITS, {}),
    "marginal_rbm": (marginal_rbm, BITS, {}),
    "spins": (spin_glass, SPINS, {"values": (-1.0, 1.0)}),
    "categories": (cubic_categories, ONE_HOT, {"categorical": True}),
}
EVEN = np.arange(8) % 2 == 0
THREE = [np.isin(np.arange(8), sites) for sites in ([0, 3, 6], [1, 4], [2, 5, 7])]
BLOCKED = {
    "rbm": (joint_rbm, JOINT, block_gibbs([{"h": True, "v": False}, {"h": False, "v": True}])),
    "ring": (ring, SPINS, block_gibbs([EVEN, ~EVEN], (-1.0, 1.0))),
    "ring_of_three": (ring, SPINS, block_gibbs(THREE, (-1.0, 1.0))),
    "ring_one_way": (ring, SPINS, block_gibbs(THREE, (-1.0, 1.0), palindrome=False)),
}


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def probabilities(log_density, states) -> np.ndarray:
    logs = np.asarray(jax.vmap(log_density)(states))
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


def index_of(position, states) -> np.ndarray:
    """Return which of the 256 states each position is; every position must be one of them exactly."""
    flat = lambda tree: np.concatenate([np.reshape(x, (len(x), -1)) for x in jax.tree.leaves(tree)], axis=1)  # noqa: E731
    rows = {row.tobytes(): i for i, row in enumerate(flat(states) + 0.0)}
    return np.array([rows[row.tobytes()] for row in flat(position) + 0.0])


def proposal_single(log_density, states, settings) -> np.ndarray:
    """The proposal matrix of Gibbs with gradients."""
    slopes = jax.vmap(jax.grad(log_density))(states)
    logs = jax.vmap(lambda x, g: single_log_probs(x, g, **settings))(states, slopes)
    matrix = np.zeros((len(states), len(states)))
    for i in range(logs.shape[1]):
        picked = np.zeros(states[0].size)
        picked[i] = 1.0
        moved = jax.vmap(lambda x, p=picked: single_move(x, p.reshape(x.shape), **settings)[0])(states)
        matrix[np.arange(len(states)), index_of(moved, states)] += np.exp(logs[:, i])
    return matrix


def proposal_joint(log_density, states, settings, step_size) -> np.ndarray:
    """The proposal matrix of the discrete Langevin kernels."""
    slopes = jax.vmap(jax.grad(log_density))(states)
    one = lambda x, g: jax.vmap(lambda new: joint_log_prob(x, g, new, step_size, **settings))(states)  # noqa: E731
    return np.exp(np.asarray(jax.vmap(one)(states, slopes)))


def accepted(pi, proposal, corrected=True) -> np.ndarray:
    """Metropolis-Hastings acceptance probabilities; without the proposal ratio where not `corrected`."""
    ratio = proposal.T / np.where(proposal > 0, proposal, 1.0) if corrected else 1.0
    return np.minimum(1.0, pi[None, :] / pi[:, None] * ratio)


def transitions(proposal, rates) -> np.ndarray:
    matrix = proposal * rates
    return matrix + np.diag(1 - matrix.sum(axis=1))


def heat_bath(pi, states, mask) -> np.ndarray:
    """Exact conditional draws of the masked coordinates, by enumeration."""
    rest = [
        np.where(np.asarray(m), 0.0, x) for m, x in zip(jax.tree.leaves(mask), jax.tree.leaves(states), strict=True)
    ]
    rest = np.concatenate(rest, axis=1)
    same = (rest[:, None, :] == rest[None, :, :]).all(axis=-1)
    return same * pi[None, :] / (same @ pi)[:, None]


def sweep(pi, states, kernel) -> np.ndarray:
    parts = [heat_bath(pi, states, block) for block in kernel.keywords["blocks"]]
    matrix = np.eye(len(pi))
    for part in [*parts, *parts[-2::-1]] if kernel.func.keywords["palindrome"] else parts:
        matrix = matrix @ part
    return matrix


def single_site(pi, states) -> np.ndarray:
    flat = np.reshape(states, (len(states), -1))
    masks = np.eye(flat.shape[1], dtype=bool)
    return np.mean([heat_bath(pi, flat, mask) for mask in masks], axis=0)


def assert_invariant(pi, matrix) -> None:
    # Sums of 256 products of numbers below 1 round to within 256 * 1.1e-16 each, a factor 30 below the tolerance.
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(pi @ matrix, pi, rtol=0, atol=1e-12)


def run(key, kernel, log_density, states, repeats=400):
    """One transition from each of the states, `repeats` times; returns indices from and to, and the rates."""

    def one(key, x):
        algorithm = bind(kernel, log_density)
        start_key, key = jax.random.split(key)
        state, stats = algorithm.step(key, algorithm.init(x, start_key))
        return state.position, jnp.ones(()) if stats.acceptance_rate is None else stats.acceptance_rate

    starts = np.tile(np.arange(256), repeats)
    keys = jax.random.split(key, len(starts))
    position, rates = jax.jit(jax.vmap(one))(keys, jax.tree.map(lambda x: x[starts], states))
    return starts, index_of(jax.tree.map(np.asarray, position), states), np.asarray(rates)


def surprise(starts, ends, matrix) -> float:
    """The z-score of the sum of all rows' chi-squares, cells that expect under 5 counts pooled in each row.

    A row's Pearson chi-square over k cells of n draws has exactly the mean k - 1 and the variance
    2 (k - 1) + (sum 1/p - k^2 - 2 k + 2) / n.
    """
    counts = np.zeros_like(matrix)
    np.add.at(counts, (starts, ends), 1)
    if (matrix[counts > 0] <= 0).any():
        return np.inf  # an impossible transition was made
    total, mean, variance = 0.0, 0.0, 0.0
    for seen, p in zip(counts, matrix, strict=True):
        n, large = seen.sum(), p * seen.sum() >= 5
        seen, p = np.append(seen[large], seen[~large].sum()), np.append(p[large], p[~large].sum())
        seen, p = seen[p > 1e-9], p[p > 1e-9]
        k = len(p)
        total += np.sum((seen - n * p) ** 2 / (n * p))
        mean += k - 1
        variance += 2 * (k - 1) + (np.sum(1 / p) - k**2 - 2 * k + 2) / n
    return float((total - mean) / np.sqrt(variance))


@pytest.mark.core
@pytest.mark.parametrize("target", TARGETS)
def test_gibbs_with_gradients_has_the_matrix_that_leaves_the_target_alone(target, key):
    log_density, states, settings = TARGETS[target]
    pi, proposal = probabilities(log_density, states), proposal_single(log_density, states, settings)
    np.testing.assert_allclose(proposal.sum(axis=1), 1.0, rtol=0, atol=1e-12)
    rates = accepted(pi, proposal)
    assert_invariant(pi, transitions(proposal, rates))
    starts, ends, reported = run(key, gibbs_with_gradients(**settings), log_density, states)
    assert abs(surprise(starts, ends, transitions(proposal, rates))) < 4.5
    moved = starts != ends
    # Rounding: log densities of size 1e2 carry 1e-14.
    np.testing.assert_allclose(reported[moved], rates[starts, ends][moved], rtol=1e-11)
    wrong = transitions(proposal, accepted(pi, proposal, corrected=False))
    assert np.abs(pi @ wrong - pi).max() > 1e-3
    assert surprise(starts, ends, wrong) > 10


@pytest.mark.core
@pytest.mark.parametrize("step_size", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("target", TARGETS)
def test_dmala_has_the_matrix_that_leaves_the_target_alone(target, step_size, key):
    log_density, states, settings = TARGETS[target]
    step_size *= 4 if target == "spins" else 1  # a flip is twice as long
    pi, proposal = probabilities(log_density, states), proposal_joint(log_density, states, settings, step_size)
    np.testing.assert_allclose(proposal.sum(axis=1), 1.0, rtol=0, atol=1e-12)
    rates = accepted(pi, proposal)
    assert_invariant(pi, transitions(proposal, rates))
    starts, ends, reported = run(key, dmala(step_size, **settings), log_density, states)
    assert abs(surprise(starts, ends, transitions(proposal, rates))) < 4.5
    moved = starts != ends
    np.testing.assert_allclose(reported[moved], rates[starts, ends][moved], rtol=1e-11)
    wrong = transitions(proposal, accepted(pi, proposal, corrected=False))
    assert np.abs(pi @ wrong - pi).max() > 1e-5
    if step_size > 0.4:
        assert surprise(starts, ends, wrong) > 10


@pytest.mark.core
@pytest.mark.parametrize("target", BLOCKED)
def test_block_gibbs_draws_from_the_conditionals(target, key):
    log_density, states, kernel = BLOCKED[target]
    pi = probabilities(log_density, states)
    matrix = sweep(pi, states, kernel)
    assert_invariant(pi, matrix)
    flow = pi[:, None] * matrix
    one_way = not kernel.func.keywords["palindrome"]
    assert (np.abs(flow - flow.T).max() > 1e-4) == one_way
    assert is_reversible(kernel, log_density, jax.tree.map(lambda x: x[0], states)) != one_way
    starts, ends, reported = run(key, kernel, log_density, states)
    assert (reported == 1.0).all()
    assert abs(surprise(starts, ends, matrix)) < 4.5
    tempered = probabilities(lambda x: 0.7 * log_density(x), states)
    assert surprise(starts, ends, sweep(tempered, states, kernel)) > 10


@pytest.mark.parametrize("target", ["quadratic", "marginal_rbm", "spins"])
def test_single_site_gibbs_draws_from_the_conditionals(target, key):
    log_density, states, settings = TARGETS[target]
    pi = probabilities(log_density, states)
    matrix = single_site(pi, states)
    assert_invariant(pi, matrix)
    starts, ends, _ = run(key, gibbs(**settings), log_density, states)
    assert abs(surprise(starts, ends, matrix)) < 4.5
    tempered = probabilities(lambda x: 0.2 * log_density(x), states)
    assert surprise(starts, ends, single_site(tempered, states)) > 10


@pytest.mark.parametrize("target", TARGETS)
def test_dula_has_the_matrix_of_its_proposal(target, key):
    log_density, states, settings = TARGETS[target]
    starts, ends, _ = run(key, dula(0.5, **settings), log_density, states)
    assert abs(surprise(starts, ends, proposal_joint(log_density, states, settings, 0.5))) < 4.5
    assert surprise(starts, ends, proposal_joint(log_density, states, settings, 0.6)) > 20
    assert not is_adjusted(dula(0.5, **settings), log_density, states[0])


def stationary_bias(log_density, step_size) -> float:
    """Total variation between DULA's stationary law and its target, on {0, 1}^8."""
    matrix = proposal_joint(log_density, BITS, {}, step_size)
    system = np.vstack([(matrix.T - np.eye(256))[1:], np.ones(256)])
    law = np.linalg.solve(system, np.eye(256)[-1])
    return float(np.abs(law - probabilities(log_density, BITS)).sum() / 2)


def test_dulas_bias_shrinks_with_its_step_only_on_a_quadratic():
    # To first order in the flip probabilities, exp(-1 / (2 step)), detailed balance holds iff the gain of a flip is
    # exact, as for a quadratic. Elsewhere what is left does not depend on the step.
    steps = (0.05, 0.1, 0.2, 0.5)
    quadratics = [stationary_bias(quadratic, step) for step in steps]
    assert quadratics == sorted(quadratics)
    assert quadratics[0] < 10 * np.exp(-1 / (2 * steps[0])) < 0.01 * quadratics[-1]
    rbms = [stationary_bias(marginal_rbm, step) for step in steps]
    assert rbms[0] > 0.005
    assert abs(rbms[0] / stationary_bias(marginal_rbm, 0.04) - 1) < 0.05


def gap(pi, matrix) -> float:
    """One minus the second largest eigenvalue, of a reversible matrix."""
    root = np.sqrt(pi)
    return float(1 - np.sort(np.linalg.eigvalsh(root[:, None] * matrix / root[None, :]))[-2])


@pytest.mark.parametrize("log_density", [quadratic, marginal_rbm])
def test_gradients_widen_the_spectral_gap(log_density):
    """Grathwohl et al. (2021) and Zhang et al. (2022): informed moves mix faster than a random scan."""
    pi = probabilities(log_density, BITS)
    proposal = proposal_single(log_density, BITS, {})
    informed = gap(pi, transitions(proposal, accepted(pi, proposal)))
    langevin = [proposal_joint(log_density, BITS, {}, step) for step in (0.1, 0.5)]
    small, large = (gap(pi, transitions(q, accepted(pi, q))) for q in langevin)
    assert informed > gap(pi, single_site(pi, BITS)) > small > 0
    assert large > small


@pytest.mark.core
def test_gradients_are_counted_exactly(key):
    kernels = {
        "gibbs_with_gradients": (gibbs_with_gradients((-1.0, 1.0)), 1, 1),
        "dmala": (dmala(0.5, (-1.0, 1.0)), 1, 1),
        "dula": (dula(0.5, (-1.0, 1.0)), 1, 0),
        "gibbs": (gibbs((-1.0, 1.0)), 0, 0),
        "three_blocks": (BLOCKED["ring_of_three"][2], 5, 1),
        "one_way": (BLOCKED["ring_one_way"][2], 3, 1),
    }
    for kernel, per_move, at_start in kernels.values():
        _, metrics = advance_chains(jax.random.clone(key), kernel, ring, SPINS[:4], 6)
        assert metrics["num_gradients"] == 4 * (6 * per_move + at_start)
        assert metrics["divergent"] == 0


@pytest.mark.core
def test_block_gibbs_says_where_a_density_is_not_linear_in_its_blocks(key):
    everything = block_gibbs([np.ones(8, bool)], (-1.0, 1.0))
    assert advance_chains(key, everything, ring, SPINS, 5)[1]["divergent"] > 0.5
    marginal = block_gibbs([EVEN, ~EVEN])
    assert advance_chains(jax.random.fold_in(key, 1), marginal, marginal_rbm, BITS, 5)[1]["divergent"] > 0.5
    exact = BLOCKED["ring"][2]
    assert advance_chains(jax.random.fold_in(key, 2), exact, ring, SPINS, 5)[1]["divergent"] == 0


def test_wrong_blocks_and_values_are_refused():
    with pytest.raises(ValueError, match="at least one block"):
        block_gibbs([])
    with pytest.raises(ValueError, match="mask shaped like the position"):
        advance_chains(0, block_gibbs([np.ones(7, bool)]), quadratic, BITS[:2], 1)
    with pytest.raises(ValueError, match="mask shaped like the position"):
        advance_chains(0, block_gibbs([{"h": True, "v": True}]), quadratic, BITS[:2], 1)
    for make in (gibbs, gibbs_with_gradients, lambda values: dmala(0.1, values), lambda values: dula(0.1, values)):
        with pytest.raises(ValueError, match="low < high"):
            make((1.0, 0.0))


def walled(x):
    """The quadratic with NaN, which no density is, wherever the first two coordinates are both one."""
    return jnp.where(x[0] * x[1] > 0.5, jnp.nan, quadratic(x))


@pytest.mark.parametrize("kernel", [gibbs_with_gradients(), dmala(0.5), gibbs()], ids=["gwg", "dmala", "gibbs"])
def test_what_is_not_finite_is_rejected_and_said(kernel, key):
    inside = BITS[BITS[:, 0] * BITS[:, 1] < 0.5]
    trace = sample_chains(key, kernel, walled, inside, 50)
    assert np.isin(trace.position, (0.0, 1.0)).all()
    assert np.isfinite(trace.logdensity).all()
    assert trace.stats.is_divergent.any()
    assert np.isfinite(trace.stats.acceptance_rate).all()


def test_gradients_of_a_hundred_thousand_leave_no_nan_in_float32(key):
    with jax.enable_x64(False):
        steep = lambda x: 1e5 * jnp.sum(jnp.asarray(UPPER, jnp.float32) @ x)  # noqa: E731
        start = jnp.asarray(BITS, jnp.float32)
        for kernel in (gibbs_with_gradients(), dmala(0.2), block_gibbs([np.ones(8, bool)])):
            position, metrics = advance_chains(jax.random.clone(key), kernel, steep, start, 20)
            assert np.isin(position, (0.0, 1.0)).all()
            assert metrics["divergent"] == 0
            assert np.isfinite(metrics["acceptance_rate"])


@pytest.mark.core
def test_new_settings_compile_nothing(key, count_compilations):
    target = Partial(quadratic)
    for make in (dmala, dula):
        jax.block_until_ready(advance_chains(jax.random.clone(key), make(0.1), target, BITS, 3))
        with count_compilations() as made:
            jax.block_until_ready(advance_chains(jax.random.clone(key), make(0.3), target, BITS, 3))
        assert made.count == 0
