"""Strict JAX for all tests: promotion, broadcasting or reuse of a key is an error."""

import importlib.metadata
import os
import pkgutil
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # beside a GPU too
# Most tests compile for longer than they run, each on one core. The processes that tests
# start read this too. Without optimizations, jax 0.12 exports functions with wrong gradients,
# and together with XLA's former emitters jaxlib 0.10 trains wrongly on several devices:
# test_sharding.py and test_hosts.py train in processes with the default ones.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
    )
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_parallel_codegen_split_count=1")


import hypothesis
import jax
import pytest
from jaxtyping import config, install_import_hook

import tests.typecheck  # noqa: F401  # the hook looks it up as an attribute

# Each is the program of a process: a script that it imports sets XLA's flags, and doctests
# would import it into the process of the tests, whose later programs then start with others.
collect_ignore = ["programs", "scripts/without_package.py"]

# Every call in the tests is checked against its annotations, shapes included. Calls within
# graph are left out: there are hundreds of thousands, without arrays, and pyright checks them.
_PACKAGE = Path(__file__).parent.parent / "jaxprune"
_CHECKED = {module.name for module in pkgutil.iter_modules([str(_PACKAGE)])} - {"graph"}
_CHECKED |= {"graph.channels", "graph.layers", "graph.matrices"}
install_import_hook([f"jaxprune.{name}" for name in _CHECKED], "tests.typecheck.check")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_num_cpu_devices", 8)

# The first example compiles, so that a deadline would depend on the machine.
hypothesis.settings.register_profile("jaxprune", deadline=None, max_examples=25)
hypothesis.settings.load_profile("jaxprune")


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache(tmp_path_factory):
    """Let the processes that tests start share one cache of compiled programs."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(shared / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(scope="session", autouse=True)
def _own_machine(_compilation_cache):
    """Give each worker a folder of its own for the lock of the process that measures.

    Studies of other workers would hold it, and a cell that waits for it is yielded later.
    """
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(
        prefix="jp", ignore_cleanup_errors=True
    ) as folder:  # a short path, as those of sockets are
        os.environ["TMPDIR"], tempfile.tempdir = folder, None
        yield
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before
        tempfile.tempdir = None


@pytest.fixture
def without_type_checks():
    """Turn off the type checks, which would raise before the library's own messages."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
