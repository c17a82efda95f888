"""Floor 2: a normalising flow over vectors, by NumPyro's autoregressive transforms: noise that learns."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.example_libraries import stax
from jax.tree_util import Partial, register_dataclass
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.distributions.transforms import AffineTransform, PermuteTransform
from numpyro.nn import AutoregressiveNN

from energyflow.energy import Frozen
from energyflow.types import Key, Scalar, Tree, as_key

SMALL = 0.01
"""Of the first weights of the last layers: the flow starts as nearly the Gaussian of its rows."""


@register_dataclass
@dataclass(frozen=True, eq=False)
class Flow:
    """A density of vectors (d,), and as an energy `-log p`: draws in one pass, log densities in d."""

    layers: list
    frame: Frozen
    hidden: tuple[int, ...] = field(metadata={"static": True})
    batch_shape = ()

    def __call__(self, x: Array) -> Scalar:
        return -self.log_prob(x)

    @property
    def distribution(self) -> Any:
        """The same as a NumPyro distribution."""
        loc, scale = self.frame.value
        dim, transforms = loc.shape[-1], []
        for params in self.layers:
            transforms.append(InverseAutoregressiveTransform(Partial(_network(dim, self.hidden)[1], params)))
            transforms.append(PermuteTransform(jnp.arange(dim)[::-1]))
        normal = dist.Normal(jnp.zeros_like(loc), jnp.ones_like(scale)).to_event(1)
        return dist.TransformedDistribution(normal, [*transforms, AffineTransform(loc, scale)])

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Return draws (*sample_shape, d), differentiable with respect to the leaves."""
        return self.distribution.sample(key, sample_shape)

    def log_prob(self, x: Array) -> Scalar:
        """Return the normalised log density of one point."""
        return self.distribution.log_prob(x)


def flow(key: Key | int, rows: Any, hidden: tuple[int, ...] = (64, 64), num_layers: int = 4) -> Flow:
    """Return an inverse autoregressive flow (Kingma et al. 2016) that starts near the Gaussian of `rows`, (n, d).

    hidden: widths of each layer's network, at least d. Its mean and spread of the rows stay; the layers are trained, by
    `maximum_likelihood` or against an energy by `flow_contrastive`.
    Raises ValueError for rows that are not vectors or do not vary, and for widths under d.
    """
    rows = jnp.asarray(rows, float)
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(f"a flow starts from rows (n, d), two or more; got shape {rows.shape}")
    dim = rows.shape[1]
    if min(hidden) < dim:
        raise ValueError(f"the hidden layers of a flow must be at least as wide as a point, {dim}; got {hidden}")
    loc, scale = rows.mean(axis=0), rows.std(axis=0)
    if not bool((scale > 0).all()):
        raise ValueError("some column of the rows does not vary, so a flow has no scale there: leave it out")
    start, _ = _network(dim, tuple(hidden))
    layers = [_quiet(start(k, (dim,))[1]) for k in jax.random.split(as_key(key), num_layers)]
    return Flow(layers, Frozen((loc, scale)), tuple(hidden))


def _network(dim: int, hidden: tuple[int, ...]) -> Any:
    return AutoregressiveNN(dim, list(hidden), nonlinearity=stax.Elu)


def _quiet(params: Tree) -> Tree:
    *inner, last = params
    return [*inner, jax.tree.map(lambda w: SMALL * w, last)]
