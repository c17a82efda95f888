"""Floor 8: the evidence of a model as a bracket, with what supports each side, and models compared by it."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from energyflow.chains import count_chains
from energyflow.diagnostics import Check
from energyflow.energies.fitted import GaussianBase, gaussian_base
from energyflow.energy import as_energy
from energyflow.kernels.continuous import mala
from energyflow.logz.anneal import Annealed, anneal_forward, anneal_reverse
from energyflow.logz.bracket import require_invariant
from energyflow.logz.path import Path, annealing_path, pilot
from energyflow.logz.result import LogZ, combine
from energyflow.sampling import Sampled, run
from energyflow.stats import effective_sample_size, log_mean_exp, pareto_k
from energyflow.types import Kernel, Key, Tree, as_key
from energyflow.warmup import MAX_DENSE

GROUPS = 8
MAX_K = 0.7
"""The Pareto shape over which a mean of weights cannot be believed (Vehtari et al. 2024)."""
BLOCK = 128
"""Chains annealed at once: one program for every number of them."""
MOVES = (10, 40, 160)
"""Annealing moves that are tried; more than that are as many as the budget allows 128 chains in each direction."""
TRIAL = 2
"""Blocks of a trial."""
EFFECTIVE = 0.4
"""Share of a trial's chains that must be effective. Where chains mix at once, the error at equal gradients is then at
most 1.3 times that of many moves; where they mix slowly, fewer moves and more chains do better by far."""


class Evidence(NamedTuple):
    """log Z of a target with what its sides rest on; prints itself.

    log_z, lower, upper, stderr, ess, num_gradients: as in `LogZ`; the draws and their warm-up are counted too. verdict:
    that of the bracket, "unusable" where the Pareto shape of the weights is over 0.7, "unsupported" where the draws
    that the reverse chains started from are not healthy. bracket: the LogZ. check: of those draws, None where they are
    exact. base: what annealing started from, in words. k_hat: Pareto shape of the forward weights (see `pareto_k`).
    group_stderr: the error of log_z from eight groups of chains, which does not trust the weights' own variance.
    """

    log_z: float
    lower: float
    upper: float
    stderr: float
    group_stderr: float
    ess: float
    k_hat: float
    num_gradients: int
    verdict: str
    base: str
    check: Check | None
    bracket: LogZ
    setup: "_Setup"

    @property
    def gap(self) -> float:
        """Return upper - lower in nats."""
        return self.upper - self.lower

    def extend(self, key: Key | int, factor: float = 2.0) -> "Evidence":
        """Return the same estimate from `factor` times as many chains, those that were run included.

        The path, its temperatures and its steps stay as they are, so old and new chains count alike.
        """
        first, setup = self.bracket, self.setup
        forward_key, end_key, reverse_key = jax.random.split(as_key(key), 3)
        up, down = (max(1, round((factor - 1) * len(values))) for values in (first.forward, first.reverse))
        forward, back = _up(forward_key, setup, up), _down(reverse_key, setup, _some(end_key, setup.ends, down))
        return _evidence(
            setup,
            self.check,
            np.append(first.forward, forward.log_weights),
            np.append(first.reverse, -back.log_weights),
            _joined([first.position, forward.position]),
            first.acceptance,
            self.num_gradients + forward.num_gradients + back.num_gradients,
        )

    def __str__(self) -> str:
        support = (
            "exact draws" if self.check is None else f"{count_chains(self.setup.ends)} draws ({self.check.verdict})"
        )
        side = "upper bound" if self.bracket.provenance == "exact" else "approximate upper"
        return (
            f"log Z = {self.log_z:.3f} +- {max(self.stderr, self.group_stderr):.3f} ({self.verdict})\n"
            f"[{self.lower:.3f}, {self.upper:.3f}] gap {self.gap:.3f} nats; lower bound, {side}, each at 4 standard "
            f"errors\nfrom the {self.base} through {len(self.bracket.betas) - 1} moves to {support}; ESS "
            f"{self.ess:.1f} of {len(self.bracket.forward)} chains, Pareto k {self.k_hat:.2f}, {self.num_gradients} "
            "gradients"
        )


class _Setup(NamedTuple):
    """What all chains of an estimate share. ends: draws of the target that reverse chains may start at."""

    base: str
    path: Path
    kernel: Kernel
    betas: np.ndarray
    steps: np.ndarray | None
    ends: Tree


def log_z(
    key: Key | int,
    target: Any,
    base: Any = None,
    kernel: Kernel | None = None,
    budget: int = 500_000,
    *,
    num_chains: int | None = None,
    exact: Tree = None,
    sampled: Sampled | None = None,
) -> Evidence:
    """Bracket log Z of an energy, or the log evidence of what `from_numpyro` returns.

    base: a normalised distribution to anneal from. By default the target's own (a prior, a tilt's base), or a Gaussian
    fitted to draws of the target and widened by a fifth, where there is none, where it cannot be sampled, or where a
    pilot finds it hopelessly wide: ten moves would not do even if they mixed at once. kernel: reversible; by default
    MALA with the covariance of the draws, their variances in more than 100 dimensions. The Gaussian is fitted to the
    first half of the draws, the reverse chains start at draws of the second. budget: energy gradients for the two
    directions of annealing together. num_chains: in each direction. By default the moves are as few, ten or more, as
    leave two fifths of a trial's chains effective; reverse chains are as many as the draws are worth, for up to half of
    the budget, and forward chains take the rest. exact: exact draws of the target; otherwise `sampled`, or `run(key,
    target)`, gives the ends that reverse chains start from: the upper side is then approximate, and the check of those
    draws decides whether it is supported. Raises ValueError as `run` and `bracket` do.
    """
    target = as_energy(target)
    draw_key, plan_key, end_key, forward_key, reverse_key = jax.random.split(as_key(key), 5)
    spent, check = 0, None
    if exact is None:
        sampled = run(draw_key, target) if sampled is None else sampled
        spent = sampled.warmup_gradients + int(np.sum(sampled.trace.stats.num_gradients, dtype=np.int64))
        draws, check = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), sampled.trace.position), sampled.check
    else:
        draws = exact
    draws = jax.tree.map(jnp.asarray, draws)
    # A Gaussian fits the draws it was fitted to better than others, so reverse chains start at draws of other chains.
    half = count_chains(draws) // 2
    fitted: Any = None
    if base is None or kernel is None:
        fitted = gaussian_base(jax.tree.map(lambda x: x[:half], draws))
    ends = jax.tree.map(lambda x: x[half:], draws)
    moves: Kernel = _scaled_mala(fitted) if kernel is None else as_energy(kernel)
    own = getattr(target, "base", None) if base is None else base
    bases = {} if own is None else {_name(target, base): own}
    if base is None:
        bases["Gaussian fitted to draws"] = fitted
    setup, cost = _planned(plan_key, target, bases, moves, ends, budget, num_chains)
    each = len(setup.betas)
    if num_chains is None:
        worth = count_chains(ends) if check is None else max(BLOCK, int(check.numbers.get("ess", 0) / 2))
        down = _whole(min(budget // (2 * each), worth, count_chains(ends)))
        up = _whole(max(budget // each - down, 2))
    else:
        up, down = num_chains, min(num_chains, count_chains(ends))
    forward, back = _up(forward_key, setup, up), _down(reverse_key, setup, _some(end_key, ends, down))
    spent += cost + forward.num_gradients + back.num_gradients
    return _evidence(setup, check, forward.log_weights, -back.log_weights, forward.position, forward.acceptance, spent)


def _name(target: Any, base: Any) -> str:
    """Return what to call the base that is not fitted."""
    if base is not None:
        return "base given"
    return "prior" if hasattr(target, "constrain") else "base"


def _planned(
    key: Key, target: Any, bases: dict[str, Any], kernel: Kernel, ends: Tree, budget: int, num_chains: int | None
) -> tuple[_Setup, int]:
    """Take the first base that is not hopeless, or the last, and as few moves as trials allow; return the cost too."""
    pilot_key, *trial_keys = jax.random.split(key, 1 + len(MOVES))
    spent = 0
    for name in bases:
        path = annealing_path(target, bases[name])
        require_invariant(kernel, path, ends, reverse=True)
        found = pilot(pilot_key, path, kernel, num_chains=32)
        spent += found.num_gradients
        if found.length**2 <= MOVES[0]:
            break

    def plan(num_moves: int) -> _Setup:
        betas = found.schedule(num_moves)
        return _Setup(name, path, kernel, betas, found.steps(betas), ends)

    num_moves = max(MOVES[0], budget // (2 * num_chains) if num_chains else budget // (2 * BLOCK) - 1)
    for trial_key, fewer in zip(trial_keys, MOVES if num_chains is None else (), strict=False):
        if 10 * TRIAL * BLOCK * fewer > budget:
            break
        trial = _up(trial_key, plan(fewer), TRIAL * BLOCK)
        spent += trial.num_gradients
        if _share_effective(trial.log_weights) >= EFFECTIVE:
            num_moves = fewer
            break
    return plan(num_moves), spent


def _share_effective(log_weights: np.ndarray) -> float:
    """Return the share of chains worth counting, as they are or as lognormal weights of the same quartiles would be."""
    some = log_weights[np.isfinite(log_weights)]
    if some.size == 0:
        return 0.0
    low, high = np.quantile(some, [0.25, 0.75])
    lognormal = math.exp(-(((high - low) / 1.349) ** 2))
    return min(effective_sample_size(log_weights), some.size * lognormal) / log_weights.size


def _whole(num: int) -> int:
    """Return a number of chains that fills its blocks."""
    return num if num < BLOCK else num - num % BLOCK


def _some(key: Key, ends: Tree, num: int) -> Tree:
    rows = jax.random.choice(key, count_chains(ends), (num,), replace=num > count_chains(ends))
    return jax.tree.map(lambda x: x[rows], ends)


def _up(key: Key, setup: _Setup, num: int) -> Annealed:
    """Anneal `num` chains from the base to the target."""
    base_key, run_key = jax.random.split(key)
    return _in_blocks(run_key, anneal_forward, setup, setup.path.base.sample(base_key, (num,)))


def _down(key: Key, setup: _Setup, ends: Tree) -> Annealed:
    """Anneal draws of the target to the base."""
    return _in_blocks(key, anneal_reverse, setup, ends)


def _in_blocks(key: Key, anneal: Callable[..., Annealed], setup: _Setup, position: Tree) -> Annealed:
    starts = range(0, count_chains(position), BLOCK)
    parts = [jax.tree.map(lambda x, i=i: x[i : i + BLOCK], position) for i in starts]
    keys = jax.random.split(key, len(parts))
    runs = [
        anneal(key, setup.path, setup.kernel, setup.betas, setup.steps, part)
        for key, part in zip(keys, parts, strict=True)
    ]
    return Annealed(
        np.concatenate([run.log_weights for run in runs]),
        _joined([run.position for run in runs]),
        np.mean([run.acceptance for run in runs], axis=0),
        sum(run.num_gradients for run in runs),
    )


def _joined(parts: list[Tree]) -> Tree:
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def _scaled_mala(fitted: GaussianBase) -> Kernel:
    dim, covariance = fitted.mean.size, fitted.covariance_matrix
    return mala(dim ** (-1 / 3), covariance if dim <= MAX_DENSE else jnp.diag(covariance))


def _evidence(
    setup: _Setup,
    check: Check | None,
    forward: np.ndarray,
    reverse: np.ndarray,
    position: Tree,
    acceptance: np.ndarray,
    num_gradients: int,
) -> Evidence:
    found = combine(
        forward,
        reverse,
        "exact" if check is None else "approximate",
        num_gradients=num_gradients,
        position=position,
        betas=setup.betas,
        acceptance=acceptance,
        steps=setup.steps,
    )
    k_hat = pareto_k(found.forward)
    groups = [log_mean_exp(group).value for group in np.array_split(found.forward, GROUPS)]
    group_stderr = float(np.std(groups, ddof=1) / math.sqrt(GROUPS))
    verdict = found.verdict
    if verdict != "unusable" and k_hat > MAX_K:
        verdict = "unusable"
    elif verdict != "unusable" and check is not None and check.verdict != "healthy":
        verdict = "unsupported"
    sides = found.log_z, found.lower, found.upper, found.stderr, group_stderr, found.ess, k_hat
    return Evidence(*sides, found.num_gradients, verdict, setup.base, check, found, setup)


class Comparison(NamedTuple):
    """Models by their evidence; prints a table. ranking: names, best first, or None where brackets overlap."""

    results: dict[str, Any]
    ranking: list[str] | None

    def log_bayes_factor(self, one: str, other: str) -> tuple[float, float]:
        """Return the interval of log Z_one - log Z_other that the two brackets allow."""
        a, b = self.results[one], self.results[other]
        return a.lower - b.upper, a.upper - b.lower

    def __str__(self) -> str:
        order = sorted(self.results, key=lambda name: -self.results[name].log_z)
        width = max(5, *map(len, order))
        lines = [f"{'model':<{width}} {'log Z':>10} {'lower':>10} {'upper':>10}  log Bayes factor to the first"]
        for name in order:
            r = self.results[name]
            low, high = self.log_bayes_factor(name, order[0])
            factor = "" if name == order[0] else f"[{low:.2f}, {high:.2f}]"
            lines.append(f"{name:<{width}} {r.log_z:10.2f} {r.lower:10.2f} {r.upper:10.2f}  {factor:<18} {r.verdict}")
        if self.ranking is None:
            lines.append("not ranked: brackets overlap, or one of them cannot be used; extend(...) the wide ones")
        return "\n".join(lines)


def compare(results: Mapping[str, Any]) -> Comparison:
    """Compare the evidence of models on the same data: {name: what `log_z` or `bracket` returned}.

    Models are ranked only where every bracket can be used and none overlaps another. Raises ValueError for fewer than
    two.
    """
    if len(results) < 2:
        raise ValueError(f"comparing needs at least two models; got {len(results)}")
    order = sorted(results, key=lambda name: -results[name].log_z)
    usable = all(r.verdict in ("bracketed", "approximate", "wide") for r in results.values())
    apart = all(results[a].lower > results[b].upper for a, b in zip(order, order[1:], strict=False))
    return Comparison(dict(results), order if usable and apart else None)
