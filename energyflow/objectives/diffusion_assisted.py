"""Floor 5: an energy of points at the levels of a diffusion, trained by chains that move over points and levels."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, register_dataclass

from energyflow.chains import count_chains, require_floats
from energyflow.diffusion import Diffusion, checked_diffusion
from energyflow.energy import as_energy, require_density, temperature
from energyflow.joint_levels import JointMoves, LevelSteps, checked_moves, joint_moves, start_steps
from energyflow.kernels.noise import normal_like
from energyflow.rows import per_row, some_rows
from energyflow.types import Array, Kernel, Key, Objective, Tree


class JointChains(NamedTuple):
    """Persistent chains: positions, leading axis [slot], their levels (slot,), and the step factors of the levels."""

    position: Tree
    level: Array
    steps: LevelSteps


@register_dataclass
@dataclass(frozen=True)
class DiffusionAssisted:
    """Settings of diffusion-assisted training. alphas, sigmas: (T + 1,), of the levels."""

    moves: JointMoves
    alphas: Array
    sigmas: Array
    steps: LevelSteps
    num_chains: int = field(metadata={"static": True})
    capacity: int = field(metadata={"static": True})


def diffusion_assisted(
    diffusion: Diffusion,
    kernel: Kernel,
    num_steps: int = 40,
    *,
    num_chains: int,
    capacity: int | None = None,
    num_rounds: int = 1,
    step_scales: Any = None,
    target_acceptance: float | None = 0.574,
    unroll: bool = False,
) -> Objective:
    """Return maximum likelihood of points and levels together, `(mean E(x_t, t) - mean E(x-, t-)) / T`.

    Zhang, Tan and Ou (2023). The energy `E(x, t)` defines `p(x, t) ~ exp(-E(x, t) / T)` over points and levels 0 ... T
    of the diffusion; data have uniform levels and are `alpha_t x_0 + sigma_t z`. The negatives are persistent chains
    that move at their level and then draw their level given their point, exactly: `num_rounds` times at each draw.
    At the optimum `E(x, 0)` is the energy of the data, and all levels have the same log Z (see `free_log_z`).
    kernel: one with an accept step, whose step size times `step_scales[t]` is the step at level t: sigma_t^2 by
    default, and the first noisy level's for the clean one. target_acceptance: what the step of each level adapts to
    as it trains; None holds it. num_chains: that move and are used at each draw, of `capacity` persistent ones (as
    many by default). They begin at N(0, I), their levels spread evenly, and stay in their slots.
    Bring data to mean 0 and a standard deviation of about 1. `joint_chain` goes on from the state after training.
    Metrics: those of the moves, `gap`, both energies, `level_moves` (the share of draws of a level that changed it),
    `level_entropy` of all chains (1 for evenly spread ones) and `largest_level`, the share of the level with most of
    them: levels too far apart leave chains where they are; `smallest_step` and `largest_step`, of the levels.
    Raises ValueError for levels and settings that are none; refuses a landscape and integers when training starts.
    """
    levels = checked_diffusion(diffusion)
    size = num_chains if capacity is None else capacity
    if not 1 <= num_chains <= size:
        raise ValueError(f"need a chain or more and a capacity for them; got {num_chains} and {size}")
    moves = checked_moves(kernel, target_acceptance, num_steps, num_rounds, unroll)
    alphas, sigmas = (jnp.asarray(x, float) for x in levels)
    settings = DiffusionAssisted(moves, alphas, sigmas, start_steps(levels, step_scales), num_chains, size)
    return Objective(Partial(_init, settings), Partial(_loss, settings))


def _init(settings: DiffusionAssisted, key: Key, energy: Any, batch: Tree) -> JointChains:
    require_density(energy, "diffusion-assisted training")
    require_floats(batch)
    like = jax.tree.map(lambda x: jnp.zeros((settings.capacity, *x.shape[1:]), x.dtype), batch)
    level = jnp.arange(settings.capacity, dtype=jnp.int32) % len(settings.alphas)
    return JointChains(normal_like(key, like), level, settings.steps)


def _loss(settings: DiffusionAssisted, energy: Any, batch: Tree, key: Key, state: JointChains) -> Any:
    data_key, row_key, move_key = jax.random.split(key, 3)
    energy = as_energy(energy)
    data = diffused(settings.alphas, settings.sigmas, data_key, batch)
    rows = _rows(settings, row_key)
    position, level = jax.tree.map(lambda x: x[rows], state.position), state.level[rows]
    position, level, steps, metrics = joint_moves(settings.moves, move_key, energy, position, level, state.steps)
    put = lambda store, new: store.at[rows].set(new)  # noqa: E731
    state = JointChains(jax.tree.map(put, state.position, position), put(state.level, level), steps)
    real, model = (jnp.mean(jax.vmap(energy)(*pairs)) for pairs in (data, (position, level)))
    metrics = metrics | {"gap": model - real, "energy_data": real, "energy_model": model}
    metrics = metrics | _of_levels(settings, state)
    return (real - model) / jax.lax.stop_gradient(temperature(energy)), (state, metrics)


def diffused(alphas: Array, sigmas: Array, key: Key, batch: Tree) -> tuple[Tree, Array]:
    """Return the rows of a batch at levels, `alpha_t x + sigma_t z`, and the levels, (B,).

    The level of a row is uniform, and the levels of a batch differ in number by at most one.
    """
    first_key, noise_key = jax.random.split(key)
    first = jax.random.randint(first_key, (), 0, len(alphas))
    level = (first + jnp.arange(count_chains(batch))) % len(alphas)

    def mix(x: Array, z: Array) -> Array:
        alpha, sigma = (per_row(v[level], x).astype(x.dtype) for v in (alphas, sigmas))
        return alpha * x + sigma * z

    return jax.tree.map(mix, batch, normal_like(noise_key, batch)), level


def _rows(settings: DiffusionAssisted, key: Key) -> Array:
    if settings.num_chains == settings.capacity:
        return jnp.arange(settings.capacity)
    return some_rows(key, settings.capacity, settings.num_chains)


def _of_levels(settings: DiffusionAssisted, state: JointChains) -> dict[str, Array]:
    num = len(settings.alphas)
    shares = jnp.mean(jax.nn.one_hot(state.level, num), axis=0)
    sizes = settings.moves.kernel.keywords["step_size"] * state.steps.scales  # type: ignore[attr-defined]
    return {
        "level_entropy": jnp.sum(jax.scipy.special.entr(shares)) / jnp.log(num),
        "largest_level": jnp.max(shares),
        "smallest_step": jnp.min(sizes),
        "largest_step": jnp.max(sizes),
    }
