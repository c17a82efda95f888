"""Floor 1: what an energy is, and the log density it defines.

An energy is a callable pytree scoring ONE point, `E(x, *cond) -> scalar`; batches come from `jax.vmap`. It defines the
unnormalised log density `-E(x)/T`, with T its own temperature. Its floating-point leaves are its trainable parameters,
except those under a `Frozen` node.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, register_dataclass

from energyflow.types import Kind, LogDensity, Scalar, Tree


@register_dataclass
@dataclass(frozen=True, eq=False)
class Frozen:
    """A subtree that no training step changes (a base distribution, a temperature, a scaling)."""

    value: Any

    def __call__(self, *args: Any) -> Any:
        return jax.lax.stop_gradient(self.value)(*args)


def frozen(energy: Tree) -> Frozen:
    """Return the same energy (or any pytree) with every leaf excluded from training."""
    return Frozen(as_energy(energy) if callable(energy) else energy)


def as_energy(energy: Any) -> Any:
    """Return `energy` as a callable pytree; a plain function of one point becomes one without leaves.

    Raises TypeError for something that cannot be called and for a flax module (see `energyflow.from_nnx`).
    """
    if not callable(energy):
        raise TypeError(f"an energy, or a kernel, must be callable; got {type(energy).__name__} {energy!r:.40}")
    if hasattr(energy, "__nnx_repr__") or any("flax.nnx" in base.__module__ for base in type(energy).__mro__):
        raise TypeError(f"{type(energy).__name__} is a flax module; wrap it once with energyflow.from_nnx(module)")
    is_leaf = jax.tree.structure(energy) == jax.tree.structure(0)
    return Partial(energy) if is_leaf else energy


def temperature(energy: Any) -> Scalar | float:
    """Return the temperature T of `energy`, 1 unless it declares one."""
    return getattr(_unwrap(energy), "temperature", 1.0)


def kind(energy: Any) -> Kind:
    """Return "density", "tempered" (the density is exp(-E/T) with T a modelling choice) or "landscape" (no density)."""
    return getattr(_unwrap(energy), "kind", "density")


class Around:
    """What holds an energy, as `energy`, and has its temperature and its kind."""

    energy: Any

    @property
    def temperature(self) -> Scalar | float:
        """T of the energy inside."""
        return temperature(self.energy)

    @property
    def kind(self) -> Kind:
        """The kind of the energy inside."""
        return kind(self.energy)


def _unwrap(energy: Any) -> Any:
    return energy.value if isinstance(energy, Frozen) else energy


def require_density(energy: Any, purpose: str) -> None:
    """Raise ValueError where `energy` is a landscape, for which `purpose` has no meaning."""
    if kind(energy) == "landscape":
        raise ValueError(
            f"{purpose} needs a density, and this energy is a landscape: exp(-E) is not the density it was trained "
            "for. Sample it with a descent sampler, or train a density."
        )


def require_one_point(base: Any) -> None:
    """Raise ValueError where the distribution `base` is a batch of distributions."""
    if getattr(base, "batch_shape", ()) != ():
        raise ValueError(f"the base must score one point; its batch shape is {base.batch_shape}: use .to_event(...)")


def logdensity(energy: Any, *cond: Tree, beta: Scalar | float = 1.0) -> LogDensity:
    """Return the log density `x -> -beta * E(x, *cond) / T` as a pytree, so that new weights cost no compilation.

    energy: an energy or a plain function of one point. cond: what it is conditioned on. beta: inverse temperature of
    annealing, on top of the energy's own T.
    Raises ValueError for a landscape and, when called, if the energy's value is not a scalar.
    """
    energy = as_energy(energy)
    require_density(energy, "a log density")
    return Partial(_logdensity, energy, cond, beta)


def _logdensity(energy: Any, cond: tuple, beta: Scalar | float, x: Tree) -> Scalar:
    value = jnp.asarray(energy(x, *cond))
    if value.shape != ():
        raise ValueError(
            f"an energy must return a scalar for one point; this one returned shape {value.shape} "
            f"for a point of shape {jax.tree.map(jnp.shape, x)}: sum over the last axes, or vmap over batches"
        )
    return -beta * value / temperature(energy)


@register_dataclass
@dataclass(frozen=True, eq=False)
class Tempered:
    """An energy with a temperature of its own: the density is `exp(-E/T)`."""

    energy: Any
    frozen_temperature: Frozen
    kind: Kind = field(default="tempered", metadata={"static": True})

    @property
    def temperature(self) -> Scalar:
        return self.frozen_temperature.value

    def __call__(self, x: Tree, *cond: Tree) -> Scalar:
        return self.energy(x, *cond)


def tempered(energy: Any, temperature: float) -> Tempered:
    """Return `energy` at temperature T > 0: same values, log density `-E/T`."""
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ValueError(f"a temperature must be positive; got {temperature}")
    require_density(energy, "a temperature")
    return Tempered(as_energy(energy), Frozen(temperature))


@register_dataclass
@dataclass(frozen=True, eq=False)
class Landscape:
    """An energy whose minima matter but whose exp(-E) is not a density of anything; log Z and R-hat refuse it."""

    energy: Any
    kind: Kind = field(default="landscape", metadata={"static": True})

    def __call__(self, x: Tree, *cond: Tree) -> Scalar:
        return self.energy(x, *cond)


def landscape(energy: Any) -> Landscape:
    """Return `energy` marked as a landscape."""
    return Landscape(as_energy(energy))


@register_dataclass
@dataclass(frozen=True, eq=False)
class Sum:
    """The energy `sum_i w_i E_i/T_i`, at temperature 1: a product of experts."""

    energies: tuple
    weights: Frozen

    def __call__(self, x: Tree, *cond: Tree) -> Scalar:
        terms = [w * e(x, *cond) / temperature(e) for w, e in zip(self.weights.value, self.energies, strict=True)]
        return sum(terms[1:], terms[0])


def sum_energies(*energies: Any, weights: tuple[float, ...] | None = None) -> Sum:
    """Return the product of experts `prod_i exp(-w_i E_i/T_i)` (Hinton 2002), weights 1 by default."""
    weights = (1.0,) * len(energies) if weights is None else tuple(weights)
    if not energies or len(weights) != len(energies):
        raise ValueError(f"need one weight per energy and at least one energy; got {len(energies)} and {len(weights)}")
    for energy in energies:
        require_density(energy, "a product of experts")
    return Sum(tuple(as_energy(e) for e in energies), Frozen(weights))


@register_dataclass
@dataclass(frozen=True, eq=False)
class Tilted:
    """The energy `E(x) = f(x)/T_f - log q(x)`: a frozen base density q reweighted by exp(-f)."""

    energy: Any
    frozen_base: Frozen

    @property
    def base(self) -> Any:
        """The distribution q: AIS starts from it, kernels take their scale from it."""
        return self.frozen_base.value

    def __call__(self, x: Tree, *cond: Tree) -> Scalar:
        f = self.energy(x, *cond) / temperature(self.energy)
        return f - jax.lax.stop_gradient(self.base).log_prob(x)


def tilt(energy: Any, base: Any) -> Tilted:
    """Return the tilt of a NumPyro distribution: `E(x) = f(x) - log q(x)`.

    base: a NumPyro distribution over one point (use `.to_event()` so that `log_prob` of a point is a scalar).
    A bounded f gives a finite Z, whatever the network. Raises ValueError where `base` is a batch of distributions.
    """
    require_one_point(base)
    require_density(energy, "a tilt")
    return Tilted(as_energy(energy), Frozen(base))


@register_dataclass
@dataclass(frozen=True, eq=False)
class Normalised:
    """The energy `E(x)/T + log Z` with log Z a trained number, so that exp(-energy) may integrate to 1."""

    energy: Any
    log_z: Any

    @property
    def base(self) -> Any:
        """The base of the energy inside, where it has one."""
        return self.energy.base

    def __call__(self, x: Tree, *cond: Tree) -> Scalar:
        return self.energy(x, *cond) / temperature(self.energy) + self.log_z


def normalised(energy: Any, log_z: float = 0.0) -> Normalised:
    """Return an energy whose log Z is trained with it, at temperature 1, for noise-contrastive estimation.

    log_z: where it starts. An energy with an offset of its own (the bias of a network's last layer) holds log Z already
    and cannot be told from it: leave one of them out. Nothing else trains it: likelihood and score ignore offsets.
    """
    require_density(energy, "a normaliser")
    return Normalised(as_energy(energy), jnp.asarray(log_z, float))


@register_dataclass
@dataclass(frozen=True, eq=False)
class WithNoise:
    """An energy and the density that it is told apart from, trained together."""

    energy: Any
    noise: Any

    @property
    def base(self) -> Any:
        """The noise: AIS may start from it."""
        return self.noise

    def __call__(self, x: Tree, *cond: Tree) -> Scalar:
        return self.energy(x, *cond) / temperature(self.energy)


def with_noise(energy: Any, noise: Any) -> WithNoise:
    """Return `energy` with noise whose leaves are trained too, for flow-contrastive estimation.

    noise: a pytree with `sample(key, shape)` and a normalised `log_prob(x)`: a `flow`, say. It is also the base of AIS.
    """
    require_density(energy, "noise-contrastive estimation")
    return WithNoise(as_energy(energy), noise)


@register_dataclass
@dataclass(frozen=True, eq=False)
class NormalisedLevels:
    """The energy `E(x, sigma)/T + log Z(sigma)` with log Z trained at each level of a ladder; see `normalised_levels`.

    log_z: (L - 1,), of all levels but the first, less that of the first. frozen_sigmas: (L,).
    """

    energy: Any
    log_z: Any
    frozen_sigmas: Frozen

    def __call__(self, x: Tree, sigma: Scalar | float, *cond: Tree) -> Scalar:
        levels = jnp.log(jnp.asarray(jax.lax.stop_gradient(self.frozen_sigmas.value), self.log_z.dtype))
        log_z = jnp.interp(jnp.log(sigma), levels[::-1], jnp.append(0, self.log_z)[::-1])
        return self.energy(x, sigma, *cond) / temperature(self.energy) + log_z


def normalised_levels(energy: Any, sigmas: Any) -> NormalisedLevels:
    """Return a noise-conditional energy `E(x, sigma)` whose log Z at each level is trained with it, at temperature 1.

    sigmas: (L,), strictly decreasing. That of the first level is held at 0, since an offset of all levels is free, and
    between levels log Z is linear in log sigma. For classification of noise levels, of an energy that has no offset of
    its own at each level. Raises ValueError for a landscape and for sigmas that are not such a ladder of two or more.
    """
    require_density(energy, "a normaliser")
    levels = jnp.asarray(sigmas, float)
    if levels.ndim != 1 or levels.size < 2 or not bool((jnp.diff(levels) < 0).all() and levels[-1] > 0):
        raise ValueError(f"sigmas must be two or more positive, strictly decreasing noise levels (L,); got {sigmas}")
    return NormalisedLevels(as_energy(energy), jnp.zeros(levels.size - 1), Frozen(levels))


@register_dataclass
@dataclass(frozen=True, eq=False)
class Conditioned(Around):
    """The energy `x -> E(x, *cond)` of one point, with the temperature and kind of E; made by `condition`."""

    energy: Any
    frozen_cond: Frozen

    def __call__(self, x: Tree) -> Scalar:
        return self.energy(x, *jax.lax.stop_gradient(self.frozen_cond.value))


def condition(energy: Any, *cond: Tree) -> Conditioned:
    """Return `E(x, *cond)` as an energy of x alone: at one noise level, say, or of one class."""
    return Conditioned(as_energy(energy), Frozen(cond))


def partition(tree: Tree) -> tuple[Tree, Tree]:
    """Split into (trainable, rest): floating-point leaves outside `Frozen` nodes, and everything else.

    Both have the shape of `tree` with None in the other's places; `combine` is the inverse.
    """
    return (
        jax.tree.map(lambda n: n if _trains(n) else None, tree, is_leaf=_is_frozen),
        jax.tree.map(lambda n: None if _trains(n) else n, tree, is_leaf=_is_frozen),
    )


def combine(trainable: Tree, rest: Tree) -> Tree:
    """Undo `partition`."""
    return jax.tree.map(lambda a, b: b if a is None else a, trainable, rest, is_leaf=lambda n: n is None)


def _is_frozen(node: Any) -> bool:
    return isinstance(node, Frozen)


def _trains(node: Any) -> bool:
    return not _is_frozen(node) and jnp.issubdtype(jnp.result_type(node), jnp.inexact)
