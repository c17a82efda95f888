"""Floor 5: BlackJAX's own warm-ups, with the signature and the result of `warm_up`.

Each takes `(key, kernel, logdensity, position)`, chains on the leading axis of `position`, and returns a `Tuned` whose
one kernel serves all chains; `run(..., warmup=window_adaptation)` takes any of them. Stan's windows and MCLMC's tuner
see one chain each, ChEES and MEADS all chains together. `num_gradients` is exact: every energy gradient of every chain,
with the one that checks each start and the one BlackJAX starts from.
"""

import functools
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from blackjax.adaptation.base import get_filter_adapt_info_fn
from blackjax.adaptation.mclmc_adaptation import MCLMCAdaptationState
from jax.flatten_util import ravel_pytree

from energyflow.chains import chain_keys, count_chains, start_chains
from energyflow.energy import as_energy
from energyflow.kernels.algorithm import name_of, step_size, with_settings
from energyflow.kernels.continuous import dynamic_hmc, ghmc
from energyflow.mixing import RUNAWAY
from energyflow.tuning import Tuned
from energyflow.types import Array, Kernel, Key, LogDensity, Tree, as_key

NUM_FOLDS = 4
"""Folds of chains in MEADS, as in the paper: each takes its step size from another fold's gradients."""
LEAST = {
    "window_adaptation": (("hmc", "nuts"), 20, 1),
    "chees": (("dynamic_hmc", "hmc", "nuts"), 20, 4),
    "meads": (("ghmc", "dynamic_hmc", "hmc", "nuts"), 20, 4 * NUM_FOLDS),
    "tune_mclmc": (("mclmc", "adjusted_mclmc"), 30, 1),
}
"""Kernels each serves, and the steps and chains it needs at least."""
LONGEST = 100
"""Integration steps a proposal of adjusted MCLMC takes at most while its step size is still far from home."""

_Found = tuple[Tree, dict[str, Any], Array]  # where the chains end, settings for all chains, gradients that add up
_counts = get_filter_adapt_info_fn(info_keys={"num_integration_steps"})


def window_adaptation(
    key: Key | int,
    kernel: Kernel,
    logdensity: LogDensity,
    position: Tree,
    *,
    num_steps: int = 1000,
    scale: str = "diagonal",
    target_acceptance: float = 0.8,
) -> Tuned:
    """Fit the step size and scale of `hmc` or `nuts` by Stan's windows (Hoffman and Gelman 2014; Carpenter 2017).

    Every chain of `position`, leading axis [chain], is adapted on its own for `num_steps` transitions, all at once by
    vmap; the kernel returned has the median of their step sizes and the mean of their inverse mass matrices. Stan's
    averaged step size is cautious: expect about a tenth more than `target_acceptance`.
    scale: "diagonal" or "dense". num_gradients: counted from BlackJAX's infos.
    Raises ValueError for other kernels, fewer than 20 steps (Stan adapts no scale in fewer), and chains that run away.
    """
    if scale not in ("diagonal", "dense"):
        raise ValueError(f'scale must be "diagonal" or "dense"; got {scale!r}')
    words, kernel, logdensity, position = _begin("window_adaptation", key, kernel, logdensity, position, num_steps)
    found = _windows(words, kernel, logdensity, position, target_acceptance, num_steps, scale == "diagonal")
    return _end(with_settings(kernel, **found[1]), found)


def chees(
    key: Key | int,
    kernel: Kernel,
    logdensity: LogDensity,
    position: Tree,
    *,
    num_steps: int = 500,
    scale: str | None = "diagonal",
    target_acceptance: float = 0.651,
    learning_rate: float = 0.025,
    max_num_integration_steps: int = 1000,
) -> Tuned:
    """Fit step size, trajectory length and scale of `dynamic_hmc` by ChEES (Hoffman, Radul and Sountsov 2021).

    The trajectory length climbs, by Adam at `learning_rate`, the change in squared distances from the chains' mean; the
    step size follows the harmonic mean of the chains' acceptance rates, which lies below their mean. Of `kernel`, which
    may also be `hmc` or `nuts`, only the step size is used, as the start. The kernel returned draws its number of steps
    uniformly, as BlackJAX's does from a Halton sequence.
    position: leading axis [chain], dispersed. scale: "diagonal", from the second half of the steps, or None.
    num_gradients: counted from BlackJAX's infos.
    Raises ValueError for other kernels, fewer than 4 chains or 20 steps, and chains that run away.
    """
    if scale not in ("diagonal", None):
        raise ValueError(f'scale must be "diagonal" or None; got {scale!r}')
    words, kernel, logdensity, position = _begin("chees", key, kernel, logdensity, position, num_steps)
    aims, longest = (step_size(kernel), target_acceptance, learning_rate), max_num_integration_steps
    found = _chees(words, logdensity, position, aims, num_steps, scale, longest)
    most = int(np.clip(np.ceil(found[1].pop("num")), 1, longest))
    return _end(dynamic_hmc(max_num_integration_steps=most, **found[1]), found)


def meads(key: Key | int, kernel: Kernel, logdensity: LogDensity, position: Tree, *, num_steps: int = 500) -> Tuned:
    """Fit step size, damping and scale of `ghmc` by MEADS (Hoffman and Sountsov 2022).

    All are read off the spread of positions and gradients over the chains, in four folds, at the last step: a hundred
    chains make them steadier than the sixteen it needs. Nothing of `kernel`, which may also be `hmc`, `nuts` or
    `dynamic_hmc`, is used.
    position: leading axis [chain], dispersed; the chains come back in another order. num_gradients: counted from
    BlackJAX's infos, one a step and chain, also in the fold that rests, whose move is made and dropped.
    Raises ValueError for other kernels, fewer than 16 chains or no multiple of 4, fewer than 20 steps, and chains that
    run away.
    """
    words, _, logdensity, position = _begin("meads", key, kernel, logdensity, position, num_steps)
    if count_chains(position) % NUM_FOLDS:
        raise ValueError(f"meads needs a multiple of {NUM_FOLDS} chains; got {count_chains(position)}")
    found = _meads(words, logdensity, position, num_steps)
    return _end(ghmc(**found[1]), found)


def tune_mclmc(
    key: Key | int,
    kernel: Kernel,
    logdensity: LogDensity,
    position: Tree,
    *,
    num_steps: int = 900,
    target_acceptance: float = 0.9,
) -> Tuned:
    """Fit `mclmc` (Robnik, De Luca, Silverstein and Seljak 2023) or `adjusted_mclmc` (Robnik et al. 2025).

    Every chain is tuned on its own for `num_steps` transitions, a third for each of BlackJAX's phases, beginning at the
    kernel's settings; the kernel returned has the medians over chains. `mclmc`: the step size by the variance of the
    energy error, 5e-4 a dimension, then the decoherence length by the autocorrelation. `adjusted_mclmc`: the step size
    by `target_acceptance`; BlackJAX keeps the number of steps of a proposal, so that is yours to choose. No scale is
    fitted, since these kernels have none: whiten targets that are badly scaled.
    position: leading axis [chain], two dimensions at least. num_gradients: two a step of the integrator; `mclmc` makes
    one such step a transition, those of `adjusted_mclmc` are counted from BlackJAX's infos.
    Raises ValueError for other kernels, fewer than 30 steps, one integration step a proposal, one dimension, and chains
    that run away.
    """
    if ravel_pytree(position)[0].size < 2 * count_chains(position):
        raise ValueError("tune_mclmc needs positions of at least two dimensions")
    words, kernel, logdensity, position = _begin("tune_mclmc", key, kernel, logdensity, position, num_steps)
    if not kernel.keywords.get("num_integration_steps", 2) >= 2:  # type: ignore[attr-defined]
        raise ValueError("tune_mclmc needs two integration steps a proposal or more, as in adjusted_mclmc(0.1, 2)")
    fit = _mclmc if name_of(kernel) == "mclmc" else functools.partial(_adjusted_mclmc, target=target_acceptance)
    found = fit(words, kernel, logdensity, position, num_steps=num_steps)
    return _end(with_settings(kernel, **found[1]), found)


def _begin(
    function: str, key: Key | int, kernel: Kernel, logdensity: LogDensity, position: Tree, num_steps: int
) -> tuple[Key, Kernel, LogDensity, Tree]:
    """Check the arguments and the starts."""
    kernel, logdensity = as_energy(kernel), as_energy(logdensity)
    served, least_steps, least_chains = LEAST[function]
    if name_of(kernel) not in served:
        raise ValueError(f"{function} serves the kernels {', '.join(served)}; got {name_of(kernel)}")
    if num_steps < least_steps:
        raise ValueError(f"{function} needs at least {least_steps} steps; got {num_steps}")
    if count_chains(position) < least_chains:
        raise ValueError(f"{function} needs at least {least_chains} chains; got {count_chains(position)}")
    start_key, run_key = jax.random.split(as_key(key))
    return run_key, kernel, logdensity, start_chains(start_key, kernel, logdensity, position).state.position


def _end(kernel: Kernel, found: _Found) -> Tuned:
    """Return what was found. Raises ValueError where a chain ran away or no step size serves."""
    position, settings, gradients = found
    farthest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(position))
    # `not <` and not `>=`: a NaN fails too.
    if not farthest < RUNAWAY or not all(np.all(np.isfinite(x)) for x in jax.tree.leaves(settings)):
        raise ValueError(
            f"no settings were found, and a chain went as far as {farthest:.2g}: the energy falls without bound on the "
            "way, or its gradient is not finite"
        )
    if not float(step_size(kernel)) > 1e-12:
        raise ValueError(f"no move is accepted even at a step size of {float(step_size(kernel)):.2g}")
    spent = int(np.asarray(gradients).sum(dtype=np.int64)) + 2 * count_chains(position)
    return Tuned(kernel, position, [], spent)


def _each(run: Any, key: Key, position: Tree) -> Any:
    """Map `run(key, x)` over chains; by words, since under vmap the debug check takes scanned keys for reused."""
    keys = chain_keys(key, count_chains(position))
    default = str(jax.random.key_impl(key)) == jax.config.jax_default_prng_impl  # type: ignore[attr-defined]
    return jax.vmap(run)(jax.random.key_data(keys) if default else keys, position)


@functools.partial(jax.jit, static_argnames=("num_steps", "diagonal"))
def _windows(
    key: Key, kernel: Any, logdensity: LogDensity, position: Tree, target: Any, num_steps: int, diagonal: bool
) -> _Found:
    # What else the kernel is set to: HMC's number of steps, NUTS's doublings.
    own = {n: v for n, v in kernel.keywords.items() if n not in ("step_size", "inverse_mass_matrix")}
    own |= dict(initial_step_size=step_size(kernel), target_acceptance_rate=target, adaptation_info_fn=_counts)
    algorithm, own = getattr(blackjax, name_of(kernel)), own | getattr(kernel.func, "keywords", {})
    warmup: Any = blackjax.window_adaptation(algorithm, logdensity, diagonal, **own)
    (state, fitted), counts = _each(lambda key, x: warmup.run(key, x, num_steps), key, position)
    scale = jnp.mean(fitted["inverse_mass_matrix"], axis=0)
    settings = {"step_size": jnp.median(fitted["step_size"]), "inverse_mass_matrix": scale}
    return state.position, settings, counts.info.num_integration_steps


@functools.partial(jax.jit, static_argnames=("num_steps", "scale", "longest"))
def _chees(
    key: Key, logdensity: LogDensity, position: Tree, aims: Any, num_steps: int, scale: str | None, longest: int
) -> _Found:
    step, target, rate = aims
    warmup: Any = blackjax.chees_adaptation(
        logdensity,
        count_chains(position),
        target_acceptance_rate=target,
        max_leapfrog_steps=longest,
        adaptation_info_fn=_counts,
        mass_matrix_estimation=scale,
    )
    (state, fitted), counts = warmup.run(key, position, step, optax.adam(rate), num_steps)
    settings = {"step_size": fitted["step_size"], "num": fitted["integration_steps_params"][0]}
    settings["inverse_mass_matrix"] = None if scale is None else fitted["inverse_mass_matrix"]
    return state.position, settings, counts.info.num_integration_steps


@functools.partial(jax.jit, static_argnames="num_steps")
def _meads(key: Key, logdensity: LogDensity, position: Tree, num_steps: int) -> _Found:
    warmup: Any = blackjax.meads_adaptation(logdensity, count_chains(position), NUM_FOLDS, adaptation_info_fn=_counts)
    (state, fitted), counts = warmup.run(key, position, num_steps)
    settings = {name: fitted[name] for name in ("step_size", "alpha", "delta")}
    settings["inverse_mass_matrix"] = jnp.square(ravel_pytree(fitted["momentum_inverse_scale"])[0])
    return state.position, settings, counts.info.num_integration_steps


@functools.partial(jax.jit, static_argnames="num_steps")
def _mclmc(key: Key, kernel: Any, logdensity: LogDensity, position: Tree, num_steps: int) -> _Found:
    move, third, length = blackjax.mclmc.build_kernel(), num_steps // 3, kernel.keywords["decoherence_length"]

    def one(key: Key, x: Tree) -> Any:
        start_key, key = jax.random.split(key)
        size = ravel_pytree(x)[0].size
        begin = jnp.asarray([size**0.5 if length is None else length, step_size(kernel)], dtype=float)
        state, params = blackjax.mclmc.init(x, logdensity, start_key), MCLMCAdaptationState(*begin, jnp.ones(size))  # type: ignore[arg-type]
        # All three fractions are one: BlackJAX's num_steps is then a third of ours.
        return blackjax.mclmc_find_L_and_step_size(
            move, third, state, key, logdensity, 1.0, 1.0, 1.0, diagonal_preconditioning=False, params=params
        )

    state, fitted, steps = _each(one, key, position)
    settings = {"step_size": jnp.median(fitted.step_size), "decoherence_length": jnp.median(fitted.L)}
    return state.position, settings, 2 * steps


@functools.partial(jax.jit, static_argnames="num_steps")
def _adjusted_mclmc(
    key: Key, kernel: Any, logdensity: LogDensity, position: Tree, target: Any, num_steps: int
) -> _Found:
    move, third, number = (
        blackjax.adjusted_mclmc.build_kernel(),
        num_steps // 3,
        kernel.keywords["num_integration_steps"],
    )

    def whole(rng_key: Key, state: Any, logdensity_fn: Any, integration_steps_params: Any, **settings: Any) -> Any:
        # The tuner gives the ratio of two lengths, the kernel loops over a whole number.
        steps = jnp.clip(jnp.round(integration_steps_params[0]), 1, LONGEST).astype(int)
        return move(rng_key, state, logdensity_fn, integration_steps_params=(steps,), **settings)

    def one(key: Key, x: Tree) -> Any:
        state, step = blackjax.adjusted_mclmc.init(x, logdensity), jnp.asarray(step_size(kernel), dtype=float)
        params = MCLMCAdaptationState(number * step, step, jnp.ones(ravel_pytree(x)[0].size))  # type: ignore[arg-type]
        return blackjax.adjusted_mclmc_find_L_and_step_size(
            whole,
            logdensity,
            third,
            state,
            key,
            target,
            1.0,
            1.0,
            0.0,
            False,
            params,
            target_num_integration_steps=number,
        )

    state, fitted, steps = _each(one, key, position)
    return state.position, {"step_size": jnp.median(fitted.step_size)}, 2 * steps
