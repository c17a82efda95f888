"""What every test runs under: JAX's strict flags, warnings as errors (pyproject.toml), a seed from outside.

Third-party code that trips a strict flag is named in `ALLOWED`; a test that runs such code says so with
`@pytest.mark.lenient("optax")` or `@pytest.mark.blackjax_promotes("nuts")`, and only the flags named there are off.

The key-reuse flag raises where a key is consumed twice. Use the same key on purpose (two runs that must agree) through
`jax.random.clone(key)`. It also raises, wrongly, for a `scan` or a `cond` over an array of keys under `vmap`: fold the
step number into one key instead of scanning over split keys.
"""

import os
from importlib.metadata import version

# Most of the suite's time is compilation, so programs are compiled with fewer passes, unless XLA_FLAGS says otherwise.
# The second flag is unknown to XLA in jax 0.12, and XLA stops at flags that it does not know.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0" + " --xla_cpu_use_fusion_emitters=false" * version("jax").startswith("0.10."),
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import zlib
from collections.abc import Iterator

import jax
import pytest

import tiny
from laws import count_compilations as compilation_counter

STRICT = {
    "jax_debug_key_reuse": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
}
RELAXED = {
    "jax_debug_key_reuse": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
}
BLACKJAX = {  # the state a key lives in, or a select between keys; bool * float32, int32 * float
    "adaptation": ("jax_numpy_dtype_promotion", "jax_numpy_rank_promotion"),  # chains minus their mean
    "adjusted_mclmc_dynamic": ("jax_debug_key_reuse", "jax_numpy_dtype_promotion"),
    "barker": ("jax_numpy_dtype_promotion",),
    "dual_averaging": ("jax_numpy_dtype_promotion",),
    "dynamic_hmc": ("jax_debug_key_reuse",),
    "ghmc": ("jax_numpy_dtype_promotion",),
    "nuts": ("jax_debug_key_reuse",),
    "slice_sampling": ("jax_numpy_dtype_promotion",),
}
ALLOWED = BLACKJAX | {
    "numpyro": ("jax_numpy_rank_promotion",),  # location and scale in sample() of a batch
    # Discrete draws promote, subsampling reuses a key, Beta and Dirichlet scan over keys.
    "numpyro_models": ("jax_debug_key_reuse", "jax_numpy_dtype_promotion", "jax_numpy_rank_promotion"),
    "optax": ("jax_numpy_dtype_promotion",),  # decay ** count in Adam's bias correction
}


def allowed_flags(item: pytest.Item) -> set[str]:
    """Return the strict flags that the markers of a test switch off."""
    names: set[str] = set()
    for marker in item.iter_markers("lenient"):
        names.update(marker.args)
    for marker in item.iter_markers("blackjax_promotes"):
        names.update(marker.args or BLACKJAX)
    unknown = names - ALLOWED.keys()
    if unknown:
        raise pytest.UsageError(f"{item.nodeid}: no exception named {sorted(unknown)} in tests/conftest.py")
    return {flag for name in names for flag in ALLOWED[name]}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Set the flags before any fixture of the test runs, whatever the fixture's scope."""
    relaxed = allowed_flags(item)
    for flag, value in STRICT.items():
        jax.config.update(flag, RELAXED[flag] if flag in relaxed else value)


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Drop compiled programs after each module: Linux allows a process 65530 memory maps, and each holds a few."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def seed() -> int:
    """The seed of the run, ENERGYFLOW_TEST_SEED (default 0): every test must pass with any."""
    return int(os.environ.get("ENERGYFLOW_TEST_SEED", "0"))


@pytest.fixture
def key(seed: int, request: pytest.FixtureRequest) -> jax.Array:
    """A random key of this test's own, independent of which other tests run."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def finished_run(seed, tmp_path_factory):
    """The folder of a run of `tiny`, from the command line to the report; its users are marked with `tiny.LENIENT`."""
    return tiny.train(tmp_path_factory.mktemp("runs"), seed)


@pytest.fixture
def count_compilations():
    """The context manager `laws.count_compilations`."""
    return compilation_counter
