"""Annealed importance sampling, its reverse, and the bracket of both: what users call."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from energyflow.chains import advance_chains, count_chains, require_floats
from energyflow.energy import as_energy
from energyflow.kernels.algorithm import is_reversible, with_step_size
from energyflow.kernels.continuous import mala
from energyflow.logz.anneal import Annealed, anneal_forward, anneal_reverse
from energyflow.logz.path import (
    Path,
    annealing_path,
    checked_schedule,
    linear_schedule,
    pilot,
    require_annealing_kernel,
    sigmoid_schedule,
)
from energyflow.logz.result import LogZ, combine
from energyflow.rows import flat_rows
from energyflow.types import Array, Kernel, Key, LogDensity, Tree, as_key


def ais(
    key: Key | int,
    kernel: Kernel,
    base: Any,
    target: Any,
    betas: Any,
    num_chains: int,
    *,
    steps: Any = None,
    order: float = 1.0,
    unroll: bool = False,
) -> LogZ:
    """Annealed importance sampling (Neal 2001), forward only: a stochastic lower bound, verdict "one-sided".

    base: a normalised NumPyro distribution over one point (None: a tilted energy's own). target: an energy or plain
    function E of one point. betas: (K+1,) from 0 to 1, or K for a linear schedule. steps: (K,) step sizes, the
    kernel's own by default. Raises ValueError for an unadjusted kernel, a landscape, or a schedule that is not one.
    """
    key = as_key(key)
    path, betas, kernel = annealing_path(target, base, order), _schedule(betas), as_energy(kernel)
    base_key, run_key = jax.random.split(key)
    position = path.base.sample(base_key, (num_chains,))
    require_invariant(kernel, path, position)
    run = anneal_forward(run_key, path, kernel, betas, steps, position, unroll=unroll)
    return _result(run, None, "none", run.num_gradients, betas, steps)


def reverse_ais(
    key: Key | int,
    kernel: Kernel,
    base: Any,
    target: Any,
    betas: Any,
    exact: Tree,
    *,
    steps: Any = None,
    order: float = 1.0,
    unroll: bool = False,
) -> LogZ:
    """Annealing from the target down to the base (Grosse, Ghahramani and Adams 2015): a stochastic upper bound.

    exact: exact draws of the target, leading axis [chain]; from anything else the result bounds nothing. The other
    arguments are those of `ais`. Raises ValueError for kernels that are not reversible or not adjusted.
    """
    key = as_key(key)
    path, betas, kernel = annealing_path(target, base, order), _schedule(betas), as_energy(kernel)
    require_invariant(kernel, path, exact, reverse=True)
    run = anneal_reverse(key, path, kernel, betas, steps, exact, unroll=unroll)
    return _result(None, run, "exact", run.num_gradients, betas, steps)


def bracket(
    key: Key | int,
    energy: Any,
    base: Any = None,
    kernel: Kernel | None = None,
    *,
    num_temperatures: int = 1000,
    num_chains: int = 256,
    exact: Tree = None,
    approximate: Tree = None,
    schedule: Any = "adaptive",
    tune: bool = True,
    target_acceptance: float = 0.6,
    num_refresh: int | None = None,
    reverse: bool = True,
    order: float = 1.0,
    unroll: bool = False,
) -> LogZ:
    """Bracket log Z of exp(-E/T) between forward and reverse annealing along one frozen path.

    energy: an energy or a plain function of one point. base: a normalised NumPyro distribution over one point whose
    support covers the energy's; None for a tilted energy's own. kernel: MALA scaled by the base's variance by default.
    num_temperatures: annealing moves K per direction. num_chains: per direction. exact: exact draws of the target,
    leading axis [chain]. approximate: draws of long checked chains to start the reverse from instead. With neither, the
    reverse chains start at resampled forward end points moved `num_refresh` more transitions (K by default). Without
    exact draws the upper side is approximate, never called a bound.
    schedule: "adaptive" (equal thermodynamic length, from the pilot), "sigmoid", "linear" or (K+1,) values. tune: fit a
    step size per temperature in a pilot, frozen before any weighted chain starts, to `target_acceptance`. reverse:
    False runs the forward direction alone (verdict "one-sided").
    Raises ValueError for landscapes, unadjusted or irreversible kernels and bad schedules.
    """
    keys = jax.random.split(as_key(key), 6)
    path = annealing_path(energy, base, order)
    chosen: Kernel = as_energy(_default_kernel(path.base) if kernel is None else kernel)
    position = path.base.sample(keys[0], (num_chains,))
    require_invariant(chosen, path, position, reverse=reverse)
    steps, spent = None, 0
    if tune or isinstance(schedule, str) and schedule == "adaptive":
        found = pilot(keys[1], path, chosen, target_acceptance=target_acceptance)
        betas = found.schedule(num_temperatures) if isinstance(schedule, str) and schedule == "adaptive" else None
        betas = _schedule(schedule, num_temperatures) if betas is None else betas
        steps, spent = (found.steps(betas) if tune else None), found.num_gradients
    else:
        betas = _schedule(schedule, num_temperatures)
    forward = anneal_forward(keys[2], path, chosen, betas, steps, position, unroll=unroll)
    if not reverse:
        return _result(forward, None, "none", spent + forward.num_gradients, betas, steps)
    provenance = "exact" if exact is not None else "approximate"
    target = exact if exact is not None else approximate
    if target is None:
        last = chosen if steps is None else with_step_size(chosen, float(steps[-1]))
        moves = num_temperatures if num_refresh is None else num_refresh
        target, refresh_cost = _refresh(keys[3], keys[4], path, last, forward, moves, unroll)
        spent += refresh_cost
    require_floats(target)
    back = anneal_reverse(keys[5], path, chosen, betas, steps, target, unroll=unroll)
    spent += forward.num_gradients + back.num_gradients
    return _result(forward, back, provenance, spent, betas, steps)


def _result(
    forward: Annealed | None, reverse: Annealed | None, provenance: str, spent: int, betas: np.ndarray, steps: Any
) -> LogZ:
    return combine(
        None if forward is None else forward.log_weights,
        None if reverse is None else -reverse.log_weights,
        provenance,
        num_gradients=spent,
        position=None if forward is None else forward.position,
        betas=betas,
        acceptance=forward.acceptance if forward is not None else reverse and reverse.acceptance[::-1],
        steps=steps,
    )


def _refresh(
    pick_key: Key, move_key: Key, path: Path, kernel: Kernel, forward: Annealed, num_steps: int, unroll: bool
) -> tuple[Tree, int]:
    """Resample the forward ends by weight, then move them: the approximate stand-in for exact draws."""
    weights = jnp.asarray(forward.log_weights - forward.log_weights.max(), dtype=float)
    rows = jax.random.categorical(pick_key, weights, shape=weights.shape)
    start = jax.tree.map(lambda x: x[rows], forward.position)
    size = 10 if unroll else max(num_steps, 1)
    spent, position = 0, start
    for i in range(0, num_steps, size):
        position, metrics = advance_chains(
            jax.random.fold_in(move_key, i), kernel, path.at(1.0), position, min(size, num_steps - i), unroll=unroll
        )
        spent += int(metrics["num_gradients"])
    return position, spent


def _default_kernel(base: Any) -> Kernel:
    """MALA scaled by what the base knows of the target's scale; draws tell where it has no moments."""
    try:
        covariance = base.covariance_matrix
    except (AttributeError, NotImplementedError):
        if hasattr(base, "variance"):
            covariance = jnp.ravel(base.variance)
        else:
            draws = base.sample(jax.random.key(0), (1000,))
            covariance = jnp.var(flat_rows(draws)[0], axis=0)
    dim = covariance.shape[0]
    return mala(1.0 / dim ** (1 / 3), covariance)


@jax.jit
def _values(density: LogDensity, position: Tree) -> Array:
    return jax.vmap(density)(position)


def _schedule(betas: Any, num_temperatures: int = 0) -> np.ndarray:
    if isinstance(betas, str):
        named = {"linear": linear_schedule, "sigmoid": sigmoid_schedule}
        if betas not in named:
            raise ValueError(f'schedule must be "adaptive", "sigmoid", "linear" or an array; got {betas!r}')
        return named[betas](num_temperatures)
    if np.ndim(betas) == 0:
        return linear_schedule(int(betas))
    return checked_schedule(betas)


def require_invariant(kernel: Kernel, path: Path, position: Tree, reverse: bool = False) -> None:
    """Raise ValueError where chains from `position`, leading axis [chain], could not be weighed along the path."""
    count_chains(position)
    require_floats(position)
    one = jax.tree.map(lambda x: x[0], position)
    require_annealing_kernel(kernel, path.at(1.0), one)
    if np.isnan(_values(path.at(1.0), position)).all():
        raise ValueError(
            "the energy is nan wherever the chains start: look for the log or root of what may be negative"
        )
    if reverse and not is_reversible(kernel, path.at(1.0), one):
        raise ValueError(
            "reverse annealing needs a reversible kernel; GHMC's persistent momentum is not: use hmc or mala"
        )
