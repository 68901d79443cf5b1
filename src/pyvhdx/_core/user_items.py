"""
Changing the user items of the metadata region (MS-VHDX 2.6.1.2): decided here, done by the writer.

An item goes to a place of the region that no other item covers, and then its entry of the table says
so.  The region has no checksum; the log makes both one change.  One that does not fit into a log
entry together with the table is written first, to a place that the durable table does not use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core.metadata import KNOWN_ITEMS
from pyvhdx._core.pages import PAGE_SIZE
from pyvhdx.errors import RequestError
from pyvhdx.format import constants as c
from pyvhdx.format.metadata import IS_USER, IS_VIRTUAL_DISK, MetadataTableEntry, MetadataTableHeader

if TYPE_CHECKING:
    from uuid import UUID

_HEAD_SIZE = MetadataTableHeader.packer.size
_ENTRY_SIZE = MetadataTableEntry.packer.size

# An item of so many pages still fits into one log entry with the table.
MAX_PAGES_AT_ONCE = 90


class ItemChange(NamedTuple):
    """
    What to write; offsets are bytes from the start of the region.

    *data* goes to *data_offset*, in commits of its own where it is not *at_once*; *table* are the
    pieces of the table that change.
    """

    data: bytes
    data_offset: int
    table: list[tuple[int, bytes]]

    @property
    def at_once(self) -> bool:
        """Whether data and table go into one log entry."""
        first = self.data_offset // PAGE_SIZE
        last = (self.data_offset + len(self.data) + PAGE_SIZE - 1) // PAGE_SIZE
        return last - first <= MAX_PAGES_AT_ONCE


def plan_change(
    entries: list[MetadataTableEntry],
    region_length: int,
    item_id: UUID,
    data: bytes | None,
    *,
    of_disk: bool | None,
) -> ItemChange:
    """
    Return how the user item *item_id* becomes *data*, or goes where that is None.

    *of_disk* tells whether it belongs to the virtual disk and so travels to children; None keeps what
    is there, and a new item belongs to the file.  Raises `RequestError` for what cannot be, `KeyError` for an
    item that is to go and is not there.
    """
    if item_id == c.ZERO_GUID:
        raise RequestError("the zero GUID cannot name an item")
    number = next((n for n, e in enumerate(entries) if e.is_user and e.item_id == item_id), None)
    old = None if number is None else entries[number]
    if data is None:
        if number is None:
            raise KeyError(item_id)
        return ItemChange(b"", 0, _removed(entries, number))
    if old is None and item_id in KNOWN_ITEMS:
        raise RequestError(
            f"{item_id} is the system item {KNOWN_ITEMS[item_id]}; QEMU refuses a file with a user item of that name"
        )
    if len(data) > c.MAX_ITEM_SIZE:
        raise RequestError(f"the item has {len(data)} bytes, and at most 1 MiB is allowed")
    if old is None and sum(entry.is_user for entry in entries) >= c.MAX_USER_ENTRIES:
        raise RequestError(f"there are {c.MAX_USER_ENTRIES} user items, and no more are allowed")
    if old is None and len(entries) >= c.MAX_METADATA_ENTRIES:
        raise RequestError(f"there are {len(entries)} items, and the table holds no more")
    flags = old.flags & ~IS_VIRTUAL_DISK if old is not None else IS_USER
    if of_disk or (of_disk is None and old is not None and old.flags & IS_VIRTUAL_DISK):
        flags |= IS_VIRTUAL_DISK
    place = place_for(entries, region_length, old, len(data))
    new = MetadataTableEntry(item_id=item_id, offset=place, length=len(data), flags=flags)
    table = []
    if new != old:
        at = len(entries) if number is None else number
        table.append((_HEAD_SIZE + _ENTRY_SIZE * at, new.build()))
    if old is None:
        table.append(_count(len(entries) + 1))
    return ItemChange(data, place, table)


def place_for(
    entries: list[MetadataTableEntry], region_length: int, old: MetadataTableEntry | None, length: int
) -> int:
    """Return where in the region an item goes; the place it has, where it is not longer than before."""
    if not length:
        return 0  # an empty item has no place
    if old is not None and length <= old.length and ItemChange(bytes(length), old.offset, []).at_once:
        return old.offset
    longest, at = 0, c.METADATA_TABLE_SIZE
    for start, end in [
        *sorted((entry.offset, entry.offset + entry.length) for entry in entries if entry.length),
        (region_length, region_length),
    ]:
        if start - at >= length:
            return at
        longest = max(longest, start - at)
        at = max(at, end)
    raise RequestError(
        f"the metadata region has no room for {length} bytes in one piece; the largest item that fits has {longest}"
    )


def _removed(entries: list[MetadataTableEntry], number: int) -> list[tuple[int, bytes]]:
    """The last entry moves into the gap, and leaves no copy behind."""
    last = len(entries) - 1
    table = [(_HEAD_SIZE + _ENTRY_SIZE * last, bytes(_ENTRY_SIZE)), _count(last)]
    if number != last:
        table.append((_HEAD_SIZE + _ENTRY_SIZE * number, entries[last].build()))
    return table


def _count(entry_count: int) -> tuple[int, bytes]:
    # Signature and reserved bytes stay as they are.
    return 10, entry_count.to_bytes(2, "little")
