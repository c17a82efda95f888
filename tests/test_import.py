"""`import energyflow` is cheap, its names are real, and a mixture with the package of the same name is refused."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import energyflow

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]


def run(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options)


def test_importing_loads_nothing_heavy():
    code = """
import sys
import energyflow
heavy = {"jax", "jaxlib", "numpy", "scipy", "arviz", "arviz_base", "matplotlib", "numpyro", "blackjax", "flax", "optax"}
print(sorted(heavy & sys.modules.keys()))
dir(energyflow), energyflow.__version__
print(sorted(heavy & sys.modules.keys()))
"""
    done = run(code)
    assert (done.stdout.split("\n"), done.stderr) == (["[]", "[]", ""], "")


def test_an_energy_starts_no_backend_and_loads_no_plotting():
    code = """
import sys
import energyflow as ef
ef.logdensity(ef.tempered(abs, 2.0))
from jax._src import xla_bridge
print(sorted(xla_bridge._backends), sorted({"arviz", "matplotlib", "numpyro", "blackjax"} & sys.modules.keys()))
"""
    done = run(code)
    assert (done.stdout, done.stderr) == ("[] []\n", "")


@pytest.mark.parametrize("name", energyflow.__all__)
def test_a_public_name_resolves(name):
    assert getattr(energyflow, name) is not None


def test_a_function_wins_over_the_module_of_its_name():
    code = """
import importlib, pkgutil
import energyflow
for module in pkgutil.iter_modules(energyflow.__path__):
    if module.name != "__main__":
        importlib.import_module(f"energyflow.{module.name}")
print(callable(energyflow.train), callable(energyflow.tune))
"""
    assert run(code).stdout == "True True\n"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        energyflow.no_such_name  # noqa: B018


def test_the_version_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert energyflow.__version__ == project["version"]


def test_the_package_of_the_same_name_is_refused(tmp_path):
    folder = tmp_path / "energyflow"
    folder.mkdir()
    for name in ("__init__.py", "__init__.pyi"):
        (folder / name).write_bytes((ROOT / "energyflow" / name).read_bytes())
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import energyflow; print(energyflow.__file__)"
    assert run(code, cwd=tmp_path).stdout == f"{folder / '__init__.py'}\n"
    (folder / "emd.py").touch()
    refused = run(code, cwd=tmp_path)
    assert refused.returncode == 1
    assert "ImportError: two distributions are mixed" in refused.stderr and "emd.py" in refused.stderr
