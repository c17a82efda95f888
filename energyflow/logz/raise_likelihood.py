"""RAISE: the log-likelihood of test points by annealing that starts at them (Burda, Grosse and Salakhutdinov 2015).

The law that is scored is p_ann, that of the end points of the forward annealing chain: x_0 from the base, then one move
T_k on f_k for every temperature up to 1. It is normalised for any number of temperatures K and tends to the model as
K grows. A reversible T_k gives `T_k(a -> b) f_k(a) = T_k(b -> a) f_k(b)`, so with the moves made backwards from x_K = x

    p_ann(x) = E[ p_0(x_0) prod_k f_k(x_k) / f_k(x_{k-1}) ] = f_K(x) E[ prod_k f_{k-1}(x_{k-1}) / f_k(x_{k-1}) ],

and the product is the weight of `anneal_reverse`. No log Z enters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from energyflow.chains import chain_keys, count_chains
from energyflow.energies.discrete import RBM
from energyflow.energy import as_energy
from energyflow.kernels.algorithm import is_reversible
from energyflow.logz.anneal import anneal_reverse
from energyflow.logz.path import Path, annealing_path, checked_schedule, pilot, require_annealing_kernel
from energyflow.stats import effective_sample_size, log_mean_exp
from energyflow.types import Array, Kernel, Key, Scalar, Tree, as_key


class RaiseLikelihood(NamedTuple):
    """RAISE of n points in nats, C chains a point.

    mean: over the points. stderr: of the mean over the points as a sample, the chains' noise included. annealing_error:
    of the mean, the chains' noise alone. values: (n,) log of the mean over chains. errors: (n,) standard errors of the
    values over chains, infinite for one chain. ess: (n,) effective chains of each point, of C; where it is near 1 the
    value lies far under what it estimates. betas (K+1,), acceptance (K,) per move in forward order. num_gradients:
    everything, the pilot included.
    """

    mean: float
    stderr: float
    annealing_error: float
    values: np.ndarray
    errors: np.ndarray
    ess: np.ndarray
    betas: np.ndarray
    acceptance: np.ndarray
    num_gradients: int

    def __str__(self) -> str:
        num = len(self.betas) - 1
        return (
            f"RAISE {self.mean:.3f} +- {self.stderr:.3f} nats per point ({self.annealing_error:.3f} from chains)\n"
            f"{len(self.values)} points, {num} annealing moves, ESS {self.ess.min():.1f} to {self.ess.max():.1f}, "
            f"{self.num_gradients} gradients"
        )


def raise_log_likelihood(
    key: Key | int,
    energy: Any,
    base: Any,
    points: Tree,
    kernel: Kernel,
    *,
    num_temperatures: int = 1000,
    num_chains: int = 16,
    betas: Any = None,
    tune: bool = True,
    complete: Callable[[Key, Tree], tuple[Tree, Scalar]] | None = None,
) -> RaiseLikelihood:
    """Estimate log p(x) of test points conservatively, by reverse annealing from each (Burda et al. 2015).

    energy: an energy or a plain function of one point. base: a normalised NumPyro distribution over one point whose
    support covers the energy's; None for the energy's own. points: leading axis [point]. kernel: reversible, with an
    accept step. num_temperatures: annealing moves K of each chain. num_chains: C, a point's chains. betas: (K+1,) from
    0 to 1; by default a pilot places them, at equal thermodynamic length. tune: fit a step size per temperature in that
    pilot, where the kernel has one. Neither depends on the points.
    complete: for an energy over more than the points, `(key, point) -> (position, log q)`: the position that the energy
    scores, its latent part drawn from a law q that covers it, and log q of that part. See `hidden_units`.

    What holds: exp(values[i]) has mean p_ann(x_i) exactly, so E values[i] <= log p_ann(x_i), and values[i] exceeds
    log p_ann(x_i) by t with probability at most exp(-t). p_ann is the annealing model, not p: at a single point
    log p_ann(x) may exceed log p(x), and does at few temperatures. Averaged over x ~ p it cannot: E mean <= E log p,
    short of it by KL(p || p_ann) and the chains' spread. For data from elsewhere nothing is proven at finite K; p_ann
    tends to p; check a K against more of it, or against `log_likelihood` of a bracket.
    All chains of all points run side by side: n C positions in memory.
    Raises ValueError for landscapes, unadjusted or irreversible kernels, schedules that are not such, and points where
    the log density is not finite.
    """
    pilot_key, latent_key, run_key = jax.random.split(as_key(key), 3)
    path, kernel = annealing_path(energy, base), as_energy(kernel)
    num, log_q = count_chains(points), 0.0
    if num_chains < 1:
        raise ValueError(f"num_chains must be at least 1; got {num_chains}")
    position = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x, float), num_chains, axis=0), points)
    if complete is not None:
        position, log_q = _completed(chain_keys(latent_key, num * num_chains), as_energy(complete), position)
    _require_reversible(kernel, path, jax.tree.map(lambda x: x[0], position))
    start = np.asarray(_values(path, position), np.float64) - np.asarray(log_q, np.float64)
    if not np.isfinite(start).all():
        bad = int(np.flatnonzero(~np.isfinite(start))[0]) // num_chains
        raise ValueError(f"the log density of point {bad} is not finite: it has no place in the model or in the base")
    betas, steps, spent = _schedule(pilot_key, path, kernel, num_temperatures, betas, tune)
    run = anneal_reverse(run_key, path, kernel, betas, steps, position)
    weights = (start + run.log_weights).reshape(num, num_chains)
    values, errors = np.array([log_mean_exp(row) for row in weights]).T
    stderr = values.std(ddof=1) / np.sqrt(num) if num > 1 else np.inf
    noise = np.sqrt(np.sum(errors**2)) / num
    ess = np.array([effective_sample_size(row) for row in weights])
    scores = float(values.mean()), float(stderr), float(noise), values, errors, ess
    return RaiseLikelihood(*scores, betas, run.acceptance[::-1], spent + run.num_gradients)


def hidden_units(rbm: RBM) -> Callable[[Key, Array], tuple[Tree, Scalar]]:
    """Return the `complete` of an RBM over {"v", "h"} for points that are visible states, (n, nv).

    Hidden units are drawn from p(h | v), so that block Gibbs on the joint scores the visible units alone.
    """
    return Partial(_hidden_units, rbm)


def _hidden_units(rbm: RBM, key: Key, v: Array) -> tuple[Tree, Scalar]:
    mean = rbm.hidden_mean(v)
    h = (jax.random.uniform(key, mean.shape, mean.dtype) < mean).astype(mean.dtype)
    log_odds = jnp.asarray(rbm.c) + v @ jnp.asarray(rbm.W)
    return {"v": v, "h": h}, jnp.sum(h * log_odds - jax.nn.softplus(log_odds))


@jax.jit
def _completed(keys: Key, complete: Callable, points: Tree) -> tuple[Tree, Array]:
    return jax.vmap(complete)(keys, points)


@jax.jit
def _values(path: Path, points: Tree) -> Array:
    return jax.vmap(path.at(1.0))(points)


def _require_reversible(kernel: Kernel, path: Path, point: Tree) -> None:
    require_annealing_kernel(kernel, path.at(1.0), point)
    if not is_reversible(kernel, path.at(1.0), point):
        raise ValueError("RAISE needs a reversible kernel, such as mala, hmc, rmh or block Gibbs in a palindrome")


def _schedule(
    key: Key, path: Path, kernel: Kernel, num_temperatures: int, betas: Any, tune: bool
) -> tuple[np.ndarray, Any, int]:
    """Return the schedule, the step sizes (None for the kernel's own) and the gradients that finding them took."""
    tune = tune and "step_size" in getattr(kernel, "keywords", {})
    if betas is not None:
        betas = checked_schedule(betas)
        if not tune:
            return betas, None, 0
    found = pilot(key, path, kernel)
    betas = found.schedule(num_temperatures) if betas is None else betas
    return betas, found.steps(betas) if tune else None, found.num_gradients
