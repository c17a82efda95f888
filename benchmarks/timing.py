"""Interleaved timing: every round runs each candidate once, so that a drifting machine slows all of them alike."""

import time

import jax
import numpy as np


def interleaved(candidates, rounds):
    """Return {name: seconds (rounds,)}; each candidate is a nullary function whose result is waited for."""
    for run in candidates.values():
        jax.block_until_ready(run())
    seconds = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(seconds, name, other):
    """Return the median and range of the round-by-round ratio."""
    ratios = seconds[name] / seconds[other]
    return {"median": float(np.median(ratios)), "min": float(ratios.min()), "max": float(ratios.max())}
