"""Laws of the flax border: what is refused and by what name, what trains, and that nothing compiles twice."""

import pickle

import flax.linen
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from energyflow.energies.modules import from_apply, from_nnx, to_nnx
from energyflow.energy import combine, logdensity, partition, tempered


class Net(nnx.Module):
    """Two dense layers around `middle`, shape (N, 3) -> (N, 1)."""

    def __init__(self, seed, middle=None):
        rngs = nnx.Rngs(seed)
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.middle = nnx.Dict(layer=middle) if middle is not None else None
        self.last = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        x = nnx.silu(self.first(x))
        x = x if self.middle is None else self.middle["layer"](x)
        return self.last(x)


class Counter(nnx.Module):
    def __init__(self):
        self.calls = nnx.Variable(jnp.array(0.0))

    def __call__(self, x):
        self.calls[...] = self.calls[...] + 1
        return x


class RandomShift(nnx.Module):
    def __init__(self):
        self.rngs = nnx.Rngs(0)

    def __call__(self, x):
        return x + self.rngs.normal(x.shape)


class Sensitive(nnx.Module):
    """Dropout that is on whatever the mode of the module."""

    def __init__(self):
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.dropout(x, deterministic=False)


def spectral():
    return nnx.SpectralNorm(nnx.Linear(8, 8, rngs=nnx.Rngs(1)), rngs=nnx.Rngs(2))


X = jnp.array([0.3, -1.0, 2.0])


@pytest.mark.core
def test_energy_of_a_point_is_the_module_on_a_batch_of_one():
    module = Net(0)
    energy = from_nnx(module)
    assert energy(X).shape == ()
    assert jnp.array_equal(energy(X), module(X[None])[0, 0])
    assert logdensity(tempered(energy, 0.5))(X) == -energy(X) / 0.5


@pytest.mark.core
@pytest.mark.parametrize(
    ("layer", "name", "cure"),
    [
        (lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(0)), "Dropout", "deterministic=True"),
        (lambda: nnx.Dropout(0.5), "Dropout", "deterministic=True"),
        (lambda: nnx.BatchNorm(8, rngs=nnx.Rngs(0)), "BatchNorm", "use_running_average=True"),
        (spectral, "SpectralNorm", r"module.eval\(\)"),
        (RandomShift, "RandomShift", "remove it"),
    ],
)
def test_random_and_batch_coupled_layers_are_refused_by_name_and_place(layer, name, cure):
    with pytest.raises(ValueError, match=rf"{name} at 'middle\.layer' cannot be part of an energy.*{cure}"):
        from_nnx(Net(0, layer()))


def test_the_root_is_named_too():
    with pytest.raises(ValueError, match="Dropout at the root"):
        from_nnx(nnx.Dropout(0.5))


@pytest.mark.core
@pytest.mark.parametrize(
    "layer", [lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(0)), lambda: nnx.BatchNorm(8, rngs=nnx.Rngs(0)), spectral]
)
def test_evaluation_mode_is_accepted_with_frozen_statistics(layer):
    module = Net(0, layer())
    module.eval()
    energy = from_nnx(module)
    assert energy.others.value != {}
    trainable, rest = partition(energy)
    assert jax.tree.structure(combine(trainable, rest)) == jax.tree.structure(energy)
    assert len(jax.tree.leaves(trainable)) == len(jax.tree.leaves(energy.params))
    assert jnp.allclose(energy(X), module(X[None])[0, 0], rtol=1e-5)
    assert jnp.allclose(jax.jit(lambda e, x: e(x))(energy, X), energy(X), rtol=1e-5)


def test_views_in_evaluation_mode_are_accepted():
    module = Net(0, nnx.BatchNorm(8, rngs=nnx.Rngs(0)))
    assert jnp.isfinite(from_nnx(nnx.view(module, use_running_average=True))(X))


def test_layers_without_randomness_are_not_refused():
    attention = nnx.MultiHeadAttention(1, 8, decode=False, rngs=nnx.Rngs(0))
    from_nnx(Net(0, attention))
    from_nnx(Net(0, nnx.Dropout(0.0)))


@pytest.mark.core
@pytest.mark.parametrize(("layer", "what"), [(Counter, "calls"), (Sensitive, "dropout.rngs.count")])
def test_a_module_that_changes_its_state_when_called_is_refused_then(layer, what):
    module = Net(0, layer())
    module.eval()
    energy = from_nnx(module)
    with pytest.raises(ValueError, match=rf"Net changes 'middle\.layer\.{what}' when it is called"):
        energy(X)


@pytest.mark.core
def test_round_trip_gives_the_same_outputs_with_current_weights():
    module = Net(0)
    energy = from_nnx(module)
    batch = jax.random.normal(jax.random.key(0), (5, 3))
    assert jnp.array_equal(to_nnx(energy)(batch), module(batch))
    trainable, rest = partition(energy)
    doubled = combine(jax.tree.map(lambda w: 2 * w, trainable), rest)
    assert jnp.array_equal(to_nnx(doubled).first.kernel[...], 2 * module.first.kernel[...])
    assert same_structure(from_nnx(to_nnx(doubled)), energy)


def same_structure(a, b) -> bool:
    one, two = jax.tree.structure(a), jax.tree.structure(b)
    return one == two and hash(one) == hash(two)


def test_later_changes_of_the_module_do_not_reach_the_energy():
    module = Net(0)
    energy = from_nnx(module)
    before = energy(X)
    module.first.kernel[...] = jnp.zeros((3, 8))
    assert jnp.array_equal(energy(X), before)


@pytest.mark.core
def test_new_weights_of_the_same_architecture_compile_nothing():
    traces = []

    @jax.jit
    def evaluate(energy, x):
        traces.append(1)
        return jax.grad(energy)(x)

    energies = [from_nnx(Net(seed)) for seed in range(3)]
    gradients = [evaluate(energy, X) for energy in energies]
    assert len(traces) == 1
    assert energies[0].graphdef is energies[1].graphdef
    assert same_structure(energies[0], energies[1])
    assert not jnp.array_equal(gradients[0], gradients[1])
    assert not same_structure(energies[0], from_nnx(Net(0, nnx.LayerNorm(8, rngs=nnx.Rngs(0)))))


def test_an_energy_survives_pickling():
    energy = from_nnx(Net(0))
    copy = pickle.loads(pickle.dumps(energy))
    assert same_structure(copy, energy)
    assert jnp.array_equal(copy(X), energy(X))


def test_only_modules_come_in_and_only_their_energies_go_out():
    with pytest.raises(TypeError, match="from_nnx takes a flax.nnx module; got function"):
        from_nnx(same_structure)
    with pytest.raises(TypeError, match="to_nnx takes an energy made by from_nnx; got Tempered"):
        to_nnx(tempered(from_nnx(Net(0)), 1.0))


class Listed(nnx.Module):
    def __init__(self):
        self.sizes = [3, 1]
        self.weight = nnx.Param(jnp.ones(3))

    def __call__(self, x):
        return jnp.sum(x * self.weight[None], axis=-1)


def test_modules_with_unhashable_attributes_are_accepted():
    traces = []

    @jax.jit
    def evaluate(energy, x):
        traces.append(1)
        return energy(x)

    for _ in range(2):
        assert jnp.allclose(evaluate(from_nnx(Listed()), X), jnp.sum(X))
    assert len(traces) == 1


class SumsTheBatch(nnx.Module):
    def __call__(self, x):
        return jnp.sum(x)


class Pairs(nnx.Module):
    """A conditional energy of a dictionary, batch in and batch out."""

    def __init__(self):
        self.scale = nnx.Param(jnp.array(2.0))

    def __call__(self, x, centre):
        return self.scale * jnp.sum((x["a"] - centre) ** 2, axis=-1) + x["b"] ** 2


def test_a_module_without_a_batch_axis_is_refused():
    with pytest.raises(ValueError, match=r"SumsTheBatch mapped a batch of one to shape \(\)"):
        from_nnx(SumsTheBatch())(X)


def test_points_and_conditions_may_be_pytrees():
    point = {"a": X, "b": jnp.array(0.5)}
    assert jnp.allclose(from_nnx(Pairs())(point, jnp.ones(3)), 2 * jnp.sum((X - 1) ** 2) + 0.25)


def apply_quadratic(params, x):
    return jnp.sum(params["scale"] * (x - params["mean"]) ** 2)


@pytest.mark.core
def test_from_apply_trains_the_parameters_of_a_pure_function():
    params = {"scale": jnp.array(2.0), "mean": jnp.zeros(3)}
    energy = from_apply(apply_quadratic, params)
    assert jnp.allclose(energy(X), 2 * jnp.sum(X**2))
    assert len(jax.tree.leaves(partition(energy)[0])) == 2
    assert same_structure(energy, from_apply(apply_quadratic, {"scale": jnp.array(3.0), "mean": jnp.ones(3)}))
    with pytest.raises(TypeError, match="apply callable"):
        from_apply(params, apply_quadratic)


class Linen(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.Dense(1)(x)[0]


def test_from_apply_takes_linen_modules_without_compiling_twice():
    module = Linen()
    energies = [from_apply(module.apply, module.init(jax.random.key(seed), X)) for seed in range(2)]
    assert energies[0](X).shape == ()
    assert same_structure(*energies)
