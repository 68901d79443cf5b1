"""
One entry of the log (MS-VHDX 2.3.1): what makes it whole, and what it holds.

An entry is descriptor sectors and then one data sector for each data descriptor.  It is read in
pieces and given up at the first piece that is wrong, so that an entry costs no more than the bytes
it really has, whatever length it claims.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyvhdx.format.checksum import crc_of_rest, crc_of_start
from pyvhdx.format.constants import (
    DATA_DESCRIPTOR_SIGNATURE,
    DATA_SECTOR_SIGNATURE,
    LOG_SECTOR_SIZE,
    ZERO_DESCRIPTOR_SIGNATURE,
)
from pyvhdx.format.log import DataDescriptor, DataSector, LogEntryHeader, descriptor_area_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_HEADER_SIZE = LogEntryHeader.packer.size
_PIECE = 1 << 20


class Entry(NamedTuple):
    """The header of an entry, and where in the log (bytes from its start) the entry begins."""

    position: int
    header: LogEntryHeader

    @property
    def sequence_number(self) -> int:
        return self.header.sequence_number


class Target(NamedTuple):
    """Where a descriptor writes; *ends* are the page's first 8 and last 4 bytes, None for zeros."""

    offset: int
    length: int
    ends: tuple[bytes, bytes] | None


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
    for piece in _pieces(0, area, read):
        first = piece.offset == 0
        start = _HEADER_SIZE if first else 0
        total = crc_of_start(piece.data) if first else crc_of_rest(piece.data, total)
        left = header.descriptor_count - max(0, piece.offset - _HEADER_SIZE) // 32
        view = memoryview(piece.data)[start : start + 32 * min(left, (len(piece.data) - start) // 32)]
        for signature, _, size, offset, sequence in DataDescriptor.packer.iter_unpack(view):
            if signature == DATA_DESCRIPTOR_SIGNATURE:
                data_sectors += 1
            elif signature != ZERO_DESCRIPTOR_SIGNATURE:
                return f"a descriptor has the signature {signature!r}"
            elif int.from_bytes(size, "little") % LOG_SECTOR_SIZE:
                return "a zero descriptor has a length that is no multiple of 4096"
            if sequence != header.sequence_number:
                return "a descriptor has another sequence number"
            if offset % LOG_SECTOR_SIZE:
                return "a descriptor has an offset that is no multiple of 4096"
    if area + data_sectors * LOG_SECTOR_SIZE != length:
        return f"the length {length} does not follow from the descriptors"
    mark = (header.sequence_number >> 32, header.sequence_number & 0xFFFF_FFFF)
    for piece in _pieces(area, length, read):
        for signature, high, _, low in DataSector.packer.iter_unpack(piece.data):
            if signature != DATA_SECTOR_SIGNATURE or (high, low) != mark:
                return "a data sector is missing or of another entry"
        total = crc_of_rest(piece.data, total)
    return None if total == header.checksum else "the checksum is wrong"


def targets(entry: Entry, read: Callable[[int, int], bytes]) -> Iterator[Target]:
    """Yield where the descriptors of a valid entry write, in order."""
    count = entry.header.descriptor_count
    end = _HEADER_SIZE + 32 * count
    for start in range(_HEADER_SIZE, end, _PIECE):
        data = read(min(_PIECE, end - start), start)
        for signature, trailing, leading, offset, _ in DataDescriptor.packer.iter_unpack(data):
            if signature == DATA_DESCRIPTOR_SIGNATURE:
                yield Target(offset, LOG_SECTOR_SIZE, (leading, trailing))
            else:
                yield Target(offset, int.from_bytes(leading, "little"), None)


def data_sectors(entry: Entry, read: Callable[[int, int], bytes]) -> Iterator[bytes]:
    """Yield the 4084 bytes of each data sector of a valid entry, in order."""
    area = descriptor_area_size(entry.header.descriptor_count)
    for piece in _pieces(area, entry.header.entry_length, read):
        for _, _, data, _ in DataSector.packer.iter_unpack(piece.data):
            yield data


class _Piece(NamedTuple):
    offset: int
    data: bytes


def _pieces(start: int, end: int, read: Callable[[int, int], bytes]) -> Iterator[_Piece]:
    # The first piece is small: most wrong entries show in it.
    size = LOG_SECTOR_SIZE
    while start < end:
        yield _Piece(start, read(min(size, end - start), start))
        start += size
        size = _PIECE
