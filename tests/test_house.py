"""The house: imports point only down, nothing is hidden, every module is short and every public name documented.

Reads the files only. The floors are the table of CONTRIBUTING.md and docs/architecture.md.
"""

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "energyflow"
EDGE = 10
FLOORS = {
    "types": 0,
    "rows": 0,
    "spec": 0,
    "energy": 1,
    "stats": 1,
    "mixing": 1,
    "stepsize": 1,
    "couplings": 1,
    "diffusion": 1,
    "checkpoint": 1,
    "loaders": 1,
    "comparisons": 1,
    "arguments": 1,
    "energies": 2,
    "kernels": 2,
    "chains": 3,
    "negatives": 4,
    "noise_levels": 4,
    "descent": 4,
    "transport": 4,
    "recovery": 4,
    "joint_levels": 4,
    "logz": 4,
    "tuning": 4,
    "warmup": 5,
    "walkers": 5,
    "adaptation": 5,
    "unbiased": 4,
    "objectives": 5,
    "training": 6,
    "recipe": 6,
    "diagnostics": 6,
    "evaluation": 6,
    "bridge": 6,
    "fit": 7,
    "health": 7,
    "plots": 7,
    "sampling": 7,
    "models": 7,
    "evidence": 8,
    "certify": 8,
    "report": 8,
    "runs": 9,
    "commands": EDGE,
    "cli": EDGE,
    "__main__": EDGE,
}
# The command line answers --help without JAX, so it loads the rest when a command runs.
DEFERRED = {"energyflow.cli": {"energyflow.commands"}}
# Names of the particle-physics package EnergyFlow, which installs the same import name.
FOREIGN = {"base", "utils", "data", "datasets", "measure", "gen", "obs", "emd", "efp", "efm", "archs", "algorithms"}
LONGEST = 350


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
every_module = pytest.mark.parametrize("module", MODULES)


def public_names() -> dict[str, str]:
    """The names that `from energyflow import ...` offers, each with the module that defines it."""
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {
        alias.name: f"energyflow.{node.module or alias.name}"
        for node in sorted(imports, key=lambda node: node.module is not None)  # a function wins over its module
        for alias in node.names
    }


PUBLIC = public_names()


def resolve(target: str) -> str:
    """Return the module of this package that the dotted name `target` lies in, "" where it is another package's."""
    if target.split(".")[0] != "energyflow":
        return ""
    while target not in MODULES:
        target = target.rpartition(".")[0]
    return target


def targets_of(node: ast.AST, module: str) -> set[str]:
    """Return the modules of this package that one import statement reaches."""
    if isinstance(node, ast.Import):
        return {resolve(alias.name) for alias in node.names} - {""}
    assert isinstance(node, ast.ImportFrom)
    parents = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
    source = ".".join(parents[: len(parents) - node.level + 1] if node.level else [])
    source = ".".join(filter(None, [source, node.module]))
    if source == "energyflow":
        return {PUBLIC.get(alias.name, resolve(f"energyflow.{alias.name}")) for alias in node.names}
    return {resolve(f"{source}.{alias.name}") for alias in node.names} - {""}


def imports_of(module: str) -> set[str]:
    """Return what `module` imports of this package, loads by `importlib` included."""
    nodes = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.Import | ast.ImportFrom)]
    found = set().union(*(targets_of(node, module) for node in nodes)) if nodes else set()
    return (found | loaded_by_name(module)) - {module}


def loaded_by_name(module: str) -> set[str]:
    """Return the modules of this package that `module` loads by a call that takes a module's name."""
    calls = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)]
    loads = [call for call in calls if ast.unparse(call.func).split(".")[-1] in {"import_module", "__import__"}]
    names = [arg.value for call in loads for arg in call.args if isinstance(arg, ast.Constant)]
    return {resolve(name) for name in names if isinstance(name, str)} - {""}


def part(module: str) -> str:
    """Return the first name under energyflow: a top-level module or a package folder; "" for energyflow itself."""
    return module.split(".")[1] if "." in module else ""


def may_import(module: str, target: str) -> bool:
    """Same folder, a strictly lower floor, or both edges. The root package imports nothing, so all may read it."""
    here, there = part(module), part(target)
    if here == "" or there == "":
        return there == ""
    upper, lower = FLOORS.get(here, -1), FLOORS.get(there, EDGE)
    return here == there or lower < upper or lower == upper == EDGE


@every_module
def test_a_module_has_a_floor_and_a_name_of_its_own(module):
    assert part(module) in {"", *FLOORS}, f"give {module} a floor in {Path(__file__).name} and in the documents"
    assert part(module) not in FOREIGN, f"{part(module)} is a name of the particle-physics package"


@every_module
def test_imports_point_only_down(module):
    upward = {target for target in imports_of(module) if not may_import(module, target)}
    assert not upward, f"{module} (floor {FLOORS.get(part(module))}) imports {sorted(upward)}"


def test_no_cycle():
    graph = {module: imports_of(module) for module in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' -> '.join([*path[path.index(module) :], module])}"
        if module not in done:
            for target in graph[module]:
                visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@every_module
def test_no_import_is_hidden(module):
    functions = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = [node for function in functions for node in ast.walk(function)]
    hidden = [node.lineno for node in inner if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not hidden, f"{module}: import inside a function on line {hidden}"
    assert loaded_by_name(module) <= DEFERRED.get(module, set()), f"{module} loads modules by name"


@every_module
def test_no_module_is_too_long(module):
    lines = MODULES[module].read_text().count("\n")
    assert lines <= LONGEST, f"{module} has {lines} lines: split it"


@every_module
def test_everything_public_has_a_docstring(module):
    tree = TREES[module]
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    documented = {node.name for node in public if ast.get_docstring(node)}
    bare = sorted({node.name for node in public} - documented)
    assert ast.get_docstring(tree), f"{module} has no docstring"
    assert not bare, f"{module}: no docstring on {bare}"


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_documents_show_the_same_floors(document):
    table = re.findall(r"^\| (\d+) \| (.+?) \|", (ROOT / document).read_text(), flags=re.MULTILINE)
    shown = {name: int(floor) for floor, names in table for name in re.findall(r"`(\w+)(?:\.py|/)`", names)}
    assert shown == FLOORS


@pytest.mark.parametrize(
    ("module", "source", "targets", "allowed"),
    [
        ("energyflow.energy", "from energyflow.chains import sample", {"energyflow.chains"}, False),
        ("energyflow.energy", "from energyflow import sample", {"energyflow.chains"}, False),
        ("energyflow.energy", "from energyflow import chains", {"energyflow.chains"}, False),
        ("energyflow.energy", "from .chains import sample", {"energyflow.chains"}, False),
        ("energyflow.energy", "import energyflow.chains as c", {"energyflow.chains"}, False),
        ("energyflow.negatives", "from energyflow.chains import sample", {"energyflow.chains"}, True),
        ("energyflow.kernels", "from .langevin import ula", {"energyflow.kernels.langevin"}, True),
        ("energyflow.kernels.langevin", "from ..energy import kind", {"energyflow.energy"}, True),
        ("energyflow.chains", "from energyflow import __version__", {"energyflow"}, True),
        ("energyflow.chains", "import jax.numpy as jnp", set(), True),
    ],
)
def test_the_reader_of_imports_is_right(module, source, targets, allowed):
    assert targets_of(ast.parse(source).body[0], module) == targets
    assert all(may_import(module, target) for target in targets) == allowed
