"""What all tests share: profiles, the real images, and the peers that judge us."""

from __future__ import annotations

import importlib.util
import json
import lzma
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.fuzz import oracle

if TYPE_CHECKING:
    from collections.abc import Iterator

# Who starts the suite in the background of a script lets it ignore Ctrl-C, and all the commands that it tests.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Fuzzing holds to what is promised; the suite runs beside other work, on slow machines too, and is to find what
# takes for ever.
oracle.SECONDS *= 6

# In CI a missing peer or image is a failure; elsewhere it is a visible skip.
STRICT = os.environ.get("PYVHDX_TEST_STRICT") == "1"

_COMMON: dict[str, Any] = {
    "deadline": None,  # a test asserts no time
    "derandomize": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("short", max_examples=20, **_COMMON)
settings.register_profile("default", max_examples=100, **_COMMON)
settings.register_profile("long", max_examples=2000, **_COMMON)
settings.load_profile(os.environ.get("PYVHDX_TEST_PROFILE", "default"))

_PEERS = {"libvhdi": "pyvhdi", "dissect": "dissect.hypervisor"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The short profile leaves out what takes more than a few seconds."""
    if os.environ.get("PYVHDX_TEST_PROFILE") == "short":
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def _missing(what: str) -> None:
    if STRICT:
        pytest.fail(f"{what} is missing, and this run must not skip it")
    pytest.skip(f"{what} is missing")


def need(peer: str) -> None:
    """Skip the test, or fail it in CI, where a peer is missing: a command, ``libvhdi`` or ``dissect``."""
    module = _PEERS.get(peer)
    try:
        found = importlib.util.find_spec(module) is not None if module else shutil.which(peer) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        _missing(peer)


@pytest.fixture(autouse=True)
def _peers_are_there(request: pytest.FixtureRequest) -> None:
    """``@pytest.mark.peer("qemu-img", "libvhdi")`` names what a test needs."""
    for marker in request.node.iter_markers("peer"):
        for peer in marker.args:
            need(peer)


@pytest.fixture(scope="session")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The real images, unpacked: file name -> (path, what the manifest says of it)."""
    folder = os.environ.get("PYVHDX_TEST_IMAGES")
    if not folder or not Path(folder, "manifest.json").is_file():
        _missing("the folder of real images (PYVHDX_TEST_IMAGES)")
        return {}
    unpacked = tmp_path_factory.mktemp("images")
    images = {}
    for name, said in json.loads(Path(folder, "manifest.json").read_text()).items():
        path = unpacked / name
        with lzma.open(Path(folder, name + ".xz")) as packed, path.open("wb") as file:
            while piece := packed.read(1 << 20):
                if piece.count(0) == len(piece):
                    file.seek(len(piece), os.SEEK_CUR)
                else:
                    file.write(piece)
            file.truncate()
        images[name] = (path, said)
    return images


@pytest.fixture
def no_fast_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and write as on Windows: by seek, under a lock."""
    from pyvhdx.storage import local  # noqa: PLC0415

    monkeypatch.setattr(local, "HAVE_PREAD", False)
    monkeypatch.setattr(local, "HAVE_PREADV", False)


@pytest.fixture
def descriptors() -> Iterator[None]:
    """The test leaves as many open descriptors as it found."""
    if sys.platform != "linux":
        yield
        return
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert len(set(os.listdir("/proc/self/fd"))) <= len(before)
