"""Floor 8: the evidence of a model as a bracket, with what supports each side, and models compared by it."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from energyflow.chains import count_chains
from energyflow.diagnostics import Check
from energyflow.energies.fitted import GaussianBase, gaussian_base
from energyflow.energy import as_energy
from energyflow.kernels.continuous import mala
from energyflow.logz.anneal import anneal_forward, anneal_reverse
from energyflow.logz.bracket import bracket
from energyflow.logz.path import Path, annealing_path
from energyflow.logz.result import LogZ, combine
from energyflow.sampling import Sampled, run
from energyflow.stats import log_mean_exp, pareto_k
from energyflow.types import Kernel, Key, Tree, as_key
from energyflow.warmup import MAX_DENSE

GROUPS = 8
MAX_K = 0.7
"""The Pareto shape over which a mean of weights cannot be believed (Vehtari et al. 2024)."""
TRIAL = 10
"""A base of the target's own is tried with a tenth of the moves."""
HOPELESS = 0.5
"""Variance of the log weights, in squared nats, predicted from the trial, over which a Gaussian is fitted instead."""


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
        num = max(1, round((factor - 1) * len(first.forward)))
        base_key, forward_key, end_key, reverse_key = jax.random.split(as_key(key), 4)
        path, kernel, betas, steps = setup.path, setup.kernel, first.betas, first.steps
        forward = anneal_forward(forward_key, path, kernel, betas, steps, path.base.sample(base_key, (num,)))
        rows = jax.random.choice(end_key, count_chains(setup.ends), (num,), replace=num > count_chains(setup.ends))
        ends = jax.tree.map(lambda x: x[rows], setup.ends)
        back = anneal_reverse(reverse_key, path, kernel, betas, steps, ends)
        join = lambda old, new: jax.tree.map(lambda a, b: np.concatenate([a, b]), old, new)  # noqa: E731
        both = combine(
            np.append(first.forward, forward.log_weights),
            np.append(first.reverse, -back.log_weights),
            first.provenance,
            num_gradients=self.num_gradients + forward.num_gradients + back.num_gradients,
            position=join(first.position, forward.position),
            betas=betas,
            acceptance=first.acceptance,
            steps=steps,
        )
        return _evidence(both, self.base, self.check, setup, 0)

    def __str__(self) -> str:
        support = "exact draws" if self.check is None else f"{self.setup.num_draws} draws ({self.check.verdict})"
        side = "upper bound" if self.bracket.provenance == "exact" else "approximate upper"
        return (
            f"log Z = {self.log_z:.3f} +- {max(self.stderr, self.group_stderr):.3f} ({self.verdict})\n"
            f"[{self.lower:.3f}, {self.upper:.3f}] gap {self.gap:.3f} nats; lower bound, {side}, each at 4 standard "
            f"errors\nfrom the {self.base} through {len(self.bracket.betas) - 1} moves to {support}; ESS "
            f"{self.ess:.1f} of {len(self.bracket.forward)} chains, Pareto k {self.k_hat:.2f}, {self.num_gradients} "
            "gradients"
        )


class _Setup(NamedTuple):
    path: Path
    kernel: Kernel
    ends: Tree
    num_draws: int


def log_z(
    key: Key | int,
    target: Any,
    base: Any = None,
    kernel: Kernel | None = None,
    budget: int | None = None,
    *,
    num_chains: int = 128,
    exact: Tree = None,
    sampled: Sampled | None = None,
) -> Evidence:
    """Bracket log Z of an energy, or the log evidence of what `from_numpyro` returns.

    base: a normalised distribution to anneal from. By default the target's own (a prior, a tilt's base), or a Gaussian
    fitted to draws of the target and widened by a fifth, where there is none, where it cannot be sampled, or where a
    trial predicts that the log weights from it would vary by more than 0.5 squared nats. kernel: reversible; by default
    MALA with the covariance of the draws, their variances in more than 100 dimensions. The Gaussian is fitted to the
    first half of the draws, the reverse chains start at draws of the second. budget: energy gradients for the two
    directions of annealing together, 500 000 by default. num_chains: chains in each direction. exact: exact draws of
    the target; otherwise `sampled`, or `run(key, target)`, gives the ends that reverse chains start from: the upper
    side is then approximate, and the check of those draws decides whether it is supported. Raises ValueError as `run`
    and `bracket` do.
    """
    target = as_energy(target)
    draw_key, trial_key, end_key, bracket_key = jax.random.split(as_key(key), 4)
    spent, check = 0, None
    if exact is None:
        sampled = run(draw_key, target) if sampled is None else sampled
        spent = sampled.warmup_gradients + int(np.sum(sampled.trace.stats.num_gradients, dtype=np.int64))
        draws, check = (
            jax.tree.map(lambda x: jnp.asarray(x.reshape(-1, *x.shape[2:])), sampled.trace.position),
            sampled.check,
        )
    else:
        draws = jax.tree.map(jnp.asarray, exact)
    # A Gaussian fits the draws it was fitted to better than others, so reverse chains start at draws of other chains.
    half = count_chains(draws) // 2
    fitted = gaussian_base(jax.tree.map(lambda x: x[:half], draws))
    draws = jax.tree.map(lambda x: x[half:], draws)
    moves: Kernel = _scaled_mala(fitted) if kernel is None else as_energy(kernel)
    num_temperatures = max(20, (500_000 if budget is None else budget) // (2 * num_chains))
    name = "base given"
    if base is None:
        base, name = getattr(target, "base", None), "prior" if hasattr(target, "constrain") else "base"
        if base is not None:
            short = max(10, num_temperatures // TRIAL)
            trial = bracket(
                trial_key, target, base, moves, num_temperatures=short, num_chains=num_chains, reverse=False
            )
            spent += trial.num_gradients
            # The variance of log weights falls as one over the number of moves.
            base = base if np.var(trial.forward) / TRIAL < HOPELESS else None
        base, name = (fitted, "Gaussian fitted to draws") if base is None else (base, name)
    rows = jax.random.permutation(end_key, count_chains(draws))[:num_chains]
    ends = jax.tree.map(lambda x: x[rows], draws)
    found = bracket(
        bracket_key,
        target,
        base,
        moves,
        num_temperatures=num_temperatures,
        num_chains=num_chains,
        exact=None if exact is None else ends,
        approximate=ends if exact is None else None,
    )
    setup = _Setup(annealing_path(target, base), moves, draws, count_chains(draws))
    return _evidence(found, name, check, setup, spent)


def _scaled_mala(fitted: GaussianBase) -> Kernel:
    dim, covariance = fitted.mean.size, fitted.covariance_matrix
    return mala(dim ** (-1 / 3), covariance if dim <= MAX_DENSE else jnp.diag(covariance))


def _evidence(found: LogZ, base: str, check: Check | None, setup: _Setup, spent: int) -> Evidence:
    k_hat = pareto_k(found.forward)
    groups = [log_mean_exp(group).value for group in np.array_split(found.forward, GROUPS)]
    group_stderr = float(np.std(groups, ddof=1) / math.sqrt(GROUPS))
    verdict = found.verdict
    if verdict != "unusable" and k_hat > MAX_K:
        verdict = "unusable"
    elif verdict != "unusable" and check is not None and check.verdict != "healthy":
        verdict = "unsupported"
    sides = found.log_z, found.lower, found.upper, found.stderr, group_stderr, found.ess, k_hat
    return Evidence(*sides, found.num_gradients + spent, verdict, base, check, found, setup)


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
