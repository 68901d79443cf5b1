"""
The benchmarks: what each contender does, with the same offsets and the same shape of loop.

Before anything is timed, every contender has read all that it is going to read, and it was right.
"""

from __future__ import annotations

import os
import random
import sys
from typing import TYPE_CHECKING, NamedTuple

import _images
import _peers
from _images import MIB
from _timing import OURS, Case, Goal, as_installed, peak_memory, whole_process

import pyvhdx

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from _peers import Pread

PAGE = 4096


class Sizes(NamedTuple):
    """How much to do."""

    mebibytes: int
    reads: int
    opens: int
    rounds: int


FULL = Sizes(mebibytes=256, reads=20_000, opens=50, rounds=9)
QUICK = Sizes(mebibytes=16, reads=500, opens=3, rounds=2)


# -- reading ----------------------------------------------------------------------------------


def _places(image: pyvhdx.VHDXImage, offsets: Sequence[int]) -> list[int]:
    """Return where in the file each offset lies: the bare call gets the look-up for nothing."""
    extents = [(e.offset, e.offset + e.length, e.file_offset or 0) for e in image.extents()]
    return [
        next(at + offset - start for start, end, at in extents if start <= offset < end) for offset in offsets
    ]


def _is_right(pread: Pread, size: int, offsets: Sequence[int], raw: Path) -> bool:
    with raw.open("rb", buffering=0) as truth:
        return all(os.pread(truth.fileno(), size, offset) == pread(size, offset) for offset in offsets)


def _must_be_right(who: str, pread: Pread, size: int, offsets: Sequence[int], raw: Path) -> None:
    if not _is_right(pread, size, offsets, raw):
        raise SystemExit(f"{who} returned wrong bytes: no time means anything before that is mended")


def _loop(pread: Pread, size: int, offsets: Sequence[int]) -> Callable[[], None]:
    def run() -> None:
        for offset in offsets:
            pread(size, offset)

    return run


def _add_readers(case: Case, paths: Sequence[Path], size: int, offsets: Sequence[int], raw: Path) -> None:
    for name, opener in _peers.READERS.items():
        if not _peers.has(name):
            case.notes.append(f"{name}: not installed")
            continue
        try:
            pread = opener(paths, case.cleanup)
            right = _is_right(pread, size, offsets, raw)
        except Exception as error:  # noqa: BLE001 - a peer raises what it likes
            case.notes.append(f"{name}: cannot read this image: {error}")
            continue
        if right:
            case.contenders[name] = _loop(pread, size, offsets)
        else:
            case.notes.append(f"{name}: returns wrong bytes, and was not timed")


def _random_offsets(size: int, count: int) -> list[int]:
    draw = random.Random(2)
    return [draw.randrange(size // PAGE) * PAGE for _ in range(count)]


def _open_bare(case: Case, path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    case.cleanup.callback(os.close, fd)
    return fd


def random_reads(folder: Path, sizes: Sizes) -> Case:
    """Read 4 KiB at random places."""
    disk = _images.full(folder, sizes.mebibytes)
    case = Case("4 KiB pread at random places, all blocks present, per read", sizes.reads)
    case.goals = {"os.pread": Goal(2.5), _peers.LIBVHDI: Goal(1.0, later=True)}
    image = case.cleanup.enter_context(pyvhdx.open(disk.path))
    offsets = _random_offsets(image.size, sizes.reads)
    _must_be_right(OURS, image.pread, PAGE, offsets, disk.raw)
    case.contenders[OURS] = _loop(image.pread, PAGE, offsets)
    fd = _open_bare(case, disk.path)
    places = _places(image, offsets)
    where = dict(zip(offsets, places, strict=True))
    _must_be_right(
        "os.pread", lambda size, offset: os.pread(fd, size, where[offset]), PAGE, offsets, disk.raw
    )

    def bare() -> None:
        pread = os.pread
        for place in places:
            pread(fd, PAGE, place)

    case.contenders["os.pread"] = bare
    _add_readers(case, [disk.path], PAGE, offsets, disk.raw)
    return case


def sequential_reads(folder: Path, sizes: Sizes) -> Case:
    """Read a whole disk, we and the bare call into one buffer."""
    disk = _images.full(folder, sizes.mebibytes)
    case = Case("1 MiB readinto from start to end, per MiB", sizes.mebibytes)
    case.goals = {"os.preadv": Goal(1.3)}
    image = case.cleanup.enter_context(pyvhdx.open(disk.path))
    offsets = range(0, image.size, MIB)
    buffer = bytearray(MIB)
    fd = _open_bare(case, disk.path)
    places = _places(image, offsets)

    def our_pread(_: int, offset: int) -> bytes:
        image.seek(offset)
        return bytes(buffer[: image.readinto(buffer)])

    def bare_pread(_: int, offset: int) -> bytes:
        return bytes(buffer[: os.preadv(fd, [buffer], places[offset // MIB])])

    _must_be_right(OURS, our_pread, MIB, offsets, disk.raw)
    _must_be_right("os.preadv", bare_pread, MIB, offsets, disk.raw)

    def ours() -> None:
        image.seek(0)
        readinto = image.readinto
        for _ in places:
            readinto(buffer)

    def bare() -> None:
        preadv = os.preadv
        for place in places:
            preadv(fd, [buffer], place)

    case.contenders |= {OURS: ours, "os.preadv": bare}
    _add_readers(case, [disk.path], MIB, offsets, disk.raw)
    if case.contenders.keys() & _peers.READERS.keys():
        case.notes.append("libvhdi and dissect cannot read into a buffer: they return new bytes")
    if _peers.has(_peers.QEMU):
        options = ["-f", "vhdx", "-d", "8", "-s", "1M", "-c", str(sizes.mebibytes)]
        case.contenders["qemu-img bench"] = whole_process(
            [_peers.QEMU, "bench", *options, str(disk.path)], os.environ
        )
        case.notes.append(
            "qemu-img bench -d 8 -s 1M: a whole process with eight requests at once; shows no bytes"
        )
    else:
        case.notes.append("qemu-img: not installed")
    return case


def chain_reads(folder: Path, sizes: Sizes) -> Case:
    """Read 4 KiB at random places of a child of a child."""
    paths, raw = _images.chain(folder, sizes.mebibytes)
    count = sizes.reads // 4
    case = Case("4 KiB pread at random places through two children, per read", count)
    case.goals = {_peers.LIBVHDI: Goal(0.5, later=True)}
    case.notes.append(
        "each child: a third of its 1 MiB blocks whole, a third in stripes of 64 KiB, a third the parent's"
    )
    image = case.cleanup.enter_context(pyvhdx.open(paths[0]))
    offsets = _random_offsets(image.size, count)
    _must_be_right(OURS, image.pread, PAGE, offsets, raw)
    case.contenders[OURS] = _loop(image.pread, PAGE, offsets)
    _add_readers(case, paths, PAGE, offsets, raw)
    return case


# -- opening ----------------------------------------------------------------------------------


def _opens(path: Path, what: str, sizes: Sizes) -> Case:
    case = Case(f"open, info and close of {what} in one process, per open", sizes.opens)
    case.goals = {_peers.LIBVHDI: Goal(1.0, later=True), _peers.DISSECT: Goal(1.5, later=True)}

    def ours(path: Path) -> object:
        with pyvhdx.open(path) as image:
            return image.info()

    def repeated(info: Callable[[Path], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(sizes.opens):
                info(path)

        return run

    case.contenders[OURS] = repeated(ours)
    for name, info in _peers.INFOS.items():
        if not _peers.has(name):
            case.notes.append(f"{name}: not installed")
            continue
        try:
            info(path)
        except Exception as error:  # noqa: BLE001 - a peer raises what it likes
            case.notes.append(f"{name}: cannot open this image: {error}")
            continue
        case.contenders[name] = repeated(info)
    if _peers.DISSECT in case.contenders:
        case.notes.append("dissect checks no checksums")
    return case


def open_small(folder: Path, sizes: Sizes) -> Case:
    """Open an ordinary image in this process."""
    return _opens(_images.small(folder), "a 1 GiB image", sizes)


def open_large(folder: Path, sizes: Sizes) -> Case:
    """Open the largest legal image in this process."""
    return _opens(_images.largest(folder), "the 64 TiB image with 1 MiB blocks", sizes)


# -- the command ------------------------------------------------------------------------------


def _info(case: Case, path: Path) -> Case:
    commands = {OURS: [sys.executable, "-m", "pyvhdx", "info", str(path)]}
    if _peers.has(_peers.QEMU):
        commands["qemu-img info"] = [_peers.QEMU, "info", str(path)]
    else:
        case.notes.append("qemu-img: not installed")
    # The floor of any command in Python.
    commands["python -c pass"] = [sys.executable, "-c", "pass"]
    environment = as_installed(path.parent)
    for name, command in commands.items():
        case.contenders[name] = run = whole_process(command, environment)
        run()  # compiles what was not compiled, which takes memory too
        peak = peak_memory(command, environment)
        if peak is not None:
            case.peaks[name] = peak
    return case


def info_small(folder: Path, sizes: Sizes) -> Case:  # noqa: ARG001 - the same for all
    """Run the command on an ordinary image."""
    return _info(Case("info of a 1 GiB image, a whole process"), _images.small(folder))


def info_large(folder: Path, sizes: Sizes) -> Case:  # noqa: ARG001 - the same for all
    """Run the command on the largest legal image, where loading the whole table would show."""
    case = Case("info of the 64 TiB image with 1 MiB blocks, a whole process", peak_goal=40 * MIB)
    case.goals = {"qemu-img info": Goal(0.6)}
    return _info(case, _images.largest(folder))
