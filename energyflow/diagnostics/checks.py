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
from scipy.stats import t as student_t

from energyflow.chains import Trace
from energyflow.diagnostics.export import named_draws, with_chain_axis

MIN_WORTH = 400.0
"""Independent draws that R-hat must promise of all chains together: 1.01 for four chains (Vehtari et al. 2021)."""
MAX_R_HAT = 1.1
"""However many chains there are (Gelman and Rubin 1992)."""
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
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.numbers.items() if name[-4:] != "_dim")
        return "\n".join([self.verdict + (numbers and f": {numbers}"), *(f"- {problem}" for problem in self.problems)])


def check(trace: Trace | Any) -> Check:
    """Judge draws of several chains.

    trace: a Trace of `sample_chains` (of `sample`: one chain), or an array or pytree of arrays [chain, draw, ...].
    Looks, in this order, for: draws that are not finite, chains or dimensions that never move, too few draws to judge,
    chains that all drift one way, chains that disagree, a bulk ESS under 100, divergences, acceptance under 0.05. What
    draws cannot show, a mode no chain visited, it cannot see.

    Chains disagree where the rank-normalised split R-hat (Vehtari et al. 2021; the plain one for chains under 20 draws)
    says that all draws together are worth fewer than 400: over 1.01 for four chains; more chains need less of each,
    but 1.1 is the limit (Gelman and Rubin 1992). Short chains are allowed what chance makes of their R-hat.
    Raises ValueError for arrays without a chain and a draw axis.
    """
    trace = with_chain_axis(trace) if isinstance(trace, Trace) else trace
    position = trace.position if isinstance(trace, Trace) else trace
    draws = named_draws(position)
    sizes = {name: int(np.prod(x.shape[2:])) for name, x in draws.items()}
    flat = np.concatenate([x.reshape(*x.shape[:2], sizes[name]) for name, x in draws.items()], axis=-1)
    labels = [f"{name}[{i}]" for name, size in sizes.items() for i in range(size)]
    found = list(_unusable_draws(flat, labels))
    numbers: dict[str, float] = {}
    if not found:
        numbers = _numbers(flat)
        apart = _disagreement(flat, labels, numbers)
        found += [*_drift(flat, labels, 1e-3 if apart else 1e-5), *apart]
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
            f"{len(bad)} of {x.size} values, first in chain {chain}, draw {draw}, {labels[dim]}; find the start or "
            "step that left the finite numbers, and sample again",
        )
        return
    still = np.flatnonzero((x == x[:, :1]).all(axis=(1, 2))) if draws > 1 else np.array([], int)
    if still.size:
        yield (
            "frozen chains",
            f"{still.size} of {chains} chains never moved (chain {still[0]} first); every proposal was rejected: lower "
            "the step size, or check the energy at the start",
        )
    constant = np.flatnonzero((x == x[:, :1]).all(axis=(0, 1)))
    if draws > 1 and constant.size and not still.size:
        yield (
            "frozen dimensions",
            f"{constant.size} of {x.shape[2]} dimensions never move in any chain ({labels[constant[0]]} first); leave "
            "out what is a constant, and look for an energy that is infinite beside the start",
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
        # Ranks do not depend on location and scale, but float32 does.
        scaled = (x - x.mean(axis=(0, 1), dtype=float)) / x.std(axis=(0, 1), dtype=float)
        r_hat, ess = jax.tree.map(np.asarray, _rank_statistics(jnp.asarray(scaled, jnp.float32)))
    numbers = {"r_hat": float(np.max(np.nan_to_num(r_hat, nan=np.inf))), "r_hat_dim": float(np.argmax(r_hat))}
    return numbers if np.isnan(ess).all() else numbers | {"ess": float(np.min(ess)), "ess_dim": float(np.argmin(ess))}


def _plain_r_hat(x: np.ndarray) -> np.ndarray:
    """Gelman and Rubin (1992), for chains too short to split: its value at stationarity is near 1 for many chains."""
    within = x.var(axis=1, ddof=1).mean(axis=0)
    between = x.mean(axis=1).var(axis=0, ddof=1)
    draws = x.shape[1]
    return np.sqrt((draws - 1) / draws + between / np.maximum(within, np.finfo(float).tiny))


def _drift(x: np.ndarray, labels: list[str], level: float) -> Iterator[Problem]:
    """Compare the halves of every chain: chains are independent, so at stationarity their mean difference is a t.

    level: chance of a false alarm; larger where the draws are refused anyway and the question is only what to call it.
    """
    chains, draws, dims = x.shape
    halves = x[:, -(draws // 2) :].mean(axis=1, dtype=float) - x[:, : draws // 2].mean(axis=1, dtype=float)
    shift, spread = halves.mean(axis=0), halves.std(axis=0, ddof=1)
    size = np.abs(shift) / x.std(axis=(0, 1), dtype=float)
    surprise = np.abs(shift) * np.sqrt(chains) > student_t.isf(level / 2 / dims, chains - 1) * spread
    worst = int(np.argmax(size * surprise))
    if surprise[worst] and size[worst] > 0.2:
        yield (
            "drifting chains",
            f"the second half of the draws lies {size[worst]:.2g} standard deviations from the first in "
            f"{labels[worst]}, in all chains alike; discard more draws as warmup, and check that the energy rises in "
            "every direction",
        )


def _disagreement(x: np.ndarray, labels: list[str], numbers: dict[str, float]) -> list[Problem]:
    found = []
    chains, draws, _ = x.shape
    # R-hat^2 - 1 is 1 / (independent draws of a half chain). The between variance of C chains, which enters R-hat^2
    # with weight 1/n, has relative error sqrt(2/C).
    limit = min(np.sqrt(1 + max(2 * chains, 8) / MIN_WORTH), MAX_R_HAT)
    if numbers["r_hat"] > limit + 4 * np.sqrt(2 / chains) / draws:
        dim = int(numbers["r_hat_dim"])
        apart = int(np.argmax(np.abs(x[:, :, dim].mean(axis=1) - np.median(x[:, :, dim]))))
        found.append(
            (
                "chains disagree",
                f"R-hat {numbers['r_hat']:.3f} in {labels[dim]}, chain {apart} furthest from the others; run longer, "
                "or look for separated modes",
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
