"""Laws of the discrete energies: log Z against enumeration and reference values, exact draws, annealing between them.

The two RBMs of tests/data have standard normal leaves; their log Z and means, and those of the Ising torus, are the
project's reference values, made by enumeration and by Kaufman's formula independently of this code.
"""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import energyflow as ef
from energyflow.chains import advance_chains, sample_chains
from energyflow.diagnostics import check
from energyflow.energies.bases import bernoulli_base, categorical_base, uniform_spins
from energyflow.energies.discrete import rbm, rbm_marginal
from energyflow.energies.lattices import ising
from energyflow.kernels.conditionals import block_gibbs
from energyflow.kernels.discrete import dmala, dula, gibbs_with_gradients
from energyflow.logz.oracles import log_z_enumeration
from laws import assert_mean, assert_not_mean

DATA = Path(__file__).parents[1] / "data"
RBMS = {"rbm_16x8": (26.512955676311247, 18.658120741202517), "rbm_25x16": (46.567233826469355, 37.024618743617665)}
MEAN_H = [0.7132470713, 0.9191888361, 0.7957619267, 0.5399988927, 0.390044432, 0.4526346767, 0.856281775, 0.9949785465]
MEAN_V_SUM = 9.692153940311677
CRITICAL = 0.4406867935097715
# beta: log Z and mean of E / (beta L^2)
TORUS_4 = {
    0.1: (11.252588451586247, -0.2057134663746614),
    0.4: (14.561093023844043, -1.3791164822593487),
    CRITICAL: (15.521915458755284, -1.5656237876383186),
    0.8: (26.322173256960838, -1.9847975732476657),
}
TORUS_8 = {
    0.1: (45.00679976182618, -0.20337774367832517),
    0.2: (47.01014742238827, -0.42836805894408136),
    0.4: (56.59938876042538, -1.2223206432509133),
    CRITICAL: (60.14178078906915, -1.4915891074397065),
    0.8: (103.20905046277757, -1.9848513264262548),
}


def load(name):
    with np.load(DATA / f"{name}.npz") as leaves:
        return rbm(leaves["W"], leaves["b"], leaves["c"])


def small_rbm(num_visible=5, num_hidden=4):
    rng = np.random.default_rng(3)
    b, c = rng.normal(size=num_visible), rng.normal(size=num_hidden)
    return rbm(1.5 * rng.normal(size=(num_visible, num_hidden)), b, c)


@pytest.mark.core
@pytest.mark.parametrize("shape", [(5, 4), (4, 5)], ids=str)
def test_log_z_of_an_rbm_is_the_sum_over_all_states_either_way(shape):
    machine = small_rbm(*shape)
    joint = lambda x: machine({"v": x[: shape[0]], "h": x[shape[0] :]})  # noqa: E731
    # Sums of 2^9 float64 terms: rounding is below 2^9 * 1e-16.
    assert abs(machine.log_z - log_z_enumeration(joint, (0.0, 1.0), 9)) < 1e-12
    assert abs(machine.log_z - log_z_enumeration(machine.marginal, (0.0, 1.0), shape[0])) < 1e-12
    assert machine.marginal.log_z == machine.log_z
    other = rbm(machine.W.T, machine.c, machine.b)
    assert abs(machine.log_z - other.log_z) < 1e-12


@pytest.mark.core
@pytest.mark.parametrize("name", RBMS)
def test_log_z_of_an_rbm_is_its_reference_value(name):
    machine = load(name)
    log_z, without_weights = RBMS[name]
    assert abs(machine.log_z - log_z) < 1e-10
    assert abs(rbm(0 * machine.W, machine.b, machine.c).log_z - without_weights) < 1e-10


def test_the_marginal_energy_is_the_joint_one_summed_over_the_hidden_units():
    machine = small_rbm()
    hidden = np.array(list(itertools.product([0.0, 1.0], repeat=4)))
    with jax.enable_x64(True):
        for v in np.array(list(itertools.product([0.0, 1.0], repeat=5))):
            logs = [-float(machine({"v": v, "h": h})) for h in hidden]
            assert abs(float(machine.marginal(v)) + np.logaddexp.reduce(logs)) < 1e-12
            slopes = jax.grad(lambda v: -machine.marginal(v))(v)
            np.testing.assert_allclose(slopes, machine.b + machine.W @ machine.hidden_mean(v), rtol=0, atol=1e-12)


@pytest.mark.core
def test_exact_draws_of_an_rbm_have_its_moments(key):
    machine = load("rbm_16x8")
    draws = machine.sample(key, 20_000)
    assert_mean(draws["h"], MEAN_H)
    assert_mean(draws["v"].sum(axis=1), MEAN_V_SUM)
    assert_not_mean(machine.base.sample(jax.random.fold_in(key, 1), (20_000,))["h"], MEAN_H)
    turned = rbm(machine.W.T, machine.c, machine.b).sample(jax.random.fold_in(key, 2), 20_000)
    assert_mean(turned["v"], MEAN_H)
    # Pairs too: E[v_i h_j] by enumeration, whose gradient is that of log Z.
    with jax.enable_x64(True):
        states = np.array(list(itertools.product([0.0, 1.0], repeat=8)))
        logs = states @ machine.c + np.logaddexp(0, machine.b + states @ machine.W.T).sum(axis=1)
        visible = 1 / (1 + np.exp(-(machine.b + states @ machine.W.T)))
        pairs = np.einsum("s,sv,sh->vh", np.exp(logs - machine.log_z), visible, states)
    assert_mean(jnp.einsum("nv,nh->nvh", draws["v"], draws["h"]), pairs)


@pytest.mark.core
def test_log_z_of_the_torus_is_kaufmans():
    for side, values in ((4, TORUS_4), (8, TORUS_8)):
        for beta, (log_z, _) in values.items():
            assert abs(ising(side, beta).log_z - log_z) < 1e-10


@pytest.mark.parametrize(("side", "beta"), [(2, 0.3), (3, 0.0), (3, 0.3), (3, 0.9), (4, -0.4), (4, CRITICAL)])
def test_log_z_of_a_small_torus_is_the_sum_over_all_states(side, beta):
    torus = ising(side, beta)
    summed = log_z_enumeration(lambda s: torus(s.reshape(side, side)), (-1.0, 1.0), side * side)
    assert abs(torus.log_z - summed) < 1e-10
    wrong = ising(side, beta + 0.01).log_z  # d log Z / d beta = -E / beta
    assert abs(wrong - summed) > 1e-5


@pytest.mark.parametrize("beta", [0.2, 0.4])
def test_coupling_from_the_past_draws_the_torus_exactly(beta, key):
    draws = ising(8, beta).sample(key, 512)
    assert np.isin(draws, (-1.0, 1.0)).all()
    energies = jax.vmap(ising(8, 1.0))(draws) / 64
    assert_mean(energies, TORUS_8[beta][1])
    assert_mean(draws.mean(axis=(1, 2)), 0.0)
    assert_not_mean(energies, TORUS_8[0.1][1])


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(ValueError, match="at most 20 units"):
        _ = rbm(np.zeros((21, 22)), np.zeros(21), np.zeros(22)).log_z
    with pytest.raises(ValueError, match=r"W \(nv, nh\)"):
        rbm(np.zeros((3, 2)), np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match=r"W \(nv, nh\)"):
        rbm_marginal(np.zeros(3), np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="even side"):
        _ = ising(3, 0.1).blocks
    with pytest.raises(ValueError, match="even side"):
        ising(3, 0.1).sample(jax.random.key(0), 2)
    with pytest.raises(ValueError, match="frustrated"):
        _ = ising(3, -0.1).log_z
    with pytest.raises(ValueError, match="beta >= 0"):
        ising(4, -0.1).sample(jax.random.key(0), 2)
    with pytest.raises(ValueError, match="side of at least 2"):
        ising(1, 0.1)
    with pytest.raises(ValueError, match="low < high"):
        bernoulli_base(np.zeros(3), (1.0, 0.0))


@pytest.mark.core
def test_bases_are_normalised_and_draw_what_they_say(key):
    logits = {"a": np.array([0.3, -2.0]), "b": np.array([[1.5]])}
    base = bernoulli_base(logits, (-1.0, 1.0))
    point = lambda x: -base.log_prob({"a": x[:2], "b": x[2:].reshape(1, 1)})  # noqa: E731
    assert abs(log_z_enumeration(point, (-1.0, 1.0), 3)) < 1e-12
    draws = base.sample(key, (10_000,))
    for name in logits:
        assert_mean(draws[name], 2 / (1 + np.exp(-logits[name])) - 1)
    assert uniform_spins((2, 2)).sample(jax.random.fold_in(key, 1)).shape == (2, 2)
    rows = categorical_base(np.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
    drawn = rows.sample(jax.random.fold_in(key, 2), (10_000,))
    assert (drawn.sum(axis=-1) == 1).all()
    assert_mean(drawn, [[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    one_hot = np.eye(3, dtype=np.float32)[np.array(list(itertools.product(range(3), repeat=2)))]
    total = np.exp(np.asarray(jax.vmap(rows.log_prob)(one_hot), np.float64)).sum()
    assert abs(total - 1) < 1e-5  # float32


def assert_holds(result, log_z):
    """Within 0.05, which is more than 4 standard errors; the sides are 4 standard errors away from their values."""
    assert result.lower <= log_z <= result.upper
    assert result.stderr < 0.0125
    assert abs(result.log_z - log_z) < 0.05, str(result)


@pytest.mark.parametrize(("name", "num"), [pytest.param("rbm_16x8", 300, marks=pytest.mark.slow), ("rbm_25x16", 1000)])
def test_the_bracket_holds_the_log_z_of_an_rbm(name, num, key):
    machine, kernel = load(name), block_gibbs(load(name).blocks)
    bracket_key, draw_key = jax.random.split(key)
    exact = machine.sample(draw_key, 512)
    result = ef.bracket(bracket_key, machine, machine.base, kernel, num_temperatures=num, num_chains=512, exact=exact)
    assert_holds(result, RBMS[name][0])
    assert result.verdict == "bracketed"


@pytest.mark.parametrize(
    ("make", "num"),
    [
        pytest.param(gibbs_with_gradients, 1500, id="gwg", marks=pytest.mark.slow),
        pytest.param(lambda: dmala(0.5), 500, id="dmala"),
    ],
)
def test_the_bracket_holds_the_log_z_of_a_marginal_rbm(make, num, key):
    machine = load("rbm_16x8").marginal
    bracket_key, draw_key = jax.random.split(key)
    exact = machine.sample(draw_key, 512)
    base = machine.base
    result = ef.bracket(bracket_key, machine, base, make(), num_temperatures=num, num_chains=512, exact=exact)
    assert_holds(result, RBMS["rbm_16x8"][0])


@pytest.mark.slow
def test_the_bracket_holds_the_log_z_of_the_torus(key):
    torus = ising(8, 0.4)
    bracket_key, draw_key = jax.random.split(key)
    kernel = block_gibbs(torus.blocks, (-1.0, 1.0))
    exact = torus.sample(draw_key, 512)
    result = ef.bracket(bracket_key, torus, torus.base, kernel, num_temperatures=800, num_chains=512, exact=exact)
    assert_holds(result, TORUS_8[0.4][0])
    assert result.verdict == "bracketed"


@pytest.mark.slow
def test_the_bracket_holds_the_log_z_of_the_critical_torus(key):
    torus = ising(8, CRITICAL)
    kernel = block_gibbs(torus.blocks, (-1.0, 1.0))
    result = ef.bracket(key, torus, torus.base, kernel, num_temperatures=1000, num_chains=1024, num_refresh=100)
    assert_holds(result, TORUS_8[CRITICAL][0])
    assert result.verdict == "approximate"


def test_annealing_refuses_the_biased_kernel_and_the_one_way_scan(key):
    torus = ising(4, 0.3)
    with pytest.raises(ValueError, match="accept step"):
        ef.ais(key, dula(0.1, (-1.0, 1.0)), torus.base, torus, 10, 4)
    one_way = block_gibbs(torus.blocks, (-1.0, 1.0), palindrome=False)
    with pytest.raises(ValueError, match="reversible"):
        ef.bracket(jax.random.key(0), torus, torus.base, one_way, num_temperatures=10, num_chains=4)


@pytest.mark.slow
def test_blocks_from_exact_draws_stay_exact_and_look_healthy(key):
    machine = load("rbm_16x8")
    draw_key, move_key, check_key = jax.random.split(key, 3)
    kernel = block_gibbs(machine.blocks)
    target = ef.logdensity(machine)
    moved, metrics = advance_chains(move_key, kernel, target, machine.sample(draw_key, 4096), 20)
    assert_mean(moved["h"], MEAN_H)
    assert metrics["divergent"] == 0
    start = machine.base.sample(jax.random.fold_in(check_key, 0), (4,))
    assert check(sample_chains(check_key, kernel, target, start, 2000, warmup=200)).verdict == "healthy"


@pytest.mark.lenient("optax")
@pytest.mark.parametrize(
    "kernel",
    [pytest.param(gibbs_with_gradients(), id="gwg", marks=pytest.mark.slow), pytest.param(dmala(0.5), id="dmala")],
)
def test_persistent_chains_train_a_marginal_rbm_to_its_data(kernel, key):
    """The divergence of student from teacher, by enumeration: 34 parameters of 40 000 data cost 34 / 80 000 nats."""
    teacher = small_rbm(6, 4).marginal
    draw_key, start_key, run_key = jax.random.split(key, 3)
    data = np.asarray(teacher.sample(draw_key, 40_000))
    student = rbm_marginal(0.1 * jax.random.normal(start_key, (6, 4)), jnp.zeros(6), jnp.zeros(4))
    states = jnp.array(list(itertools.product([0.0, 1.0], repeat=6)))
    law = np.exp(-np.asarray(jax.vmap(teacher)(states), np.float64) - teacher.log_z)

    def divergence(model):
        gaps = np.asarray(jax.vmap(model)(states), np.float64) - np.asarray(jax.vmap(teacher)(states), np.float64)
        return law @ gaps + model.log_z - teacher.log_z

    objective = ef.contrastive(ef.pcd(kernel, 5, num_chains=400))
    optimizer = optax.adam(optax.linear_schedule(0.05, 0.0, 500), b1=0.0)
    begun = ef.init(run_key, student, objective, optimizer, data[:400])
    batches = (data[400 * (i % 100) :][:400] for i in range(500))
    step = ef.make_step(objective, optimizer)
    *_, (state, metrics) = ef.train(begun, step, batches)
    assert metrics["divergent"] == 0
    assert divergence(student) > 0.5
    assert divergence(state.energy) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("make", [gibbs_with_gradients, lambda **kind: dmala(0.5, **kind)], ids=["gwg", "dmala"])
def test_the_bracket_holds_the_log_z_of_categories(make, key):
    couplings = np.random.default_rng(4).normal(size=(4, 3, 4, 3)) / 2
    energy = lambda x: -jnp.einsum("ia,iajb,jb->", x, jnp.asarray(couplings, x.dtype), x)  # noqa: E731
    states = np.eye(3)[np.array(list(itertools.product(range(3), repeat=4)))]
    log_z = np.logaddexp.reduce(np.einsum("nia,iajb,njb->n", states, couplings, states))
    base = categorical_base(np.zeros((4, 3)))
    result = ef.bracket(key, energy, base, make(categorical=True), num_temperatures=200, num_chains=1024)
    assert_holds(result, log_z)
