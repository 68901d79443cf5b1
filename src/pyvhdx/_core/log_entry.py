"""
One entry of the log (MS-VHDX 2.3.1): what makes it whole, and what it holds.

An entry is descriptor sectors and then one data sector for each data descriptor.  It is read in
pieces and given up at the first piece that is wrong, so that an entry costs no more than the bytes
it really has, whatever length it claims.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyvhdx.format.checksum import crc_of_rest, crc_of_start, seal
from pyvhdx.format.constants import (
    DATA_DESCRIPTOR_SIGNATURE,
    DATA_SECTOR_SIGNATURE,
    LOG_SECTOR_SIZE,
    ZERO_DESCRIPTOR_SIGNATURE,
)
from pyvhdx.format.log import DataDescriptor, DataSector, LogEntryHeader, descriptor_area_size
from pyvhdx.format.table import integers

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterator, Mapping
    from uuid import UUID

_HEADER_SIZE = LogEntryHeader.packer.size
_DESCRIPTOR_SIZE = DataDescriptor.packer.size
_PIECE = 1 << 20

MAX_DESCRIPTORS = 126
"""What one descriptor sector holds; QEMU cannot replay an entry with more."""


class Entry(NamedTuple):
    """The header of an entry, and where in the log (bytes from its start) the entry begins."""

    position: int
    header: LogEntryHeader

    @property
    def sequence_number(self) -> int:
        return self.header.sequence_number


class Descriptors(NamedTuple):
    """
    A run of descriptors as columns: there may be millions of them.

    `values` is the length of a zero descriptor, and the first 8 bytes of a page for the others;
    `trailing` its last 4.
    """

    kinds: array[int]
    trailing: array[int]
    values: array[int]
    offsets: array[int]
    sequence_numbers: array[int]


DATA = int.from_bytes(DATA_DESCRIPTOR_SIGNATURE, "little")
ZERO = int.from_bytes(ZERO_DESCRIPTOR_SIGNATURE, "little")


def find_fault(
    header: LogEntryHeader, log_length: int, room: int, read: Callable[[int, int], bytes]
) -> str | None:
    """
    Return why the entry with this header is not valid, or None.

    *room* is the distance to the next sector that starts an entry, *read* gives (size, offset in
    the entry).  Where the descriptors point is not judged here: a whole entry that points at a
    wrong place is no accident, and is refused when it is replayed.
    """
    length = header.entry_length
    if length % LOG_SECTOR_SIZE or not LOG_SECTOR_SIZE <= length < log_length:
        return f"the length {length} is no multiple of 4096 below the log's"
    if length > room:
        return "it reaches into the next entry"
    if header.tail % LOG_SECTOR_SIZE or header.tail >= log_length:
        return f"the tail {header.tail:#x} is no multiple of 4096 in the log"
    if header.sequence_number == 0:
        return "the sequence number is 0"
    if header.descriptor_count > (length - _HEADER_SIZE) // 32:
        return f"{header.descriptor_count} descriptors do not fit"
    area = descriptor_area_size(header.descriptor_count)
    total, data_sectors = 0, 0
    for offset, piece in _pieces(0, area, read):
        total = crc_of_rest(piece, total) if offset else crc_of_start(piece)
        columns = _descriptors(piece, offset, header.descriptor_count)
        data_count = columns.kinds.count(DATA)
        if data_count + columns.kinds.count(ZERO) != len(columns.kinds):
            return "a descriptor has another signature than 'desc' and 'zero'"
        if columns.sequence_numbers.count(header.sequence_number) != len(columns.kinds):
            return "a descriptor has another sequence number"
        if any(offset % LOG_SECTOR_SIZE for offset in columns.offsets):
            return "a descriptor has an offset that is no multiple of 4096"
        pairs = zip(columns.kinds, columns.values, strict=True)
        if any(kind == ZERO and length % LOG_SECTOR_SIZE for kind, length in pairs):
            return "a zero descriptor has a length that is no multiple of 4096"
        data_sectors += data_count
    if area + data_sectors * LOG_SECTOR_SIZE != length:
        return f"the length {length} does not follow from the descriptors"
    mark = (header.sequence_number >> 32, header.sequence_number & 0xFFFF_FFFF)
    for _, piece in _pieces(area, length, read):
        for signature, high, _, low in DataSector.packer.iter_unpack(piece):
            if signature != DATA_SECTOR_SIGNATURE or (high, low) != mark:
                return "a data sector is missing or of another entry"
        total = crc_of_rest(piece, total)
    return None if total == header.checksum else "the checksum is wrong"


def size_of(page_count: int) -> int:
    """Return the length in bytes of an entry that holds so many pages (2.3.1)."""
    return descriptor_area_size(page_count) + LOG_SECTOR_SIZE * page_count


def encode(
    pages: Mapping[int, bytes],
    *,
    log_guid: UUID,
    sequence_number: int,
    tail: int,
    flushed_file_offset: int,
    last_file_offset: int,
) -> bytes:
    """Return the entry that holds *pages*, file offset to 4 KiB, sealed."""
    header = LogEntryHeader(
        entry_length=size_of(len(pages)),
        tail=tail,
        sequence_number=sequence_number,
        descriptor_count=len(pages),
        log_guid=log_guid,
        flushed_file_offset=flushed_file_offset,
        last_file_offset=last_file_offset,
    )
    parts = [header.build()]
    # The packers are the declared layouts; through construct a full entry would cost 8 ms.
    parts += [
        DataDescriptor.packer.pack(DATA_DESCRIPTOR_SIGNATURE, page[-4:], page[:8], offset, sequence_number)
        for offset, page in pages.items()
    ]
    parts.append(bytes(descriptor_area_size(len(pages)) - _HEADER_SIZE - _DESCRIPTOR_SIZE * len(pages)))
    high, low = sequence_number >> 32, sequence_number & 0xFFFF_FFFF
    parts += [DataSector.packer.pack(DATA_SECTOR_SIGNATURE, high, page[8:-4], low) for page in pages.values()]
    return seal(b"".join(parts))


def descriptors(entry: Entry, read: Callable[[int, int], bytes]) -> Iterator[Descriptors]:
    """Yield the descriptors of a valid entry, in order and in pieces."""
    count = entry.header.descriptor_count
    for offset, piece in _pieces(0, descriptor_area_size(count), read):
        yield _descriptors(piece, offset, count)


def _descriptors(piece: bytes, offset: int, count: int) -> Descriptors:
    """Return those of an entry's *count* descriptors that lie in a piece, *offset* bytes into the entry."""
    start = 0 if offset else _HEADER_SIZE
    left = count - max(0, offset - _HEADER_SIZE) // _DESCRIPTOR_SIZE
    data = memoryview(piece)[start : start + _DESCRIPTOR_SIZE * left]
    narrow, wide = integers("I", data), integers("Q", data)
    return Descriptors(narrow[0::8], narrow[1::8], wide[1::4], wide[2::4], wide[3::4])


def data_sectors(entry: Entry, read: Callable[[int, int], bytes]) -> Iterator[bytes]:
    """Yield the 4084 bytes of each data sector of a valid entry, in order."""
    area = descriptor_area_size(entry.header.descriptor_count)
    for _, piece in _pieces(area, entry.header.entry_length, read):
        for _, _, data, _ in DataSector.packer.iter_unpack(piece):
            yield data


def _pieces(start: int, end: int, read: Callable[[int, int], bytes]) -> Iterator[tuple[int, bytes]]:
    # The first piece is small: most wrong entries show in it.
    size = LOG_SECTOR_SIZE
    while start < end:
        yield start, read(min(size, end - start), start)
        start += size
        size = _PIECE
