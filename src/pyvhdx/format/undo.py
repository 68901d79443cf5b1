"""
The undo file of a repair, a format of this package: what a file held where a repair overwrites it.

A header of 512 bytes, which a disk writes whole, and behind it the ranges, each with its bytes.  Both
carry a CRC-32C at the same place as the structures of VHDX do.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from construct import Bytes, Int32ul, Int64ul

from pyvhdx.format.checksum import crc_of_rest, crc_of_start, is_sealed, seal
from pyvhdx.format.record import Guid, Record, on_disk, record

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from pyvhdx._types import Buffer

HEADER_SIZE = 512
MAX_GUIDS = 16
VERSION = 2
_NAME = b"pyvhdx repair\0\0\0"


class UndoState(IntEnum):
    """How far the repair is, as the undo file knows it."""

    INCOMPLETE = 0
    """The undo file is being written, and the image was not touched yet."""
    READY = 1
    """The undo file is whole, and the repair may be under way."""
    FINISHED = 2
    """The repair is done."""


@record
class UndoHeader(Record):
    """
    The used bytes of the header.

    `number_before` and `guid_before` are of the current header before the repair, `guid_tied` of
    another with the same number; `guids` are the FileWriteGuids that the repair writes.  `device` and
    `inode` are the image's.
    """

    signature: bytes = on_disk(Bytes(4), default=b"undo")
    checksum: int = on_disk(Int32ul, default=0)
    name: bytes = on_disk(Bytes(16), default=_NAME)
    version: int = on_disk(Int32ul, default=VERSION)
    state: int = on_disk(Int32ul)
    image_size: int = on_disk(Int64ul)
    body_length: int = on_disk(Int64ul)
    range_count: int = on_disk(Int64ul)
    repair_id: UUID = on_disk(Guid)
    number_before: int = on_disk(Int64ul)
    guid_before: UUID = on_disk(Guid)
    guid_tied: UUID = on_disk(Guid)
    device: int = on_disk(Int64ul, default=0)
    inode: int = on_disk(Int64ul, default=0)
    guids: bytes = on_disk(Bytes(16 * MAX_GUIDS))

    def sealed(self) -> bytes:
        """Return the 512 bytes that go to the file."""
        return seal(self.build().ljust(HEADER_SIZE, b"\0"))

    @staticmethod
    def begins(data: bytes) -> bool:
        """Return whether *data*, less than a header, is the start of one."""
        return data[:4] == b"undo"[: len(data)] and data[8:24] == _NAME[: max(0, len(data) - 8)]

    def wrote(self, guid: UUID) -> bool:
        """Return whether the repair gives an image this FileWriteGuid."""
        return guid.bytes_le in (self.guids[at : at + 16] for at in range(0, len(self.guids), 16))


def pack_guids(guids: Iterable[UUID]) -> bytes:
    """Return the field `guids`; the last one fills the rest."""
    packed = [guid.bytes_le for guid in guids]
    assert 0 < len(packed) <= MAX_GUIDS
    return b"".join(packed) + packed[-1] * (MAX_GUIDS - len(packed))


def is_undo_header(data: bytes) -> bool:
    """Return whether the 512 bytes are a header of this version, whole."""
    if len(data) != HEADER_SIZE or not is_sealed(data):
        return False
    header = UndoHeader.parse(data)
    return (header.signature, header.name, header.version) == (b"undo", _NAME, VERSION)


@record
class UndoRange(Record):
    """What stands in front of the bytes of a range; *offset* is their place in the image."""

    signature: bytes = on_disk(Bytes(4), default=b"keep")
    checksum: int = on_disk(Int32ul, default=0)
    offset: int = on_disk(Int64ul)
    length: int = on_disk(Int64ul)

    def sealed_over(self, data: Buffer) -> bytes:
        """Return the structure with the checksum over itself and *data*."""
        head = self.build()
        return head[:4] + crc_of_rest(data, crc_of_start(head)).to_bytes(4, "little") + head[8:]

    def is_right(self, data: Buffer) -> bool:
        """Return whether the checksum is that of this structure and *data*."""
        return self.signature == b"keep" and crc_of_rest(data, crc_of_start(self.build())) == self.checksum


def undoing_mark(repair_id: UUID) -> bytes:
    """
    Return the 512 bytes that stand in place of both headers while an image is restored.

    Nobody can open the half-restored image, and the undo file knows it again.
    """
    return (b"undo" + _NAME + repair_id.bytes_le).ljust(HEADER_SIZE, b"\0")
