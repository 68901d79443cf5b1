"""
Small images with everything in them, taken apart: where each structure lies, which fields it has, and
which checksum covers it.

For tests that spoil one thing and put the checksums right again.  The images are laid out by
`handmade`, with plain `struct`; the fields below are those of the specification's tables.
"""

from __future__ import annotations

import functools
import os
import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pyvhdx.testing import MemoryStorage
from tests.corpus.handmade import (
    BAT_AT,
    FULL,
    METADATA_AT,
    MIB,
    PARTIAL,
    UNDEFINED,
    UNMAPPED,
    ZERO,
    Block,
    Image,
    guid,
    locator_item,
    sealed,
)
from tests.corpus.handmade_logs import GUID, Entry, follow, page, ring

HEADERS, TABLES = (0x10000, 0x20000), (0x30000, 0x40000)
_GUID = (8, 8)
_HEADER = (4, 4, 8, *_GUID, *_GUID, *_GUID, 2, 2, 4, 8, 4)
_REGION = (*_GUID, 8, 4, 4)
_LOG_ENTRY = (4, 4, 4, 4, 8, 4, 4, *_GUID, 8, 8)
_DESCRIPTOR = (4, 4, 8, 8, 8)
_ITEM = (*_GUID, 4, 4, 4, 4)


class Field(NamedTuple):
    """*width* bytes at *offset* of the file."""

    part: str
    offset: int
    width: int


@dataclass
class Specimen:
    """An image, what its parent is if it has one, and its parts; *seals* are (offset, length)."""

    name: str
    storage: MemoryStorage
    image: Image
    parent: MemoryStorage | None
    seals: list[tuple[int, int]] = field(default_factory=list)
    fields: list[Field] = field(default_factory=list)
    parts: list[tuple[str, int, int]] = field(default_factory=list)

    def add(self, part: str, offset: int, widths: tuple[int, ...]) -> None:
        """Enter a part by the widths of its fields."""
        self.parts.append((part, offset, sum(widths)))
        for width in widths:
            self.fields.append(Field(part, offset, width))
            offset += width

    def seal(self, storage: MemoryStorage) -> None:
        """Put all checksums right, whatever they cover."""
        for offset, length in self.seals:
            if offset + length <= storage.size():
                data = storage.read_at(length, offset)
                storage.write_at(sealed(data)[4:8], offset + 4)


class _AsFile:
    """As much of a file object as `Image.write_to` needs."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self._at = 0

    def seek(self, offset: int) -> None:
        self._at = offset

    def write(self, data: bytes) -> None:
        self._storage.write_at(data, self._at)
        self._at += len(data)

    def truncate(self, size: int) -> None:
        self._storage.truncate(size)


def stored(image: Image) -> MemoryStorage:
    """Return an image in memory that takes no more room than its bytes."""
    storage = MemoryStorage()
    image.write_to(_AsFile(storage))  # type: ignore[arg-type]  # the three methods that it calls
    return storage


def _specimen(name: str, image: Image, parent: MemoryStorage | None = None) -> Specimen:
    made = Specimen(name, stored(image), image, parent)
    made.add("identifier", 0, (8, 2, 2))
    for at in HEADERS:
        made.add("header", at, _HEADER)
        made.seals.append((at, 4096))
    for at in TABLES:
        made.add("region table", at, (4, 4, 4, 4, *_REGION * (3 + len(image.regions))))
        made.seals.append((at, 65536))
    if image.log:
        _add_log(made, image.log)
    count = 1 + struct.unpack_from("<H", image.metadata(), 10)[0]
    made.add("metadata table", METADATA_AT, (8, 2, 2, 4, 8, 8, *_ITEM * count))
    made.add("items", METADATA_AT + 65536, (4, 4, 8, 4, 4, 8, 8))
    if image.kind == "differencing":
        at = METADATA_AT + 65536 + 40
        pairs = struct.unpack_from("<H", image.locator_item(), 18)[0]
        made.add("locator", at, (8, 8, 2, 2, *(4, 4, 2, 2) * pairs))
        made.add("strings", at + 20 + 12 * pairs, (2,) * 24)
    made.add("BAT", BAT_AT, (8,) * (image.block_count + 2))
    made.add("bitmap entries", BAT_AT + 8 * image.bitmap_index(0), (8, 8))
    if -1 in image.places:
        made.add("bitmap", image.places[-1], (1, 1, 8, 8))
    return made


def _add_log(made: Specimen, log: bytes) -> None:
    for at in range(0, len(log), 4096):
        if log.startswith(b"loge", at):
            length, count = (struct.unpack_from("<I", log, at + skip)[0] for skip in (8, 24))
            made.add("log entry", MIB + at, (*_LOG_ENTRY, *_DESCRIPTOR * (count + 1)))
            made.seals.append((MIB + at, length))
        elif log.startswith(b"data", at):
            made.add("data sector", MIB + at, (4, 4, 8))
            made.add("end of data sector", MIB + at + 4092, (4,))


def _log_of_child() -> bytes:
    """Zeroes a page of the BAT, brings it back, and writes the pages of a bitmap and of the metadata."""
    return ring(
        MIB,
        follow(
            [
                Entry(5, 0, [(BAT_AT + 8192, page(1)), (BAT_AT + 12288, 8192)]),
                Entry(6, 0, [(BAT_AT + 4096, 4096), (BAT_AT + 8192, bytes(4096))], last=12 * MIB),
                Entry(7, 0, []),
            ]
        ),
    )


@functools.cache
def specimens() -> tuple[Specimen, ...]:
    """Return one image of each kind; they are shared, and copied by whoever changes one."""
    blocks = {
        0: Block(FULL),
        1: Block(ZERO),
        2: Block(UNMAPPED, junk=9 * MIB),
        3: Block(FULL),
        5: Block(UNDEFINED),
    }
    dynamic = Image(
        8 * MIB - 512,
        blocks=blocks,
        items=((guid(9), 1, b"user"), (guid(10), 1, b"")),
        regions=((guid(11), 10 * MIB, MIB, 0),),
    )
    dynamic.patches = [(11 * MIB - 1, b"\0")]
    fixed = Image(4 * MIB, kind="fixed", blocks={n: Block(FULL) for n in range(4)}, tag=2)
    large = Image(40 * MIB, block_size=32 * MIB, sector=4096, blocks={1: Block(FULL)}, tag=3)
    base = Image(6 * MIB, blocks={0: Block(FULL), 1: Block(FULL), 4: Block(FULL)}, tag=4)
    child_blocks = {
        0: Block(FULL),
        1: Block(PARTIAL, frozenset(range(0, 2048, 3))),
        2: Block(ZERO),
        3: Block(UNMAPPED),
        5: Block(PARTIAL, frozenset({0, 1, 2047})),
    }
    linkage = f"{{{base.data_write_guid}}}"
    child = Image(
        7 * MIB,
        kind="differencing",
        parent=base,
        tag=5,
        blocks=child_blocks,
        locator={
            "parent_linkage": linkage,
            "relative_path": "..\\base\\base.vhdx",
            "absolute_win32_path": "\\\\?\\C:\\base.vhdx",
            "parent_linkage2": "{00000000-0000-0000-0000-000000000000}",
        },
    )
    logged = Image(
        7 * MIB,
        kind="differencing",
        parent=base,
        tag=6,
        blocks=child_blocks,
        log=_log_of_child(),
        log_guid=GUID,
        items=((guid(9), 3, b"user"),),
    )
    under = stored(base)
    return (
        _specimen("dynamic", dynamic),
        _specimen("fixed", fixed),
        _specimen("large blocks", large),
        _specimen("child", child, under),
        _specimen("child with a log", logged, under),
    )


def edges(old: int, width: int, size: int) -> list[int]:
    """Return the values at which arithmetic on a field of *width* bytes goes wrong, for a file of *size* bytes."""
    bits = 8 * width
    values = {0, 1, 2, 3, 4, 5, 6, 7, old - 1, old + 1, old ^ 1, old << 1, old >> 1, ~old}
    for power in (9, 12, 16, 20, 21, 28, 31, 32, 40, 44, 46, 47, 48, 62, 63, 64):
        values |= {1 << power, (1 << power) - 1, (1 << power) + 1, (1 << power) - MIB, (1 << power) + MIB}
        values |= {(1 << power) | state for state in (1, 6, 7)}
    values |= {size, size - 1, size + 1, size - MIB, size + MIB, (size - MIB) | 6, size | 6, size - 4096}
    values |= {at * MIB | state for at in (1, 2, 3, 4, 5, 9) for state in (0, 1, 3, 6, 7)}
    values |= {(1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1, 0x5555555555555555}
    return sorted({value & ((1 << bits) - 1) for value in values} - {old})


def read_field(storage: MemoryStorage, where: Field) -> int:
    """Return the little-endian number that a field holds."""
    return int.from_bytes(storage.read_at(where.width, where.offset), "little")


def with_field(specimen: Specimen, where: Field, value: int, *, seal: bool = True) -> MemoryStorage:
    """Return a copy with one field changed, and the checksums right unless a checksum is the field."""
    storage = specimen.storage.copy()
    storage.write_at(value.to_bytes(where.width, "little"), where.offset)
    if seal and not any(where.offset == at + 4 for at, _ in specimen.seals):
        specimen.seal(storage)
    return storage


def same(one: MemoryStorage, other: MemoryStorage) -> bool:
    """Return whether a storage and a copy of it still hold the same bytes, by their pages: this is asked often."""
    return one.size() == other.size() and one._pages == other._pages


def write_out(storage: MemoryStorage, path: str | os.PathLike[str]) -> None:
    """Write a storage to a file, with its holes."""
    with open(path, "wb") as file:
        at = 0
        while (run := storage.next_data(at)) is not None:
            file.seek(run[0])
            file.write(storage.read_at(run[1] - run[0], run[0]))
            at = run[1]
        file.truncate(storage.size())


__all__: list[Any] = [
    "Field",
    "Specimen",
    "edges",
    "locator_item",
    "read_field",
    "same",
    "specimens",
    "stored",
    "with_field",
    "write_out",
]
