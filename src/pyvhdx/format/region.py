"""The region table, of which a file has two copies (MS-VHDX 2.2.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from construct import Bytes, Int32ul, Int64ul

from pyvhdx.format.checksum import is_sealed, seal
from pyvhdx.format.constants import REGION_SIGNATURE, REGION_TABLE_SIZE
from pyvhdx.format.record import Guid, Record, on_disk, record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID


@record
class RegionTableHeader(Record):
    """The first 16 bytes of a region table (2.2.3.1)."""

    signature: bytes = on_disk(Bytes(4), default=REGION_SIGNATURE)
    checksum: int = on_disk(Int32ul, default=0)
    entry_count: int = on_disk(Int32ul)
    reserved: int = on_disk(Int32ul, default=0)


@record
class RegionTableEntry(Record):
    """One region: where it lies, and whether a reader must know it (2.2.3.2)."""

    guid: UUID = on_disk(Guid)
    file_offset: int = on_disk(Int64ul)
    length: int = on_disk(Int32ul)
    required: int = on_disk(Int32ul, default=1)

    @property
    def end(self) -> int:
        return self.file_offset + self.length


def build_region_table(entries: Sequence[RegionTableEntry]) -> bytes:
    """Return the 64 KiB of a region table."""
    head = RegionTableHeader(entry_count=len(entries)).build()
    return seal((head + b"".join(entry.build() for entry in entries)).ljust(REGION_TABLE_SIZE, b"\0"))


def is_valid_region_table(data: bytes) -> bool:
    """Return whether signature and checksum of the 64 KiB are right (2.2.3.1)."""
    return len(data) == REGION_TABLE_SIZE and data.startswith(REGION_SIGNATURE) and is_sealed(data)


def parse_region_entries(data: bytes, count: int) -> list[RegionTableEntry]:
    """Return the first *count* entries of a region table; at most 2047 fit."""
    return [RegionTableEntry.parse(data[16 + 32 * n : 48 + 32 * n]) for n in range(count)]
