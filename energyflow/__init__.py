"""energyflow: a sampler-first probabilistic toolkit on JAX.

`import energyflow as ef` loads nothing heavy and starts no XLA backend: public names are loaded on first use (SPEC 1).
The table of names is `__init__.pyi`, beside this file, so that type checkers read the same one.
"""

import importlib
import os

import lazy_loader


def _refuse_mixture(folder: str) -> None:
    """Raise ImportError where the particle-physics package EnergyFlow was installed into this package's folder."""
    foreign = {"efm.py", "efp.py", "emd.py", "gen.py", "measure.py", "obs.py"}.intersection(os.listdir(folder))
    if foreign:
        raise ImportError(
            f"two distributions are mixed in {folder}: energyflow-jax and the particle-physics package EnergyFlow, "
            f"which installs the same import name (found {', '.join(sorted(foreign))}). Install one of them per "
            "environment: pip uninstall -y energyflow energyflow-jax && pip install energyflow-jax"
        )


_refuse_mixture(os.path.dirname(__file__))
_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("energyflow-jax")
    return _load(name)
