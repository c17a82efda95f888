"""Laws of the host loop: draws depend on the key, the chain and the transition's number, and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from energyflow import chains
from energyflow.chains import (
    FIELDS,
    SamplingStopped,
    advance,
    advance_chains,
    sample,
    sample_chains,
)
from energyflow.kernels import barker, bind, dynamic_hmc, ghmc, hmc, mala, mclmc, ramped_langevin, rmh, ula
from energyflow.kernels.noise import normal_like, normal_row, shaped_like
from energyflow.kernels.transitions import AHEAD, evolve, step_keys

KERNELS = {
    "mala": mala(0.2),
    "ula": ula(0.01),
    "mclmc": mclmc(0.3),
    "ghmc": ghmc(0.4),
    "dynamic_hmc": dynamic_hmc(0.3, 4),
}
NAMES = [
    pytest.param("mala", marks=pytest.mark.core),
    "ula",
    pytest.param("mclmc", marks=pytest.mark.slow),
    pytest.param("ghmc", marks=pytest.mark.blackjax_promotes("ghmc")),
    pytest.param("dynamic_hmc", marks=pytest.mark.blackjax_promotes("dynamic_hmc")),
]
NUM = 5


def banana(bend, x):
    return -(x["a"] ** 2) / 2 - jnp.sum((x["b"] - bend * x["a"] ** 2) ** 2)


LOGDENSITY = Partial(banana, np.float32(0.5))


def starts(num=NUM) -> dict:
    draw = np.random.default_rng(3).normal(size=(num, 3)).astype(np.float32)
    return {"a": draw[:, 0], "b": draw[:, 1:]}


def run(key, name="mala", num_draws=12, position=None, **options):
    position = starts() if position is None else position
    return sample_chains(jax.random.clone(key), KERNELS[name], LOGDENSITY, position, num_draws, **options)


def assert_same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b) -> None:
    """To rounding: another thinning and other fields are other programs, whose sums may round differently."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), a, b)


def raw(state):
    """The same state with its keys as numbers, so that it can be compared."""
    typed = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, state.state
    )
    return typed, state.step


def select(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_resumption_change_no_draw(name, key):
    whole = run(key, name)
    chunked = run(key, name, chunk_size=4)
    assert_same(whole._replace(final=None), chunked._replace(final=None))
    assert_same(raw(whole.final), raw(chunked.final))
    first = run(key, name, num_draws=8, chunk_size=4)
    second = run(key, name, num_draws=4, resume=first.final)
    assert_same(second._replace(final=None), select(whole._replace(final=None), np.s_[:, 8:]))
    assert_same(raw(whole.final), raw(second.final))


@pytest.mark.core
def test_thinning_and_warmup_select_transitions(key):
    """Draw i is the state after transition warmup + (i + 1) thin; its stats cover the transitions since the last."""
    every = run(key)
    thinned = run(key, num_draws=3, warmup=3, thin=3)
    assert_close(thinned.position, select(every.position, np.s_[:, 5::3]))
    assert_close(thinned.logdensity, every.logdensity[:, 5::3])
    groups = jax.tree.map(lambda x: x[:, 3:].reshape(NUM, 3, 3), every.stats)
    np.testing.assert_allclose(thinned.stats.acceptance_rate, groups.acceptance_rate.mean(-1), rtol=1e-6)
    np.testing.assert_allclose(thinned.stats.jump_distance, groups.jump_distance.mean(-1), rtol=1e-6)
    assert_same(thinned.stats.num_gradients, groups.num_gradients.sum(-1))
    assert_same(thinned.stats.is_divergent, groups.is_divergent.any(-1))
    assert thinned.final.step == 12


def test_an_interrupted_warmup_is_finished_by_the_resumed_run(key):
    whole = run(key, num_draws=4, warmup=8, chunk_size=4)
    start = run(key, num_draws=0, warmup=4)
    assert start.position is None and start.final.step == 4
    rest = run(key, num_draws=4, warmup=8, chunk_size=4, resume=start.final)
    assert_same(whole._replace(final=None), rest._replace(final=None))
    assert rest.final.step == 12


@pytest.mark.core
def test_the_trace_is_what_the_chains_did(key):
    trace = run(key)
    before = jax.tree.map(lambda s, x: np.concatenate([s[:, None], x[:, :-1]], axis=1), starts(), trace.position)
    gap = jax.tree.map(lambda x, y: (x - y).reshape(NUM, 12, -1), trace.position, before)
    distance = np.sqrt(sum((leaf**2).sum(-1) for leaf in jax.tree.leaves(gap)))
    np.testing.assert_allclose(trace.stats.jump_distance, distance, rtol=1e-5, atol=1e-6)
    values = jax.vmap(jax.vmap(LOGDENSITY))(trace.position)
    np.testing.assert_allclose(trace.logdensity, values, rtol=1e-5, atol=1e-5)
    assert np.array_equal(distance == 0, trace.stats.jump_distance == 0)
    assert np.all(trace.stats.num_gradients == 1)


@pytest.mark.core
def test_a_chain_does_not_know_how_many_others_there_are(key):
    """Chain c of n is chain c of m, to the rounding of code compiled for another width, and `sample` is chain 0."""
    five, two = run(key), run(key, position=starts(2))
    for name in ("position", "logdensity"):
        wide, narrow = select(getattr(five, name), np.s_[:2]), getattr(two, name)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), wide, narrow)
    one = sample(jax.random.clone(key), KERNELS["mala"], LOGDENSITY, select(starts(), 0), 12)
    zeroth = select(five._replace(final=None), 0)
    assert jax.tree.map(np.shape, one._replace(final=None)) == jax.tree.map(np.shape, zeroth)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), one.position, zeroth.position)


@pytest.mark.core
@pytest.mark.parametrize("name", ["mala", "ula"])
def test_advance_is_the_end_of_a_trace(name, key):
    """`advance_chains` ends where `sample_chains` of the same key ends; `advance` with a chain's key is that chain."""
    trace = run(key, name)
    end, metrics = advance_chains(jax.random.clone(key), KERNELS[name], LOGDENSITY, starts(), 12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[:, -1], rtol=0, atol=1e-4), end, trace.position)
    start_cost = 0 if name == "ula" else NUM
    assert metrics["num_gradients"] == trace.stats.num_gradients.sum() + start_cost
    np.testing.assert_allclose(metrics["jump_distance"], trace.stats.jump_distance.mean(), rtol=1e-5)
    if trace.stats.acceptance_rate is None:
        assert name == "ula" and "acceptance_rate" not in metrics
    else:
        np.testing.assert_allclose(metrics["acceptance_rate"], trace.stats.acceptance_rate.mean(), rtol=1e-5)
    if name == "mala":
        third = advance(jax.random.fold_in(key, 3), KERNELS[name], LOGDENSITY, select(starts(), 3), 12)[0]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[3], rtol=0, atol=1e-4), third, end)


@pytest.mark.slow
def test_unrolled_steps_are_the_same_steps(key):
    looped, straight = (
        advance_chains(jax.random.clone(key), KERNELS["mala"], LOGDENSITY, starts(), 3, unroll=unroll)[0]
        for unroll in (False, True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), looped, straight)


AHEAD_OF_MOVES = {
    "mala": mala(0.2),
    "hmc": hmc(0.3, 3, np.full(3, 0.7, np.float32)),
    "barker": barker(0.5),
    "rmh": rmh(0.5),
    "ula": ula(0.01),
    "ramped": ramped_langevin(0.01, 0.05),
}


@pytest.mark.parametrize("name", AHEAD_OF_MOVES)
def test_noise_drawn_ahead_is_what_each_step_draws(name, key):
    """Whole, in blocks, and for a prime number of moves, in blocks of one."""
    algorithm = bind(AHEAD_OF_MOVES[name], LOGDENSITY)
    state = algorithm.init(select(starts(), 0), jax.random.fold_in(key, 0))
    step = jax.jit(algorithm.step)
    for num in (1, AHEAD + 5, AHEAD + 8):
        keys = step_keys(key, num)
        end, stats = evolve(keys, algorithm, state)
        by_hand, distances = state, []
        for words in jax.random.key_data(keys):
            by_hand, one = step(jax.random.wrap_key_data(words, impl=jax.random.key_impl(key)), by_hand)
            distances.append(one.jump_distance)
        assert_close(end.position, by_hand.position)
        assert_close(stats.jump_distance, np.stack(distances))
    others = evolve(step_keys(key, num, 1), algorithm, state)[0]
    assert end.position["a"] != others.position["a"]


def test_a_row_of_noise_begins_with_that_of_the_position(key):
    for size in (0, 1, 2, 3, 8, 10, 17):
        position = {"a": jnp.zeros(()), "b": jnp.zeros((size, 2))}
        row = normal_row(jax.random.clone(key), position)
        assert_same(shaped_like(row, position), normal_like(jax.random.clone(key), position))
        assert row.size in (1 + 2 * size, -(-(1 + 2 * size) // 8) * 8)


@pytest.mark.core
def test_an_int_is_the_seed_of_a_key():
    expected = run(jax.random.key(7, impl="philox4x32"))
    for seed in (7, np.int64(7)):
        trace = sample_chains(seed, KERNELS["mala"], LOGDENSITY, starts(), 12)
        assert_same(trace._replace(final=None), expected._replace(final=None))


@pytest.mark.core
def test_only_the_fields_asked_for_are_kept(key):
    whole = run(key)
    for fields in (("position",), ("acceptance_rate", "logdensity"), FIELDS[::-1]):
        trace = run(key, fields=fields)
        everything = {"position": trace.position, "logdensity": trace.logdensity, **trace.stats._asdict()}
        assert {name for name, value in everything.items() if value is not None} == set(fields)
        if "position" in fields:
            assert_close(trace.position, whole.position)
        if "logdensity" in fields:
            assert_close(trace.logdensity, whole.logdensity)
    with pytest.raises(ValueError, match=r"unknown fields \['energy'\]; choose from \('position', 'logdensity'"):
        run(key, fields=("position", "energy"))


@pytest.mark.core
@pytest.mark.parametrize(
    ("position", "message"),
    [
        (
            {"a": np.zeros(3, np.int32), "b": np.zeros((3, 2), np.float32)},
            r"position\['a'\] has dtype int32; accept steps",
        ),
        (
            {"a": jnp.zeros(3), "b": jnp.zeros((3, 2), jnp.bfloat16)},
            r"position\['b'\] has dtype bfloat16; accept steps",
        ),
        ({"a": jnp.zeros(3), "b": jnp.zeros((4, 2))}, r"one shared leading axis \[chain\].*'a': \(3,\).*'b': \(4, 2\)"),
        ({"a": jnp.float32(0), "b": jnp.zeros(2)}, r"one shared leading axis \[chain\]"),
        ({}, r"one shared leading axis \[chain\]"),
        (
            {"a": jnp.array([0.0, jnp.nan, 1.0, jnp.inf]), "b": jnp.zeros((4, 2))},
            r"log density is nan at the start of chain 1 \(2 of 4 chains\): start inside the support",
        ),
    ],
)
def test_starts_that_cannot_be_sampled_are_named(position, message):
    with pytest.raises(ValueError, match=message):
        sample_chains(0, KERNELS["mala"], LOGDENSITY, position, 5)


def cliff(x):
    return -jnp.sum(x**4) / 4


@pytest.mark.core
def test_a_diverging_unadjusted_chain_is_stopped_and_named(key):
    """Chain 2, put where Euler steps of a quartic explode, is named with the transition that a replay by hand finds."""
    start = jnp.array([[0.1, 0.2], [0.3, 0.1], [0.2, 0.2]])
    whole = sample_chains(jax.random.clone(key), ula(0.02), cliff, start, 8, chunk_size=4)
    final = whole.final._replace(state=whole.final.state._replace(position=start.at[2].set(40.0)))
    with pytest.raises(SamplingStopped) as caught:
        sample_chains(jax.random.clone(key), ula(0.02), cliff, None, 8, chunk_size=4, resume=final)
    chain_key = jax.random.fold_in(jax.random.clone(key), 2)
    x, transition = final.state.position[2], whole.final.step
    distance = 0.0
    while np.isfinite(distance):
        transition += 1
        noise_key = jax.random.split(jax.random.fold_in(jax.random.clone(chain_key), transition), 1)[0]
        move = 0.02 * jax.grad(cliff)(x) + 0.2 * jax.random.normal(noise_key, x.shape)
        x, distance = x + move, jnp.sum(jnp.square(move))
    assert f"chain 2 left the finite numbers at transition {transition}: the kernel has no accept step" in str(
        caught.value
    )
    kept = caught.value.trace
    assert kept.position is None and kept.final is final


@pytest.mark.core
def test_draws_of_the_chunks_before_a_divergence_are_kept(key):
    """A flat energy up to |x| = 9 and a cliff beyond: the walk reaches it after some chunks, which the trace keeps."""

    def table(x):
        return -jnp.sum(jnp.maximum(jnp.abs(x) - 9.0, 0.0) ** 8) * 1e9

    start = jnp.zeros((3, 1))
    with pytest.raises(SamplingStopped, match="chain [012] left the finite numbers at transition") as caught:
        sample_chains(jax.random.clone(key), ula(0.5), table, start, 20_000, chunk_size=20)
    kept = caught.value.trace
    good = kept.position.shape[1]
    assert good > 0 and good % 20 == 0 and kept.final.step == good
    named = int(str(caught.value).split("transition ")[1].split(":")[0])
    assert good < named <= good + 20
    again = sample_chains(jax.random.clone(key), ula(0.5), table, start, good, chunk_size=20)
    assert_same(again._replace(final=None), kept._replace(final=None))
    assert_same(again.final.state, kept.final.state)


@pytest.mark.parametrize("where", ["update", "transfer"])
def test_ctrl_c_keeps_the_draws_and_a_state_to_go_on_from(where, key, monkeypatch):
    """The interrupt falls after the second chunk was kept, or while the third is brought to the host."""
    seen = []

    def interrupt(*args):
        seen.append(args)
        if len(seen) == {"update": 2, "transfer": 3}[where]:
            raise KeyboardInterrupt

    if where == "update":
        monkeypatch.setattr(chains.tqdm, "update", interrupt)
    else:
        inner = chains._chunk
        monkeypatch.setattr(chains, "_chunk", lambda *args: interrupt(*args) or inner(*args))
    with pytest.raises(SamplingStopped, match="interrupted after 8 transitions") as caught:
        run(key, chunk_size=4)
    monkeypatch.undo()
    kept = caught.value.trace
    rest = run(key, num_draws=4, resume=kept.final)
    whole = run(key)
    assert_same(kept.position, select(whole.position, np.s_[:, :8]))
    assert_same(rest.position, select(whole.position, np.s_[:, 8:]))


@pytest.mark.core
@pytest.mark.parametrize(("total", "size"), [(0, 10), (1, 10), (10, 10), (11, 10), (999, 250), (1000, 250), (7, 2)])
def test_chunks_cover_the_total_with_at_most_two_lengths(total, size):
    lengths = chains._chunks(total, size)
    assert sum(lengths) == total
    assert all(0 < length <= size for length in lengths)
    assert len(set(lengths)) <= 2


def test_progress_is_shown_on_stderr_only_when_asked_for(key, capsys):
    run(key)
    assert capsys.readouterr().err == ""
    run(key, progress=True)
    assert "sampling" in capsys.readouterr().err
