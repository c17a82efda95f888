"""Floor 7: one call from a target to draws that say whether they can be used."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from energyflow.chains import Trace, count_chains, require_floats, sample_chains
from energyflow.diagnostics import Check, check, summary, to_arviz
from energyflow.diagnostics.problems import MAX_DIVERGENT
from energyflow.energy import as_energy, logdensity, require_density
from energyflow.kernels.algorithm import is_adjusted, name_of, step_size, with_settings
from energyflow.kernels.continuous import hmc, nuts
from energyflow.types import Kernel, Key, Tree, as_key
from energyflow.warmup import TARGETS, warm_up

FEW_CHAINS = 16
"""Up to here NUTS waits little for its slowest chain; beyond, HMC of fixed length costs less per effective draw."""
CAREFUL = 0.95
"""Acceptance rate of the second attempt, where HMC or NUTS diverged in the first."""


class Sampled(NamedTuple):
    """Draws with their verdict; prints the verdict and a table of the parameters.

    parameters: the draws as the model names them, {name: (chain, draw, ...)} (for other energies the positions).
    trace: the positions the kernel moved, with its stats. check: what the draws say of themselves. kernel: as tuned.
    warmup_gradients: energy gradients spent before the draws that are kept.
    """

    parameters: Any
    trace: Trace
    check: Check
    kernel: Kernel
    warmup_gradients: int

    @property
    def verdict(self) -> str:
        """Return "healthy" or the name of the worst problem."""
        return self.check.verdict

    def summary(self) -> pd.DataFrame:
        """Return mean, sd, Monte Carlo error, ESS and R-hat of every parameter."""
        return summary(self.parameters)

    def to_arviz(self) -> Any:
        """Return the named parameters and the sampler's stats as ArviZ's container."""
        return to_arviz(self.trace._replace(position=self.parameters))

    def __str__(self) -> str:
        table = self.summary()
        rows = table.iloc[:20].to_string(float_format=lambda v: f"{v:.4g}")
        rest = f"\n... and {len(table) - 20} more" if len(table) > 20 else ""
        gradients = int(np.sum(self.trace.stats.num_gradients, dtype=np.int64))
        spent = f"{name_of(self.kernel)}: {self.warmup_gradients} gradients of warm-up, {gradients} of draws"
        return f"{self.check}\n{spent}\n{rows}{rest}"


def run(
    key: Key | int,
    target: Any,
    kernel: Kernel | str = "auto",
    *,
    chains: int = 8,
    draws: int = 1000,
    position: Tree = None,
    scale: str | None = "auto",
    target_acceptance: float | None = None,
    thin: int = 1,
    progress: bool = False,
    warmup: Callable | None = None,
) -> Sampled:
    """Tune a kernel on a target, draw from it and judge the draws.

    key: typed key or int seed. target: what `from_numpyro` returns, or an energy. kernel: "auto" takes NUTS for up to
    16 chains and HMC of a quarter period for more; a kernel's own settings are where tuning starts. chains, draws:
    `draws` are kept of each chain, `thin` transitions apart. position: starts, leading axis [chain]; by default the
    model's own, or draws of a tilted energy's base. scale, target_acceptance: see `warm_up`.
    warmup: `warm_up` by default, or another function `(key, kernel, logdensity, position) -> Tuned`, as
    `window_adaptation`, `chees`, `meads` and `tune_mclmc` are, with its options in a `functools.partial`.
    Kernels with an accept step and a step size are warmed up; others discard half as many draws as they keep. HMC and
    NUTS that diverge in more than one transition of ten thousand are tuned and drawn once more, with shorter steps
    (acceptance 0.95), unless target_acceptance or warmup is given; a note says so.
    Raises ValueError for a landscape, where there is no start, and for scale or target_acceptance beside a warmup.
    """
    if warmup is not None and (scale != "auto" or target_acceptance is not None):
        raise ValueError("scale and target_acceptance belong to the default warm-up; give warmup a functools.partial")
    if draws < 1:
        raise ValueError(f"nothing can be judged without a draw; got draws={draws}")
    target = as_energy(target)
    require_density(target, "sampling")
    start_key, warm_key, draw_key = jax.random.split(as_key(key), 3)
    position = _starts(start_key, target, chains) if position is None else jax.tree.map(jnp.asarray, position)
    require_floats(position)
    automatic = isinstance(kernel, str) and kernel == "auto"
    if automatic:
        kernel = nuts(0.1) if count_chains(position) <= FEW_CHAINS else hmc(0.1, 3)
    elif isinstance(kernel, str):
        raise ValueError(f'kernel must be "auto" or a kernel such as ef.nuts(0.1); got {kernel!r}')
    chosen: Kernel = as_energy(kernel)
    density = logdensity(target)
    spent, discard, notes = 0, draws * thin // 2, []
    tunable = warmup is not None or _is_tunable(chosen, density, position)
    careful = warmup is None and tunable and target_acceptance is None and name_of(chosen) not in TARGETS
    for attempt, rate in enumerate((None, CAREFUL) if careful else (target_acceptance,)):
        if tunable:
            warm = jax.random.fold_in(warm_key, attempt)
            fit = warmup or functools.partial(warm_up, scale=scale, target_acceptance=rate)
            tuned = fit(warm, chosen, density, position)
            chosen, position, discard = tuned.kernel, tuned.position, 0
            spent += tuned.num_gradients
            if automatic and name_of(chosen) == "hmc":
                # A quarter of the period of a whitened Gaussian; near a whole one HMC returns to where it started.
                num_integration_steps = round(float(np.clip(np.pi / 2 / step_size(chosen), 1, 64)))
                chosen = with_settings(chosen, num_integration_steps=num_integration_steps)
        draw = jax.random.fold_in(draw_key, attempt)
        trace = sample_chains(draw, chosen, density, position, draws, warmup=discard, thin=thin, progress=progress)
        found = check(trace)
        divergent = found.numbers.get("divergent", 0.0)
        if not careful or attempt or divergent <= MAX_DIVERGENT:
            break
        spent += int(np.sum(trace.stats.num_gradients, dtype=np.int64))
        notes = [
            f"drawn again at a target acceptance of {CAREFUL}: {100 * divergent:.2g} % of transitions diverged before"
        ]
    named = target.constrain(trace.position) if hasattr(target, "constrain") else trace.position
    found = found._replace(notes=[*found.notes, *notes])
    return Sampled(jax.tree.map(np.asarray, named), trace, found, chosen, spent)


def _starts(key: Key, target: Any, chains: int) -> Tree:
    if hasattr(target, "initial"):
        return target.initial(key, chains)
    if getattr(target, "base", None) is not None:
        return target.base.sample(key, (chains,))
    raise ValueError("an energy does not say where to start: give position=, starts with a leading axis [chain]")


def _is_tunable(kernel: Kernel, density: Any, position: Tree) -> bool:
    one = jax.tree.map(lambda x: x[0], position)
    return "step_size" in getattr(kernel, "keywords", {}) and is_adjusted(kernel, density, one)
