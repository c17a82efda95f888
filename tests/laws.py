"""Helpers that hold a Monte Carlo result against a known number, with a tolerance derived from its own error.

A two-sided normal tail beyond 4.5 has probability 6.8e-6: a suite of a thousand such comparisons raises a false alarm
in under one run of a hundred, and a forgotten accept step is a matter of tens of standard errors at N = 4096.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

COMPILATION = "/jax/core/compile/backend_compile_duration"


def z_score(samples: Any, expected: Any) -> np.ndarray:
    """Return (mean - expected) / standard error per component, in float64.

    samples: independent draws, leading axis [draw]. expected: shape of one draw, or a scalar for all components.
    A component without spread scores 0 where it equals `expected` exactly and infinity otherwise.
    Raises ValueError where the shapes disagree, there are fewer than two draws or a draw is not finite.
    """
    draws = np.asarray(samples, dtype=np.float64)
    target = np.asarray(expected, dtype=np.float64)
    if draws.ndim == 0 or len(draws) < 2:
        raise ValueError(f"need at least two draws on the leading axis; got shape {draws.shape}")
    if target.shape not in ((), draws.shape[1:]):
        raise ValueError(f"expected has shape {target.shape}, one draw has shape {draws.shape[1:]}")
    if not np.isfinite(draws).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(draws))} of {draws.size} values are not finite")
    gap = draws.mean(axis=0) - target
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    return np.divide(gap, error, out=np.where(gap == 0, 0.0, np.copysign(np.inf, gap)), where=error > 0)


def _worst(samples: Any, expected: Any) -> tuple[float, str]:
    scores = z_score(samples, expected)
    index = np.unravel_index(np.argmax(np.abs(scores)), scores.shape)
    draws = np.asarray(samples, dtype=np.float64)[(slice(None), *index)]
    target = np.broadcast_to(np.asarray(expected, dtype=np.float64), scores.shape)[index]
    error = draws.std(ddof=1) / np.sqrt(len(draws))
    place = f" at component {tuple(map(int, index))}" if index else ""
    text = f"mean {draws.mean():.6g} +- {error:.2g} (n = {len(draws)}) against {target:.6g}{place}"
    return float(abs(scores[index])), f"{text}: z = {scores[index]:.2f}"


def assert_mean(samples: Any, expected: Any, z: float = 4.5) -> None:
    """Assert that every component's mean is within `z` standard errors of `expected`; shapes as in `z_score`."""
    worst, text = _worst(samples, expected)
    assert worst < z, f"{text}, allowed {z}"


def assert_not_mean(samples: Any, expected: Any, z: float = 4.5) -> None:
    """Assert the negative control: some component's mean is more than `z` standard errors from `expected`."""
    worst, text = _worst(samples, expected)
    assert worst > z, f"the negative control was not caught: {text}, needed more than {z}"


@dataclass
class Compilations:
    """The programs handed to XLA since the counter started, those found in the compilation cache included."""

    count: int = 0


@contextlib.contextmanager
def count_compilations() -> Iterator[Compilations]:
    """Count XLA compilations: `with count_compilations() as made: f(x)`, then read `made.count`."""
    made = Compilations()

    def listen(event: str, duration: float, **labels: Any) -> None:
        made.count += event == COMPILATION

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield made
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
