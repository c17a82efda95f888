"""Objectives are interchangeable: each from its one file, all through one loop, and training knows none of them."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from flax import nnx

import energyflow as ef
from energyflow import training

pytestmark = [pytest.mark.lenient("numpyro", "optax"), pytest.mark.blackjax_promotes("dual_averaging")]

BASE = dist.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1)
SIGMAS = (2.0, 1.0, 0.5)


def tilted():
    return ef.tilt(ef.mlp(0, 2, (8,)), BASE)


def fields():
    return ef.energies.mlp_field(0, 2, (8,))


def noisy():
    return ef.energies.noise_conditional_mlp(0, 2, (8,))


def potential():
    return ef.tempered(ef.mlp(0, 2, (8,)), 0.1)


def levels():
    return ef.level_mlp(0, 2, 7, (8,))


def two_classes():
    return ef.classifier_energy(ef.energies.nets.MLP(2, (8,), num_outputs=2, rngs=nnx.Rngs(0)), 0.1)


def velocity():
    net = ef.mlp(0, 4, (8,))
    return jax.tree_util.Partial(_average_velocity, net)


def _average_velocity(net, z, r, t):
    return net(jnp.append(z, jnp.stack([r, t]))) * z


OBJECTIVES = {  # name: (file, energy, objective)
    "cd": ("contrastive", tilted, lambda: ef.contrastive(ef.cd(ef.mala(0.1), 2))),
    "pcd": ("contrastive", tilted, lambda: ef.contrastive(ef.pcd(ef.ula(0.01), 2))),
    "jarzynski": ("contrastive", tilted, lambda: ef.contrastive(ef.jarzynski(ef.mala(0.1)))),
    "score matching": ("score", tilted, ef.score_matching),
    "sliced": ("score", tilted, ef.sliced_score_matching),
    "finite differences": ("score", tilted, ef.finite_difference_score_matching),
    "denoising": ("score", tilted, lambda: ef.denoising_score_matching(0.1)),
    "nce": ("nce", lambda: ef.normalised(tilted()), lambda: ef.nce(BASE)),
    "ranking": ("nce", tilted, lambda: ef.ranking_nce(BASE)),
    "conditional": ("nce", tilted, ef.conditional_nce),
    "flow-contrastive": ("nce", lambda: ef.with_noise(tilted(), ef.flow(0, np.eye(2), (4,), 1)), ef.flow_contrastive),
    "maximum likelihood": ("nce", lambda: ef.flow(0, np.eye(2), (4,), 1), ef.maximum_likelihood),
    "dual score": ("dual_score", noisy, lambda: ef.dual_score_matching(0.1, 3.0)),
    "levels": ("level_classification", noisy, lambda: ef.noise_level_classification(SIGMAS)),
    "improved": ("improved_cd", tilted, lambda: ef.improved_contrastive(ef.cd(ef.mala(0.1), 2), step_size=0.1)),
    "recovery": ("recovery", levels, lambda: ef.recovery_likelihood(ef.linear_diffusion(6), 2)),
    "diffusion-assisted": (
        "diffusion_assisted",
        levels,
        lambda: ef.diffusion_assisted(ef.cumulative_diffusion(6), ef.mala(0.1), 2, num_chains=8),
    ),
    "diffusion contrastive": ("diffusion_cd", tilted, lambda: ef.diffusion_contrastive(0.05)),
    "joint": ("joint", two_classes, lambda: ef.joint(ef.cd(ef.mala(0.1), 2))),
    "transport": ("energy_matching", potential, lambda: ef.transport_matching(BASE)),
    "energy matching": ("energy_matching", potential, lambda: ef.energy_matching(BASE)),
    "equilibrium": ("equilibrium", fields, ef.equilibrium_matching),
    "mean flow": ("students", velocity, ef.mean_flow),
    "reverse KL": ("students", lambda: ef.flow(0, np.eye(2), (4,), 1), lambda: ef.reverse_kl(tilted(), 8)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_same_loop_trains_each(name, key):
    file, energy, objective = OBJECTIVES[name]
    objective, optimizer = objective(), optax.sgd(1e-3)
    assert objective.loss.func.__module__ == f"energyflow.objectives.{file}"
    batch = jax.random.normal(key, (16, 2))
    batch = (batch, (batch[:, 0] > 0).astype(int)) if name == "joint" else batch
    state = ef.init(0, energy(), objective, optimizer, batch)
    before = jax.tree.leaves(ef.energy.partition(state.energy)[0])
    *_, (state, metrics) = ef.train(state, ef.make_step(objective, optimizer), [batch] * 2)
    after = jax.tree.leaves(ef.energy.partition(state.energy)[0])
    assert all(np.isfinite(float(value)) for value in metrics.values())
    assert any((a != b).any() for a, b in zip(before, after, strict=True))


def test_no_file_of_objectives_is_left_out():
    files = {path.stem for path in Path(ef.objectives.__file__).parent.glob("*.py")} - {"__init__", "stateless"}
    assert files == {file for file, _, _ in OBJECTIVES.values()}


def test_training_knows_no_objective():
    """The step and the loop import what an energy is and nothing of this family."""
    tree = ast.parse(Path(training.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {m for m in modules if m.startswith("energyflow")} == {"energyflow.energy", "energyflow.types"}
