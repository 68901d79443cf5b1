"""
VHDX files laid out by hand, and what they must read as.

Plain `struct` and the CRC, nothing of the package: what is built here judges what the package reads.
An `Image` is described, written with `write`, and is its own model: `expected` gives the bytes of a
range, `decides` who decides a sector.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from uuid import UUID

from crc32c import crc32c

MIB = 1 << 20
NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, FULL, PARTIAL = 0, 1, 2, 3, 6, 7

BAT = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
FILE_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
DISK_ID = UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL = UUID("cda348c7-445d-4471-9cc9-e9885251c556")
LOCATOR = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
LOCATOR_TYPE = UUID("b04aefb7-d19e-4a81-b789-25b8e9445913")

NO_GUID = UUID(int=0)

LOG_AT, METADATA_AT, BAT_AT = 1 * MIB, 2 * MIB, 3 * MIB

# Of each 64 KiB the first 4 KiB and the last 512 bytes carry a mark; the rest of a block are zeros,
# so that blocks of 256 MiB cost little.
_GRAIN, _HEAD, _FOOT = 65536, 4096, 512


def sealed(data: bytes) -> bytes:
    """Put the CRC-32C in at offset 4."""
    data = data[:4] + bytes(4) + data[8:]
    return data[:4] + struct.pack("<I", crc32c(data)) + data[8:]


def guid(number: int) -> UUID:
    """Return a GUID that is easy to tell apart."""
    return UUID(int=(0x10000000_0000_4000_8000_000000000000 + number))


def content(tag: int, offset: int, length: int) -> bytearray:
    """Return what the file *tag* stores for a virtual range: a mark with tag and place every 16 bytes."""
    out = bytearray(length)
    for grain in range(offset // _GRAIN, (offset + length - 1) // _GRAIN + 1):
        for start, size in ((grain * _GRAIN, _HEAD), (grain * _GRAIN + _GRAIN - _FOOT, _FOOT)):
            first, last = max(start, offset), min(start + size, offset + length)
            if first < last:
                marks = b"".join(
                    struct.pack("<IIQ", 0xA5000000 | tag, tag, at) for at in range(first & ~15, last, 16)
                )
                out[first - offset : last - offset] = marks[first & 15 :][: last - first]
    return out


@dataclass
class Block:
    """A payload block; *bits* are the sectors (numbers in the block) that a PARTIAL one stores."""

    state: int
    bits: frozenset[int] = frozenset()
    junk: int = 0  # an offset, in bytes, that the entry carries though its state has none


@dataclass
class Image:
    """A file to be, and the model of its content."""

    size: int
    block_size: int = MIB
    sector: int = 512
    kind: str = "dynamic"
    blocks: dict[int, Block] = field(default_factory=dict)
    parent: Image | None = None
    tag: int = 1
    physical: int = 4096
    stale_bits: bool = False  # bits of blocks that are not PARTIAL are ones
    shuffle: int | None = None  # the seed of the physical order of the blocks
    log_length: int = MIB
    log: bytes = b""
    headers: tuple[dict[str, int], ...] = ({}, {})
    log_guid: UUID = NO_GUID
    regions: tuple[tuple[UUID, int, int, int], ...] = ()
    items: tuple[tuple[UUID, int, bytes], ...] = ()
    without: tuple[UUID, ...] = ()
    replace: dict[UUID, bytes] = field(default_factory=dict)
    flags: int | None = None
    locator: dict[str, str] | None = None
    bat: dict[int, int] = field(default_factory=dict)  # raw entries by index, over all that was laid out
    patches: list[tuple[int, bytes]] = field(default_factory=list)
    relative_path: str = ".\\parent.vhdx"

    # -- arithmetic of the specification's 2.4 and 2.5 -----------------------------------------

    @property
    def ratio(self) -> int:
        return (1 << 23) * self.sector // self.block_size

    @property
    def block_count(self) -> int:
        return (self.size + self.block_size - 1) // self.block_size

    @property
    def chunks(self) -> int:
        return (self.block_count + self.ratio - 1) // self.ratio

    @property
    def bat_length(self) -> int:
        return (self.chunks * (self.ratio + 1) * 8 + MIB - 1) // MIB * MIB

    def payload_index(self, block: int) -> int:
        return block + block // self.ratio

    def bitmap_index(self, chunk: int) -> int:
        return chunk * (self.ratio + 1) + self.ratio

    @property
    def data_write_guid(self) -> UUID:
        return guid(self.tag)

    # -- writing ------------------------------------------------------------------------------

    def write(self, path: Path) -> Image:
        """Write the file, sparse; return the image, which now knows where its blocks lie."""
        self.path = path
        with path.open("wb") as file:
            self.write_to(file)
        return self

    def write_to(self, file: IO[bytes]) -> None:
        """Write the file to an empty seekable file object."""
        present = [(b, self.block_size) for b, block in self.blocks.items() if block.state in (FULL, PARTIAL)]
        chunks = sorted({b // self.ratio for b in self.blocks}) if self.kind == "differencing" else []
        places = present + [(-1 - c, MIB) for c in chunks]
        if self.shuffle is not None:
            random.Random(self.shuffle).shuffle(places)
        self.places: dict[int, int] = {}
        end = BAT_AT + self.bat_length
        for number, (name, size) in enumerate(places):
            end += MIB * (number % 3) if self.shuffle is not None else 0
            self.places[name] = end
            end += size
        self._write_structures(file)
        for block, at in self.places.items():
            if block >= 0:
                start = block * self.block_size
                self._write_payload(file, at, start, min(self.block_size, self.size - start))
            else:
                file.seek(at)
                file.write(self._bitmap(-1 - block))
        for index, entry in self._entries().items():
            file.seek(BAT_AT + 8 * index)
            file.write(struct.pack("<Q", entry))
        file.truncate(end)
        for at, data in self.patches:
            file.seek(at)
            file.write(data)

    def _write_payload(self, file: IO[bytes], at: int, start: int, length: int) -> None:
        for grain in range(0, length, _GRAIN):
            for skip, size in ((0, _HEAD), (_GRAIN - _FOOT, _FOOT)):
                size = min(size, length - grain - skip)  # noqa: PLW2901 - cut by the end of the disk
                if size > 0:
                    file.seek(at + grain + skip)
                    file.write(content(self.tag, start + grain + skip, size))

    def _entries(self) -> dict[int, int]:
        entries = {}
        for number, block in self.blocks.items():
            place = self.places.get(number, block.junk)
            entries[self.payload_index(number)] = place | block.state
        for name, place in self.places.items():
            if name < 0:
                entries[self.bitmap_index(-1 - name)] = place | 6
        return entries | self.bat

    def _bitmap(self, chunk: int) -> bytes:
        per_block = self.block_size // self.sector
        bits = bytearray(MIB)
        for number in range(chunk * self.ratio, min((chunk + 1) * self.ratio, self.block_count)):
            block = self.blocks.get(number, Block(NOT_PRESENT))
            first = (number - chunk * self.ratio) * per_block
            if block.state == PARTIAL:
                for bit in block.bits:
                    bits[(first + bit) >> 3] |= 1 << ((first + bit) & 7)
            elif self.stale_bits:
                bits[first >> 3 : (first + per_block) >> 3] = b"\xff" * (per_block >> 3)
        return bytes(bits)

    def _write_structures(self, file: IO[bytes]) -> None:
        put = file.write
        seek = file.seek
        put(b"vhdxfile" + "by hand".encode("utf-16-le"))
        for number, changes in enumerate(self.headers):
            seek(65536 * (number + 1))
            put(self.header(number, **changes))
        table = self.region_table()
        for at in (0x30000, 0x40000):
            seek(at)
            put(table)
        seek(LOG_AT)
        put(self.log)
        seek(METADATA_AT)
        put(self.metadata())

    def header(self, number: int, **changes: int) -> bytes:
        """Return header *number*; *changes* override its fields, ``crc=0`` spoils it."""
        values = {
            "sequence": 100 + number,
            "file_guid": guid(1000 + self.tag).int,
            "data_guid": self.data_write_guid.int,
            "log_guid": self.log_guid.int,
            "log_version": 0,
            "version": 1,
            "log_length": self.log_length,
            "log_offset": LOG_AT,
            "crc": 1,
        } | changes
        guids = b"".join(UUID(int=values[name]).bytes_le for name in ("file_guid", "data_guid", "log_guid"))
        data = b"head" + bytes(4) + struct.pack("<Q", values["sequence"]) + guids
        data += struct.pack(
            "<HHIQ", *(values[n] for n in ("log_version", "version", "log_length", "log_offset"))
        )
        data = sealed(data.ljust(4096, b"\0"))
        return data if values["crc"] else data[:4] + b"????" + data[8:]

    def region_table(self) -> bytes:
        entries = [(BAT, BAT_AT, self.bat_length, 1), (METADATA, METADATA_AT, MIB, 1), *self.regions]
        entries = [e for e in entries if e[0] not in self.without]
        body = b"".join(
            g.bytes_le + struct.pack("<QII", at, length, required) for g, at, length, required in entries
        )
        return sealed((b"regi" + bytes(4) + struct.pack("<II", len(entries), 0) + body).ljust(65536, b"\0"))

    def metadata(self) -> bytes:
        flags = {"fixed": 1, "dynamic": 0, "differencing": 2}[self.kind] if self.flags is None else self.flags
        items = [
            (FILE_PARAMETERS, 4, struct.pack("<II", self.block_size, flags)),
            (DISK_SIZE, 6, struct.pack("<Q", self.size)),
            (LOGICAL, 6, struct.pack("<I", self.sector)),
            (PHYSICAL, 6, struct.pack("<I", self.physical)),
            (DISK_ID, 6, guid(77).bytes_le),
        ]
        if self.kind == "differencing":
            items.append((LOCATOR, 4, self.locator_item()))
        items = [(i, f, self.replace.get(i, d)) for i, f, d in items if i not in self.without]
        return metadata_region([*items, *self.items])

    def locator_item(self) -> bytes:
        pairs = self.locator
        if pairs is None:
            linkage = self.parent.data_write_guid if self.parent else guid(0)
            pairs = {"parent_linkage": f"{{{linkage}}}", "relative_path": self.relative_path}
        return locator_item(pairs)

    # -- the model ----------------------------------------------------------------------------

    def decides(self, sector: int) -> tuple[str, int]:
        """Return kind and depth of the file that decides a sector of this image."""
        image: Image = self
        depth = 0
        while True:
            at = sector * self.sector
            if at >= image.size:
                return "absent", self.depth
            number, within = divmod(at, image.block_size)
            block = image.blocks.get(number, Block(NOT_PRESENT))
            if block.state == FULL or (block.state == PARTIAL and within // image.sector in block.bits):
                return "data", depth
            if block.state in (UNDEFINED, ZERO, UNMAPPED):
                return "zero", depth
            if image.parent is None:
                return "absent", self.depth
            image, depth = image.parent, depth + 1

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else 1 + self.parent.depth

    @property
    def chain(self) -> list[Image]:
        return [self, *(self.parent.chain if self.parent else [])]

    def expected(self, offset: int, length: int) -> bytes:
        """Return what a read must give."""
        end = min(offset + length, self.size)
        out = bytearray(max(0, end - offset))
        chain = self.chain
        sector = offset // self.sector
        while sector * self.sector < end:
            # A run of sectors with the same answer, at most 64 KiB at a time.
            kind, depth = self.decides(sector)
            stop = sector + 1
            while stop * self.sector < end and stop - sector < 128 and self.decides(stop) == (kind, depth):
                stop += 1
            if kind == "data":
                first, last = max(offset, sector * self.sector), min(end, stop * self.sector)
                out[first - offset : last - offset] = content(chain[depth].tag, first, last - first)
            sector = stop
        return bytes(out)


def metadata_region(items: list[tuple[UUID, int, bytes]]) -> bytes:
    """Return table and items, packed in the order given."""
    entries, bodies, at = b"", b"", 65536
    for item_id, flags, data in items:
        entries += item_id.bytes_le + struct.pack("<IIII", at if data else 0, len(data), flags, 0)
        bodies += data
        at += len(data)
    return (b"metadata" + struct.pack("<HH", 0, len(items)) + bytes(20) + entries).ljust(
        65536, b"\0"
    ) + bodies


def locator_item(pairs: dict[str, str]) -> bytes:
    """Return a parent locator item."""
    entries, strings, at = b"", b"", 20 + 12 * len(pairs)
    for key, value in pairs.items():
        raw = key.encode("utf-16-le"), value.encode("utf-16-le")
        entries += struct.pack("<IIHH", at, at + len(raw[0]), len(raw[0]), len(raw[1]))
        strings += raw[0] + raw[1]
        at += len(raw[0]) + len(raw[1])
    return LOCATOR_TYPE.bytes_le + struct.pack("<HH", 0, len(pairs)) + entries + strings
