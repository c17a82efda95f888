"""Floor 4: choosing a step size with many chains: to an acceptance rate first, then by what it buys per gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.step_size import dual_averaging_adaptation

from energyflow.chains import advance_chains, count_chains, sample_chains, start_cost
from energyflow.energy import as_energy
from energyflow.kernels.algorithm import is_adjusted, step_size, with_step_size
from energyflow.mixing import rank_statistics, suspect_dims
from energyflow.types import Kernel, Key, LogDensity, Tree, as_key

MULTIPLES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)


class Candidate(NamedTuple):
    """One step size judged: its acceptance, rms jump and smallest bulk ESS per thousand gradients (or transitions)."""

    step_size: float
    acceptance_rate: float
    jump_distance: float
    ess_per_1000: float


class Tuned(NamedTuple):
    """kernel: with the step size chosen. position: where the chains are now. candidates: the table it was chosen from.

    num_gradients: what tuning cost.
    """

    kernel: Kernel
    position: Tree
    candidates: list[Candidate]
    num_gradients: int

    def __str__(self) -> str:
        chosen = float(step_size(self.kernel))
        rows = [
            f"{'*' if np.isclose(c.step_size, chosen) else ' '} {c.step_size:10.4g} {c.acceptance_rate:10.3f} "
            f"{c.jump_distance:10.4g} {c.ess_per_1000:10.4g}"
            for c in self.candidates
        ]
        head = f"  {'step size':>10} {'acceptance':>10} {'jump':>10} {'ESS/1000':>10}"
        return "\n".join([head, *rows])


def require_acceptance(kernel: Kernel, logdensity: LogDensity, position: Tree) -> None:
    """Raise ValueError for a kernel without an accept step; position: leading axis [chain]."""
    if not is_adjusted(kernel, logdensity, jax.tree.map(lambda x: jnp.asarray(x)[0], position)):
        raise ValueError("a kernel without an accept step has no acceptance rate to tune by; choose its step by hand")


def tune(
    key: Key | int,
    kernel: Kernel,
    logdensity: LogDensity,
    position: Tree,
    *,
    target_acceptance: float = 0.6,
    num_rounds: int = 50,
    moves_per_round: int = 5,
    num_draws: int = 200,
) -> Tuned:
    """Tune the step size of an adjusted kernel over the chains in `position`, leading axis [chain].

    First dual averaging (Nesterov 2009; Hoffman and Gelman 2014) of the acceptance pooled over chains to
    `target_acceptance`, `num_rounds` rounds, begun again half-way. Then multiples 0.5 to 2.8 of that step each draw
    `num_draws` from every chain, and the one with the largest smallest-dimension bulk ESS per gradient wins: a step
    accepted a third of the time may, and with separated modes often does, beat the classical rate.
    Raises ValueError for kernels without a step size or without an accept step.
    """
    key = as_key(key)
    kernel, logdensity = as_energy(kernel), as_energy(logdensity)
    require_acceptance(kernel, logdensity, position)
    averaging_key, judging_key = jax.random.split(key)
    init, update, final = dual_averaging_adaptation(target_acceptance)
    state, spent = init(jnp.asarray(step_size(kernel), dtype=float)), 0
    for i in range(num_rounds):
        if i == num_rounds // 2:
            # The average would remember how far away the start was: begin it again. The third, because dual averaging
            # aims at ten times what it is given, and an overshoot costs more where rates fall off a cliff.
            state = init(jnp.exp(state.log_step_size) / 3)
        trial = with_step_size(kernel, jnp.exp(state.log_step_size))
        round_key = jax.random.fold_in(averaging_key, i)
        position, metrics = advance_chains(round_key, trial, logdensity, position, moves_per_round)
        state = update(state, metrics["acceptance_rate"])
        spent += int(metrics["num_gradients"])
    step = float(final(state))
    candidates = []
    for i, multiple in enumerate(MULTIPLES):
        trial = with_step_size(kernel, jnp.float32(step * multiple))
        trace = sample_chains(jax.random.fold_in(judging_key, i), trial, logdensity, position, num_draws)
        candidate, gradients = _judge(step * multiple, trace, count_chains(position))
        candidates.append(candidate)
        spent += gradients
    best = max(candidates, key=lambda c: c.ess_per_1000)
    return Tuned(with_step_size(kernel, best.step_size), position, candidates, spent)


def _judge(step: float, trace: Any, num_chains: int) -> tuple[Candidate, int]:
    draws = np.concatenate([x.reshape(*x.shape[:2], -1) for x in jax.tree.leaves(trace.position)], axis=-1)
    ess = float(np.nanmin([rank_statistics(draws[..., dim])[1] for dim in suspect_dims(draws)]))
    gradients = int(np.sum(trace.stats.num_gradients, dtype=np.int64)) + start_cost(trace.final.state) * num_chains
    cost = gradients or num_chains * draws.shape[1]
    rate = float(np.mean(trace.stats.acceptance_rate))
    moved = float(np.sqrt(np.mean(np.square(trace.stats.jump_distance))))
    # A chain that never moves has an ESS equal to its number of draws.
    ess = 0.0 if rate < 1e-3 else ess
    return Candidate(step, rate, moved, 1000 * ess / cost), gradients
