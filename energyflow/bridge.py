"""Floor 6: NumPyro models as energies, energies as NumPyro distributions.

A model becomes the tilt of its prior by its likelihood, in unconstrained space: latent site `s` sits at `u_s` with
`theta_s = b_s(u_s)`, b_s the bijection onto the site's support, and the log density is

    log p(theta, data) + sum_s log |d theta_s / d u_s|.

Annealing from the prior then anneals the likelihood alone, and log Z is the log evidence, log p(data).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.tree_util import Partial, register_dataclass
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer import init_to_uniform
from numpyro.infer.util import compute_log_probs, constrain_fn, initialize_model

from energyflow.energy import Frozen, as_energy, logdensity, require_density
from energyflow.types import Array, Key, Scalar, as_key

Position = dict[str, Array]
"""An unconstrained point of a model: one array for each latent site, by name."""


class Held:
    """A constant argument of a model, compared by identity."""

    def __init__(self, value: Any) -> None:
        self.value = value


@register_dataclass
@dataclass(frozen=True, eq=False)
class Call:
    """A model and its arguments; arrays are leaves, so that other data of the same shapes compile nothing."""

    arrays: list
    model: Callable = field(metadata={"static": True})
    structure: Any = field(metadata={"static": True})
    constants: tuple = field(metadata={"static": True})

    @property
    def arguments(self) -> tuple[tuple, dict]:
        """What the model is called with: (args, kwargs)."""
        arrays = iter(self.arrays)
        leaves = [next(arrays) if constant is None else constant for constant in self.constants]
        leaves = [leaf.value if isinstance(leaf, Held) else leaf for leaf in leaves]
        return jax.tree.unflatten(self.structure, leaves)


@register_dataclass
@dataclass(frozen=True, eq=False)
class Prior:
    """The prior of a model over its unconstrained sites, Jacobians included: a distribution over one position."""

    call: Call
    batch_shape = ()

    def log_prob(self, position: Position) -> Scalar:
        """Return the normalised log density of one position."""
        return _log_terms(self.call, position)[0]

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Position:
        """Return exact draws, leaves with leading axes `sample_shape`."""
        keys = jax.random.split(key, math.prod(sample_shape))
        flat = jax.vmap(Partial(_sample_prior, self.call))(keys)
        return jax.tree.map(lambda x: x.reshape(*sample_shape, *x.shape[1:]), flat)


@register_dataclass
@dataclass(frozen=True, eq=False)
class Posterior:
    """The energy `-log p(theta(u), data) - log |d theta/d u|` of a NumPyro model, one point u a dict by site.

    energy: minus the log likelihood, factors included. base: the prior, from which annealing starts; None where it
    cannot be sampled (`why_no_base` says which site), and then its improper parts count as density 1.
    """

    call: Frozen
    why_no_base: str | None = field(metadata={"static": True})

    def __call__(self, position: Position) -> Scalar:
        prior, likelihood = _log_terms(self.call.value, position)
        return -(prior + likelihood)

    @property
    def base(self) -> Prior | None:
        """The prior over unconstrained sites."""
        return None if self.why_no_base else Prior(self.call.value)

    @property
    def energy(self) -> Any:
        """Minus the log likelihood of an unconstrained position."""
        return Partial(_minus_log_likelihood, self.call)

    def initial(self, key: Key | int, num_chains: int) -> Position:
        """Return starts for `num_chains` chains, uniform in (-2, 2) where density and gradient are finite.

        Raises ValueError where none is found in a hundred tries.
        """
        call = self.call.value
        args, kwargs = call.arguments
        keys = jax.random.key_data(jax.random.split(as_key(key), num_chains))  # NumPyro reuses typed ones
        try:
            return initialize_model(keys, call.model, model_args=args, model_kwargs=kwargs).param_info.z
        except RuntimeError as error:
            raise ValueError(
                f"no start with a finite log density and gradient was found for {_name(call.model)}: look for data "
                "outside the support of their distribution, or for a likelihood that is zero almost everywhere"
            ) from error

    def constrain(self, position: Position, *, deterministic: bool = True) -> dict[str, Array]:
        """Return the named parameters of positions with any leading axes, the model's deterministic sites with them."""
        call = self.call.value
        args, kwargs = call.arguments
        name, leaf = next(iter(position.items()))
        batch_ndims = jnp.ndim(leaf) - len(_shapes(call)[name])
        return _constrain(call, position, deterministic, batch_ndims)


def from_numpyro(model: Callable, *args: Any, **kwargs: Any) -> Posterior:
    """Return the posterior of a NumPyro model given its data as an energy over unconstrained positions.

    args, kwargs: what the model is called with; arrays become leaves of the energy where the model allows it.
    Raises ValueError, naming the site, for discrete latent variables, data subsampling, `numpyro.param` sites, a model
    without latent variables, and data observed under an energy whose normaliser is unknown.
    """
    leaves, structure = jax.tree.flatten((args, kwargs))
    dynamic = [isinstance(leaf, (np.ndarray, jax.Array)) and leaf.dtype.kind in "fiub" for leaf in leaves]
    arrays = [jnp.asarray(leaf) for leaf, moves in zip(leaves, dynamic, strict=True) if moves]
    constants = tuple(None if moves else _hashable(leaf) for leaf, moves in zip(leaves, dynamic, strict=True))
    call = Call(arrays, model, structure, constants)
    sites = _sites(call)
    _refuse(sites, _name(model))
    if not _traces(call):
        # It looks at the values of its data (np.unique, int(x)), so they are constants.
        call = Call([], model, structure, tuple(Held(leaf) for leaf in leaves))
    return Posterior(Frozen(call), _why_not_sampled(call, sites))


class EnergyDistribution(dist.Distribution):
    """The density `exp(-E/T) / Z` for use inside a NumPyro model; see `as_distribution`."""

    pytree_data_fields = ("energy", "log_z")
    pytree_aux_fields = ("_support",)

    def __init__(self, energy: Any, event_shape: tuple[int, ...], log_z: Any, support: Any) -> None:
        self.energy, self.log_z, self._support = energy, log_z, support
        super().__init__(batch_shape=(), event_shape=event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The constraint that values keep."""
        return self._support

    def log_prob(self, value: Array) -> Array:
        """Return `-E(x)/T - log Z` of values with any leading axes; without log_z, up to that constant."""
        score = logdensity(self.energy)
        for _ in range(jnp.ndim(value) - len(self.event_shape)):
            score = jax.vmap(score)
        return score(value) - (0.0 if self.log_z is None else self.log_z)

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Return the energy's exact draws where it has them; raises NotImplementedError where it has none."""
        if not hasattr(self.energy, "sample"):
            raise NotImplementedError(
                "an energy has no exact draws: a model with it as a prior can be conditioned and sampled by MCMC, but "
                "not simulated (no Predictive, no prior as base of annealing)"
            )
        return self.energy.sample(key, math.prod(sample_shape)).reshape(*sample_shape, *self.event_shape)


def as_distribution(
    energy: Any, event_shape: tuple[int, ...] = (), *, log_z: float | None = None, support: Any = None
) -> EnergyDistribution:
    """Return an energy over arrays of `event_shape` as a NumPyro distribution, to be a prior or a likelihood.

    log_z: the log normaliser. Without it the log density is known up to a constant: right as a prior that has no
    parameters of its own (MCMC), wrong for evidence, and refused by `from_numpyro` for observed sites, where the
    constant may depend on what is inferred. support: a NumPyro constraint, real by default. Raises ValueError for a
    landscape.
    """
    energy = as_energy(energy)
    require_density(energy, "a distribution")
    event_dim = len(event_shape)
    support = dist.constraints.independent(dist.constraints.real, event_dim) if support is None else support
    return EnergyDistribution(energy, event_shape, log_z, support)


def _hashable(leaf: Any) -> Any:
    try:
        hash(leaf)
    except TypeError:
        return Held(leaf)
    return Held(leaf) if leaf is None else leaf


def _name(model: Any) -> str:
    return f"the model {getattr(model, '__name__', type(model).__name__)!r}"


def _sites(call: Call) -> dict[str, dict]:
    """Return the sites of one run of the model, latent values drawn where their density may be improper."""
    args, kwargs = call.arguments
    model = handlers.substitute(handlers.seed(call.model, jax.random.key(0)), substitute_fn=init_to_uniform)
    return handlers.trace(model).get_trace(*args, **kwargs)


def _latent(sites: dict[str, dict]) -> dict[str, dict]:
    return {name: s for name, s in sites.items() if s["type"] == "sample" and not s["is_observed"]}


def _refuse(sites: dict[str, dict], model: str) -> None:
    for name, site in sites.items():
        if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
            size, subsample_size = site["args"]
            raise ValueError(
                f"{model} subsamples {subsample_size} of {size} rows in plate {name!r}: its log density is random, "
                "and accept steps and log Z need the same value twice: drop subsample_size"
            )
        if site["type"] == "param":
            raise ValueError(f"{model} has numpyro.param {name!r}: give it a prior, or pass its value as an argument")
        if site["type"] == "sample" and site["is_observed"] and getattr(site["fn"], "log_z", 0.0) is None:
            raise ValueError(
                f"{model} observes {name!r} under an energy whose log Z is unknown: the normaliser may depend on what "
                "is inferred; give as_distribution its log_z"
            )
    latent = _latent(sites)
    if not latent:
        raise ValueError(f"{model} has no latent variable, so there is nothing to sample: are the data passed as obs?")
    for name, site in latent.items():
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"{model} has the discrete latent variable {name!r}, and gradient kernels need continuous ones: sum it "
                "out in the model (a mixture distribution, logsumexp over its values)"
            )


def _traces(call: Call) -> bool:
    values = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)
    try:
        jax.eval_shape(_zero_terms, call)
    except (*values, jax.errors.TracerIntegerConversionError, jax.errors.NonConcreteBooleanIndexError):
        return False
    return True


def _zero_terms(call: Call) -> Any:
    return _log_terms(call, {name: jnp.zeros(shape) for name, shape in _shapes(call).items()})


def _shapes(call: Call) -> dict[str, tuple[int, ...]]:
    """Return the unconstrained shape of every latent site."""
    shapes = {}
    for name, site in _latent(_sites(call)).items():
        shapes[name] = biject_to(site["fn"].support).inverse_shape(jnp.shape(site["value"]))
    return shapes


def _why_not_sampled(call: Call, sites: dict[str, dict]) -> str | None:
    for name, site in _latent(sites).items():
        try:
            jax.eval_shape(site["fn"].sample, jax.random.key(0))
        except NotImplementedError:
            return f"the prior of {name!r} cannot be sampled: it is improper, or known only up to a constant"
    return None


def _log_terms(call: Call, position: Position) -> tuple[Scalar, Scalar]:
    """Return (log prior with the Jacobians, log likelihood with the factors) of one unconstrained position."""
    args, kwargs = call.arguments
    model = handlers.substitute(call.model, substitute_fn=Partial(_place, position))
    terms, trace = compute_log_probs(model, args, kwargs, {})
    jacobians = {_jacobian(name) for name in position}
    zero = jnp.zeros(())
    prior = sum((t for name, t in terms.items() if name in jacobians or not trace[name]["is_observed"]), zero)
    likelihood = sum((t for name, t in terms.items() if name not in jacobians and trace[name]["is_observed"]), zero)
    return prior, likelihood


def _jacobian(name: str) -> str:
    return f"log |d {name} / d u|"


def _place(position: Position, site: dict) -> Any:
    """Give a latent site its constrained value, its Jacobian as a factor (numpyro's scan collects those too)."""
    if site["type"] != "sample" or site["name"] not in position:
        return None
    u, bijection = position[site["name"]], biject_to(site["fn"].support)
    step = site["infer"].get("_scan_current_index")
    if step is not None and jnp.ndim(u) > len(bijection.inverse_shape(site["fn"].shape())):
        u = u[step]
    value = bijection(u)
    # Within plates a factor has the plates' shape, so only the dimensions of one event are summed.
    log_det = bijection.log_abs_det_jacobian(u, value)
    extra = len(site["fn"].event_shape) - bijection.codomain.event_dim
    numpyro.factor(_jacobian(site["name"]), jnp.sum(log_det, axis=tuple(range(-extra, 0))))
    return value


def _minus_log_likelihood(call: Frozen, position: Position) -> Scalar:
    return -_log_terms(call.value, position)[1]


def _sample_prior(call: Call, key: Key) -> Position:
    args, kwargs = call.arguments
    sites = handlers.trace(handlers.seed(call.model, key)).get_trace(*args, **kwargs)
    return {name: biject_to(s["fn"].support).inv(s["value"]) for name, s in _latent(sites).items()}


@jax.jit(static_argnames=("deterministic", "batch_ndims"))
def _constrain(call: Call, position: Position, deterministic: bool, batch_ndims: int) -> dict[str, Array]:
    args, kwargs = call.arguments
    return constrain_fn(call.model, args, kwargs, position, return_deterministic=deterministic, batch_ndims=batch_ndims)
