"""Log entries laid out by hand, with plain `struct`, right or wrong in any field."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from uuid import UUID

from crc32c import crc32c

SECTOR = 4096
GUID = UUID("c0ffee00-0000-4000-8000-00000000f00d")


def page(fill: int) -> bytes:
    """Return a page in which every 8 bytes differ, so that a shifted one is noticed."""
    return b"".join(struct.pack("<IHH", 0x5A000000 | fill, fill, at) for at in range(512))


@dataclass
class Entry:
    """
    An entry: *writes* are (offset, page) or (offset, length) in order.

    *changes* override fields of its header; ``crc=0`` spoils the checksum.
    """

    sequence: int
    tail: int
    writes: list[tuple[int, bytes | int]] = field(default_factory=list)
    flushed: int = 0
    last: int = 0
    guid: UUID = GUID
    changes: dict[str, int] = field(default_factory=dict)

    @property
    def length(self) -> int:
        pages = sum(isinstance(what, bytes) for _, what in self.writes)
        return (64 + 32 * len(self.writes) + SECTOR - 1) // SECTOR * SECTOR + SECTOR * pages

    def build(self) -> bytes:
        values = {
            "length": self.length,
            "tail": self.tail,
            "sequence": self.sequence,
            "count": len(self.writes),
            "flushed": self.flushed,
            "last": self.last,
            "descriptor_sequence": self.sequence,
            "data_sequence": self.sequence,
            "crc": 1,
        } | self.changes
        head = (
            b"loge"
            + bytes(4)
            + struct.pack("<IIQII", values["length"], values["tail"], values["sequence"], values["count"], 0)
        )
        head += self.guid.bytes_le + struct.pack("<QQ", values["flushed"], values["last"])
        descriptors, sectors = b"", b""
        for offset, what in self.writes:
            if isinstance(what, bytes):
                descriptors += (
                    b"desc" + what[-4:] + what[:8] + struct.pack("<QQ", offset, values["descriptor_sequence"])
                )
                high, low = divmod(values["data_sequence"], 1 << 32)
                sectors += b"data" + struct.pack("<I", high) + what[8:-4] + struct.pack("<I", low)
            else:
                descriptors += (
                    b"zero" + bytes(4) + struct.pack("<QQQ", what, offset, values["descriptor_sequence"])
                )
        area = head + descriptors
        data = area.ljust((len(area) + SECTOR - 1) // SECTOR * SECTOR, b"\0") + sectors
        crc = crc32c(data) if values["crc"] else 0x0BADBAD0
        return data[:4] + struct.pack("<I", crc) + data[8:]


def ring(length: int, entries: list[tuple[int, Entry | bytes]]) -> bytes:
    """Return a log of *length* bytes with entries at positions; what reaches its end goes on at its start."""
    log = bytearray(length)
    for at, entry in entries:
        data = entry if isinstance(entry, bytes) else entry.build()
        first = min(len(data), length - at)
        log[at : at + first] = data[:first]
        log[: len(data) - first] = data[first:]
    return bytes(log)


def follow(entries: list[Entry], start: int = 0, length: int = 1 << 20) -> list[tuple[int, Entry | bytes]]:
    """Return the entries one behind the other from *start*, around the end where needed."""
    placed: list[tuple[int, Entry | bytes]] = []
    for entry in entries:
        placed.append((start, entry))
        start = (start + entry.length) % length
    return placed
