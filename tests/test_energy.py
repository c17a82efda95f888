"""Laws of the energy contract: what a log density is, how energies combine, and what trains."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from flax import nnx
from jax.tree_util import Partial

from energyflow import energy as en
from energyflow.energies.modules import ModuleEnergy
from energyflow.energies.nets import mlp


def quartic(x):
    return jnp.sum(x**4) / 4


def quadratic(x):
    return jnp.sum(x**2) / 2


def shifted(x, centre):
    return jnp.sum((x - centre) ** 2) / 2


def scaled(scale, x):
    return scale * jnp.sum(x**2)


X = jnp.array([0.3, -1.7])


def same_trees(a, b) -> bool:
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(jax.tree.leaves(jax.tree.map(jnp.array_equal, a, b)))


@pytest.mark.core
@pytest.mark.parametrize("temperature", [1.0, 0.25, 3.0])
def test_logdensity_is_minus_energy_over_temperature_bitwise(temperature):
    energy = en.tempered(quartic, temperature)
    assert en.logdensity(energy)(X) == -quartic(X) / temperature
    assert en.kind(energy) == "tempered"
    assert energy(X) == quartic(X)


def test_beta_multiplies_the_log_density_and_conditions_pass_through():
    assert en.logdensity(quartic, beta=0.5)(X) == -0.5 * quartic(X)
    centre = jnp.array([1.0, 2.0])
    assert en.logdensity(shifted, centre)(X) == -shifted(X, centre)


@pytest.mark.core
def test_energy_of_another_shape_than_scalar_is_refused_with_that_shape():
    with pytest.raises(ValueError, match=r"must return a scalar.*shape \(2,\).*for a point of shape \(2,\)"):
        en.logdensity(lambda x: x**2)(X)


def test_a_batch_passed_as_one_point_is_refused():
    with pytest.raises(ValueError, match=r"returned shape \(5,\)"):
        en.logdensity(lambda x: jnp.sum(x**2, axis=-1))(jnp.ones((5, 2)))


@pytest.mark.core
def test_product_of_experts_multiplies_densities():
    product = en.sum_energies(quartic, en.tempered(quadratic, 0.5), weights=(2.0, 3.0))
    expected = 2 * en.logdensity(quartic)(X) + 3 * en.logdensity(en.tempered(quadratic, 0.5))(X)
    assert jnp.allclose(en.logdensity(product)(X), expected, rtol=1e-6)
    assert en.temperature(product) == 1.0


def test_product_of_experts_needs_one_weight_each_and_one_expert():
    with pytest.raises(ValueError, match="one weight per energy"):
        en.sum_energies(quartic, quadratic, weights=(1.0,))
    with pytest.raises(ValueError, match="at least one energy"):
        en.sum_energies()


@pytest.mark.core
def test_tilt_is_f_minus_log_q():
    base = dist.Normal(jnp.zeros(2), 2.0).to_event()
    tilted = en.tilt(quartic, base)
    assert jnp.allclose(tilted(X), quartic(X) - base.log_prob(X), rtol=1e-6)
    assert jnp.allclose(jax.grad(tilted)(X), X**3 + X / 4, rtol=1e-6)
    assert jnp.allclose(en.tilt(en.tempered(quartic, 0.5), base)(X), 2 * quartic(X) - base.log_prob(X), rtol=1e-6)


def test_tilt_refuses_a_batch_of_distributions():
    with pytest.raises(ValueError, match=r"batch shape is \(2,\).*to_event"):
        en.tilt(quartic, dist.Normal(jnp.zeros(2), 1.0))


@pytest.mark.core
def test_landscape_is_refused_by_everything_that_needs_a_density():
    valley = en.landscape(quartic)
    assert en.kind(valley) == en.kind(en.frozen(valley)) == "landscape"
    base = dist.Normal(jnp.zeros(2), 1.0).to_event()
    for needs_density in (
        lambda: en.require_density(valley, "log Z"),
        lambda: en.require_density(en.frozen(valley), "log Z"),
        lambda: en.sum_energies(quartic, valley),
        lambda: en.tilt(valley, base),
        lambda: en.tempered(valley, 0.5),
        lambda: en.logdensity(valley),
    ):
        with pytest.raises(ValueError, match="this energy is a landscape"):
            needs_density()
    en.require_density(quartic, "log Z")


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="must be positive"):
        en.tempered(quartic, temperature)


def test_plain_functions_are_energies_everywhere_and_have_no_leaves():
    base = dist.Normal(jnp.zeros(2), 1.0).to_event()
    for energy in (
        en.as_energy(quartic),
        en.tempered(quartic, 1.0),
        en.landscape(quartic),
        en.sum_energies(quartic),
        en.frozen(quartic),
        en.tilt(quartic, base),
    ):
        value = jax.jit(lambda e, x: e(x))(energy, X)
        assert jnp.isfinite(value)
        assert jax.tree.leaves(en.partition(energy)[0]) == []
        assert jnp.allclose(jax.jit(energy)(X), value)


def test_energies_that_are_none_are_refused():
    with pytest.raises(TypeError, match="must be callable"):
        en.as_energy(3.0)
    with pytest.raises(TypeError, match=r"Linear is a flax module.*from_nnx"):
        en.as_energy(nnx.Linear(2, 1, rngs=nnx.Rngs(0)))


@pytest.mark.core
def test_partition_excludes_frozen_leaves_and_combine_restores_the_energy():
    net = mlp(0, 2, (4,), confinement=0.1)
    base = dist.Normal(jnp.zeros(2), 1.0).to_event()
    trained = Partial(scaled, jnp.array(2.0))
    energy = en.sum_energies(en.tilt(net, base), en.frozen(mlp(1, 2, (4,))), en.tempered(trained, 0.5))
    trainable, rest = en.partition(energy)
    assert same_trees(en.combine(trainable, rest), energy)
    weights = [*jax.tree.leaves(net.params), *jax.tree.leaves(trained)]
    assert same_trees(jax.tree.leaves(trainable), weights)
    assert len(jax.tree.leaves(rest)) == len(jax.tree.leaves(energy)) - len(weights)


def test_partition_leaves_integers_keys_and_missing_values_alone():
    tree = {"w": jnp.ones(2), "n": 3, "label": jnp.array([1, 2]), "key": jax.random.key(0), "none": None}
    trainable, rest = en.partition(tree)
    assert [k for k, v in trainable.items() if v is not None] == ["w"]
    assert jax.tree.structure(en.combine(trainable, rest)) == jax.tree.structure(tree)


def test_frozen_energy_has_no_weight_gradient_but_moves_points():
    energy = en.frozen(Partial(scaled, jnp.array(2.0)))
    assert jax.tree.leaves(jax.grad(lambda e: e(X))(energy)) == [0.0]
    assert jnp.array_equal(jax.grad(energy)(X), 4 * X)


def test_positions_may_be_any_pytree():
    def energy(x):
        return jnp.sum(x["position"] ** 2) + x["scale"] ** 2

    point = {"position": X, "scale": jnp.array(0.5)}
    assert jnp.allclose(en.logdensity(energy)(point), -energy(point))
    assert jax.tree.structure(jax.grad(en.logdensity(energy))(point)) == jax.tree.structure(point)
    with pytest.raises(ValueError, match="for a point of shape {'position'"):
        en.logdensity(lambda x: x["position"])(point)


@pytest.mark.core
def test_new_weights_temperatures_and_betas_compile_nothing():
    traces = []

    @jax.jit
    def evaluate(log_density, x):
        traces.append(1)
        return log_density(x)

    for seed, temperature, beta in ((0, 1.0, 1.0), (1, 0.5, 0.3), (2, 2.0, 0.7)):
        energy = en.tempered(mlp(seed, 2, (4,)), temperature)
        evaluate(en.logdensity(energy, beta=beta), X)
        evaluate(en.logdensity(en.combine(*en.partition(energy)), beta=beta), X)
    assert len(traces) == 1
    assert isinstance(energy.energy, ModuleEnergy)


def test_adding_a_constant_shifts_the_log_density_by_it():
    shift = jax.tree_util.Partial(lambda c, x: quartic(x) + c, jnp.array(8.0))
    assert jnp.allclose(en.logdensity(shift)(X), en.logdensity(quartic)(X) - 8.0, rtol=1e-6)
    assert jnp.array_equal(jax.grad(en.logdensity(shift))(X), jax.grad(en.logdensity(quartic))(X))


def test_a_condition_leaves_an_energy_of_one_point_with_the_same_density():
    energy = en.tempered(Partial(lambda c, x, centre: c * shifted(x, centre), jnp.array(2.0)), 0.5)
    centre = jnp.array([1.0, 2.0])
    at = en.condition(energy, centre)
    assert at(X) == energy(X, centre)
    assert en.logdensity(at)(X) == en.logdensity(energy, centre)(X)
    assert (en.temperature(at), en.kind(at)) == (0.5, "tempered")
    assert len(jax.tree.leaves(en.partition(at)[0])) == 1  # neither the condition nor the temperature is trained
    assert en.kind(en.condition(en.landscape(shifted), centre)) == "landscape"


LADDER = [8.0, 2.0, 0.5]


def test_each_level_has_a_log_z_and_the_first_is_zero():
    energy = en.tempered(lambda x, sigma: sigma * quadratic(x), 0.5)
    levels = en.normalised_levels(energy, LADDER)
    (start,) = jax.tree.leaves(en.partition(levels)[0])
    assert jnp.array_equal(start, jnp.zeros(2))  # all that is trained
    levels = en.NormalisedLevels(levels.energy, jnp.array([1.5, -2.0]), levels.frozen_sigmas)
    # On the ladder, half-way between levels on a log scale, and beyond both ends.
    for sigma, log_z in ((8.0, 0.0), (2.0, 1.5), (0.5, -2.0), (4.0, 0.75), (1.0, -0.25), (99.0, 0.0), (0.01, -2.0)):
        assert jnp.allclose(levels(X, sigma), sigma * quadratic(X) / 0.5 + log_z, rtol=1e-6)
    assert en.temperature(levels) == 1.0


def test_levels_must_be_a_ladder_and_their_energy_a_density():
    for sigmas in ([1.0], [1.0, 2.0], [1.0, 0.0], 1.0, [[2.0, 1.0]]):
        with pytest.raises(ValueError, match="strictly decreasing noise levels"):
            en.normalised_levels(quadratic, sigmas)
    with pytest.raises(ValueError, match="landscape"):
        en.normalised_levels(en.landscape(quadratic), LADDER)
