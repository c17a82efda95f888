"""Floor 2: flax.nnx modules, and any (apply, params) pair, as energies.

A module takes a batch and may keep state; an energy scores one point and keeps none. `from_nnx` crosses that border
once: it splits the module into plain dictionaries of arrays (the leaves) and a static graph definition, and refuses
a module whose value at one point is random or depends on its batch mates. The module is rebuilt only while tracing.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.tree_util import Partial, register_dataclass

from energyflow.energy import Frozen
from energyflow.types import Tree


@register_dataclass
@dataclass(frozen=True, eq=False)
class ModuleEnergy:
    """The energy of a flax.nnx module; made by `from_nnx`.

    params: nested dictionary of its `nnx.Param` arrays, the trainable leaves.
    others: its other variables (running averages, constants), which no training step changes.
    graphdef: its static part, equal for two modules of the same architecture.
    """

    params: Tree
    others: Frozen
    graphdef: nnx.GraphDef = field(metadata={"static": True})

    def __call__(self, x: Tree, *cond: Tree) -> Array:
        """Return the module's output for the one point `x`: shape () where the module gives (1,) or (1, 1).

        Raises ValueError where the module returns no batch axis, or changes its own state while it is called.
        """
        others = jax.lax.stop_gradient(self.others.value)
        module = nnx.merge(self.graphdef, self.params, others)
        output = module(*jax.tree.map(lambda a: jnp.expand_dims(a, 0), (x, *cond)))
        _require_unchanged(module, others)
        if jnp.ndim(output) == 0 or output.shape[0] != 1:
            raise ValueError(
                f"a module must map a batch of N points to N energies; {type(module).__name__} mapped a batch of one "
                f"to shape {jnp.shape(output)}: keep the first axis"
            )
        return output[0].reshape(()) if output.shape == (1, 1) else output[0]


def from_nnx(module: nnx.Module) -> ModuleEnergy:
    """Return the energy of a flax.nnx module, its weights copied out once.

    module: maps a batch, shape (N, *shape), and optionally conditions with the same N, to energies of shape (N,) or
    (N, 1). Only its `nnx.Param` variables are trainable; every other variable is frozen.
    Raises TypeError for anything else than an nnx module, and ValueError, naming the submodule, where the module draws
    random numbers or uses statistics of its batch: it has to be in evaluation mode.
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(f"from_nnx takes a flax.nnx module; got {type(module).__name__}: for functions use from_apply")
    _require_evaluation_mode(module)
    graphdef, params, others = nnx.split(module, nnx.Param, ...)
    # Plain dictionaries cross the jit boundary fastest: nnx.State costs 1.2 times, variables 2.4, the module 5.
    return ModuleEnergy(nnx.to_pure_dict(params), Frozen(nnx.to_pure_dict(others)), _interned(graphdef))


def to_nnx(energy: ModuleEnergy) -> nnx.Module:
    """Return a new module with the current weights of an energy made by `from_nnx`.

    Raises TypeError for other energies; of a wrapped one (tempered, tilted, ...) pass the part made by `from_nnx`.
    """
    if not isinstance(energy, ModuleEnergy):
        raise TypeError(f"to_nnx takes an energy made by from_nnx; got {type(energy).__name__}")
    return nnx.merge(energy.graphdef, energy.params, energy.others.value)


def from_apply(apply: Callable[..., Array], params: Tree) -> Partial:
    """Return the energy `x, *cond -> apply(params, x, *cond)` of a pure function and its parameters.

    apply: scores ONE point and returns a scalar. It is compared by identity, so pass a module-level function, or the
    `apply` of one flax.linen module: a new lambda or module compiles anew. params: any pytree; its floating leaves
    train.
    Raises TypeError where `apply` cannot be called.
    """
    if not callable(apply):
        raise TypeError(f"from_apply takes (apply, params) with apply callable; got {type(apply).__name__}")
    return Partial(apply, params)


def _interned(graphdef: nnx.GraphDef) -> nnx.GraphDef:
    """Return the first graphdef equal to this one: jit tells the same object at once, an equal one after 50 us."""
    try:
        return _first_equal(graphdef)
    except TypeError:  # a module may keep an unhashable attribute, such as a list of sizes
        return graphdef


@functools.lru_cache(maxsize=1024)
def _first_equal(graphdef: nnx.GraphDef) -> nnx.GraphDef:
    return graphdef


_RANDOM = "it draws random numbers", "deterministic"
_BATCH = "it uses or updates statistics of the batch", "use_running_average"


def _require_evaluation_mode(module: nnx.Module) -> None:
    """Raise ValueError where a submodule, or the owner of a variable, makes the energy random or batch-coupled."""
    submodules = dict(nnx.iter_modules(module))
    for path, submodule in submodules.items():
        if not _is_deterministic(submodule, default=True):
            _refuse(path, submodule, *_RANDOM)
        if not _uses_running_average(submodule, default=True):
            _refuse(path, submodule, *_BATCH)
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        owner = next(path[:n] for n in range(len(path), -1, -1) if path[:n] in submodules)
        if isinstance(variable, nnx.RngState) and not _is_deterministic(submodules[owner], default=False):
            _refuse(owner, submodules[owner], f"it keeps random state in '{_dotted(path)}'")
        if isinstance(variable, nnx.BatchStat) and not _uses_running_average(submodules[owner], default=False):
            _refuse(owner, submodules[owner], f"it keeps batch statistics in '{_dotted(path)}'")


def _is_deterministic(submodule: nnx.Module, default: bool) -> bool:
    rate = getattr(submodule, "rate", getattr(submodule, "dropout_rate", None))
    return rate == 0 or getattr(submodule, "deterministic", default) is True


def _uses_running_average(submodule: nnx.Module, default: bool) -> bool:
    return getattr(submodule, "use_running_average", default) is True


def _refuse(path: tuple, submodule: nnx.Module, what: str, mode: str | None = None) -> None:
    where = f"'{_dotted(path)}'" if path else "the root"
    # Not every layer can be viewed (flax's SpectralNorm cannot), but eval() reaches all of them.
    view = f" or nnx.view(module, {mode}=True)" if hasattr(submodule, "set_view") else ""
    cure = f"pass the module in evaluation mode (module.eval(){view})" if mode else "remove it from the module"
    raise ValueError(
        f"{type(submodule).__name__} at {where} cannot be part of an energy: {what}, so a point has no energy of its "
        f"own; {cure}, or replace the layer (BatchNorm by GroupNorm, Dropout by none)"
    )


def _require_unchanged(module: nnx.Module, others: Tree) -> None:
    """Raise ValueError where calling `module` replaced one of its non-parameters (`others`, as before the call)."""
    before = dict(jax.tree_util.tree_leaves_with_path(others))
    if not before:
        return
    now = nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(now):
        if path in before and before[path] is not leaf:
            raise ValueError(
                f"{type(module).__name__} changes '{_dotted(k.key for k in path)}' when it is called, so its value "
                "depends on the calls before; an energy is a pure function: pass the module in evaluation mode"
            )


def _dotted(path: Any) -> str:
    return ".".join(map(str, path))
