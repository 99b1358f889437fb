"""Settings of all tests: strict JAX, eight devices, bounded memory, quick compilation.

Arrays of different rank do not broadcast. Compiled programs are stored in `.cache/jax`, so
that a second run, the other test process, and the commands that tests start can load them.
Compiling takes most of the time of the tests, whose programs are small and run once or
twice. So XLA generates code for them without optimising it; `XLA_FLAGS= make test` tests
the code that it generates for users.
"""

import ctypes
import gc
import importlib.metadata
import os
import pathlib
import platform
import resource
import sys

# environment variables, since tests start processes of their own
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# XLA logs an error for each cached program whose compiler options are no CPU features
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# threads of OpenMP wait in a busy loop: where all cores are busy, a map of embeddings by
# t-SNE takes 27 s of processor time instead of 1.2
os.environ.setdefault("OMP_NUM_THREADS", "1")
# half the time of compilation; later releases of jaxlib do not know all of these flags
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
        "--xla_cpu_use_fusion_emitters=false",
    )

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks examples in documents as slow, and all that is not slow as quick."""
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.quick)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Runs use two of the devices unless they ask for more: that compiles faster."""
    devices = sys.modules.get("experiments.engine.devices")
    if devices is not None:
        devices.usual_devices = lambda: 2


# Memory --------------------------------------------------------------------------------

PEAKS = pytest.StashKey[dict[str, float]]()
AFTER_RELEASE = pytest.StashKey[float]()
ROOM = 0.5  # GB that compiled programs may take before they are released


def resident_memory() -> float:
    """Resident memory of this process in GB, or 0 where the system has no /proc."""
    file = pathlib.Path("/proc/self/statm")
    pages = int(file.read_text().split()[1]) if file.exists() else 0
    return pages * resource.getpagesize() / 1e9


def peak_memory() -> float:
    """Largest resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def release_programs(config):
    """Forgets all compiled programs, and gives their memory back to the system."""
    jax.clear_caches()
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    config.stash[AFTER_RELEASE] = resident_memory()


@pytest.fixture(scope="module", autouse=True)
def _release_after_each_file(pytestconfig):
    yield
    release_programs(pytestconfig)


@pytest.fixture(autouse=True)
def _release_when_memory_grows(pytestconfig):
    yield
    if resident_memory() > pytestconfig.stash.get(AFTER_RELEASE, 0.0) + ROOM:
        release_programs(pytestconfig)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak_memory"] = peak_memory()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    peaks = node.config.stash.setdefault(PEAKS, {})
    peaks[node.gateway.id] = getattr(node, "workeroutput", {}).get("peak_memory", 0.0)


def pytest_terminal_summary(terminalreporter, config):
    peaks = config.stash.get(PEAKS, {"this process": peak_memory()})
    words = ", ".join(f"{peak:.1f} GB in {name}" for name, peak in sorted(peaks.items()))
    terminalreporter.write_line(f"peak memory: {words}")
