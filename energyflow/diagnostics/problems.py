"""Floor 6: the problems that `check` looks for, each a name and a sentence that says where it is and what to do.

Draws here are flat, (chain, draw, dim); `labels` name the dims.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from scipy.special import ndtri
from scipy.stats import f as fisher_f, rankdata, t as student_t

from energyflow.mixing import RUNAWAY, plain_r_hat, rank_statistics, suspect_dims
from energyflow.stats import nested_r_hat, nested_variances

MIN_WORTH = 800.0
"""Independent draws that R-hat must promise of all chains together: 1.01 for eight chains, and for fewer."""
MAX_R_HAT = 1.1
"""However many chains there are (Gelman and Rubin 1992)."""
MIN_ESS = 100.0
MAX_DIVERGENT = 1e-4
"""Share of transitions: one divergence in ten thousand draws marks a region that chains enter too rarely (Betancourt
2017)."""
FALSE_ALARM = 1e-5
"""Chance, over all dims together, that a test calls stationary chains ill."""

Problem: TypeAlias = tuple[str, str]


def unusable_draws(x: np.ndarray, labels: list[str], groups: np.ndarray | None = None) -> Iterator[Problem]:
    """Find what no statistic survives: draws that are not finite, never change, or are too few."""
    chains, draws, _ = x.shape
    if not np.isfinite(x).all():
        bad = np.argwhere(~np.isfinite(x))
        chain, draw, dim = bad[0]
        yield (
            "non-finite draws",
            f"{len(bad)} of {x.size} values, first in chain {chain}, draw {draw}, {labels[dim]}; find the start or "
            "step that left the finite numbers, and sample again",
        )
        return
    same = (x[:, :1] == x[:, -1:]).all(axis=1)  # where a chain ends elsewhere it moved, and need not be read whole
    if same.any():
        same = (x == x[:, :1]).all(axis=1)
    still = np.flatnonzero(same.all(axis=1)) if draws > 1 else _unmoved(x, groups)
    place = np.abs(x[:, 0].astype(float)) if draws else np.zeros((chains, 1))
    farthest = float(place.max())
    if farthest > RUNAWAY:
        chain, dim = np.unravel_index(np.argmax(place), place.shape)
        yield (
            "runaway chains",
            f"chain {chain} is as far as {farthest:.2g} in {labels[dim]}: the energy falls without bound on the way; "
            "check its sign, and that it rises in every direction",
        )
    elif still.size:
        yield (
            "frozen chains",
            f"{still.size} of {chains} chains never moved (chain {still[0]} first); every proposal was rejected, or "
            "smaller than float32 resolves: lower the step size, check the energy at the start, and that it does not "
            "fall without bound",
        )
    constant = np.flatnonzero(same.all(axis=0))
    if draws > 1 and constant.size and not still.size:
        yield (
            "frozen dimensions",
            f"{constant.size} of {x.shape[2]} dimensions never move in any chain ({labels[constant[0]]} first); leave "
            "out what is a constant, and look for an energy that is infinite beside the start",
        )
    if draws < (2 if groups is None else 1) or chains * draws < 20:
        yield "too few draws", f"{chains} chains of {draws} draws cannot be judged; draw at least 20 in all, 2 a chain"
    elif chains < 2:
        yield "one chain", "one chain cannot show whether it mixed; run four or more from dispersed starts"


def _unmoved(x: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Return the chains of superchains whose only draws coincide: all are still at the start that they share."""
    if groups is None or not x.size:
        return np.array([], int)
    alike = [(x[groups == label] == x[groups == label][:1]).all() for label in range(groups.max() + 1)]
    return np.flatnonzero(np.asarray(alike)[groups])


def mixing_numbers(x: np.ndarray) -> dict[str, float]:
    """Return the largest R-hat and, of chains of 20 draws or more, the smallest bulk ESS, with their dims.

    The rank statistics sort, so in many dims they are computed where cheaper ones point (`suspect_dims`).
    """
    if x.shape[1] < 20:
        r_hat = np.nan_to_num(plain_r_hat(x), nan=np.inf)
        return {"r_hat": float(r_hat.max()), "r_hat_dim": float(np.argmax(r_hat))}
    dims = suspect_dims(x)
    with ThreadPoolExecutor() as threads:  # sorting lets go of the interpreter
        r_hat, ess = np.transpose(list(threads.map(lambda dim: rank_statistics(x[..., dim]), dims)))
    r_hat = np.nan_to_num(r_hat, nan=np.inf)
    return {
        "r_hat": float(r_hat.max()),
        "r_hat_dim": float(dims[np.argmax(r_hat)]),
        "ess": float(ess.min()),
        "ess_dim": float(dims[np.argmin(ess)]),
    }


def drift(x: np.ndarray, labels: list[str], level: float = FALSE_ALARM) -> Iterator[Problem]:
    """Compare the halves of every chain: chains are independent, so at stationarity their mean difference is a t.

    level: chance of a false alarm; larger where the draws are refused anyway and the question is only what to call it.
    """
    size = _drift_sizes(x, level)
    worst = int(np.argmax(size))
    if size[worst] > 0.2:
        yield (
            "drifting chains",
            f"the second half of the draws lies {size[worst]:.2g} standard deviations from the first in "
            f"{labels[worst]}, in all chains alike; discard more draws as warmup, and check that the energy rises in "
            "every direction",
        )


def energy_drift(logdensity: np.ndarray) -> Iterator[Problem]:
    """Find a log density (chain, draw) whose halves differ: chains far out on all sides shift no mean on their way."""
    x = np.asarray(logdensity, float)[..., None]
    if not np.isfinite(x).all() or x.std() == 0 or x.shape[0] < 2 or x.shape[1] < 2:
        return
    size = float(_drift_sizes(x, FALSE_ALARM)[0])
    if size > 0.2:
        half = x.shape[1] // 2
        way = "higher" if x[:, -half:].mean() > x[:, :half].mean() else "lower"
        yield (
            "energy drifts",
            f"the log density of the second half of the draws lies {size:.2g} standard deviations {way} than that of "
            "the first, in all chains alike; discard more draws as warmup, and check that the energy rises in every "
            "direction",
        )


def _drift_sizes(x: np.ndarray, level: float) -> np.ndarray:
    """Return the mean difference of the halves in standard deviations, per dim, 0 where chance explains it."""
    chains, draws, dims = x.shape
    weights = np.zeros(draws, np.result_type(x, np.float32))
    weights[: draws // 2] -= 1 / (draws // 2)
    weights[-(draws // 2) :] += 1 / (draws // 2)
    halves = (weights @ x).astype(float)  # at once: what is common to both halves cancels before it is rounded
    shift, spread = halves.mean(axis=0), halves.std(axis=0, ddof=1)
    surprise = np.abs(shift) * np.sqrt(chains) > student_t.isf(level / 2 / dims, chains - 1) * spread
    size = np.zeros(dims)
    size[surprise] = np.abs(shift[surprise]) / x[..., surprise].std(axis=(0, 1), dtype=float)
    return size


def disagreement(x: np.ndarray, labels: list[str], numbers: dict[str, float]) -> list[Problem]:
    """Find chains that disagree, and an ESS too small to say."""
    found = []
    chains, draws, _ = x.shape
    # R-hat^2 - 1 is 1 / (independent draws of a half chain). The between variance of C chains, which enters R-hat^2
    # with weight 1/n, has relative error sqrt(2/C).
    limit = min(np.sqrt(1 + max(2 * chains, 16) / MIN_WORTH), MAX_R_HAT)
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
    return found + _low_ess(labels, numbers)


def superchain_disagreement(
    x: np.ndarray, labels: list[str], groups: np.ndarray
) -> tuple[dict[str, float], list[Problem]]:
    """Judge superchains by nested R-hat of rank-normalised draws; return its numbers and problems.

    At stationarity the means of M-chain superchains vary by 1/M of the variance between chains, and the ratio of the
    two, times M, is an F with K - 1 and K(M - 1) degrees of freedom: exactly for one draw a chain, since ranks are made
    normal, nearly for the means of more. The limit is R-hat 1.01 and what that ratio is by chance.
    """
    chains, draws, dims = x.shape
    flat = x.reshape(-1, dims)
    normal = ndtri((rankdata(flat, axis=0) - 0.375) / (len(flat) + 0.25)).reshape(x.shape)
    r_hat = nested_r_hat(normal, groups)
    _, between, within = nested_variances(normal, groups)
    num = int(groups.max()) + 1
    size = chains // num
    share = np.divide(between, between + within, out=np.ones(dims), where=between + within > 0)
    by_chance = share / size * fisher_f.isf(FALSE_ALARM / dims, num - 1, num * (size - 1))
    excess = np.nan_to_num(r_hat, nan=np.inf) ** 2 - (1.01**2 + by_chance)
    worst = int(np.argmax(excess))
    # A chain is worth 1/share draws, were it stationary; chains are independent of one another.
    ess = chains / np.maximum(share, 1 / draws)
    numbers = {
        "nested_r_hat": float(r_hat[worst]),
        "nested_r_hat_dim": float(worst),
        "ess": float(ess.min()),
        "ess_dim": float(np.argmin(ess)),
    }
    found = []
    if excess[worst] > 0:
        means = np.array([normal[groups == label, :, worst].mean() for label in range(num)])
        apart = int(np.argmax(np.abs(means - np.median(means))))
        found.append(
            (
                "chains disagree",
                f"nested R-hat {r_hat[worst]:.3f} in {labels[worst]}, superchain {apart} furthest from the others: "
                "chains remember where they started; run longer, or look for separated modes",
            )
        )
    return numbers, found + _low_ess(labels, numbers)


def _low_ess(labels: list[str], numbers: dict[str, float]) -> list[Problem]:
    if numbers.get("ess", np.inf) >= MIN_ESS:
        return []
    dim = int(numbers["ess_dim"])
    return [("low ESS", f"{numbers['ess']:.0f} effective draws in {labels[dim]}; draw more, or tune the step size")]


def sampler_problems(numbers: dict[str, float]) -> list[Problem]:
    """Find divergences and proposals that are nearly all rejected."""
    found = []
    share = numbers.get("divergent", 0.0)
    if share > MAX_DIVERGENT:
        found.append(
            (
                "divergences",
                f"{100 * share:.2g} % of transitions diverged or met a non-finite energy; lower the step size (raise "
                "the target acceptance), or write the model so that no region is much narrower than the rest",
            )
        )
    rate = numbers.get("acceptance_rate")
    if rate is not None and rate < 0.05:
        found.append(("low acceptance", f"{rate:.3f} of proposals accepted; lower the step size"))
    return found
