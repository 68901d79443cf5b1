"""The header, of which a file has two copies (MS-VHDX 2.2.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from construct import Bytes, Int16ul, Int32ul, Int64ul

from pyvhdx.format.checksum import is_sealed, seal
from pyvhdx.format.constants import FORMAT_VERSION, HEADER_SIGNATURE, HEADER_SIZE, LOG_VERSION
from pyvhdx.format.record import Guid, Record, on_disk, record

if TYPE_CHECKING:
    from uuid import UUID


@record
class Header(Record):
    """The used 80 bytes of a header; zeros up to 4096 follow and count in the checksum (2.2.2)."""

    signature: bytes = on_disk(Bytes(4), default=HEADER_SIGNATURE)
    checksum: int = on_disk(Int32ul, default=0)
    sequence_number: int = on_disk(Int64ul)
    file_write_guid: UUID = on_disk(Guid)
    data_write_guid: UUID = on_disk(Guid)
    log_guid: UUID = on_disk(Guid)
    log_version: int = on_disk(Int16ul, default=LOG_VERSION)
    version: int = on_disk(Int16ul, default=FORMAT_VERSION)
    log_length: int = on_disk(Int32ul)
    log_offset: int = on_disk(Int64ul)

    def sealed(self) -> bytes:
        """Return the 4096 bytes that go to the file."""
        return seal(self.build().ljust(HEADER_SIZE, b"\0"))


def is_valid_header(data: bytes) -> bool:
    """Return whether signature and checksum of the 4096 bytes are right; nothing else counts (2.2.2)."""
    return len(data) == HEADER_SIZE and data.startswith(HEADER_SIGNATURE) and is_sealed(data)
