"""Score matching: the gradient of the log density fitted without a sampler and without log Z (Hyvarinen 2005).

Every loss here is, in expectation and up to a constant, the Fisher divergence `1/2 E|grad log p - grad log p_data|^2`
with the 1/2 and summed over dimensions: of the data, or for `denoising_score_matching` of the data with noise added.
Score matching hardly sees the relative weights of modes that are far apart.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial, register_dataclass

from energyflow.chains import require_floats
from energyflow.energy import logdensity, require_density
from energyflow.rows import flat_rows, gradients
from energyflow.types import Array, Key, Objective, Scalar, Tree

Probe = Literal["rademacher", "gaussian", "sphere"]
UNROLLED = 8
"""Directions that are differentiated between two turns of a loop."""
SMALLEST_STEP = 3e-3
"""In float32 the differences of a shorter finite-difference step are mostly rounding."""
LOOKED_AT = 64
"""Rows of the first batch that are searched for a second derivative."""


def score_matching() -> Objective:
    """Return exact score matching, `mean(1/2 |s|^2 + trace(grad s))` with `s = -grad E / T` (Hyvarinen 2005).

    The trace takes one Hessian-vector product per dimension: for tens of dimensions. The loss is unbounded below where
    the data repeat exactly or fill a lattice: add noise to them. Metrics: `score_norm`, the root mean square of |s|.
    Refuses, when training starts, a landscape and an energy whose network is piecewise linear (ReLU): its second
    derivatives are zero wherever they exist, and the loss would see no curvature at all.
    """
    return Objective(Partial(_require_curvature), Partial(_exact))


def sliced_score_matching(
    probe: Probe = "rademacher", num_probes: int = 1, *, variance_reduction: bool = True
) -> Objective:
    """Return score matching along random directions, `mean(v.(grad s)v + 1/2 |s|^2)` (Song, Garg et al. 2020).

    probe: law of v, with E[v v^T] the identity: random signs (the least variance), "gaussian", or "sphere" of radius
    sqrt(d). num_probes: directions per row. variance_reduction: False replaces |s|^2 by (v.s)^2, their first form.
    Costs a gradient and a Hessian-vector product per direction, in any dimension. Refuses what `score_matching`
    refuses; raises ValueError for another probe or fewer than one.
    """
    if probe not in ("rademacher", "gaussian", "sphere"):
        raise ValueError(f'probe must be "rademacher", "gaussian" or "sphere"; got {probe!r}')
    if num_probes < 1:
        raise ValueError(f"num_probes must be at least 1; got {num_probes}")
    return Objective(Partial(_require_curvature), Partial(_sliced, _Probes(probe, num_probes, variance_reduction)))


def finite_difference_score_matching(step_size: float = 0.03) -> Objective:
    """Return sliced score matching from three energies and no gradient with respect to x (Pang et al. 2020).

    `d/e^2 mean((l+ - l-)^2 / 8 + l+ + l- - 2 l)` with `l+- = log p(x +- e u)` and u uniform on the unit sphere; its
    bias falls as e^2. step_size: e, in the units of the data; scale it with their spread and the size of the energies.
    Raises ValueError for a step that is not positive; refuses, when training starts, a landscape and, in float32, a
    step under 0.003, whose differences are rounding.
    """
    if not step_size > 0:
        raise ValueError(f"step_size must be positive; got {step_size}")
    return Objective(Partial(_require_reach, step_size), Partial(_differences, step_size))


def denoising_score_matching(sigmas: Any, *, power: float = 2.0) -> Objective:
    """Return the regression of the score on the noise added, `mean(sigma^power / 2 |s(x + sigma z) + z / sigma|^2)`.

    sigmas: one noise scale, for an energy `E(x)` (Vincent 2011), or a ladder (L,) from which every row draws a level,
    for an energy `E(x, sigma)` (Song and Ermon 2019), to be sampled by `annealed_langevin`. The optimum is the density
    of the data with that noise. power: of the weight; 2 makes all levels count alike (a zero score then costs d/2 at
    each), 0 is Vincent's, 4 the weight of NCSN's code for energies. Metrics: `score_norm`.
    Raises ValueError for scales that are not positive; refuses a landscape when training starts.
    """
    levels = np.asarray(sigmas, np.float64)
    if levels.ndim > 1 or levels.size == 0 or not np.isfinite(levels).all() or not (levels > 0).all():
        raise ValueError(f"sigmas must be one positive noise scale or a ladder (L,) of them; got {sigmas}")
    return Objective(Partial(_require_density), Partial(_denoising, jnp.asarray(levels, float), power))


def _exact(energy: Any, batch: Tree, key: Key, state: None) -> Any:
    points, density = _flat(energy, batch)
    basis = jnp.eye(points.shape[1], dtype=points.dtype)
    scores, traces = _score_and_curvature(density, points, basis[:, None])
    squares = jnp.sum(scores**2, axis=-1)
    return _value(0.5 * squares + traces, squares)


def _score_and_curvature(density: Any, points: Array, directions: Array) -> tuple[Array, Array]:
    """Return the scores (B, d) and the sums (B,) of `v.(grad s)v` over directions (k, B or 1, d)."""
    scores, push = jax.linearize(Partial(gradients, density), points)

    def add(total: Array, v: Array) -> tuple[Array, None]:
        v = jnp.broadcast_to(v, points.shape)
        return total + jnp.sum(v * push(v), axis=-1), None

    total = jnp.zeros(len(points), points.dtype)
    return scores, jax.lax.scan(add, total, directions, unroll=min(len(directions), UNROLLED))[0]


@register_dataclass
@dataclass(frozen=True)
class _Probes:
    law: Probe = field(metadata={"static": True})
    num: int = field(metadata={"static": True})
    variance_reduction: bool = field(metadata={"static": True})


def _sliced(probes: _Probes, energy: Any, batch: Tree, key: Key, state: None) -> Any:
    points, density = _flat(energy, batch)
    directions = _directions(key, probes.law, (probes.num, *points.shape), points.dtype)
    scores, curvatures = _score_and_curvature(density, points, directions)
    squares = jnp.sum(scores**2, axis=-1)
    along = jnp.mean(jnp.sum(scores[None] * directions, axis=-1) ** 2, axis=0)
    norms = squares if probes.variance_reduction else along
    return _value(0.5 * norms + curvatures / probes.num, squares)


def _directions(key: Key, probe: Probe, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return vectors whose outer product is the identity on average."""
    if probe == "rademacher":
        return jax.random.rademacher(key, shape, dtype)
    v = jax.random.normal(key, shape, dtype)
    if probe == "gaussian":
        return v
    return v * (shape[-1] ** 0.5 / jnp.linalg.norm(v, axis=-1, keepdims=True))


def _differences(step_size: Any, energy: Any, batch: Tree, key: Key, state: None) -> Any:
    points, density = _flat(energy, batch)
    dim = points.shape[1]
    shift = step_size * dim**-0.5 * _directions(key, "sphere", points.shape, points.dtype)
    here, up, down = jax.vmap(density)(jnp.concatenate([points, points + shift, points - shift])).reshape(3, -1)
    losses = (up - down) ** 2 / 8 + up + down - 2 * here
    squares = dim * ((up - down) / (2 * step_size)) ** 2
    return _value(dim / step_size**2 * losses, squares)


def _denoising(levels: Array, power: Any, energy: Any, batch: Tree, key: Key, state: None) -> Any:
    level_key, noise_key = jax.random.split(key)
    points, unravel = flat_rows(batch)
    noise = jax.random.normal(noise_key, points.shape, points.dtype)
    rows = jax.random.randint(level_key, points.shape[:1], 0, levels.size)
    sigmas = jnp.ravel(levels)[rows].astype(points.dtype)

    def density(row: tuple[Array, Scalar]) -> Scalar:
        x, sigma = row
        return logdensity(energy, *(sigma,)[: levels.ndim])(unravel(x))

    scores, _ = gradients(density, (points + sigmas[:, None] * noise, sigmas))
    misses = jnp.sum((sigmas[:, None] * scores + noise) ** 2, axis=-1)
    return _value(0.5 * sigmas ** (power - 2) * misses, jnp.sum(scores**2, axis=-1))


def _value(losses: Array, squares: Array) -> Any:
    return jnp.mean(losses), (None, {"score_norm": jnp.sqrt(jnp.mean(squares))})


def _flat(energy: Any, batch: Tree) -> tuple[Array, Any]:
    """Return the rows of a batch as vectors, and the log density as a function of one."""
    points, unravel = flat_rows(batch)
    return points, lambda x: logdensity(energy)(unravel(x))


def _require_density(key: Key, energy: Any, batch: Tree) -> None:
    require_density(energy, "score matching")
    require_floats(batch)


def _require_curvature(key: Key, energy: Any, batch: Tree) -> None:
    """Raise ValueError where the gradient bends between rows although its derivative is the same at all of them."""
    _require_density(key, energy, batch)
    points, density = _flat(energy, jax.tree.map(lambda x: x[:LOOKED_AT], batch))
    score = jax.grad(density)
    v = jax.random.normal(key, points.shape[1:], points.dtype)
    scores, turns = jax.vmap(lambda x: jax.jvp(score, (x,), (v,)))(points)
    straight = scores[:1] + jax.vmap(lambda x: jax.jvp(score, (points[0],), (x - points[0],))[1])(points)
    is_constant = jnp.abs(turns - turns[:1]).max() <= 1e-5 * jnp.abs(turns).max()
    bends = jnp.abs(scores - straight).max() > 1e-2 * jnp.abs(scores - scores[:1]).max()
    if is_constant and bends:
        raise ValueError(
            "score matching needs second derivatives, and this energy's are the same at every row although its "
            "gradient bends between them: a piecewise linear network (ReLU). Use silu, tanh or softplus, or denoising "
            "score matching, which needs first derivatives alone"
        )


def _require_reach(step_size: float, key: Key, energy: Any, batch: Tree) -> None:
    _require_density(key, energy, batch)
    if step_size < SMALLEST_STEP and flat_rows(batch)[0].dtype != jnp.float64:
        raise ValueError(
            f"a finite-difference step of {step_size:.2g} is below float32's reach: its differences are rounding. Use "
            f"{SMALLEST_STEP} or more, or turn on JAX's x64 mode"
        )
