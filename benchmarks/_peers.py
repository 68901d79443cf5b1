"""Other implementations: each may be missing, or fail on an image, and then that is said."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    Pread = Callable[[int, int], bytes]

LIBVHDI, DISSECT, QEMU = "libvhdi", "dissect", "qemu-img"
_MODULES = {LIBVHDI: "pyvhdi", DISSECT: "dissect.hypervisor"}
_PACKAGES = {LIBVHDI: "libvhdi-python", DISSECT: "dissect.hypervisor"}


def has(peer: str) -> bool:
    """Return whether a peer is installed."""
    if peer == QEMU:
        return shutil.which(QEMU) is not None
    try:
        return importlib.util.find_spec(_MODULES[peer]) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def version(peer: str) -> str:
    """Return the version of a peer, or that it is not installed."""
    if not has(peer):
        return "not installed"
    if peer == QEMU:
        line = subprocess.run([QEMU, "--version"], check=True, capture_output=True, text=True).stdout
        return line.split("version", 1)[-1].split()[0]
    try:
        return importlib.metadata.version(_PACKAGES[peer])
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def open_libvhdi(paths: Sequence[Path], cleanup: ExitStack) -> Pread:
    """Open a chain, the youngest first; libvhdi looks for no parents itself."""
    import pyvhdi  # noqa: PLC0415 - may be missing

    files: list[Any] = []
    for path in reversed(paths):
        file = pyvhdi.file()
        file.open(str(path))
        cleanup.callback(file.close)
        if files:
            file.set_parent(files[-1])
        files.append(file)
    pread: Pread = files[-1].read_buffer_at_offset
    return pread


def open_dissect(paths: Sequence[Path], cleanup: ExitStack) -> Pread:
    """Open the youngest of a chain; dissect follows its locator."""
    from dissect.hypervisor.disk.vhdx import VHDX  # noqa: PLC0415 - may be missing

    disk: Any = VHDX(paths[0])
    cleanup.callback(_close_dissect, disk)
    seek, read = disk.seek, disk.read

    def pread(size: int, offset: int) -> bytes:
        seek(offset)
        data: bytes = read(size)
        return data

    return pread


def _close_dissect(disk: Any) -> None:
    while disk is not None:
        disk.fh.close()
        disk = disk.parent


READERS: dict[str, Callable[[Sequence[Path], ExitStack], Pread]] = {
    LIBVHDI: open_libvhdi,
    DISSECT: open_dissect,
}


def info_of_libvhdi(path: Path) -> object:
    """Open, ask what there is to know, and close."""
    import pyvhdi  # noqa: PLC0415 - may be missing

    file = pyvhdi.file()
    file.open(str(path))
    try:
        return (
            file.get_media_size(),
            file.get_disk_type(),
            file.get_identifier(),
            file.get_parent_identifier(),
        )
    finally:
        file.close()


def info_of_dissect(path: Path) -> object:
    """Open, ask what there is to know, and close; dissect checks no checksum."""
    from dissect.hypervisor.disk.vhdx import VHDX  # noqa: PLC0415 - may be missing

    disk: Any = VHDX(path)
    try:
        return disk.size, disk.block_size, disk.sector_size, disk.id, disk.has_parent
    finally:
        _close_dissect(disk)


INFOS: dict[str, Callable[[Path], object]] = {LIBVHDI: info_of_libvhdi, DISSECT: info_of_dissect}
