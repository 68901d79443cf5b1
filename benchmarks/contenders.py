"""
The benchmarks: what each contender does, with the same offsets and the same loop.

Before anything is timed, all contenders of a benchmark must have read the same bytes.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import pyvhdx

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20
PAGE = 4096


class Sizes(NamedTuple):
    """How much to do."""

    mebibytes: int
    reads: int
    opens: int
    rounds: int


FULL = Sizes(mebibytes=256, reads=20_000, opens=100, rounds=7)
QUICK = Sizes(mebibytes=8, reads=500, opens=3, rounds=2)


@dataclass
class Case:
    """A benchmark: functions that do it once and return the seconds it took, and the goals as ratios."""

    what: str
    operations: int
    contenders: dict[str, Callable[[], float]] = field(default_factory=dict)
    goals: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    cleanup: ExitStack = field(default_factory=ExitStack)

    def add(self, name: str, run: Callable[[], object]) -> None:
        """Add a contender that is timed as a whole."""

        def timed() -> float:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

        self.contenders[name] = timed

    def close(self) -> None:
        """Close what the contenders hold open."""
        self.cleanup.close()


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _libvhdi(case: Case, *paths: Path) -> Any:
    """Open a chain with libvhdi, the base first; None where it is not installed."""
    if not _has("pyvhdi"):
        case.notes.append("libvhdi: not installed")
        return None
    import pyvhdi  # noqa: PLC0415 - a peer that may be missing

    parent = None
    for path in reversed(paths):
        file = pyvhdi.file()
        file.open(str(path))
        if parent is not None:
            file.set_parent(parent)
        case.cleanup.callback(file.close)
        parent = file
    return parent


def _dissect(case: Case, path: Path) -> Any:
    if not _has("dissect.hypervisor"):
        case.notes.append("dissect: not installed")
        return None
    from dissect.hypervisor.disk.vhdx import VHDX  # noqa: PLC0415 - a peer that may be missing

    disk = VHDX(path)
    case.cleanup.callback(disk.fh.close)
    return disk


def _image(folder: Path, sizes: Sizes) -> Path:
    """Make an image whose blocks are all present, in the page cache."""
    path = folder / "full.vhdx"
    if not path.exists():
        raw = folder / "full.raw"
        draw = random.Random(1)
        with raw.open("wb") as file:
            for _ in range(sizes.mebibytes):
                file.write(draw.randbytes(MIB))
        pyvhdx.convert(raw, path)
        raw.unlink()
    return path


def _places(image: pyvhdx.VHDXImage, offsets: list[int]) -> list[int]:
    """Return where in the file each offset lies: the bare call gets the look-up for nothing."""
    extents = [(e.offset, e.offset + e.length, e.file_offset or 0) for e in image.extents()]
    return [
        next(at + offset - start for start, end, at in extents if start <= offset < end) for offset in offsets
    ]


def _agree(expected: bytes, found: bytes, who: str) -> None:
    if expected != found:
        raise SystemExit(f"{who} reads other bytes, so its time means nothing")


def _random_loop(pread: Callable[[int, int], bytes], offsets: list[int]) -> Callable[[], None]:
    def run() -> None:
        for offset in offsets:
            pread(PAGE, offset)

    return run


def _seek_and_read(disk: Any) -> Callable[[int, int], bytes]:
    def pread(size: int, offset: int) -> bytes:
        disk.seek(offset)
        data: bytes = disk.read(size)
        return data

    return pread


def _add_random(case: Case, image: pyvhdx.VHDXImage, libvhdi: Any, dissect: Any, offsets: list[int]) -> None:
    sample = offsets[:50]
    expected = b"".join(image.pread(PAGE, offset) for offset in sample)
    readers: dict[str, Callable[[int, int], bytes]] = {"pyvhdx": image.pread}
    if libvhdi is not None:
        readers["libvhdi"] = libvhdi.read_buffer_at_offset
    if dissect is not None:
        readers["dissect"] = _seek_and_read(dissect)
    for name, pread in readers.items():
        _agree(expected, b"".join(pread(PAGE, offset) for offset in sample), name)
        case.add(name, _random_loop(pread, offsets))


def random_reads(folder: Path, sizes: Sizes) -> Case:
    """Read 4 KiB at random places."""
    path = _image(folder, sizes)
    case = Case(
        "4 KiB pread at random places, all blocks present, per read", sizes.reads, goals={"os.pread": 2.5}
    )
    image = case.cleanup.enter_context(pyvhdx.open(path))
    draw = random.Random(2)
    offsets = [draw.randrange(image.size // PAGE) * PAGE for _ in range(sizes.reads)]
    _add_random(case, image, _libvhdi(case, path), _dissect(case, path), offsets)
    fd = os.open(path, os.O_RDONLY)
    case.cleanup.callback(os.close, fd)
    places = _places(image, offsets)

    def bare() -> None:
        for place in places:
            os.pread(fd, PAGE, place)

    _agree(image.pread(PAGE, offsets[0]), os.pread(fd, PAGE, places[0]), "os.pread")
    case.add("os.pread", bare)
    return case


def sequential_reads(folder: Path, sizes: Sizes) -> Case:
    """Read a whole disk through one buffer."""
    path = _image(folder, sizes)
    case = Case("1 MiB readinto from start to end, per MiB", sizes.mebibytes, goals={"os.preadv": 1.3})
    image = case.cleanup.enter_context(pyvhdx.open(path))
    buffer = bytearray(MIB)

    def ours() -> None:
        image.seek(0)
        while image.readinto(buffer):
            pass

    fd = os.open(path, os.O_RDONLY)
    case.cleanup.callback(os.close, fd)
    places = _places(image, list(range(0, image.size, MIB)))

    def bare() -> None:
        for place in places:
            os.preadv(fd, [buffer], place)

    def other(pread: Callable[[int, int], bytes]) -> Callable[[], None]:
        def run() -> None:
            for offset in range(0, image.size, MIB):
                pread(MIB, offset)

        return run

    case.add("pyvhdx", ours)
    case.add("os.preadv", bare)
    libvhdi, dissect = _libvhdi(case, path), _dissect(case, path)
    for name, pread in (
        ("libvhdi", libvhdi and libvhdi.read_buffer_at_offset),
        ("dissect", dissect and _seek_and_read(dissect)),
    ):
        if pread:
            _agree(image.pread(MIB, MIB), pread(MIB, MIB), name)
            case.add(name, other(pread))
    if shutil.which("qemu-img"):
        command = [
            "qemu-img",
            "bench",
            "-f",
            "vhdx",
            "-d",
            "8",
            "-s",
            "1M",
            "-c",
            str(sizes.mebibytes),
            str(path),
        ]
        case.add("qemu-img bench", lambda: subprocess.run(command, check=True, capture_output=True))
        case.notes.append("qemu-img bench: a whole process, eight requests at once")
    else:
        case.notes.append("qemu-img: not installed")
    return case


def chain_reads(folder: Path, sizes: Sizes) -> Case:
    """Read 4 KiB at random places of a child of a child, both empty."""
    base = _image(folder, sizes)
    paths = [base]
    for name in ("middle.vhdx", "top.vhdx"):
        pyvhdx.create(folder / name, parent=paths[0]).close()
        paths.insert(0, folder / name)
    case = Case("4 KiB pread at random places through two empty children, per read", sizes.reads // 4)
    image = case.cleanup.enter_context(pyvhdx.open(paths[0]))
    draw = random.Random(3)
    offsets = [draw.randrange(image.size // PAGE) * PAGE for _ in range(sizes.reads // 4)]
    # libvhdi takes bytes of the file for bitmaps where a child has none, so it may not take part.
    _add_random(case, image, None, _dissect(case, paths[0]), offsets)
    return case


def opens(folder: Path, sizes: Sizes) -> Case:
    """Open an image in this process, ask what it is, and close it."""
    path = folder / "large.vhdx"
    pyvhdx.create(path, 64 << 40, block_size=MIB).close()
    case = Case("open, size and close of the 64 TiB image in one process, per open", sizes.opens)

    def ours() -> None:
        for _ in range(sizes.opens):
            with pyvhdx.open(path) as image:
                image.info()

    case.add("pyvhdx", ours)
    if _has("pyvhdi"):
        import pyvhdi  # noqa: PLC0415 - a peer that may be missing

        def libvhdi() -> None:
            for _ in range(sizes.opens):
                file = pyvhdi.file()
                file.open(str(path))
                file.get_media_size()
                file.close()

        case.add("libvhdi", libvhdi)
    if _has("dissect.hypervisor"):
        from dissect.hypervisor.disk.vhdx import VHDX  # noqa: PLC0415 - a peer that may be missing

        def dissect() -> None:
            for _ in range(sizes.opens):
                disk = VHDX(path)
                assert disk.size
                disk.fh.close()

        case.add("dissect", dissect)
    return case


def _whole_process(case: Case, name: str, command: list[str]) -> None:
    """Time a command, and note the memory that it takes at most."""
    peak = 0

    def run() -> float:
        nonlocal peak
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{name} failed")
        if usage.ru_maxrss > peak:
            peak = usage.ru_maxrss
            case.notes[:] = [note for note in case.notes if not note.startswith(f"{name}:")]
            case.notes.append(f"{name}: {peak / 1024:.0f} MiB at most")
        return time.perf_counter() - start

    case.contenders[name] = run


def _info(path: Path, case: Case) -> Case:
    _whole_process(case, "pyvhdx", [sys.executable, "-m", "pyvhdx", "info", str(path)])
    if shutil.which("qemu-img"):
        _whole_process(case, "qemu-img info", ["qemu-img", "info", str(path)])
    else:
        case.notes.append("qemu-img: not installed")
    _whole_process(case, "python -c pass", [sys.executable, "-c", "pass"])
    return case


def info_of_the_largest(folder: Path, sizes: Sizes) -> Case:  # noqa: ARG001 - the same for all
    """Run the command on the largest legal image."""
    path = folder / "largest.vhdx"
    pyvhdx.create(path, 64 << 40, block_size=MIB).close()
    return _info(
        path,
        Case("info of the 64 TiB image with 1 MiB blocks, a whole process", 1, goals={"qemu-img info": 0.6}),
    )


def info_of_a_small_one(folder: Path, sizes: Sizes) -> Case:  # noqa: ARG001 - the same for all
    """Run the command on a small image."""
    path = folder / "small.vhdx"
    pyvhdx.create(path, 1 << 30).close()
    return _info(path, Case("info of a 1 GiB image, a whole process", 1))
