"""Images to read, in the page cache because they were just written, and what they must read as."""

from __future__ import annotations

import random
import struct
from typing import IO, TYPE_CHECKING, NamedTuple

import pyvhdx

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
_SECTOR = 512
_BAT_AT = 3 * MIB  # where create puts it
_CHUNK_RATIO = (1 << 23) * _SECTOR // MIB
_BITS = MIB // _SECTOR // 8  # bytes of a block's bitmap
_PRESENT, _PARTIAL = 6, 7

# Runs of 64 KiB (16 bytes of bits), every other one stored.
_STRIPES = (b"\xff" * 16 + bytes(16)) * (_BITS // 32)


class Disk(NamedTuple):
    """An image and a raw file of what it must read as, which no VHDX reader had a hand in."""

    path: Path
    raw: Path


def full(folder: Path, mebibytes: int) -> Disk:
    """Make a dynamic image whose blocks are all present; made once for all that read it."""
    disk = Disk(folder / "full.vhdx", folder / "full.raw")
    if not disk.path.exists():
        draw = random.Random(1)
        with disk.raw.open("wb") as file:
            for _ in range(mebibytes):
                file.write(draw.randbytes(MIB))
        pyvhdx.convert(disk.raw, disk.path)
    return disk


def chain(folder: Path, mebibytes: int) -> tuple[list[Path], Path]:
    """Make a base and two children; return the files, the youngest first, and what that reads as."""
    base = full(folder, mebibytes)
    content = bytearray(base.raw.read_bytes())
    paths = [base.path]
    draw = random.Random(3)
    for name in ("middle.vhdx", "top.vhdx"):
        child = folder / name
        pyvhdx.create(child, parent=paths[0], block_size=MIB, exist_ok=True).close()
        _fill_child(child, content, draw)
        paths.insert(0, child)
    raw = folder / "top.raw"
    raw.write_bytes(content)
    return paths, raw


def _fill_child(path: Path, content: bytearray, draw: random.Random) -> None:
    """Store a third of the blocks whole and a third in stripes, and leave the rest to the parent."""
    blocks = len(content) // MIB
    assert blocks <= _CHUNK_RATIO, "one sector bitmap block is all that is laid out here"
    with path.open("r+b") as file:
        bitmap_at = file.seek(0, 2)
        end = bitmap_at + MIB
        file.truncate(end)
        _put_entry(file, _CHUNK_RATIO, bitmap_at | _PRESENT)
        for block in range(blocks):
            state = draw.choice((0, _PRESENT, _PARTIAL))
            if not state:
                continue
            payload = draw.randbytes(MIB)
            file.seek(end)
            file.write(payload)
            _put_entry(file, block, end | state)
            if state == _PARTIAL:
                file.seek(bitmap_at + block * _BITS)
                file.write(_STRIPES)
            _lay_over(content, block * MIB, payload, stripes=state == _PARTIAL)
            end += MIB


def _put_entry(file: IO[bytes], index: int, entry: int) -> None:
    file.seek(_BAT_AT + 8 * index)
    file.write(struct.pack("<Q", entry))


def _lay_over(content: bytearray, start: int, payload: bytes, *, stripes: bool) -> None:
    step = 16 * 8 * _SECTOR
    for at in range(0, len(payload), 2 * step if stripes else step):
        content[start + at : start + at + step] = payload[at : at + step]


def largest(folder: Path) -> Path:
    """Make the image with the longest block allocation table that is legal: 512 MiB of it."""
    return _empty(folder / "largest.vhdx", 64 << 40)


def small(folder: Path) -> Path:
    """Make an ordinary empty image."""
    return _empty(folder / "small.vhdx", 1 << 30)


def _empty(path: Path, size: int) -> Path:
    if not path.exists():
        pyvhdx.create(path, size, block_size=MIB).close()
    return path
