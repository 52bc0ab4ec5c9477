"""Set up before Cutaway is imported: every signature's types and shapes are checked while the tests run."""

import gc
import importlib.util
import os
import random
import sys
import zlib
from collections.abc import Generator
from pathlib import Path

import pytest

if importlib.util.find_spec("beartype") is not None:
    import jaxtyping

    jaxtyping.install_import_hook("cutaway", "tests.checked")

from cutaway.commands import progress

# No test's output depends on how long a command takes, in this process or in one that it starts.
progress.SILENCE = 1e6
os.environ["CUTAWAY_QUIET"] = "1"

# Tests start hundreds of interpreters, each of which would compile the package anew.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.dont_write_bytecode = False

# No test asks the real hub: inputs come through tests/inputs.py, and the hub's own tests serve one.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Workers share the cores: more threads would only wait for each other.

    It is set before they start: numpy's BLAS reads it as it is imported, before this file.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """Seed every generator from the test's name, so that a run draws the same numbers each time."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def pytest_collection_finish() -> None:
    """Keep what the imports made out of garbage collection, which takes half a second to go through it."""
    gc.collect()
    gc.freeze()


LEFT = 100 << 20  # bytes


def _resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not tell."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Collect what a test leaves, if it is much: a model is few objects, for which Python would wait long."""
    before = _resident()
    try:
        return (yield)
    finally:
        if _resident() - before > LEFT:
            gc.collect()


def pytest_report_header() -> str:
    """Say where the inputs lie, and whether missing ones are fetched."""
    from cutaway import store

    missing = (
        "skips its tests (CUTAWAY_OFFLINE is set)" if os.environ.get("CUTAWAY_OFFLINE") else "is fetched"
    )
    return f"inputs: {store.home()}; what is missing {missing}"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an empty Hugging Face cache, so that the user's are neither read nor written."""
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "home"
