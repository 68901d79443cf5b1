"""
The entry of the block allocation table (MS-VHDX 2.5.1).

construct declares the entry; the table itself, up to 67 million of them, is read as machine
integers, of which `OFFSET_MASK` leaves the byte offset and `STATE_MASK` the state.
"""

from __future__ import annotations

from typing import NamedTuple

from construct import BitsInteger, BitStruct, ByteSwapped

from pyvhdx.format.constants import OFFSET_MASK, RESERVED_MASK, STATE_MASK

BAT_ENTRY = ByteSwapped(
    BitStruct(
        "file_offset_mb" / BitsInteger(44),
        "reserved" / BitsInteger(17),
        "state" / BitsInteger(3),
    )
)


class BatEntry(NamedTuple):
    """An entry taken apart; `file_offset` is in bytes, a multiple of 1 MiB."""

    state: int
    reserved: int
    file_offset: int


def split_entry(entry: int) -> BatEntry:
    """Take an entry apart."""
    return BatEntry(entry & STATE_MASK, (entry & RESERVED_MASK) >> 3, entry & OFFSET_MASK)
