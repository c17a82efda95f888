"""Floor 4: the gradient of an RBM's log Z without bias, from two coupled Gibbs chains (Qiu, Zhang and Wang 2020).

Two chains of one law, one a step behind the other, move with common randomness until they meet; then
`phi(xi_k) + sum_{t >= k} (phi(xi_{t+1}) - phi(eta_t))` has exactly the stationary mean of phi (Glynn and Rhee 2014;
Jacob, O'Leary and Atchade 2020). CD-k keeps the first term and drops the rest.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid, softplus

from energyflow.energies.discrete import RBM
from energyflow.energies.exact import as_arrays
from energyflow.types import Array, Key, Scalar, Tree


class UnbiasedGradient(NamedTuple):
    """One estimate of the gradient of log Z.

    gradient: E_p[v h'], E_p[v], E_p[h], an `RBM` of arrays like its leaves. meeting_time: int32, the first t >= 2 at
    which the leading chain at t equals the other at t - 1; `max_steps` where they have not met. truncated: the chains
    did not meet, or a rejection loop ran out of tries: the estimate is then biased, and dropping it biases the rest.
    """

    gradient: RBM
    meeting_time: Array
    truncated: Array


class _Pair(NamedTuple):
    time: Array
    leading: Tree
    behind: Tree
    gradient: RBM
    met: Array
    meeting_time: Array
    exhausted: Array


def unbiased_gradient(
    key: Key, rbm: RBM, start_v: Any, min_steps: int = 1, max_steps: int = 1000, *, max_tries: int = 1000
) -> UnbiasedGradient:
    """Estimate the gradient of log Z in W, b and c without bias, from chains started at one visible state.

    start_v: (nv,), often a row of the data; `vmap` over keys and starts for many. min_steps: k, the transitions before
    the first term; more cost more and vary less. max_steps: where a pair that has not met is given up, and flagged.
    The gradient of the mean log-likelihood is the mean of `sufficient_statistics` over the data minus this. The hidden
    units enter by their conditional means. Meeting times grow with the weights: log their mean and the share truncated.
    Raises ValueError unless 1 <= min_steps < max_steps.
    """
    if not 1 <= min_steps < max_steps:
        raise ValueError(f"need 1 <= min_steps < max_steps; got {min_steps} and {max_steps}")
    hidden_key, visible_key, next_key, run_key = jax.random.split(key, 4)
    start_v = jnp.asarray(start_v, dtype=float)
    behind = {"v": start_v, "h": _coins(hidden_key, rbm.hidden_mean(start_v))}
    v = _coins(visible_key, rbm.visible_mean(behind["h"]))
    leading = {"v": v, "h": _coins(next_key, rbm.hidden_mean(v))}
    no = jnp.asarray(False)
    first = _scaled(sufficient_statistics(rbm, v), jnp.asarray(min_steps == 1))
    begun = _Pair(jnp.asarray(1), leading, behind, first, no, jnp.asarray(max_steps), no)

    def goes_on(pair: _Pair) -> Array:
        return ~(pair.met & (pair.time >= min_steps)) & (pair.time < max_steps)

    def move(pair: _Pair) -> _Pair:
        step_key = jax.random.fold_in(run_key, pair.time)
        leading, behind, exhausted = coupled_gibbs(step_key, rbm, pair.leading, pair.behind, max_tries=max_tries)
        time = pair.time + 1
        met = jnp.all(leading["v"] == behind["v"])
        here, there = sufficient_statistics(rbm, leading["v"]), sufficient_statistics(rbm, behind["v"])
        gain = jax.tree.map(jnp.subtract, here, there)
        terms = _scaled(here, time == min_steps), _scaled(gain, (pair.time >= min_steps) & ~met)
        gradient = jax.tree.map(lambda total, a, b: total + a + b, pair.gradient, *terms)
        when = jnp.where(met & ~pair.met, time, pair.meeting_time)
        return _Pair(time, leading, behind, gradient, met, when, pair.exhausted | exhausted)

    done = jax.lax.while_loop(goes_on, move, begun)
    return UnbiasedGradient(done.gradient, done.meeting_time, ~done.met | done.exhausted)


def sufficient_statistics(rbm: RBM, v: Array) -> RBM:
    """Return v h', v and h with h at its conditional mean: minus the gradient of the energy of the visible state v."""
    h = rbm.hidden_mean(v)
    return RBM(v[:, None] * h[None, :], v, h)


def coupled_gibbs(key: Key, rbm: RBM, first: Tree, second: Tree, *, max_tries: int = 1000) -> tuple[Tree, Tree, Array]:
    """Make one Gibbs transition h -> v -> h of two chains, positions {"v", "h"}, that meet as often as they can.

    The visible units are drawn from a maximal coupling (Thorisson 2000), by rejection: they are equal with probability
    one minus the total variation between their conditionals. The hidden ones share their coins, so that equal visible
    units stay equal from then on. Each chain alone is an exact Gibbs chain.
    Returns both positions, and True where `max_tries` proposals were all rejected: the last one was then taken, and the
    second chain's law is wrong.
    """
    draw_key, residual_key, coin_key = jax.random.split(key, 3)
    logits = _visible_logits(rbm, first["h"]), _visible_logits(rbm, second["h"])
    shared, log_ratio = _proposal(draw_key, *logits)
    test_key, loop_key = jax.random.split(residual_key)
    equal = jax.random.exponential(test_key) >= log_ratio

    def rejected(carry: tuple) -> Array:
        tries, _, accepted = carry
        return ~accepted & (tries < max_tries)

    def attempt(carry: tuple) -> tuple:
        draw_key, test_key = jax.random.split(jax.random.fold_in(loop_key, carry[0]))
        v, log_ratio = _proposal(draw_key, logits[1], logits[0])
        return carry[0] + 1, v, jax.random.exponential(test_key) < log_ratio

    _, v, accepted = jax.lax.while_loop(rejected, attempt, (jnp.asarray(0), shared, equal))
    u = jax.random.uniform(coin_key, first["h"].shape, first["h"].dtype)
    moved = [{"v": x, "h": (u < rbm.hidden_mean(x)).astype(u.dtype)} for x in (shared, v)]
    return moved[0], moved[1], ~accepted


def _proposal(key: Key, own: Array, other: Array) -> tuple[Array, Scalar]:
    """Draw visible units from their own logits; returns them and their log probability minus that under the other."""
    v = _coins(key, sigmoid(own))
    return v, jnp.sum(v * (own - other) - (softplus(own) - softplus(other)))


def _visible_logits(rbm: RBM, h: Array) -> Array:
    W, b = as_arrays(rbm.W, rbm.b)
    return b + W @ h


def _coins(key: Key, probability: Array) -> Array:
    return (jax.random.uniform(key, probability.shape, probability.dtype) < probability).astype(probability.dtype)


def _scaled(tree: Any, flag: Array) -> Any:
    return jax.tree.map(lambda x: jnp.where(flag, x, 0.0), tree)
