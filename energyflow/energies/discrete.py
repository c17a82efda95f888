"""Floor 2: Bernoulli RBMs, joint and marginal, with log Z and exact draws by enumeration of the smaller layer.

Positions are floating arrays of zeros and ones. Each energy carries `log_z`, the log of the sum of exp(-E) over all
states, computed in float64 from concrete leaves, `base`, where annealing starts, and `sample(key, num)`, exact draws.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import sigmoid, softplus
from jax.tree_util import register_dataclass

from energyflow.energies.bases import BernoulliBase, bernoulli_base
from energyflow.energies.exact import as_arrays
from energyflow.types import Key, Scalar, Tree

_MOST_UNITS = 20
_BLOCK = 2**12


@register_dataclass
@dataclass(frozen=True, eq=False)
class RBM:
    """`E(v, h) = -(v'Wh + b'v + c'h)` over positions {"v": (nv,), "h": (nh,)} of zeros and ones (Smolensky 1986).

    Shapes of the leaves: W (nv, nh), b (nv,), c (nh,). Linear in each unit: `block_gibbs(rbm.blocks)` is exact on it,
    and on its annealing path from `rbm.base`.
    """

    W: Any
    b: Any
    c: Any

    def __call__(self, x: Tree) -> Scalar:
        W, b, c = as_arrays(self.W, self.b, self.c)
        return -(x["v"] @ (W @ x["h"]) + x["v"] @ b + x["h"] @ c)

    @property
    def blocks(self) -> tuple[Tree, Tree]:
        """The hidden, then the visible units."""
        return {"v": False, "h": True}, {"v": True, "h": False}

    @property
    def base(self) -> BernoulliBase:
        """The same biases without weights: where annealing starts."""
        return bernoulli_base({"v": self.b, "h": self.c})

    @property
    def marginal(self) -> "MarginalRBM":
        """The energy of the visible units alone, with the same leaves and the same log Z."""
        return MarginalRBM(self.W, self.b, self.c)

    @property
    def log_z(self) -> float:
        """Raises ValueError where neither layer has at most 20 units."""
        logs = _layer_log_masses(self.W, self.b, self.c)[0]
        return _log_sum_exp(logs)

    def hidden_mean(self, v: Array) -> Array:
        """Return p(h_j = 1 | v), shape (nh,)."""
        W, c = as_arrays(self.W, self.c)
        return sigmoid(c + v @ W)

    def visible_mean(self, h: Array) -> Array:
        """Return p(v_i = 1 | h), shape (nv,)."""
        W, b = as_arrays(self.W, self.b)
        return sigmoid(b + W @ h)

    def sample(self, key: Key, num: int) -> Tree:
        """Return exact draws, {"v": (num, nv), "h": (num, nh)}; errors of `log_z`.

        The smaller layer is drawn by inversion from its enumerated law, the other from its conditional.
        """
        logs, hidden = _layer_log_masses(self.W, self.b, self.c)
        state_key, coin_key = jax.random.split(key)
        cumulated = np.cumsum(np.exp(logs - logs.max()))
        with jax.enable_x64(True):  # the grid of float32 uniforms is too coarse for 2^20 states
            uniform = np.asarray(jax.random.uniform(state_key, (num,), jnp.float64))
        states = np.searchsorted(cumulated, uniform * cumulated[-1], side="right")
        small = _bits(np.minimum(states, logs.size - 1), round(math.log2(logs.size))).astype(float)
        drawn = jnp.asarray(small, dtype=float)
        means = jax.vmap(self.visible_mean if hidden else self.hidden_mean)(drawn)
        other = jax.random.bernoulli(coin_key, means).astype(means.dtype)
        return {"v": other, "h": drawn} if hidden else {"v": drawn, "h": other}


@register_dataclass
@dataclass(frozen=True, eq=False)
class MarginalRBM:
    """`E(v) = -b'v - sum softplus(c + v'W)`, the free energy of an RBM: its hidden units are summed out.

    Leaves as in `RBM`. Not linear in v: sample it by `gibbs_with_gradients` or `dmala`, or the joint by block Gibbs.
    """

    W: Any
    b: Any
    c: Any

    def __call__(self, v: Array) -> Scalar:
        W, b, c = as_arrays(self.W, self.b, self.c)
        return -(v @ b) - jnp.sum(softplus(c + v @ W))

    @property
    def base(self) -> BernoulliBase:
        """The same visible biases without weights."""
        return bernoulli_base(self.b)

    @property
    def log_z(self) -> float:
        """That of the joint: exp(-E(v)) is already a sum over the hidden units."""
        return RBM(self.W, self.b, self.c).log_z

    def sample(self, key: Key, num: int) -> Array:
        """Return exact draws, (num, nv); errors of `log_z`."""
        return RBM(self.W, self.b, self.c).sample(key, num)["v"]


def rbm(W: Any, b: Any, c: Any) -> RBM:
    """Return a Bernoulli RBM over {"v", "h"}; W (nv, nh), b (nv,), c (nh,), all trained.

    Raises ValueError for shapes that do not fit.
    """
    shapes = np.shape(W), np.shape(b), np.shape(c)
    if len(shapes[0]) != 2 or shapes[1:] != (shapes[0][:1], shapes[0][1:]):
        raise ValueError(f"an RBM needs W (nv, nh), b (nv,) and c (nh,); got shapes {shapes}")
    return RBM(W, b, c)


def rbm_marginal(W: Any, b: Any, c: Any) -> MarginalRBM:
    """Return the RBM's energy over visible units alone, its hidden units summed out; arguments and errors of `rbm`."""
    return rbm(W, b, c).marginal


def _layer_log_masses(W: Any, b: Any, c: Any) -> tuple[np.ndarray, bool]:
    """Return log sum exp(-E) for every state of the smaller layer (2^n,), in float64, and whether it is the hidden."""
    W, b, c = (np.asarray(leaf, np.float64) for leaf in (W, b, c))
    hidden = c.size <= b.size
    if min(b.size, c.size) > _MOST_UNITS:
        raise ValueError(
            f"enumeration needs a layer of at most {_MOST_UNITS} units; this RBM has {b.size} and {c.size}: use "
            "energyflow.bracket with its base"
        )
    with _float64_on_cpu():
        masses = _log_masses(W, b, c) if hidden else _log_masses(W.T, c, b)
    return np.asarray(masses), hidden


@contextmanager
def _float64_on_cpu() -> Iterator[None]:
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


@jax.jit
def _log_masses(weights: Array, large_bias: Array, small_bias: Array) -> Array:
    num = small_bias.shape[0]
    size = min(2**num, _BLOCK)

    def block(start: Array) -> Array:
        states = _bits(start + jnp.arange(size), num).astype(weights.dtype)
        return states @ small_bias + jnp.sum(softplus(large_bias[None, :] + states @ weights.T), axis=1)

    return jnp.ravel(jax.lax.map(block, size * jnp.arange(2**num // size)))


def _bits(index: Any, num: int) -> Any:
    """Return the binary digits (n, num) of integers (n,), the last digit first."""
    return (index[:, None] >> np.arange(num)[None, :]) & 1


def _log_sum_exp(logs: np.ndarray) -> float:
    return float(logs.max() + np.log(np.sum(np.exp(logs - logs.max()))))
