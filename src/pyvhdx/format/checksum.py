"""
The checksum that headers, region tables and log entries share (MS-VHDX 2).

CRC-32C over the whole structure, with the four bytes of the checksum itself, at offset 4, as zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crc32c import crc32c

if TYPE_CHECKING:
    from pyvhdx._types import Buffer

_NONE = bytes(4)


def crc_of_start(data: Buffer) -> int:
    """Return the checksum of the first piece of a structure, its own four bytes taken as zeros."""
    view = memoryview(data)
    return crc_of_rest(view[8:], crc_of_rest(_NONE, crc_of_rest(view[:4], 0)))


def crc_of_rest(data: Buffer, so_far: int) -> int:
    """Return the checksum after one more piece."""
    total: int = crc32c(data, so_far)
    return total


def seal(data: bytes) -> bytes:
    """Return *data* with its checksum put in."""
    return data[:4] + crc_of_start(data).to_bytes(4, "little") + data[8:]


def is_sealed(data: bytes) -> bool:
    """Return whether the checksum in *data* is right."""
    return len(data) >= 8 and crc_of_start(data).to_bytes(4, "little") == data[4:8]
