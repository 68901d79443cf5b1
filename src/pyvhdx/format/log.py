"""The structures of the log (MS-VHDX 2.3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from construct import Bytes, Int32ul, Int64ul

from pyvhdx.format.constants import (
    DATA_DESCRIPTOR_SIGNATURE,
    DATA_SECTOR_SIGNATURE,
    LOG_ENTRY_SIGNATURE,
    LOG_SECTOR_SIZE,
    ZERO_DESCRIPTOR_SIGNATURE,
    round_up,
)
from pyvhdx.format.record import Guid, Record, on_disk, record

if TYPE_CHECKING:
    from uuid import UUID


@record
class LogEntryHeader(Record):
    """The first 64 bytes of a log entry (2.3.1.1)."""

    signature: bytes = on_disk(Bytes(4), default=LOG_ENTRY_SIGNATURE)
    checksum: int = on_disk(Int32ul, default=0)
    entry_length: int = on_disk(Int32ul)
    tail: int = on_disk(Int32ul)
    sequence_number: int = on_disk(Int64ul)
    descriptor_count: int = on_disk(Int32ul)
    reserved: int = on_disk(Int32ul, default=0)
    log_guid: UUID = on_disk(Guid)
    flushed_file_offset: int = on_disk(Int64ul)
    last_file_offset: int = on_disk(Int64ul)


@record
class ZeroDescriptor(Record):
    """A range of the file that replay fills with zeros (2.3.1.2)."""

    signature: bytes = on_disk(Bytes(4), default=ZERO_DESCRIPTOR_SIGNATURE)
    reserved: int = on_disk(Int32ul, default=0)
    zero_length: int = on_disk(Int64ul)
    file_offset: int = on_disk(Int64ul)
    sequence_number: int = on_disk(Int64ul)


@record
class DataDescriptor(Record):
    """
    A page of 4 KiB that replay writes (2.3.1.3).

    Its first 8 and last 4 bytes stand here, where the data sector has signature and sequence number.
    """

    signature: bytes = on_disk(Bytes(4), default=DATA_DESCRIPTOR_SIGNATURE)
    trailing_bytes: bytes = on_disk(Bytes(4))
    leading_bytes: bytes = on_disk(Bytes(8))
    file_offset: int = on_disk(Int64ul)
    sequence_number: int = on_disk(Int64ul)


@record
class DataSector(Record):
    """The middle of a page, in the order of the entry's data descriptors (2.3.1.4)."""

    signature: bytes = on_disk(Bytes(4), default=DATA_SECTOR_SIGNATURE)
    sequence_high: int = on_disk(Int32ul)
    data: bytes = on_disk(Bytes(4084))
    sequence_low: int = on_disk(Int32ul)


def descriptor_area_size(count: int) -> int:
    """Return the bytes that the header and *count* descriptors take: a multiple of 4096 (2.3.1)."""
    return round_up(64 + 32 * count, LOG_SECTOR_SIZE)
