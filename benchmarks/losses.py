"""Every loss by hand: the equations of each objective in plain JAX on arrays of weights, batch by batch.

A training step of the library is timed against a jitted step made of these: the same equations, as many random numbers,
the same optimiser, and nothing around them. Networks are the MLP 2-128-128-1 (or -2 for a field), batches 256 rows.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from jax.nn import log_softmax, logsumexp, silu, softplus

import energyflow as ef

DIM, HIDDEN, BATCH = 2, (128, 128), 256
SIGMAS = tuple(np.geomspace(4.0, 0.1, 12))
NOISE = dist.Normal(jnp.zeros(DIM), jnp.full(DIM, 1.5)).to_event(1)
FLOW = ef.flow(0, jax.random.normal(jax.random.key(3), (512, DIM)), (64,), 2)


def rows():
    return jax.random.normal(jax.random.key(7), (BATCH, DIM))


def weights(widths, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(widths))
    pairs = zip(keys, widths[:-1], widths[1:], strict=False)
    return [(jax.random.normal(k, (m, n)) / m**0.5, jnp.zeros(n)) for k, m, n in pairs]


def net(params, x):
    """Values (..., num_outputs) at points (..., dim)."""
    *inner, (last, bias) = params
    for w, b in inner:
        x = silu(x @ w + b)
    return x @ last + bias


def energies(params, x):
    """Values at points (..., dim), all in one axis: products of more axes are slower."""
    return net(params, x.reshape(-1, x.shape[-1])).reshape(x.shape[:-1])


def scores(params, x):
    return jax.grad(lambda x: -jnp.sum(energies(params, x)))(x)


def log_noise(y):
    return -jnp.sum((y / 1.5) ** 2, axis=-1) / 2 - DIM * math.log(1.5 * (2 * math.pi) ** 0.5)


def exact(params, x, key):
    s, push = jax.linearize(lambda x: scores(params, x), x)
    trace = sum(push(jnp.zeros_like(x).at[:, i].set(1.0))[:, i] for i in range(DIM))
    return jnp.mean(0.5 * jnp.sum(s**2, axis=1) + trace)


def sliced(params, x, key):
    v = jax.random.rademacher(key, x.shape, x.dtype)
    s, turn = jax.jvp(lambda x: scores(params, x), (x,), (v,))
    return jnp.mean(0.5 * jnp.sum(s**2, axis=1) + jnp.sum(v * turn, axis=1))


def differences(params, x, key, step=0.03):
    v = jax.random.normal(key, x.shape)
    v = step * v / jnp.linalg.norm(v, axis=1, keepdims=True)
    here, up, down = -energies(params, jnp.stack([x, x + v, x - v]))
    return DIM / step**2 * jnp.mean((up - down) ** 2 / 8 + up + down - 2 * here)


def denoising(params, x, key, sigma=0.1):
    z = jax.random.normal(key, x.shape)
    return jnp.mean(0.5 * jnp.sum((sigma * scores(params, x + sigma * z) + z) ** 2, axis=1))


def binary(both, x, key, num=4):
    params, log_z = both
    y = 1.5 * jax.random.normal(key, (BATCH, num, DIM))
    real, fake = (-energies(params, p) - log_z - log_noise(p) for p in (x, y))
    return jnp.mean(softplus(math.log(num) - real)) + num * jnp.mean(softplus(fake - math.log(num)))


def ranking(params, x, key, num=16):
    y = 1.5 * jax.random.normal(key, (BATCH, num, DIM))
    real, fake = (-energies(params, p) - log_noise(p) for p in (x, y))
    return jnp.mean(jnp.logaddexp(real, logsumexp(fake, axis=1)) - real)


def conditional(params, x, key, num=10, scale=0.5):
    y = x[:, None] + scale * jax.random.normal(key, (BATCH, num, DIM))
    return 2 * jnp.mean(softplus(energies(params, x)[:, None] - energies(params, y)))


def likelihood(flow, x, key):
    return -jnp.mean(flow.distribution.log_prob(x))


def reverse(flow, x, key):
    y = flow.distribution.sample(key, (BATCH,))
    return jnp.mean(flow.distribution.log_prob(y) + jnp.sum(y**2, axis=1) / 2)


def contest(all_three, x, key):
    (params, log_z), flow = all_three
    still = jax.lax.stop_gradient

    def loss(params, log_z, flow):
        y = flow.distribution.sample(key, (BATCH,))
        real, fake = (-energies(params, p) - log_z - flow.distribution.log_prob(p) for p in (x, y))
        return jnp.mean(softplus(-real)) + jnp.mean(softplus(fake))

    return loss(params, log_z, still(flow)) - loss(still(params), still(log_z), flow)


def conditioned(params, x, sigma):
    """The energy of `noise_conditional_mlp` with scale 1: points (..., dim), sigma (...)."""
    v = 1 + sigma**2
    white = x / jnp.sqrt(v)[..., None]
    values = energies(params, jnp.concatenate([white, jnp.log(sigma)[..., None] / 4], axis=-1))
    gaussian = jnp.sum(white**2, axis=-1) / 2 + DIM / 2 * jnp.log(2 * math.pi * v)
    return gaussian + values / jnp.sqrt(v)


def dual(params, x, key):
    level_key, noise_key = jax.random.split(key)
    sigma = jnp.exp(jax.random.uniform(level_key, (BATCH,), float, math.log(SIGMAS[-1]), math.log(SIGMAS[0])))
    z = jax.random.normal(noise_key, x.shape)
    slopes = jax.grad(lambda y, sigma: jnp.sum(conditioned(params, y, sigma)), (0, 1))(x + sigma[:, None] * z, sigma)
    time = (1 - jnp.mean(z**2, axis=1)) / 2 - sigma / (2 * DIM) * slopes[1]
    return jnp.mean((z - sigma[:, None] * slopes[0]) ** 2) + jnp.mean(time**2)


def levels(params, x, key):
    first_key, own_key, noise_key = jax.random.split(key, 3)
    first = jax.random.randint(first_key, (BATCH,), 0, len(SIGMAS) - 1)
    own = jax.random.randint(own_key, (BATCH,), 0, 2)
    pair = jnp.asarray(SIGMAS)[first[:, None] + jnp.arange(2)]
    sigma = jnp.take_along_axis(pair, own[:, None], axis=1)[:, 0]
    z = jax.random.normal(noise_key, x.shape)
    y = x + sigma[:, None] * z
    slopes = jax.grad(lambda y: jnp.sum(conditioned(params, y, sigma)))(y)
    log_shares = log_softmax(-conditioned(params, jnp.stack([y, y], axis=1), pair), axis=1)
    right = jnp.take_along_axis(log_shares, own[:, None], axis=1)
    return jnp.mean(0.5 * jnp.sum((z - sigma[:, None] * slopes) ** 2, axis=1)) - jnp.mean(right)


def regression(params, x0, x1, t, gates):
    slopes = jax.grad(lambda x: jnp.sum(energies(params, x)))((1 - t) * x0 + t * x1)
    return jnp.mean(gates * (slopes + x1 - x0) ** 2)


def transport(params, x, key):
    """The flow of Energy Matching, from independent pairs: both sides would spend their time on an exact pairing."""
    source_key, time_key, noise_key = jax.random.split(key, 3)
    x0, t = jax.random.normal(source_key, x.shape), jax.random.uniform(time_key, (BATCH, 1))
    return regression(params, x0 + 0 * jax.random.normal(noise_key, x.shape), x, t, 1.0)


def matching(params, x, key, steps=20, dt=0.01, temperature=0.05):
    keys = jax.random.split(key, 5)
    x = x[jax.random.permutation(keys[0], BATCH)]
    first, second = x[: BATCH // 2], x[BATCH // 2 :]
    t = jax.random.uniform(keys[1], (BATCH // 2, 1))
    gates = jnp.where(t < 0.8, 1.0, (1 - t) / 0.2)
    flow = regression(params, jax.random.normal(keys[2], first.shape), first, t, gates)
    half = BATCH // 4
    y = jnp.concatenate([second[:half], jax.random.normal(keys[3], (half, DIM))])
    clock = jnp.concatenate([jnp.ones(half), jnp.zeros(half)])[:, None]

    def move(y, i):
        noise = temperature * jnp.clip((clock + i * dt - 0.8) / 0.2, 0.0, 1.0)
        z = jax.random.normal(jax.random.fold_in(keys[4], i), y.shape)
        return y + dt * scores(params, y) + jnp.sqrt(2 * dt * noise) * z, None

    y = jax.lax.stop_gradient(jax.lax.scan(move, y, jnp.arange(steps))[0])
    return flow + jnp.mean(energies(params, second)) - jnp.mean(energies(params, y))


def way(params, x, key, slope):
    gamma_key, noise_key = jax.random.split(key)
    g, e = jax.random.uniform(gamma_key, (BATCH, 1)), jax.random.normal(noise_key, x.shape)
    decay = jnp.where(g < 0.8, 1.0, (1 - g) / 0.2)
    return jnp.mean((slope(params, g * x + (1 - g) * e) - 4 * decay * (e - x)) ** 2)


def field(params, x, key):
    return way(params, x, key, net)


def dot(params, x, key):
    return way(params, x, key, lambda p, x: jax.grad(lambda x: jnp.sum(x * net(p, x)))(x))


def velocity(params, z, r, t):
    return net(params, jnp.concatenate([z, jnp.stack([r, t], axis=-1)], axis=-1))


def average(params, x, key):
    noise_key, time_key, coin_key = jax.random.split(key, 3)
    e = jax.random.normal(noise_key, x.shape)
    times = jax.nn.sigmoid(jax.random.normal(time_key, (2, BATCH)) - 0.4)
    t = times.max(axis=0)
    r = jnp.where(jax.random.bernoulli(coin_key, 0.75, (BATCH,)), t, times.min(axis=0))
    z, v = (1 - t)[:, None] * x + t[:, None] * e, e - x
    u, change = jax.jvp(lambda z, r, t: velocity(params, z, r, t), (z, r, t), (v, 0 * r, jnp.ones_like(t)))
    misses = jnp.sum((u - jax.lax.stop_gradient(v - (t - r)[:, None] * change)) ** 2, axis=1)
    return jnp.mean(misses / jax.lax.stop_gradient(misses + 0.01))


SCALAR, VECTOR = (DIM, *HIDDEN, 1), (DIM, *HIDDEN, DIM)
MLP = weights(SCALAR)
NOISY = weights((DIM + 1, *HIDDEN, 1))
SOURCE = dist.Normal(jnp.zeros(DIM), jnp.ones(DIM)).to_event(1)


def scalar():
    return ef.mlp(0, DIM, HIDDEN)


def with_log_z():
    return ef.normalised(scalar(), 0.0)


def noisy():
    return ef.energies.noise_conditional_mlp(0, DIM, HIDDEN)


def potential():
    return ef.tempered(scalar(), 0.05)


def vector():
    return ef.energies.mlp_field(0, DIM, HIDDEN)


def standard(x):
    return jnp.sum(x**2) / 2


def short_transport():
    return ef.transport_run(SOURCE, 20)


# name: (energy, objective) of the library, (weights, loss) by hand
LOSSES = {
    "score matching": (scalar, ef.score_matching, MLP, exact),
    "sliced": (scalar, ef.sliced_score_matching, MLP, sliced),
    "finite differences": (scalar, ef.finite_difference_score_matching, MLP, differences),
    "denoising": (scalar, lambda: ef.denoising_score_matching(0.1), MLP, denoising),
    "nce": (with_log_z, lambda: ef.nce(NOISE, 4), (MLP, jnp.zeros(())), binary),
    "ranking nce": (scalar, lambda: ef.ranking_nce(NOISE, 16), MLP, ranking),
    "conditional nce": (scalar, lambda: ef.conditional_nce(10, scale=0.5), MLP, conditional),
    "flow-contrastive": (
        lambda: ef.with_noise(with_log_z(), FLOW),
        ef.flow_contrastive,
        ((MLP, jnp.zeros(())), FLOW),
        contest,
    ),
    "dual score matching": (noisy, lambda: ef.dual_score_matching(SIGMAS[-1], SIGMAS[0]), NOISY, dual),
    "noise levels": (noisy, lambda: ef.noise_level_classification(SIGMAS, num_levels=2), NOISY, levels),
    "transport matching": (
        potential,
        lambda: ef.transport_matching(SOURCE, ef.couplings.independent),
        MLP,
        transport,
    ),
    "energy matching": (
        potential,
        lambda: ef.energy_matching(SOURCE, ef.couplings.independent, negatives=short_transport()),
        MLP,
        matching,
    ),
    "eqm field": (vector, ef.equilibrium_matching, weights(VECTOR), field),
    "eqm dot": (lambda: ef.energies.dot_energy(vector()), ef.equilibrium_matching, weights(VECTOR), dot),
    "mean flow": (
        lambda: ef.mlp_velocity(0, DIM, HIDDEN),
        ef.mean_flow,
        weights((DIM + 2, *HIDDEN, DIM)),
        average,
    ),
    "maximum likelihood": (lambda: FLOW, ef.maximum_likelihood, FLOW, likelihood),
    "reverse kl": (lambda: FLOW, lambda: ef.reverse_kl(standard, BATCH), FLOW, reverse),
}


def by_hand(params, loss, optimizer):
    """Return a step without arguments: a gradient, an update, and the loss and the norm that any log keeps."""
    params, rest = ef.energy.partition(params)

    @jax.jit
    def step(params, opt_state, key, x):
        key, own = jax.random.split(key)
        value, gradient = jax.value_and_grad(lambda p: loss(ef.energy.combine(p, rest), x, own))(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, key, value, optax.tree.norm(gradient)

    state, x = [params, optimizer.init(params), jax.random.key(0)], rows()

    def run():
        *new, value, _ = step(*state, x)
        state[:] = new
        return value

    return run


def by_library(energy, objective, optimizer):
    state, x = [ef.init(0, energy, objective, optimizer, rows())], rows()
    step = ef.make_step(objective, optimizer)

    def run():
        state[0], metrics = step(state[0], x)
        return metrics["loss"]

    return run


def loss_case(name):
    energy, objective, params, loss = LOSSES[name]
    optimizer = optax.adam(1e-4)
    return {"ours": by_library(energy(), objective(), optimizer), "by hand": by_hand(params, loss, optimizer)}
