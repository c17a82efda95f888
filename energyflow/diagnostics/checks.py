"""A verdict on draws: named problems with where they are and what to do, or none.

Frozen chains report an effective sample size equal to the number of draws and an R-hat that is not a number, so the
checks look at the draws themselves first and at R-hat last.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax import diagnostics

from energyflow.chains import Trace
from energyflow.diagnostics.export import named_draws, with_chain_axis

MAX_R_HAT = 1.01
MIN_ESS = 100.0


class Check(NamedTuple):
    """verdict: "healthy" or the name of the worst problem. problems: one sentence each, worst first.

    numbers: the largest R-hat, the smallest bulk ESS, and where known the acceptance rate, the share of divergent
    transitions and the ESS per energy gradient.
    """

    verdict: str
    problems: list[str]
    numbers: dict[str, float]

    def __str__(self) -> str:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.numbers.items())
        return "\n".join([f"{self.verdict}: {numbers}", *(f"- {problem}" for problem in self.problems)])


def check(trace: Trace | Any) -> Check:
    """Judge draws of several chains.

    trace: a Trace of `sample_chains` (of `sample`: one chain), or an array or pytree of arrays [chain, draw, ...].
    Looks, in this order, for: draws that are not finite, chains that never move, too few draws to judge, chains that
    disagree (rank-normalised split R-hat over 1.01, Vehtari et al. 2021; plain R-hat for chains under 20 draws), a
    bulk ESS under 100, divergences, acceptance under 0.05. What draws cannot show, a mode no chain visited, it cannot
    see.
    """
    trace = with_chain_axis(trace) if isinstance(trace, Trace) else trace
    position = trace.position if isinstance(trace, Trace) else trace
    draws = named_draws(position)
    flat = np.concatenate([x.reshape(*x.shape[:2], -1) for x in draws.values()], axis=-1)
    labels = [f"{name}[{i}]" for name, x in draws.items() for i in range(int(np.prod(x.shape[2:])))]
    found = list(_unusable_draws(flat, labels))
    numbers: dict[str, float] = {}
    if not found:
        numbers = _numbers(flat)
        found += _disagreement(flat, labels, numbers)
    if isinstance(trace, Trace):
        numbers |= _sampler_numbers(trace, numbers.get("ess"))
        found += _sampler_problems(numbers)
    verdict = found[0][0] if found else "healthy"
    return Check(verdict, [f"{name}: {text}" for name, text in found], numbers)


Problem = tuple[str, str]


def _unusable_draws(x: np.ndarray, labels: list[str]) -> Iterator[Problem]:
    chains, draws, _ = x.shape
    bad = np.argwhere(~np.isfinite(x))
    if bad.size:
        chain, draw, dim = bad[0]
        yield (
            "non-finite draws",
            f"{len(bad)} values, first in chain {chain}, draw {draw}, {labels[dim]}; find the start or step that left "
            "the finite numbers, and sample again",
        )
        return
    still = np.flatnonzero((x == x[:, :1]).all(axis=(1, 2))) if draws > 1 else np.array([], int)
    if still.size:
        yield (
            "frozen chains",
            f"{still.size} of {chains} chains never moved (chain {still[0]} first); every proposal was rejected: lower "
            "the step size, or check the energy at the start",
        )
    if draws < 2 or chains * draws < 20:
        yield "too few draws", f"{chains} chains of {draws} draws cannot be judged; draw at least 20 in all, 2 a chain"
    elif chains < 2:
        yield "one chain", "one chain cannot show whether it mixed; run four or more from dispersed starts"


@jax.jit
def _rank_statistics(x: Any) -> tuple[Any, Any]:
    return diagnostics.rhat(x), diagnostics.ess_bulk(x)


def _numbers(x: np.ndarray) -> dict[str, float]:
    if x.shape[1] < 20:
        r_hat, ess = _plain_r_hat(x), np.full(x.shape[2], np.nan)
    else:
        r_hat, ess = jax.tree.map(np.asarray, _rank_statistics(jnp.asarray(x)))
    numbers = {"r_hat": float(np.max(np.nan_to_num(r_hat, nan=np.inf))), "r_hat_dim": float(np.argmax(r_hat))}
    return numbers if np.isnan(ess).all() else numbers | {"ess": float(np.min(ess)), "ess_dim": float(np.argmin(ess))}


def _plain_r_hat(x: np.ndarray) -> np.ndarray:
    """Gelman and Rubin (1992), for chains too short to split: its value at stationarity is near 1 for many chains."""
    within = x.var(axis=1, ddof=1).mean(axis=0)
    between = x.mean(axis=1).var(axis=0, ddof=1)
    draws = x.shape[1]
    return np.sqrt((draws - 1) / draws + between / np.maximum(within, np.finfo(float).tiny))


def _disagreement(x: np.ndarray, labels: list[str], numbers: dict[str, float]) -> list[Problem]:
    found = []
    chains, draws, _ = x.shape
    # Short chains: the between variance of C chains has relative error sqrt(2/C), and enters R-hat^2 with weight 1/n.
    slack = 0.0 if draws >= 20 else 4 * np.sqrt(2 / chains) / draws
    if numbers["r_hat"] > MAX_R_HAT + slack:
        dim = int(numbers["r_hat_dim"])
        apart = int(np.argmax(np.abs(x[:, :, dim].mean(axis=1) - np.median(x[:, :, dim]))))
        found.append(
            (
                "chains disagree",
                f"R-hat {numbers['r_hat']:.3f} in {labels[dim]}, chain {apart} furthest from the others; run longer, or "
                "look for separated modes",
            )
        )
    if numbers.get("ess", np.inf) < MIN_ESS:
        dim = int(numbers["ess_dim"])
        found.append(
            ("low ESS", f"{numbers['ess']:.0f} effective draws in {labels[dim]}; draw more, or tune the step size")
        )
    return found


def _sampler_numbers(trace: Trace, ess: float | None) -> dict[str, float]:
    stats, numbers = trace.stats, {}
    if stats.acceptance_rate is not None:
        numbers["acceptance_rate"] = float(np.mean(stats.acceptance_rate))
    if stats.is_divergent is not None:
        numbers["divergent"] = float(np.mean(stats.is_divergent))
    if stats.num_gradients is not None and ess is not None and np.sum(stats.num_gradients) > 0:
        numbers["ess_per_gradient"] = ess / float(np.sum(stats.num_gradients, dtype=np.float64))
    return numbers


def _sampler_problems(numbers: dict[str, float]) -> list[Problem]:
    found = []
    if numbers.get("divergent", 0.0) > 0.001:
        share = numbers["divergent"]
        found.append(
            (
                "divergences",
                f"{100 * share:.2g} % of transitions diverged or met a non-finite energy; lower the step size",
            )
        )
    rate = numbers.get("acceptance_rate")
    if rate is not None and rate < 0.05:
        found.append(("low acceptance", f"{rate:.3f} of proposals accepted; lower the step size"))
    return found
