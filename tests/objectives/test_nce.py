"""Laws of noise-contrastive estimation: exact optima by enumeration, identities with contrastive divergence, log Z."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax.nn import sigmoid, softmax
from jax.tree_util import Partial

import energyflow as ef
from laws import assert_mean, assert_not_mean

pytestmark = [pytest.mark.core, pytest.mark.lenient("numpyro")]


def value(objective, energy, batch, key=None, state=None):
    return objective.loss(energy, batch, jax.random.key(0) if key is None else key, state)[0]


def net(seed, dim):
    keys = jax.random.split(jax.random.key(seed), 2)
    weights = [jax.random.normal(k, shape, float) for k, shape in zip(keys, [(8, dim), (8,)], strict=True)]
    return Partial(lambda W, b, x: 0.5 * jnp.sum(x**2) + 0.3 * jnp.sum(jnp.tanh(W @ x + b)), *weights)


class Every(NamedTuple):
    """Noise that draws each of 27 states as often as its counts say, all at once: expectations without error."""

    draws: np.ndarray
    log_probs: np.ndarray
    batch_shape = ()

    @staticmethod
    def of(counts):
        return Every(np.repeat(np.arange(27.0), counts), np.log(counts / counts.sum()))

    def sample(self, key, shape):
        return jnp.asarray(self.draws).reshape(shape)

    def log_prob(self, x):
        return jnp.asarray(self.log_probs)[x.astype(int)]


def table(values, x):
    return values[x.astype(int)]


def test_the_discrete_optimum_is_the_log_density_itself(seed):
    """27 states, all expectations exact, Newton's method: E = -log p, so its sum of exp(-E) is 1."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        p, q = (rng.integers(1, 9, size=27) for _ in range(2))
        q[0] += -q.sum() % p.sum()  # a whole number of draws per row
        batch = jnp.asarray(np.repeat(np.arange(27.0), p))
        objective = ef.nce(Every.of(q), int(q.sum() // p.sum()))
        loss = jax.jit(lambda v: value(objective, Partial(table, v), batch))
        values = jnp.full(27, np.log(27.0))
        for _ in range(30):
            values = values - jnp.linalg.solve(jax.hessian(loss)(values), jax.grad(loss)(values))
        np.testing.assert_allclose(values, -np.log(p / p.sum()), rtol=0, atol=1e-10)
        assert abs(jnp.exp(-values).sum() - 1) < 1e-10


@pytest.mark.parametrize("num_noise", [1, 10])
def test_log_z_of_a_gaussian_is_learned(num_noise, key):
    """20 000 rows of [[1, .4], [.4, .5]], only the constant unknown; the published errors are .014 and .005."""
    data_key, init_key = jax.random.split(key)
    precision = jnp.array([[1.0, 0.4], [0.4, 0.5]])
    truth = float(jnp.log(2 * jnp.pi) - 0.5 * jnp.linalg.slogdet(precision)[1])
    data = jax.random.normal(data_key, (20_000, 2)) @ jnp.linalg.cholesky(jnp.linalg.inv(precision)).T
    fixed = ef.normalised(ef.frozen(ef.energies.gaussian(jnp.zeros(2), precision=precision)))
    objective = ef.nce(dist.Normal(jnp.zeros(2), 1.0).to_event(1), num_noise)
    optimizer = optax.sgd(0.7)
    state = ef.init(init_key, fixed, objective, optimizer, data)
    step = ef.make_step(objective, optimizer)
    for _ in range(25):
        state, metrics = step(state, data)
    assert abs(float(state.energy.log_z) - truth) < 0.05
    assert 0.5 < float(metrics["accuracy"]) < 0.95


def test_noise_like_the_data_is_told_from_it_half_of_the_time(key):
    """At q = p and the right constant G is 0: the loss is 2 log 2 with no variance."""
    law = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    energy = ef.normalised(ef.energies.gaussian(jnp.zeros(2), precision=jnp.eye(2)), np.log(2 * np.pi))
    loss = value(ef.nce(law), energy, jax.random.normal(key, (50, 2)))
    assert abs(loss - 2 * np.log(2)) < 1e-5


def test_ranking_ignores_an_offset_and_is_contrastive_divergence_by_importance_sampling(key):
    with jax.enable_x64(True):
        batch, noise = jax.random.normal(key, (6, 2), float), dist.Normal(jnp.zeros(2), 2.0).to_event(1)
        objective, energy = ef.ranking_nce(noise, 5), net(0, 2)
        shifted = Partial(lambda e, x: e(x) + 3.0, energy)
        assert abs(value(objective, energy, batch) - value(objective, shifted, batch)) < 1e-12
        draws = noise.sample(jax.random.key(0), (6, 5))

        def contrast(energy):
            points = jnp.concatenate([batch[:, None], draws], axis=1)
            energies = jax.vmap(jax.vmap(energy))(points)
            weights = softmax(-energies - jax.vmap(jax.vmap(noise.log_prob))(points), axis=1)
            return jnp.mean(energies[:, 0] - jnp.sum(jax.lax.stop_gradient(weights) * energies, axis=1))

        pair = jax.grad(lambda e: value(objective, e, batch))(energy), jax.grad(contrast)(energy)
        for a, b in zip(*map(jax.tree.leaves, pair), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_ranking_reports_the_weights_it_rests_on(key):
    """With the model as noise all K + 1 points weigh alike."""
    law = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    energy, batch = ef.energies.gaussian(jnp.zeros(2), precision=jnp.eye(2)), jax.random.normal(key, (9, 2))
    _, (_, metrics) = ef.ranking_nce(law, 4).loss(energy, batch, jax.random.key(1), None)
    assert abs(metrics["ess"] - 5) < 1e-3 and abs(metrics["weight_of_data"] - 0.2) < 1e-4


def test_conditional_nce_is_twice_contrastive_divergence_by_a_barker_walk(key):
    with jax.enable_x64(True):
        batch, scale, energy = jax.random.normal(key, (40, 2), float), jnp.asarray(0.6), net(1, 2)
        objective = ef.conditional_nce(1, scale=0.6)
        noise = jax.random.normal(jax.random.key(0), (40, 2), float)

        def contrast(energy):
            near = batch + scale * noise
            here, there = jax.vmap(energy)(batch), jax.vmap(energy)(near)
            accepted = jax.lax.stop_gradient(sigmoid(here - there))
            return jnp.mean(accepted * (here - there))

        pair = jax.grad(lambda e: value(objective, e, batch, state=scale))(energy), jax.grad(contrast)(energy)
        for a, b in zip(*map(jax.tree.leaves, pair), strict=True):
            np.testing.assert_allclose(a, 2 * b, rtol=0, atol=1e-12)


def test_small_noise_makes_conditional_nce_score_matching(key):
    """`(L - 2 log 2) 2 / e^2` tends to the exact loss: over antithetic pairs the odd terms cancel, and the rest is the
    chance of 4000 directions."""
    with jax.enable_x64(True):
        batch, energy, e = jax.random.normal(key, (3, 2), float), net(2, 2), 1e-3
        exact = value(ef.score_matching(), energy, batch)
        z = jax.random.normal(jax.random.fold_in(key, 1), (4000, 3, 2), float)

        def loss(z):
            near = batch[None] + e * z
            falls = jax.vmap(jax.vmap(energy))(near) - jax.vmap(energy)(batch)[None]
            return jnp.mean(2 * jax.nn.softplus(-falls), axis=1)

        both = (0.5 * (loss(z) + loss(-z)) - 2 * np.log(2)) * 2 / e**2
        assert_mean(both, exact)
        assert_not_mean(both / 2, exact)
        ours = value(ef.conditional_nce(1, scale=e), energy, batch, state=jnp.asarray(e))
        noise = jax.random.normal(jax.random.key(0), (3, 2), float)
        assert abs(ours - loss(noise[None])[0]) < 1e-12


def test_the_scale_follows_the_energy(key):
    """The loss of a Gaussian on its own data depends on scale / sd alone: the scale found is proportional."""
    unit, found = jax.random.normal(key, (256, 2)), []
    for sd in (1.0, 0.01):
        energy = ef.energies.gaussian(jnp.zeros(2), precision=jnp.eye(2) / sd**2)
        objective, batch = ef.conditional_nce(), sd * unit
        state = objective.init(jax.random.key(1), energy, batch)
        step = jax.jit(lambda state, k, o=objective, e=energy, x=batch: o.loss(e, x, k, state))
        for i in range(100):
            loss, (state, metrics) = step(state, jax.random.key(i))
        found.append(float(metrics["scale"]))
        assert 0.45 < float(loss) / (2 * np.log(2)) < 0.95
    assert 50 < found[0] / found[1] < 200


def test_bad_settings_are_refused_in_one_sentence(key):
    law = dist.Normal(jnp.zeros(2), 1.0)
    with pytest.raises(ValueError, match="one point"):
        ef.nce(law)
    with pytest.raises(TypeError, match="log_prob"):
        ef.ranking_nce(lambda key, shape: None)
    with pytest.raises(ValueError, match="num_noise"):
        ef.nce(law.to_event(1), 0)
    with pytest.raises(ValueError, match="scale"):
        ef.conditional_nce(scale=-1.0)
    for objective in (ef.nce(law.to_event(1)), ef.conditional_nce()):
        with pytest.raises(ValueError, match="landscape"):
            ef.init(0, ef.landscape(net(0, 2)), objective, optax.sgd(0.1), jnp.ones((3, 2)))


def test_new_weights_and_noise_compile_nothing(count_compilations, key):
    batch, optimizer = jax.random.normal(key, (8, 2)), optax.sgd(0.1)
    other = batch + 1
    laws = [dist.Normal(jnp.zeros(2), jnp.full(2, s)).to_event(1) for s in (1.0, 2.0)]
    for build in (ef.nce, ef.ranking_nce, lambda _: ef.conditional_nce(3)):
        objective = build(laws[0])
        state = ef.init(0, ef.normalised(net(0, 2)), objective, optimizer, batch)
        state, _ = ef.make_step(objective, optimizer)(state, batch)
        objective = build(laws[1])
        with count_compilations() as made:
            state, metrics = ef.make_step(objective, optimizer)(state, other)
        assert made.count == 0 and np.isfinite(metrics["loss"])
