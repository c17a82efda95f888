"""Laws of training health: six planted failures are named and repaired, healthy runs are left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import energyflow as ef
from energyflow.energies import eight_gaussians
from energyflow.evaluation import precision_recall
from energyflow.health import (
    REMEDIES,
    Run,
    View,
    energy_explosion,
    examine,
    guard,
    long_run_collapse,
    look,
    mode_collapse,
    oscillation,
    out_of_distribution,
    poor_samples,
    slowable,
    watch,
)
from energyflow.health.detectors import MIN_ROWS
from energyflow.negatives import Buffer, from_normal, from_sampler
from energyflow.training import TrainingDiverged

pytestmark = pytest.mark.lenient("optax")

POINTS = np.asarray(eight_gaussians().sample(jax.random.key(5), 4096)) / 4
"""Eight Gaussians of standard deviation .125 on the unit circle."""
ADAM = {rate: slowable(optax.adam(rate)) for rate in (1e-3, 3e-3, 3e-2)}


def batches(num, seed, size=128):
    rng = np.random.default_rng(seed)
    return [POINTS[rng.integers(0, len(POINTS), size)] for _ in range(num)]


def confined(seed):
    return ef.mlp(seed, 2, (32, 32), confinement=0.5)


def bounded(seed):
    """An energy that no training confines: it is bounded, so no density, and chains that are out diffuse for ever."""
    return ef.mlp(seed, 2, (32, 32), "tanh")


def one_mode(key, num):
    return jnp.array([[1.0, 0.0]]) + 0.1 * jax.random.normal(key, (num, 2))


PLANTED = {  # energy, negative phase, learning rate, long run
    "energy explosion": (confined, ef.pcd(ef.ula(1.0), 10), 3e-3, 0),
    "mode collapse": (confined, ef.pcd(ef.mala(3e-5), 5, start=from_sampler(one_mode)), 1e-3, 0),
    "poor samples": (confined, ef.pcd(ef.mala(1e3), 10, start=from_normal()), 3e-3, 0),
    "oscillation": (confined, ef.pcd(ef.mala(0.001), 5), 3e-2, 0),
    "long-run collapse": (confined, ef.short_run(ef.mala(0.003), 5), 3e-3, 300),
    "out-of-distribution drift": (bounded, ef.pcd(ef.ula(0.05), 10), 3e-3, 0),
}


def begun(seed, energy, negatives, rate, num):
    """Return what a guarded run needs."""
    objective, optimizer, data = ef.contrastive(negatives), ADAM[rate], batches(num, seed)
    return ef.init(seed, energy(seed), objective, optimizer, data[0]), objective, optimizer, data


DEAR = "mode collapse", "long-run collapse", "out-of-distribution drift"


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in DEAR)) for n in PLANTED])
def test_a_planted_failure_is_named_and_recovers_by_itself(name):
    energy, negatives, rate, long_run = PLANTED[name]
    events, run = [], begun(0, energy, negatives, rate, 300)
    *_, (state, metrics) = guard(*run, long_run=long_run, tell=events.append)
    assert events[0].alarm.name == name and events[0].alarm.severity >= 1
    assert int(state.step) == 300  # batches that were undone are used again
    assert abs(float(metrics["gap"])) < 2 and np.isfinite(float(metrics["loss"]))
    data = np.concatenate(run[3][-4:])
    assert np.std(jax.vmap(state.energy)(data)) < 5
    draws = state.objective_state.position
    assert precision_recall(draws, data)[1] > 0.75  # the share of six modes of eight; an alarm is raised at .3
    assert np.quantile(np.linalg.norm(draws, axis=1), 0.9) < 1.8 * np.linalg.norm(data, axis=1).max()
    print(name, [(event.step, event.back_to, event.alarm.name) for event in events], float(metrics["gap"]))


HEALTHY = {
    "pcd, mala": (ef.pcd(ef.mala(0.03), 10), 3e-3),
    "pcd, mala, tuned": (ef.pcd(ef.mala(0.01), 10, tuner=ef.by_acceptance(), start=from_normal()), 1e-3),
    "pcd, ula": (ef.pcd(ef.ula(0.01), 10), 1e-3),
    "replay, hmc": (ef.replay(ef.hmc(0.1, 3), 3, capacity=512, num_chains=128, reinit=0.01), 1e-3),
    "cd, mala": (ef.cd(ef.mala(0.03), 10), 3e-3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_runs_raise_no_alarm(name):
    """Four seeds of each sampler: twenty runs, judged six times each; none comes to two thirds of a threshold."""
    for seed in range(4):
        state, objective, optimizer, data = begun(seed, confined, *HEALTHY[name], 300)
        step, rows, worst = ef.make_step(objective, optimizer), [], {}
        for number, (state, metrics) in enumerate(ef.train(state, step, data), 1):  # noqa: B020
            rows.append(metrics)
            if number % 50 == 0:
                history = [{key: float(value) for key, value in row.items()} for row in jax.device_get(rows)]
                seen = look(state, objective, np.concatenate(data[number - 4 : number]), size=128, long_run=200)
                for alarm in examine(history, seen):
                    worst[alarm.name] = max(worst.get(alarm.name, 0.0), alarm.severity)
        print(name, seed, {key: round(value, 2) for key, value in worst.items()})
        assert max(worst.values()) < 0.67


# Detectors on made-up rows: each sees its own failure, and none sees a quiet run


def made(num=200, gap=None, **others):
    """Rows of a quiet run, changed: independent gaps of standard deviation .1."""
    gaps = np.random.default_rng(0).normal(0, 0.1, num) if gap is None else gap
    quiet = {"loss": 0.0, "gradient_norm": 1.0, "acceptance_rate": 0.6, "travel": 0.5}
    return [quiet | {"gap": float(value), "step": n + 1.0} | others for n, value in enumerate(gaps)]


def seen(draws=POINTS[:512], **others):
    return View(
        **({"draws": draws, "data": POINTS[512:1024], "temperature": 1.0, "spread": 0.7, "noise": 0.1} | others)
    )


def severities(history, view):
    return {alarm.name: alarm.severity for alarm in examine(history, view)}


def test_a_quiet_run_is_quiet_to_all_detectors():
    assert max(severities(made(), seen(fall=0.1)).values()) < 0.4


TIMES = np.arange(200.0)
ALONE = {
    "energy explosion": (made(gap=np.exp(TIMES / 20)), seen()),
    "out-of-distribution drift": (made(), seen(8 * POINTS[:512])),
    "oscillation": (made(gap=0.02 * TIMES * np.sin(TIMES / 5)), seen()),
    "mode collapse": (made(), seen(POINTS[np.linalg.norm(POINTS - [1, 0], axis=1) < 0.5])),
    "long-run collapse": (made(), seen(fall=3.0)),
    "poor samples": (made(acceptance_rate=0.001), seen()),
}


@pytest.mark.core
@pytest.mark.parametrize("name", ALONE)
def test_each_failure_is_named_by_its_own_detector(name):
    """An explosion is a gap of one sign too, and gets its own name first; the others have one sign alone."""
    alarms = [alarm for alarm in examine(*ALONE[name]) if alarm.severity >= 1]
    assert alarms[0].name == name and alarms[0].severity > 1.5
    assert len(alarms) == 1 or name == "energy explosion"


def test_other_evidence_of_the_same_failures():
    stuck, one_sided = made(travel=1e-4), made(gap=np.full(200, 2.0))
    assert poor_samples(stuck, seen()).remedies == ("stretch_steps", "restart")
    assert poor_samples(one_sided, seen()).severity > 1.5 and "one sign" in poor_samples(one_sided, seen()).reason
    copies = mode_collapse(made(lineages=3.0), seen(slots=1024))
    assert copies.severity > 5 and "descend from 3 starts" in copies.reason
    assert mode_collapse(made(lineages=8.0), seen(slots=8)).severity < 0.4  # a small buffer has few starts to lose
    broken = energy_explosion([*made(50), made(1)[0] | {"loss": np.nan}])
    assert broken.severity == np.inf and "nan" in broken.reason
    for detector in (out_of_distribution, mode_collapse, long_run_collapse):
        assert detector(made(), seen(None)).severity == 0  # of what is not seen nothing is said


def test_noise_of_small_batches_trends_and_settling_are_no_oscillation():
    rng = np.random.default_rng(1)
    assert oscillation(made(gap=rng.normal(0, 10, 400)), seen(noise=10.0)).severity < 0.5
    assert oscillation(made(gap=np.linspace(-9, 9, 200)), seen()).severity < 1
    assert oscillation(made(gap=20 * np.exp(-TIMES / 15) * np.sin(TIMES / 5)), seen()).severity < 1


# Remedies and the guard


def small(negatives=None, rate=1e-3):
    objective, data = ef.contrastive(negatives or ef.pcd(ef.mala(0.03), 2)), batches(60, 0, 64)
    energy = ef.mlp(0, 2, (8,), confinement=0.5)
    return ef.init(0, energy, objective, ADAM[rate], data[0]), objective, ADAM[rate], data


def test_remedies_change_what_they_say_and_compile_nothing_where_only_numbers_change(count_compilations):
    state, objective, optimizer, data = small(ef.pcd(ef.mala(0.03), 2, tuner=ef.by_acceptance()))
    step = ef.make_step(objective, optimizer)
    state, before = step(state, data[0])
    run = Run(state, objective)
    for name in ("shrink_steps", "slow_down", "restart"):
        run = REMEDIES[name](run, jnp.asarray(data[0]))
    step = ef.make_step(run.objective, optimizer)
    with count_compilations() as made:
        after = step(run.state, data[1])[1]
    assert made.count == 0
    assert np.isclose(float(run.state.opt_state.factor), 0.2)
    assert 0.1 < float(after["step_size"]) / 0.03 < 0.5 and float(before["step_size"]) > 0.02
    rows = {tuple(row) for row in np.asarray(data[0]).tolist()}
    assert {tuple(row) for row in np.asarray(run.state.objective_state.position).tolist()} == rows


def test_slowed_updates_are_the_optimisers_times_the_factor():
    state, objective, _, data = small()
    plain, slowed = optax.sgd(0.5), slowable(optax.sgd(0.5))
    weights = {"a": jnp.arange(3.0)}
    kept = slowed.init(weights)
    wanted, _ = plain.update(weights, plain.init(weights), weights)
    found, _ = slowed.update(weights, kept._replace(factor=kept.factor * 0.2), weights)
    assert np.allclose(found["a"], 0.2 * wanted["a"])
    with pytest.raises(ValueError, match="begin it with slowable"):
        next(guard(ef.init(0, state.energy, objective, plain, data[0]), objective, plain, data))


def test_policies_lengths_and_starts_are_changed():
    run = Run(small()[0], small(ef.replay(ef.mala(0.03), 2, policy="fifo"))[1])
    data = jnp.asarray(batches(1, 0, 64)[0])
    text = repr(REMEDIES["refresh"](REMEDIES["lengthen"](REMEDIES["keep_slots"](run, data), data), data).objective)
    assert "policy='in_place'" in text and "num_steps=4" in text and "0.05" in text and "fifo" not in text
    short = Run(*small(ef.short_run(ef.mala(0.03), 2))[:2])
    assert isinstance(REMEDIES["persist"](short, data).state.objective_state, Buffer)


def test_a_healthy_run_under_guard_is_the_run_without_it(tmp_path):
    state, objective, optimizer, data = small()
    *_, (plain, _) = ef.train(state, ef.make_step(objective, optimizer), data)
    path, again = tmp_path / "good.npz", small()
    *_, (watched, _) = guard(again[0], objective, optimizer, iter(data), every=25, path=path)
    for other in (watched, ef.load(path, state)):
        for a, b in zip(jax.tree.leaves(plain.energy), jax.tree.leaves(other.energy), strict=True):
            assert np.array_equal(a, b)


def test_what_cannot_be_repaired_is_given_up_by_name_with_the_last_good_state():
    state, objective, optimizer, data = small()
    data[40] = np.full_like(data[40], np.nan)
    events = []
    with pytest.raises(TrainingDiverged, match=r"^step 50: energy explosion after 2 tries: .* is nan") as caught:
        list(guard(state, objective, optimizer, data, every=25, max_tries=2, tell=events.append))
    assert [(e.step, e.back_to, e.attempt) for e in events] == [(50, 25, 1), (50, 25, 2)]
    good = caught.value.state
    assert int(good.step) == 25 and np.isfinite(float(good.energy(jnp.zeros(2))))


def test_watch_says_nothing_of_a_start_and_names_what_is_not_finite():
    state, objective, _, data = small()
    assert watch(state, made(MIN_ROWS), data[0], objective, size=64) == []
    (alarm,) = watch(state, [*made(30), made(1)[0] | {"gradient_norm": np.inf}], data[0], objective)
    assert alarm.name == "energy explosion" and "gradient norm is inf" in alarm.reason


def near(weight, x, center):
    return weight * jnp.sum((x - center) ** 2) / 2


def test_conditional_chains_are_seen_and_begin_again_with_their_conditions():
    centers = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    batch = (jnp.asarray(centers + 0.1), jnp.asarray(centers))
    objective = ef.contrastive(ef.pcd(ef.mala(0.03), 2, conditional=True), conditional=True)
    state = ef.init(0, Partial(near, jnp.array(3.0)), objective, ADAM[1e-3], batch)
    state, metrics = ef.make_step(objective, ADAM[1e-3])(state, batch)
    found = look(state, objective, batch, long_run=50, conditional=True)
    assert found.draws is not None and found.draws.shape == found.data.shape == (64, 2)
    assert np.isfinite(found.fall) and found.slots == 64
    again = REMEDIES["settle_steps"](REMEDIES["restart"](Run(state, objective), batch), batch)
    buffer = again.state.objective_state
    assert np.allclose(buffer.position - buffer.cond[0], 0.1, atol=1e-6)
