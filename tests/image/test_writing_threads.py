"""Many threads on one image that is written: never another block's byte, and every byte right at the end."""

from __future__ import annotations

import os
import random
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import pyvhdx
from pyvhdx import TrimMode
from tests.corpus.handmade import MIB

CELL = 16
BLOCKS = 48
MODES = (TrimMode.ZERO, TrimMode.FREE_SPACE, TrimMode.FILE_SPACE)


def pattern(start: int, length: int, version: int) -> bytes:
    """Every 16 bytes say which block and version they belong to, and where in the disk they lie."""
    return b"".join(
        struct.pack("<IIQ", 1 + at // MIB, version, at) for at in range(start, start + length, CELL)
    )


def foreign_cell(data: bytes, start: int, parent: bytes) -> str | None:
    """Return what is wrong with a run of cells: each is zeros, the parent's, or its own place's."""
    if data in (bytes(len(data)), parent[start : start + len(data)]):
        return None
    for n, (block, version, at) in enumerate(struct.iter_unpack("<IIQ", data)):
        place = start + n * CELL
        cell = data[n * CELL : (n + 1) * CELL]
        if not any(cell) or cell == parent[place : place + CELL]:
            continue
        if (block, at) != (1 + place // MIB, place):
            return f"{place:#x} shows block {block - 1}, version {version}, {at:#x}"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dynamic", "differencing"])
def test_eight_readers_and_four_writers(kind: str, tmp_path: Path) -> None:
    """Writers have blocks of their own, which they write, trim, zero and flush without end."""
    seconds = float(os.environ.get("PYVHDX_TEST_SECONDS", "4"))
    size = BLOCKS * MIB
    path = tmp_path / "disk.vhdx"
    parent = bytes(size)
    image = pyvhdx.create(path, size, block_size=MIB, sync=False)
    if kind == "differencing":
        parent = b"".join(pattern(n * MIB, MIB, 0) for n in range(BLOCKS))
        image.write(parent)
        image.close()
        image = pyvhdx.create(tmp_path / "child.vhdx", parent=path, sync=False)
    model = bytearray(parent)
    wrong: list[str] = []
    until = time.monotonic() + seconds
    counts = {"read": 0, "write": 0, "reused": 0}

    def read(seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() < until and not wrong:
            length = draw.choice((CELL, 512, 4096, 65536))
            start = draw.randrange(0, size - length, CELL)
            if seed % 2:
                data = image.pread(length, start)
            else:
                buffer = bytearray(length)
                assert image.preadinto(buffer, start) == length
                data = bytes(buffer)
            found = foreign_cell(data, start, parent)
            if found:
                wrong.append(found)
            counts["read"] += 1

    def write(number: int) -> None:
        draw = random.Random(100 + number)
        version = 0
        while time.monotonic() < until and not wrong:
            version += 1
            block = draw.randrange(BLOCKS // 4) * 4 + number
            start = block * MIB
            choice = draw.randrange(8)
            if choice < 4:
                length = draw.choice((512, 4096, 70 * 512, MIB))
                at = start + draw.randrange(0, MIB - length + 1, 512)
                data = pattern(at, length, version)
                image.pwrite(data, at)
                model[at : at + length] = data
            elif choice == 4:
                image.write_zeroes(start, MIB)
                model[start : start + MIB] = bytes(MIB)
            elif choice < 7:
                mode = draw.choice(MODES)
                # One that shows the parent, or nothing, stays so in these modes.
                shows_parent = next(image.extents(start, MIB)).kind == "absent" or (
                    kind == "differencing" and all(extent.depth == 1 for extent in image.extents(start, MIB))
                )
                changed = image.trim(start, MIB, mode)
                if changed or not shows_parent:
                    model[start : start + MIB] = bytes(MIB)
            else:
                image.flush()
            counts["write"] += 1

    def watched(work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - shown at the end
            wrong.append(repr(error))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        threads = [threading.Thread(target=watched, args=(read, n)) for n in range(8)]
        threads += [threading.Thread(target=watched, args=(write, n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    assert image.pread(size, 0) == model
    highest = max((extent.file_offset or 0) for extent in image.extents() if not extent.depth)
    image.close()
    with pyvhdx.open(image.name) as image:
        assert image.read() == model
    # Space came round again: what was written is many times what the file could hold.
    assert counts["write"] > 2 * BLOCKS
    assert highest < 3 * size
    print(f"{kind}: {counts['read']} reads, {counts['write']} changes")


def test_a_write_that_waits_while_the_image_is_closed_is_refused(tmp_path: Path) -> None:
    image = pyvhdx.create(tmp_path / "disk.vhdx", 8 * MIB, block_size=MIB)
    errors: list[BaseException] = []
    lock = image._writer.session.lock  # type: ignore[union-attr]  # it is open for writing

    def write() -> None:
        try:
            image.pwrite(b"late", 0)
        except BaseException as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    with lock:
        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(0.05)
        image.close()
    thread.join()
    assert [type(error) for error in errors] == [ValueError]


def test_what_readers_remember_goes_with_a_trim(tmp_path: Path) -> None:
    """A reader that looked a block up before a trim must not put the old place back for later ones."""
    with pyvhdx.create(tmp_path / "disk.vhdx", 8 * MIB, block_size=MIB) as image:
        image.pwrite(b"a" * MIB, 0)
        blocks = image._file.blocks
        entry = blocks.entry(0)
        image.trim(0, MIB)
        image.flush()
        image.pwrite(b"b" * MIB, MIB)
        assert blocks._remember(0, entry) == entry & -MIB
        assert image.pread(4, 0) == bytes(4)


def test_a_read_that_space_was_taken_from_under_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between look-up and read the block is trimmed, and another one gets its space."""
    with pyvhdx.create(tmp_path / "disk.vhdx", 8 * MIB, block_size=MIB) as image:
        image.pwrite(b"a" * MIB, 0)
        image.flush()
        storage = image._storage
        read = type(storage).read_into
        armed = [True]

        def slowly(self: object, buffer: memoryview, offset: int) -> int:
            if armed.pop() if armed else False:
                image.trim(0, MIB)
                image.flush()
                image.pwrite(b"b" * MIB, MIB)
            return read(self, buffer, offset)  # type: ignore[arg-type]  # the storage it was taken from

        monkeypatch.setattr(type(storage), "read_into", slowly)
        for clear in (False, True):
            if clear:
                image._places.clear()
            buffer = bytearray(1024)
            assert image.preadinto(buffer, 0) == 1024
            assert buffer == bytes(1024)
            image.pwrite(b"a" * MIB, 0)
            image.flush()
            image.trim(MIB, MIB)
            image.flush()
            armed.append(True)
