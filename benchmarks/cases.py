"""The work measured: this library, the bare gradients it must compute, and raw BlackJAX, on the same energies."""

import functools

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from flax import nnx
from jax.nn import logsumexp
from losses import LOSSES, loss_case
from peers import torch_step

import energyflow as ef
from energyflow.logz.anneal import anneal_forward
from energyflow.logz.path import annealing_path

SHAPES = {"mlp": (2,), "cnn": (28, 28, 1)}
BATCH = {"mlp": 256, "cnn": 64}


def energy_of(net):
    """The MLP 2-128-128-1 or a CNN on 28x28 images, both with a confining term."""
    if net == "mlp":
        return ef.mlp(0, 2, (128, 128), confinement=0.05)
    return ef.cnn(0, (28, 28, 1), confinement=0.05)


def points(net, seed=0):
    return jax.random.normal(jax.random.key(seed), (BATCH[net], *SHAPES[net]))


def bare_gradients(num, unroll):
    """The fastest form of `num` dependent energy gradients of a batch: nothing but x + h grad."""

    def run(energy, x, *cond):
        gradient = jax.vmap(jax.grad(lambda x, *cond: -energy(x, *cond)))
        return jax.lax.scan(lambda x, _: (x + 1e-4 * gradient(x, *cond), None), x, length=num, unroll=unroll)[0]

    return run


def contrast(energy, rows, negatives, *cond):
    return jnp.mean(jax.vmap(energy)(rows, *cond)) - jnp.mean(jax.vmap(energy)(negatives, *cond))


def bare_step(energy, rows, negatives, num_gradients, unroll, optimizer, loss=contrast, cond=()):
    """One training step by hand: bare gradients for the negatives, one loss gradient, one optimiser update."""
    chain = bare_gradients(num_gradients, unroll)

    @jax.jit
    def step(energy, opt_state, negatives):
        negatives = jax.lax.stop_gradient(chain(energy, negatives, *cond))
        params, rest = ef.energy.partition(energy)
        gradient = jax.grad(lambda p: loss(ef.energy.combine(p, rest), rows, negatives, *cond))(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return ef.energy.combine(optax.apply_updates(params, updates), rest), opt_state, negatives

    state = [energy, optimizer.init(ef.energy.partition(energy)[0]), negatives]

    def run():
        state[:] = step(*state)
        return state[2]

    return run


def bounds(*arguments, **settings):
    """Both forms of the bound: a scan and straight code."""
    *head, optimizer = arguments
    return {
        f"bound ({name})": bare_step(*head, unroll, optimizer, **settings)
        for name, unroll in (("scan", False), ("unrolled", True))
    }


def library_step(energy, objective, optimizer, batch):
    state = [ef.init(0, energy, objective, optimizer, batch)]
    step = ef.make_step(objective, optimizer)

    def run():
        state[0], metrics = step(state[0], batch)
        return metrics

    return run


# name: kernel, transitions per draw, energy gradients per draw (those of the start of adjusted kernels included)
PHASES = {
    "ula": (ef.ula(1e-4), 20, 20),
    "sgld": (ef.sgld(1e-4, 0.5), 20, 20),
    "mala": (ef.mala(1e-4), 20, 21),
    "hmc": (ef.hmc(1e-2, 5), 4, 21),
}


def pcd_case(net, phase):
    """One PCD step: as many persistent chains as the batch has rows."""
    kernel, num_steps, gradients = PHASES[phase]
    optimizer, x = optax.adam(1e-4), points(net)
    return {
        "ours": library_step(energy_of(net), ef.contrastive(ef.pcd(kernel, num_steps)), optimizer, x),
        **bounds(energy_of(net), x, points(net, 1), gradients, optimizer),
        **torch_step(net, phase, x),
    }


def drl_case(num_steps=20):
    """One step of recovery likelihood with MALA, its levels drawn anew, against gradients at fixed ones."""
    energy, optimizer, x = ef.level_mlp(0, 2, 6, (128, 128)), optax.adam(1e-4), points("mlp")
    objective = ef.recovery_likelihood(ef.linear_diffusion(6), num_steps)
    levels = jnp.arange(BATCH["mlp"]) % 6
    return {
        "ours": library_step(energy, objective, optimizer, x),
        **bounds(energy, x, points("mlp", 1), num_steps + 1, optimizer, cond=(levels,)),
    }


def jem_case(net, num_steps=20):
    """One step of JEM with 20 Langevin moves of step 1 and a buffer of 1000: 64 chains, each net with ten logits."""
    shape, nets, settings = SHAPES[net], ef.energies.nets, {"num_outputs": 10, "rngs": nnx.Rngs(0)}
    if net == "mlp":
        shape, module = (64,), nets.MLP(64, (256, 256), **settings)
    else:
        module = nets.CNN(shape, **settings)
    optimizer, x = optax.adam(1e-4), jax.random.normal(jax.random.key(0), (64, *shape))
    y, energy = jnp.arange(64) % 10, ef.classifier_energy(module)
    negatives = ef.replay(ef.langevin(1.0, 0.01), num_steps, capacity=1000, num_chains=64, start=ef.from_uniform())
    return {
        "ours": library_step(energy, ef.joint(negatives), optimizer, (x, y)),
        **bounds(energy, (x, y), x, num_steps, optimizer, loss=joint_loss),
    }


def joint_loss(energy, rows, negatives):
    logits = jax.vmap(energy.logits)(rows[0])
    entropy = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, rows[1]))
    return entropy - jnp.mean(logsumexp(logits, axis=1)) - jnp.mean(jax.vmap(energy)(negatives))


def sampling_case(kernel_name, num_chains=256, num_draws=500):
    """Draws on a 10-d Gaussian: positions kept, against raw BlackJAX in a jitted scan that keeps positions."""
    scale = jnp.linspace(0.5, 2.0, 10)
    target = ef.logdensity(functools.partial(_gaussian, scale))
    start = jax.random.normal(jax.random.key(0), (num_chains, 10))
    ours, raw = {
        "mala": (ef.mala(0.3), blackjax.mala(target, 0.3)),
        "hmc": (ef.hmc(0.3, 5), blackjax.hmc(target, 0.3, jnp.ones(10), 5)),
    }[kernel_name]

    @jax.jit
    def plain(key, start):
        def chain(key, x):
            def move(state, key):
                state, info = raw.step(key, state)
                return state, (state.position, state.logdensity, info.acceptance_rate)

            return jax.lax.scan(move, raw.init(x), jax.random.split(key, num_draws))[1]

        return jax.vmap(chain)(jax.random.split(key, num_chains), start)

    return {
        "ours": lambda: ef.sample_chains(0, ours, target, start, num_draws).position,
        "raw blackjax": lambda: jax.tree.map(np.asarray, plain(jax.random.key(0), start)),
    }


def _gaussian(scale, x):
    return 0.5 * jnp.sum((x / scale) ** 2)


def ais_case(net, num_temperatures=100):
    """Forward annealing with MALA, against the same number of gradients, K + 1 a chain."""
    shape, num = SHAPES[net], BATCH[net]
    base = dist.Normal(jnp.zeros(shape), jnp.ones(shape)).to_event(len(shape))
    energy = energy_of(net)
    path, betas = annealing_path(ef.tilt(energy, base)), np.linspace(0, 1, num_temperatures + 1)
    x = base.sample(jax.random.key(0), (num,))
    bare = {name: jax.jit(bare_gradients(10, unroll)) for name, unroll in (("scan", False), ("unrolled", True))}

    def blocks(run):
        def chain():
            y = x
            for _ in range(num_temperatures // 10):
                y = run(energy, y)
            return y

        return chain

    key = jax.random.key(1)
    return {
        "ours": lambda: anneal_forward(key, path, ef.mala(1e-4), betas, None, x).log_weights,
        "bound (scan)": blocks(bare["scan"]),
        "bound (unrolled)": blocks(bare["unrolled"]),
    }


CASES = {
    **{f"sample {name}": functools.partial(sampling_case, name) for name in ("mala", "hmc")},
    **{f"pcd {net} {phase}": functools.partial(pcd_case, net, phase) for net in SHAPES for phase in PHASES},
    "drl mala": drl_case,
    **{f"jem {net} langevin": functools.partial(jem_case, net) for net in SHAPES},
    **{f"loss {name}": functools.partial(loss_case, name) for name in LOSSES},
    **{f"ais {net} mala": functools.partial(ais_case, net) for net in SHAPES},
}
