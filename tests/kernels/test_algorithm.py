"""Laws of binding: what every kernel reports, what it refuses to accept, and that nothing compiles twice."""

import functools

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from energyflow.chains import advance, advance_chains
from energyflow.kernels import (
    adjusted_mclmc,
    barker,
    bind,
    dynamic_hmc,
    elliptical_slice,
    ghmc,
    hmc,
    is_adjusted,
    langevin,
    mala,
    mclmc,
    nuts,
    rmh,
    sgld,
    slice_sampling,
    step_size,
    ula,
    with_step_size,
)
from energyflow.kernels.algorithm import carried, configured, start
from energyflow.types import Algorithm

UNADJUSTED = {"ula": ula(0.1), "sgld": sgld(0.1, 0.5), "langevin": langevin(0.1, 0.2), "mclmc": mclmc(0.1)}
ADJUSTED = {
    "mala": mala(0.1),
    "hmc": hmc(0.1, 3),
    "nuts": nuts(0.1),
    "dynamic_hmc": dynamic_hmc(0.1),
    "ghmc": ghmc(0.1),
    "adjusted_mclmc": adjusted_mclmc(0.1, 3),
    "barker": barker(0.1),
    "rmh": rmh(0.1),
    "elliptical_slice": elliptical_slice(0.0, jnp.ones(3)),
    "slice_sampling": slice_sampling(),
    "blackjax.mala": Partial(blackjax.mala, step_size=0.1),
}


def quadratic(precision, x):
    return -precision * jnp.sum(x**2) / 2


def lenient(name) -> list:
    known = ("dynamic_hmc", "ghmc", "nuts", "slice_sampling")
    return [pytest.mark.blackjax_promotes(name)] if name in known else []


# What is counted is counted: the callback in the backward pass runs once per evaluation of the energy's gradient.

EVALUATIONS = []


@jax.custom_vjp
def counted(x):
    return x


def _forward(x):
    return x, None


def _backward(_, cotangent):
    jax.debug.callback(lambda: EVALUATIONS.append(1))
    return (cotangent,)


counted.defvjp(_forward, _backward)


def counting(precision, x):
    return quadratic(precision, counted(x))


@pytest.mark.parametrize(
    ("name", "kernel", "per_step", "at_start"),
    [
        pytest.param(name, *rest, marks=lenient(name), id=name)
        for name, *rest in (
            ("mala", mala(0.3), 1, 1),
            ("hmc", hmc(0.3, 3), 3, 1),
            ("nuts", nuts(0.7, max_num_doublings=5), None, 1),
            ("dynamic_hmc", dynamic_hmc(0.3, 6), None, 1),
            ("ghmc", ghmc(0.3), 1, 1),
            ("adjusted_mclmc", adjusted_mclmc(0.5, 3), 6, 1),
            ("mclmc", mclmc(0.5), 2, 1),
            ("barker", barker(0.5), 1, 1),
            ("ula", ula(0.1), 1, 0),
            ("noise_first", langevin(0.1, noise_first=True, gradient_clip=1.0), 1, 0),
            ("rmh", rmh(0.5), 0, 0),
            ("elliptical_slice", elliptical_slice(0.0, jnp.ones(3)), 0, 0),
        )
    ],
)
def test_gradients_reported_are_gradients_evaluated(name, kernel, per_step, at_start, key):
    EVALUATIONS.clear()
    steps = 7
    end, metrics = advance(key, kernel, Partial(counting, 2.0), jnp.array([0.5, -1.0, 0.2]), steps)
    jax.block_until_ready(end)
    jax.effects_barrier()
    assert metrics["num_gradients"] == len(EVALUATIONS)
    if per_step is not None:
        assert len(EVALUATIONS) == at_start + per_step * steps


@pytest.mark.parametrize("name", [pytest.param(name, marks=lenient(name)) for name in ADJUSTED | UNADJUSTED])
def test_only_kernels_with_an_accept_step_report_acceptance(name):
    kernel = (ADJUSTED | UNADJUSTED)[name]
    logdensity = Partial(quadratic, 1.0)
    assert is_adjusted(kernel, logdensity, jnp.zeros(3)) == (name in ADJUSTED)
    algorithm = bind(kernel, logdensity)
    assert isinstance(algorithm, Algorithm)
    assert algorithm.reversible == (name in ADJUSTED and name != "ghmc")
    assert algorithm.temperature == pytest.approx({"sgld": 0.5, "langevin": 0.2}.get(name, 1.0))


# The guards. Raw BlackJAX accepts what these tests show it to accept: when a release stops that, they will say so.


def minus_infinity() -> tuple:
    """A dense inverse mass M, a start and a step after which p'Mp, positive, comes out as -inf in float32.

    M (1, 1, 1) = (-1, .6, .6), so for p = c (1, 1, 1) the first of the three products p_i (Mp)_i is -c^2. A leapfrog
    step of e from x = M^-1 (1, 1, 1) ends at p = e^3/4 (1, 1, 1): e = 4.35e6 puts c^2 at 4.2e38, beyond float32.
    """
    image = np.array([-1.0, 0.6, 0.6])
    mass = np.outer(image, image) / image.sum() + np.eye(3) - 1 / 3
    return jnp.asarray(mass, jnp.float32), jnp.asarray(np.linalg.solve(mass, np.ones(3)), jnp.float32), 4.35e6


@pytest.mark.core
@pytest.mark.blackjax_promotes("nuts")
@pytest.mark.parametrize(
    ("raw_kernel", "kernel"),
    [
        (functools.partial(blackjax.hmc, num_integration_steps=1), functools.partial(hmc, num_integration_steps=1)),
        (functools.partial(blackjax.nuts, max_num_doublings=1), functools.partial(nuts, max_num_doublings=1)),
    ],
    ids=["hmc", "nuts"],
)
def test_a_kinetic_energy_of_minus_infinity_is_accepted_by_blackjax_and_rejected_here(raw_kernel, kernel, key):
    mass, x, step = minus_infinity()
    logdensity = Partial(quadratic, 1.0)
    raw = raw_kernel(logdensity, step_size=step, inverse_mass_matrix=mass)
    guarded = bind(kernel(step, inverse_mass_matrix=mass), logdensity)

    @jax.jit
    def step_both(key):
        state = raw.init(x)
        return raw.step(key, state), guarded.step(jax.random.clone(key), state)

    (raw_state, raw_info), (state, info) = step_both(key)
    assert raw_info.energy == -jnp.inf and raw_info.acceptance_rate == 1.0 and not raw_info.is_divergent
    assert jnp.abs(raw_state.position).max() > 1e12
    assert jnp.array_equal(state.position, x)
    assert info.is_divergent and info.acceptance_rate == 0.0


@pytest.mark.core
def test_equal_settings_are_one_function():
    assert configured(quadratic, precision=1) is configured(quadratic, precision=1)
    assert configured(quadratic, precision=1) is not configured(quadratic, precision=2)


@pytest.mark.core
def test_step_sizes_are_read_and_replaced_by_name():
    for kernel in (mala(0.1), nuts(0.1), rmh(0.1), ula(0.1), mclmc(0.1), Partial(blackjax.barker, step_size=0.1)):
        assert step_size(kernel) == 0.1
        other = with_step_size(kernel, 0.2)
        assert step_size(other) == 0.2
        assert jax.tree.structure(other) == jax.tree.structure(kernel)
    for kernel in (elliptical_slice(0.0, jnp.ones(2)), slice_sampling(), lambda logdensity: None):
        with pytest.raises(ValueError, match="no step size to read or tune"):
            with_step_size(kernel, 0.2)


@pytest.mark.blackjax_promotes("ghmc")
def test_a_new_energy_keeps_the_momentum_and_nothing_that_it_made_stale(key):
    """A carried state's log density and gradient are those of the new energy; its momentum and slice are the old."""
    kernel = ghmc(0.1)
    before = start(bind(kernel, Partial(quadratic, 1.0)), key, jnp.ones(3))
    after = start(bind(kernel, Partial(quadratic, 4.0)), jax.random.key(9), before.position, carried(before))
    assert after.logdensity == 4 * before.logdensity
    assert jnp.array_equal(after.logdensity_grad, 4 * before.logdensity_grad)
    assert jnp.array_equal(after.momentum, before.momentum) and after.slice == before.slice


@pytest.mark.core
@pytest.mark.blackjax_promotes("nuts")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda h, mass: mala(h, mass), id="mala"),
        pytest.param(lambda h, mass: nuts(h, mass, max_num_doublings=3), id="nuts"),
        pytest.param(lambda h, mass: langevin(h, 2 * h, noise_first=True, low=-9 * mass, high=9 * mass), id="langevin"),
        pytest.param(lambda h, mass: Partial(blackjax.rmh, proposal_generator=Partial(walk, h)), id="blackjax.rmh"),
    ],
)
def test_new_weights_steps_and_scales_compile_nothing(make, key, count_compilations):
    def use(h, weight):
        kernel, logdensity = make(h, np.full(2, weight, np.float32)), Partial(quadratic, np.float32(weight))
        end, _ = advance_chains(jax.random.clone(key), kernel, logdensity, np.zeros((4, 2), np.float32), 3)
        return np.asarray(end)

    first = use(0.1, 1.0)
    with count_compilations() as made:
        second = use(0.3, 2.0)
    assert made.count == 0
    assert not np.array_equal(first, second)


def walk(scale, key, position):
    return position + scale * jax.random.normal(key, position.shape)


def test_another_static_setting_does_compile(key, count_compilations):
    """The negative control of the test above: the counter sees a compilation where there is one."""
    x = np.zeros((4, 2), np.float32)
    logdensity = Partial(quadratic, 1.0)
    advance_chains(jax.random.clone(key), langevin(0.1), logdensity, x, 3)
    with count_compilations() as made:
        advance_chains(jax.random.clone(key), langevin(0.1, noise_first=True), logdensity, x, 3)
    assert made.count > 0
