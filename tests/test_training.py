"""Laws of the training fold: one state, one pure step; what never changes, what resumes, what is caught."""

from functools import partial

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax.tree_util import Partial

import energyflow as ef
from energyflow.energies import gaussian_mixture
from energyflow.energy import partition
from energyflow.logz.oracles import expectation_quadrature
from energyflow.training import TrainingDiverged

pytestmark = pytest.mark.lenient("optax")


def leaves(tree):
    """Return the leaves as NumPy arrays, typed keys as their words."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in map(jnp.asarray, jax.tree.leaves(tree))]


def same(a, b):
    """Return whether two pytrees are bitwise equal."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(map(np.array_equal, leaves(a), leaves(b)))


def end_of(stream):
    """Run a training stream to its end; return the last state and metrics."""
    *_, last = stream
    return last


def batches(num, size=8, dim=2):
    """Batches of a fixed data set, the same ones at every call."""
    return list(np.random.default_rng(0).normal(size=(num, size, dim)).astype(np.float32))


def quadratic(precision, x):
    return precision * jnp.sum(x**2) / 2


# The loop


ADJUSTED = {
    "mala": ef.mala(0.1),
    "hmc": ef.hmc(0.1, 2),
    "nuts": ef.nuts(0.1, max_num_doublings=2),
    "barker": ef.barker(0.1),
    "ghmc": ef.ghmc(0.1),
    "dynamic_hmc": ef.dynamic_hmc(0.1, 3),
    "adjusted_mclmc": ef.adjusted_mclmc(0.1, 2),
    "rmh": ef.rmh(0.1),
    "elliptical_slice": ef.elliptical_slice(0.0, jnp.ones(2)),
    "slice_sampling": ef.slice_sampling(1.0),
    "raw BlackJAX": Partial(blackjax.barker, step_size=0.1),
}
UNADJUSTED = {"ula": ef.ula(0.1), "sgld": ef.sgld(0.1, 0.5), "mclmc": ef.mclmc(0.1)}
MARKS = [
    (pytest.mark.core, ("mala", "nuts", "ghmc", "ula")),
    (pytest.mark.slow, ("barker", "rmh", "slice_sampling", "sgld")),
]


def swapped(name):
    return pytest.param(name, marks=[mark for mark, names in MARKS if name in names])


@pytest.mark.blackjax_promotes()
@pytest.mark.parametrize("name", [swapped(name) for name in ADJUSTED | UNADJUSTED])
def test_swapping_the_sampler_is_one_token(name):
    kernel = (ADJUSTED | UNADJUSTED)[name]
    objective, optimizer, data = ef.contrastive(ef.pcd(kernel, 1)), optax.adam(1e-2), batches(5)
    first = ef.init(0, Partial(quadratic, jnp.array(3.0)), objective, optimizer, data[0])
    state, metrics = end_of(ef.train(first, ef.make_step(objective, optimizer), data))
    assert all(np.isfinite(float(value)) for value in metrics.values())
    assert ("acceptance_rate" in metrics) == (name in ADJUSTED)
    assert int(state.step) == int(metrics["step"]) == 5
    assert 0 < abs(float(state.energy.args[0]) - 3) <= 5.5e-2  # Adam's first steps are at most its rate
    assert not np.array_equal(first.objective_state.position, state.objective_state.position)


@pytest.mark.core
def test_frozen_leaves_never_change_whatever_the_optimiser():
    """AdamW decays every weight it is given, gradient or none: it must not be given the frozen ones."""
    base = dist.Normal(jnp.array([0.5, -0.5]), jnp.array([1.0, 2.0])).to_event(1)
    energy = ef.tempered(ef.tilt(ef.mlp(0, 2, (4,), confinement=0.5), base), 0.7)
    objective, optimizer, data = ef.contrastive(ef.cd(ef.ula(0.1), 1)), optax.adamw(0.1, weight_decay=0.5), batches(5)
    state = ef.init(0, energy, objective, optimizer, data[0])
    state, _ = end_of(ef.train(state, ef.make_step(objective, optimizer, ema_decay=0.9), data))
    weights, rest = partition(energy)
    assert len(leaves(rest)) == 4  # location and scale of the base, confinement, temperature
    for trained in (state.energy, state.ema):
        assert same(partition(trained)[1], rest)
        moved = zip(leaves(partition(trained)[0]), leaves(weights), strict=True)
        assert all(np.all(a != b) for a, b in moved if a.ndim == 2)


def test_an_energy_without_trainable_leaves_is_refused():
    objective = ef.contrastive(ef.cd(ef.mala(0.1), 1))
    for energy in (lambda x: jnp.sum(x**2), ef.frozen(ef.mlp(0, 2, (4,)))):
        with pytest.raises(ValueError, match="this energy has no trainable leaf: every floating-point array in it is"):
            ef.init(0, energy, objective, optax.sgd(0.1), batches(1)[0])


def mean_energy(energy, batch, key):
    return jnp.mean(jax.vmap(energy)(batch)), {}


@pytest.mark.parametrize("decay", [0.5, 0.999, 0.0])
def test_ema_is_the_weighted_mean_of_the_weights_after_every_step(decay):
    """Weight of step j after n: (1 - d_j) d_{j+1} ... d_n with d_j = min(decay, (j-1)/(j+9)); they sum to one."""
    objective, optimizer, n = ef.stateless(mean_energy), optax.sgd(0.1), 12
    state = ef.init(0, Partial(quadratic, jnp.array(5.0)), objective, optimizer, batches(1)[0])
    states = [state for state, _ in ef.train(state, ef.make_step(objective, optimizer, ema_decay=decay), batches(n))]
    weights, state = [float(state.energy.args[0]) for state in states], states[-1]
    decays = np.minimum(decay, [(j - 1) / (j + 9) for j in range(1, n + 1)])
    shares = [(1 - decays[j]) * np.prod(decays[j + 1 :]) for j in range(n)]
    assert np.isclose(sum(shares), 1)
    assert np.isclose(float(state.ema.args[0]), np.dot(shares, weights), rtol=1e-5)
    assert (decay > 0) or same(state.ema, state.energy)


@pytest.mark.core
def test_the_step_is_a_scan_body_and_an_int_seed_is_its_key():
    """Only rounding may differ between a loop and a scan; the kernel has no accept step to flip."""
    objective, optimizer, data = ef.contrastive(ef.pcd(ef.ula(0.05), 1)), optax.adam(1e-2), batches(6)
    begin = partial(ef.init, energy=ef.mlp(0, 2, (4,), confinement=0.5), objective=objective, optimizer=optimizer)
    looped, scanned = begin(3, batch=data[0]), begin(jax.random.key(3, impl="philox4x32"), batch=data[0])
    assert same(looped, scanned)
    step = ef.make_step(objective, optimizer)
    made = list(ef.train(looped, step, data))
    looped, losses = made[-1][0], [metrics["loss"] for _, metrics in made]
    scanned, metrics = jax.lax.scan(step, scanned, jnp.stack(data))
    assert np.allclose(metrics["loss"], losses, rtol=1e-4, atol=1e-5)
    assert np.array_equal(metrics["step"], np.arange(1, 7))
    for a, b in zip(leaves(looped), leaves(scanned), strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-5)
    assert same((looped.key, looped.step), (scanned.key, scanned.step))


@pytest.mark.core
@pytest.mark.parametrize("negatives", [ef.cd, ef.pcd])
def test_new_weights_and_settings_compile_nothing(negatives, count_compilations):
    optimizer, data = optax.adam(1e-2), batches(2)

    def run(seed, step_size, min_acceptance, decay):
        energy = ef.tempered(ef.mlp(seed, 2, (4,), confinement=0.1 + 0.1 * seed), 1.0 + seed)
        tuner = ef.by_jump(min_acceptance)
        objective = ef.contrastive(negatives(ef.mala(step_size), 2, tuner=tuner), l2=0.1 * decay)
        state = ef.init(seed, energy, objective, optimizer, data[0])
        with count_compilations() as made:
            end_of(ef.train(state, ef.make_step(objective, optimizer, ema_decay=decay), data))
        return made.count

    assert run(0, 0.1, 0.1, 0.9) == 1  # one for both of its steps
    assert run(1, 0.03, 0.2, 0.99) == 0


def test_weakly_typed_weights_compile_once(count_compilations):
    """`jnp.array(5.0)` is weakly typed, and an update makes it strong."""
    objective, optimizer, data = ef.stateless(mean_energy), optax.sgd(0.1), batches(3)
    state = ef.init(0, Partial(quadratic, 5.0), objective, optimizer, data[0])
    with count_compilations() as made:
        end_of(ef.train(state, ef.make_step(objective, optimizer), data))
    assert made.count == 1


# Resuming


RESUMED = {
    "pcd, mala, tuned": (ef.pcd(ef.mala(0.1), 2, capacity=16, tuner=ef.by_jump()), optax.adamw(1e-2)),
    "reservoir, dynamic_hmc": (ef.replay(ef.dynamic_hmc(0.1, 3), 1, policy="reservoir"), optax.sgd(0.1, momentum=0.9)),
}


@pytest.mark.core
@pytest.mark.blackjax_promotes("dynamic_hmc")
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(name, tmp_path):
    negatives, optimizer = RESUMED[name]
    objective, data = ef.contrastive(negatives, l2=0.01), batches(6)

    def begin(seed):
        energy = ef.mlp(seed, 2, (4,), confinement=0.5) if "pcd" in name else Partial(quadratic, jnp.array(3.0 + seed))
        return ef.init(seed, energy, objective, optimizer, data[0])

    step = ef.make_step(objective, optimizer, ema_decay=0.9)
    half, _ = end_of(ef.train(begin(0), step, data[:3]))
    file = ef.save(tmp_path / "checkpoint.npz", half)
    whole = end_of(ef.train(half, step, data[3:]))
    resumed = end_of(ef.train(ef.load(file, begin(1)), step, data[3:]))
    assert same(resumed, whole)


# Divergence


def watched(state, objective, optimizer, data):
    """Train under guard; return the states that passed."""
    return [state for state, _ in ef.guarded(ef.train(state, ef.make_step(objective, optimizer), data))]


def test_a_loss_that_is_not_finite_is_named_at_its_step_and_the_state_before_is_kept():
    data = batches(40)
    data[23][0, 0] = np.nan
    objective, optimizer = ef.stateless(mean_energy), optax.sgd(0.01)
    state = ef.init(0, Partial(quadratic, jnp.array(5.0)), objective, optimizer, data[0])
    with pytest.raises(TrainingDiverged, match=r"^step 24: the loss is nan; lower the learning rate$") as caught:
        watched(state, objective, optimizer, data)
    assert int(caught.value.state.step) == 21  # the last one judged, every ten steps from the first
    assert all(np.isfinite(leaf).all() for leaf in leaves(caught.value.state))


def test_a_gap_that_runs_away_is_named():
    def with_gap(energy, batch, key):
        return energy(batch[0]), {"gap": jnp.max(batch)}

    data = [np.full((8, 2), 2e4 if n == 30 else -5.0 if n % 2 else 5.0, np.float32) for n in range(40)]
    objective, optimizer = ef.stateless(with_gap), optax.sgd(1e-4)
    state = ef.init(0, Partial(quadratic, jnp.array(5.0)), objective, optimizer, data[0])
    with pytest.raises(TrainingDiverged, match=r"^step 31: the energy gap is 2e\+04, a thousand times its usual size"):
        watched(state, objective, optimizer, data)


@pytest.mark.core
@pytest.mark.parametrize("start", [1.0, 1e10])
def test_unadjusted_chains_that_blow_up_are_named_and_the_last_good_state_is_kept(start, seed):
    """The data's precision is 400: Langevin of step .01 is unstable from 200 on. MALA learns it.

    At a precision of 1e10 the first chains leave the finite numbers at once.
    """
    data = list(np.random.default_rng(seed).normal(0, 0.05, size=(200, 128, 1)).astype(np.float32))
    optimizer = optax.adam(0.05)
    energy = Partial(lambda log_precision, x: quadratic(jnp.exp(log_precision), x), jnp.log(jnp.float32(start)))
    objective = ef.contrastive(ef.pcd(ef.ula(0.01), 10))
    with pytest.raises(TrainingDiverged, match="chains have left the model|moves left the finite numbers") as caught:
        watched(ef.init(0, energy, objective, optimizer, data[0]), objective, optimizer, data)
    good = caught.value.state
    if start > 1:
        assert good is None and "unadjusted sampler" in str(caught.value)
        return
    assert int(good.step) % 10 == 1 and 100 < float(jnp.exp(good.energy.args[0])) < 400
    assert all(np.isfinite(leaf).all() for leaf in leaves(good))
    objective = ef.contrastive(ef.pcd(ef.mala(0.002), 5))
    state = ef.init(0, energy, objective, optimizer, data[0])._replace(energy=good.energy)
    states = watched(state, objective, optimizer, data)
    # Of 128 data points a log variance is known to sqrt(2/128) = .125; the last 100 steps see many more.
    assert abs(np.mean([float(state.energy.args[0]) for state in states[-100:]]) - np.log(400)) < 0.15


def test_two_hundred_healthy_steps_raise_nothing():
    data = batches(200, size=32)
    objective, optimizer = ef.contrastive(ef.pcd(ef.mala(0.1), 2)), optax.adam(1e-2)
    energy = Partial(quadratic, jnp.array(3.0))
    assert len(watched(ef.init(0, energy, objective, optimizer, data[0]), objective, optimizer, data)) == 200


# Eight Gaussians on a circle of radius 1, standard deviation .15: the two-dimensional test of the negative phases


ANGLES = np.arange(8) * np.pi / 4
EIGHT = gaussian_mixture(np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1), 0.15)
PERSISTENT = {"capacity": 4096, "num_chains": 256}
TUNED = {
    "pcd, by jump": (lambda: ef.pcd(ef.mala(0.01), 10, **PERSISTENT, tuner=ef.by_jump(0.3)), 0.03),
    "pcd, by acceptance": (lambda: ef.pcd(ef.mala(0.01), 10, **PERSISTENT, tuner=ef.by_acceptance(0.574)), 0.03),
    "cd": (lambda: ef.cd(ef.mala(0.01), 10, tuner=ef.by_acceptance(0.574)), 0.01),
}


def eight_gaussians(objective, seed, num_steps):
    """Return the start, the optimiser and a pure `batch(step)`."""
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))
    init_key, data_key = jax.random.split(jax.random.key(seed))
    batch = lambda step: EIGHT.sample(jax.random.fold_in(data_key, step), 256)  # noqa: E731
    energy = ef.mlp(seed, 2, (64, 64, 64), confinement=0.05)
    return ef.init(init_key, energy, objective, optimizer, batch(0)), optimizer, batch


def minus_data(energy, x):
    return energy(x) - EIGHT(x)


def divergence_from_data(energy):
    """KL(data | model) by quadrature; what the data leave outside of the box is under 1e-16."""
    excess = expectation_quadrature(EIGHT, Partial(minus_data, energy), [-2.5, -2.5], [2.5, 2.5], 400)
    return excess + ef.log_z_quadrature(energy, [-6.0, -6.0], [6.0, 6.0], 800) - EIGHT.log_z


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("name", TUNED)
def test_eight_gaussians_are_learned_without_a_step_set_by_hand(name, number):
    make, bound = TUNED[name]
    objective = ef.contrastive(make())
    state, optimizer, batch = eight_gaussians(objective, number, 8000)
    step = ef.make_step(objective, optimizer)
    trained, metrics = jax.jit(lambda s: jax.lax.scan(lambda s, i: step(s, batch(i)), s, jnp.arange(1, 8001)))(state)
    found = divergence_from_data(trained.energy)
    print(f"{name}, {number}: KL {found:.4f}, acceptance {metrics['acceptance_rate'][-500:].mean():.3f}")
    assert found < bound


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_eight_gaussians_with_unadjusted_negatives_blow_up_and_are_caught(number):
    objective = ef.contrastive(ef.pcd(ef.ula(0.05), 10, **PERSISTENT))
    start, optimizer, batch = eight_gaussians(objective, number, 8000)
    step = ef.make_step(objective, optimizer)
    with pytest.raises(TrainingDiverged, match="chains have left the model|moves left the finite numbers") as caught:
        end_of(ef.guarded(ef.train(start, step, map(jax.jit(batch), range(1, 8001)))))
    # A runaway starts slowly: the state kept is one from before it spoiled the model.
    assert divergence_from_data(caught.value.state.energy) < divergence_from_data(start.energy)


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"accuracy": 0.97}, "accuracy is 0.97"),
        ({"weight_of_data": 0.99}, "too easy"),
        ({"acceptance_rate": 0.01}, "stand still"),
        ({"ess": 1.2, "resampled": 1.0}, "one walker has all the weight"),
    ],
)
def test_remarks_say_what_a_row_of_metrics_means(metrics, words):
    (sentence,) = ef.remarks({name: jnp.float32(value) for name, value in metrics.items()})
    assert words in sentence


def test_healthy_metrics_earn_no_remark():
    row = {"accuracy": 0.7, "weight_of_data": 0.3, "acceptance_rate": 0.6, "ess": 300.0, "resampled": 0.0}
    assert ef.remarks(row) == [] == ef.remarks({"loss": 1.0, "ess": 1.0})
