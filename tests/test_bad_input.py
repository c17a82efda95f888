"""Bad input, from Python and from the command line: one sentence that says what is wrong, where, and what to do."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import energyflow as ef
from energyflow.chains import SamplingStopped
from energyflow.cli import main

pytestmark = [
    pytest.mark.lenient("numpyro", "numpyro_models", "optax"),
    pytest.mark.blackjax_promotes("nuts", "dual_averaging"),
]


def bowl(x):
    return jnp.sum(x**2) / 2


def nowhere(x):
    return jnp.sum(x) * jnp.nan


def half(x):
    return jnp.where(x[0] > 0, jnp.nan, bowl(x))


def quadrant(x):
    return jnp.where(jnp.all(x > 0), bowl(x), jnp.inf)


POINTS = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
INSIDE = POINTS * np.where(POINTS[:, :1] > 0, [-1, 1, 1], 1).astype(np.float32)


def sample(energy, position=POINTS, kernel=None, **settings):
    kernel = ef.mala(0.1) if kernel is None else kernel
    return ef.sample_chains(0, kernel, ef.logdensity(energy), position, **{"num_draws": 100, **settings})


def run(energy, position=POINTS, **settings):
    return ef.run(0, energy, position=position, draws=100, **settings)


def normal():
    return dist.Normal(jnp.zeros(3), 1.0).to_event(1)


def trained(energy):
    weighed = ef.from_apply(lambda w, x: w * energy(x), jnp.ones(()))
    objective, optimizer = ef.contrastive(ef.pcd(ef.mala(0.1), 2)), optax.adam(1e-3)
    state = ef.init(0, weighed, objective, optimizer, POINTS)
    return ef.make_step(objective, optimizer)(state, POINTS)


REFUSED = {
    "energy nan everywhere": (lambda: sample(nowhere), "log density is nan at the start of chain 0 (8 of 8 chains)"),
    "energy nan everywhere, run": (lambda: run(nowhere), "nan at the start of chain 0 (8 of 8 chains): start inside"),
    "energy nan everywhere, annealed": (lambda: ef.bracket(0, nowhere, normal(), num_temperatures=20), "nan"),
    "start outside the support": (lambda: sample(quadrant, -np.abs(POINTS)), "-inf at the start of chain 0 (8 of 8"),
    "one start outside": (lambda: sample(half, np.where(np.arange(8)[:, None] == 5, 1, INSIDE)), "start of chain 5 (1"),
    "one start nan": (lambda: run(bowl, np.where(np.arange(8)[:, None] == 3, np.nan, POINTS)), "start of chain 3 (1"),
    "no chains": (lambda: sample(bowl, POINTS[:0]), "leading axis [chain], not empty; their shapes are (0, 3)"),
    "step of 1e3 without accept step": (
        lambda: sample(bowl, kernel=ef.ula(1e3)),
        "left the finite numbers at transition",
    ),
    "negative step": (lambda: sample(bowl, kernel=ef.hmc(-0.1, 3)), "positive and finite; got -0.1"),
    "step nan": (lambda: run(bowl, kernel=ef.mala(np.nan)), "the step size must be positive and finite; got nan"),
    "wrong sign along a ray": (lambda: run(lambda x: x[0]), "falls without bound on the way; check its sign"),
    "energy of shape (d,)": (lambda: sample(lambda x: x**2), "returned shape (3,) for a point of shape (3,): sum over"),
    "energy of shape (d,), run": (lambda: run(lambda x: x**2), "must return a scalar for one point"),
    "energy of shape (d,), training": (lambda: trained(lambda x: x**2), "must return a scalar for one point"),
    "energy of shape (1,)": (lambda: run(lambda x: jnp.sum(x**2, keepdims=True)), "returned shape (1,) for a point of"),
    "energy of a batch": (lambda: run(lambda x: jnp.sum(jnp.atleast_2d(x), axis=1)), "or vmap over batches"),
    "integer start": (lambda: sample(bowl, {"w": POINTS.astype(int)}), "position['w'] has dtype int32; accept steps"),
    "integer start, run": (
        lambda: run(bowl, POINTS.astype(int)),
        "position has dtype int32; accept steps need float32",
    ),
    "bfloat16": (lambda: sample(bowl, jnp.asarray(POINTS, jnp.bfloat16)), "position has dtype bfloat16; accept steps"),
    "bfloat16, run": (lambda: run(bowl, jnp.asarray(POINTS, jnp.bfloat16)), "position has dtype bfloat16"),
    "bfloat16, annealed": (
        lambda: ef.bracket(0, bowl, normal(), exact=jnp.asarray(POINTS, jnp.bfloat16), num_temperatures=20),
        "position has dtype bfloat16",
    ),
    "mass matrix of another size": (
        lambda: sample(bowl, kernel=ef.hmc(0.1, 3, jnp.ones(4))),
        "has shape (4,), but the position has 3 dimensions: give a vector of 3 variances or a 3 x 3 covariance",
    ),
    "mass matrix of another size, run": (lambda: run(bowl, kernel=ef.nuts(0.1, jnp.eye(2))), "has shape (2, 2), but"),
    "a name for a kernel": (lambda: sample(bowl, kernel="mala"), "a kernel, must be callable; got str 'mala'"),
    "a number for a key": (
        lambda: ef.run(0.5, bowl, position=POINTS),
        "jax.random.key(seed) or an int seed; got float",
    ),
    "no draws": (
        lambda: ef.run(0, bowl, position=POINTS, draws=0),
        "nothing can be judged without a draw",
    ),
    "thinned to nothing": (lambda: sample(bowl, thin=0), "need thin >= 1 and nothing negative; got 100 draws, thin 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_one_sentence(name):
    call, sentence = REFUSED[name]
    with pytest.raises((ValueError, TypeError, SamplingStopped)) as caught:
        call()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


NAMED = {
    "energy nan on half the space": (lambda: ef.check(sample(half, INSIDE)), "met a non-finite energy"),
    "step of 1e3": (lambda: ef.check(sample(bowl, kernel=ef.mala(1e3))), "frozen chains: 8 of 8 chains never moved"),
    "wrong sign": (  # 16 chains: of 8, whose energies fall unalike, three runs in eight only disagree
        lambda: ef.check(sample(lambda x: -bowl(x), np.concatenate([POINTS, POINTS + 1]))),
        "check that the energy rises in every direction",
    ),
    "wrong sign, run": (lambda: run(lambda x: -bowl(x)).check, "does not fall without bound"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name.endswith("run") else []) for name in NAMED]
)
def test_what_cannot_be_refused_is_named(name):
    call, sentence = NAMED[name]
    assert sentence in str(call())


def test_the_draws_before_a_blow_up_survive():
    with pytest.raises(SamplingStopped) as caught:
        sample(lambda x: -(x[0] ** 4) + bowl(x), kernel=ef.ula(1e-2), num_draws=2000, chunk_size=5)
    assert np.isfinite(caught.value.trace.position).all() and caught.value.trace.position.shape[1] % 5 == 0


MODELS = """
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def nan(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def unbounded(y):
    mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.factor("falls", mu)


def impossible(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.factor("likelihood", jnp.where(jnp.abs(mu) < 1e3, -jnp.inf, 0.0) + 0.0 * y.sum())


def vector(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.factor("likelihood", -((y - mu) ** 2))
"""
COMMANDS = {
    "data nan": ("run models.py:nan --data nan.npz", "array 'y' of nan.npz has values that are not finite"),
    "data nan, logz": ("logz models.py:nan --data nan.npz", "array 'y' of nan.npz has values"),
    "improper": ("run models.py:unbounded --data y.npz", "falls without bound on the way; check its sign"),
    "outside the support": ("run models.py:impossible --data y.npz", "data outside the support"),
    "no such model": ("run models.py:absent --data y.npz", "absent"),
    "no such file": ("run missing.py:model", "missing.py"),
    "no such data": ("run models.py:nan --data missing.npz", "missing.npz"),
    "argument without data": ("run models.py:nan", "y"),
    "training data nan": ("train nan.npy", "nan.npy"),
    "training data of rank 1": ("train flat.npy", "flat.npy"),
    "training data of text": ("train text.npy", "text.npy"),
    "negative step": ("train flat.npy --step-size -1", "step_size"),
    "no run": ("sample nothing", "nothing"),
    "no draws": ("check nothing.npy", "nothing.npy does not exist"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "models.py").write_text(MODELS)
    np.savez(folder / "y.npz", y=np.ones(5, np.float32))
    np.savez(folder / "nan.npz", y=np.array([1.0, np.nan], np.float32))
    np.save(folder / "nan.npy", np.full((200, 2), np.nan, np.float32))
    np.save(folder / "flat.npy", np.ones(200, np.float32))
    np.save(folder / "text.npy", np.array([["a", "b"]] * 200))
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_bad_input_ends_a_command_in_one_sentence(name, folder, monkeypatch, capsys):
    command, sentence = COMMANDS[name]
    monkeypatch.chdir(folder)
    try:
        code = main(command.split())
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code not in (0, None), error
    assert sentence in error and "Traceback" not in error, error
