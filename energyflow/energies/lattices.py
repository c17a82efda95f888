"""Floor 2: spins on a lattice: the Ising model on a torus, with log Z in closed form and exact draws."""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import sigmoid
from jax.tree_util import register_dataclass

from energyflow.energies.bases import BernoulliBase, uniform_spins
from energyflow.energies.exact import as_arrays
from energyflow.types import Key, Scalar

_MOST_SWEEPS = 2**15


@register_dataclass
@dataclass(frozen=True, eq=False)
class Ising:
    """`E(s) = -beta sum_<ij> s_i s_j` over the 2 L^2 bonds of a torus, positions (side, side) of -1 and +1.

    Leaf: beta (). Base of annealing: `base`, independent fair spins.
    """

    side: int = field(metadata={"static": True})
    beta: Any

    def __call__(self, s: Array) -> Scalar:
        (beta,) = as_arrays(self.beta)
        return -beta * jnp.sum(s * (jnp.roll(s, 1, axis=0) + jnp.roll(s, 1, axis=1)))

    @property
    def base(self) -> BernoulliBase:
        """Independent fair spins."""
        return uniform_spins((self.side, self.side))

    @property
    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """The two colours of the checkerboard, boolean masks (side, side).

        Raises ValueError for an odd side, whose torus has neighbours of one colour.
        """
        if self.side % 2:
            raise ValueError(f"a torus of odd side {self.side} has no checkerboard: choose an even side")
        white = np.indices((self.side, self.side)).sum(axis=0) % 2 == 0
        return white, ~white

    @property
    def log_z(self) -> float:
        """By the formula of Kaufman (1949), any side. Raises ValueError for beta < 0 on an odd side."""
        n, beta = self.side, float(self.beta)
        if beta < 0 and n % 2:
            raise ValueError("a torus of odd side is frustrated at beta < 0, where no closed form is known here")
        k = abs(beta)  # turning over one colour of the checkerboard changes the sign of beta
        if k == 0:
            return n * n * math.log(2)
        angles = np.pi * np.arange(2 * n) / n
        gammas = np.arccosh(np.maximum(np.cosh(2 * k) / np.tanh(2 * k) - np.cos(angles), 1.0))
        gammas[0] = 2 * k + np.log(np.tanh(k))  # signed: negative above the critical temperature
        odd, even = n * gammas[1::2] / 2, n * gammas[::2] / 2
        logs = [np.sum(np.logaddexp(x, -x)) for x in (odd, even)]
        sinhs = [np.sum(np.abs(x) + np.log(-np.expm1(-2 * np.abs(x)) + 1e-300)) for x in (odd, even)]
        terms, signs = np.array([*logs, *sinhs]), np.array([1.0, 1.0, 1.0, np.sign(even[0])])
        total = np.log(np.sum(signs * np.exp(terms - terms.max()))) + terms.max()
        return float(n * n / 2 * np.log(2 * np.sinh(2 * k)) - np.log(2) + total)

    def sample(self, key: Key, num: int) -> Array:
        """Return exact draws, (num, side, side), by coupling from the past (Propp and Wilson 1996).

        Raises ValueError for an odd side, for beta < 0, and where the coupling takes more than 2^15 sweeps, as in large
        ordered systems (beta well above 0.44).
        """
        if float(self.beta) < 0:
            raise ValueError("coupling from the past needs beta >= 0: turn over one colour of the draws at -beta")
        spins, met = _from_the_past(jax.random.split(key, num), float(self.beta), self.blocks[0])
        if not np.all(met):
            raise ValueError(f"no coupling within {_MOST_SWEEPS} sweeps: lower beta, or use block_gibbs and check")
        return spins


def ising(side: int, beta: float) -> Ising:
    """Return the Ising model on a torus of `side` x `side` spins, side >= 2; ValueError otherwise."""
    if side < 2:
        raise ValueError(f"an Ising torus needs a side of at least 2; got {side}")
    return Ising(side, beta)


@jax.jit
def _from_the_past(keys: Key, beta: Scalar, white: Array) -> tuple[Array, Array]:
    """Run the highest and lowest states from ever earlier, with the same coins, until they meet at time 0."""

    def sweep(key: Key, time: Array, spins: Array) -> Array:
        coins = jax.random.uniform(jax.random.fold_in(key, time), (2, *white.shape))
        for coin, mask in zip(coins, (white, ~white), strict=True):
            rolled = [jnp.roll(spins, shift, axis) for shift in (1, -1) for axis in (-1, -2)]
            up = coin[None] < sigmoid(2 * beta * sum(rolled[1:], rolled[0]))
            spins = jnp.where(mask[None], jnp.where(up, 1.0, -1.0), spins)
        return spins

    def earlier(key: Key, carry: tuple) -> tuple:
        num, _ = carry
        extremes = jnp.stack([jnp.ones(white.shape), -jnp.ones(white.shape)])
        return 2 * num, jax.lax.fori_loop(0, num, lambda i, s: sweep(key, num - i, s), extremes)

    def one(key: Key) -> tuple[Array, Array]:
        def apart(carry: tuple) -> Array:
            return jnp.any(carry[1][0] != carry[1][1]) & (carry[0] <= _MOST_SWEEPS)

        _, (top, bottom) = jax.lax.while_loop(apart, lambda c: earlier(key, c), earlier(key, (jnp.asarray(16), None)))
        return top, jnp.all(top == bottom)

    return jax.vmap(one)(keys)
