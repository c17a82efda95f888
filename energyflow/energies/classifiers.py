"""Floor 2: classifiers as joint energies of points and labels, and the logits inside of energies made of them."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.tree_util import Partial, register_dataclass

from energyflow.energies.modules import ModuleEnergy, from_nnx
from energyflow.energies.nets import non_negative
from energyflow.energies.transforms import Transformed
from energyflow.energy import Frozen, Landscape, Normalised, Tempered, Tilted, WithNoise, as_energy
from energyflow.types import Scalar, Tree


@register_dataclass
@dataclass(frozen=True, eq=False)
class ClassifierEnergy:
    """A classifier's logits read as the joint energy `E(x, y) = -logits(x)[y]`; made by `classifier_energy`."""

    net: ModuleEnergy
    confinement: Frozen

    def logits(self, x: Tree) -> Array:
        """Return the logits of one point, shape (num_classes,): `log p(y|x)` up to a constant."""
        return self.net(x)

    def __call__(self, x: Tree, *label: Array) -> Scalar:
        """Return `E(x) = -logsumexp(logits)`, or `E(x, y) = -logits[y]` given an integer label of shape ()."""
        logits = self.logits(x)
        energy = -logits[label[0]] if label else -jax.nn.logsumexp(logits)
        return energy + self.confinement.value * jnp.sum(jnp.square(x))


def classifier_energy(module: nnx.Module, confinement: float = 0.0) -> ClassifierEnergy:
    """Return the energy of a classifier (JEM, Grathwohl et al. 2020), so that `p(x) = sum_y p(x, y)` holds exactly.

    module: maps a batch (N, *shape) to logits (N, num_classes), in evaluation mode (see `from_nnx`).
    confinement: c >= 0 adds `c |x|^2` to both energies: it confines x and leaves p(y|x) as it is.
    Raises ValueError for a negative confinement and for modules that `from_nnx` refuses.
    """
    return ClassifierEnergy(from_nnx(module), Frozen(non_negative(confinement)))


def class_logits(classifier: Any, x: Tree) -> Array:
    """Return `log p(y|x)` of one point up to a constant, shape (num_classes,).

    classifier: an energy with `logits`, as `classifier_energy` makes it, also within `tempered`, `tilt`, `normalised`,
    `with_noise`, `landscape`, `frozen` or `bounded`; or a function of one point whose value is the logits, such as
    `from_nnx(net)`. A temperature is that of p(x) and leaves p(y|x) alone. Raises ValueError for an energy without
    classes.
    """
    return _opened(classifier, x)[0]


def logits_and_energy(classifier: Any, x: Tree) -> tuple[Array, Scalar]:
    """Return `class_logits(classifier, x)` and E(x) by one pass through the network, where the energy is known inside.

    Raises ValueError as `class_logits` does.
    """
    logits, energy = _opened(classifier, x)
    return logits, energy(x)


def _opened(classifier: Any, x: Tree) -> tuple[Array, Any]:
    """Return the logits of one point, and the energy for which they are known; one not made here stays as it is."""
    match classifier:
        case Frozen():
            logits, inner = _opened(jax.lax.stop_gradient(classifier.value), x)
            return logits, Frozen(inner)
        case Tempered() | Landscape() | Tilted() | Normalised() | WithNoise() | Transformed():
            inside = classifier.constrain(x) if isinstance(classifier, Transformed) else x
            logits, inner = _opened(classifier.energy, inside)
            return logits, replace(classifier, energy=inner)
    logits = classifier.logits(x) if hasattr(classifier, "logits") else jnp.asarray(as_energy(classifier)(x))
    if logits.ndim != 1:
        raise ValueError(
            f"a classifier has an energy with `logits`, or gives logits (num_classes,) for one point; got "
            f"{type(classifier).__name__} with shape {logits.shape}"
        )
    is_ours = isinstance(classifier, ClassifierEnergy)
    return logits, replace(classifier, net=Partial(_known, logits)) if is_ours else classifier


def _known(logits: Array, x: Tree) -> Array:
    return logits
