"""
Searching a file for what its region tables do not tell any more (MS-VHDX 2.1: all is MiB-aligned).

A metadata table begins with its signature.  A BAT is known by its entries: each is one that a BAT may
hold, and some own space.  What lies inside a block that the BAT owns is content: a disk may hold
VHDX files itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core.guess import Owners, guess_parameters, is_entry
from pyvhdx._core.pages import PAGE_SIZE
from pyvhdx.format import constants as c
from pyvhdx.format.metadata import MetadataTableEntry, MetadataTableHeader
from pyvhdx.format.table import integers

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterator

    from pyvhdx._types import ReadAt
    from pyvhdx.storage import Storage

# Most files have everything here; the rest is searched only where it is not.
_FIRST = 1 << 30
_PIECE = 1 << 16
# So much of a BAT may be zeros in one piece; two tables are not taken for one.
_MAX_GAP = 16 * c.MIB
_MAX_TABLES = 64
_MAX_LINEAR = 1 << 32
_ZERO_PAGE = bytes(PAGE_SIZE)


class Table(NamedTuple):
    """What may be a BAT: where it begins and where its last entry that is not 0 ends, in bytes."""

    start: int
    end: int
    owners: Owners


class Landmarks(NamedTuple):
    """Where things begin in the file, each list in the order of the file."""

    metadata: list[int]
    tables: list[Table]


def search(storage: Storage, file_size: int) -> Landmarks:
    """Return what begins at the MiB boundaries behind the header section."""
    found = Landmarks([], [])
    for start, end in ((c.HEADER_SECTION_SIZE, _FIRST), (_FIRST, file_size)):
        if not (found.metadata and found.tables):
            _search(storage, start, min(end, file_size), file_size, found)
    return found


def _search(storage: Storage, start: int, end: int, file_size: int, found: Landmarks) -> None:
    measured = found.tables[-1].end if found.tables else 0
    for at in _boundaries(storage, start, end):
        page = storage.read_at(PAGE_SIZE, at)
        if page.startswith(c.METADATA_SIGNATURE):
            if is_metadata(storage.read_at, at):
                found.metadata.append(at)
        elif at >= measured and _may_be_entries(page, storage, at, file_size):
            table = measure(storage.read_at, at, file_size, file_size)
            if table.owners.indexes:
                measured = table.end
                found.tables.append(table)
                if len(found.tables) > _MAX_TABLES:
                    found.tables.remove(min(found.tables, key=lambda one: len(one.owners.indexes)))


def _boundaries(storage: Storage, start: int, end: int) -> Iterator[int]:
    """Yield the MiB in a range that hold data."""
    at = start
    while at < end and (run := storage.next_data(at)) is not None and run[0] < end:
        first = max(at, run[0] - run[0] % c.MIB)
        at = min(c.round_up(run[1], c.MIB), c.round_up(end, c.MIB))
        yield from range(first, at, c.MIB)


def log_pages(
    storage: Storage, file_size: int, is_block: Callable[[int], bool]
) -> Iterator[tuple[int, bytes]]:
    """
    Yield where a page begins as a log entry does, with its first 64 bytes.

    A MiB that is part of a block, as *is_block* says, holds content.  Of all others every page is looked at,
    up to 4 GiB; behind that only the first one of each.
    """
    left = _MAX_LINEAR
    for at in _boundaries(storage, c.HEADER_SECTION_SIZE, file_size):
        if is_block(at):
            continue
        data = storage.read_at(c.MIB if left > 0 else PAGE_SIZE, at)
        left -= c.MIB
        start = data.find(c.LOG_ENTRY_SIGNATURE)
        while start >= 0:
            page = start - start % PAGE_SIZE
            if page == start and len(data) >= start + 64:
                yield at + start, data[start : start + 64]
            start = data.find(c.LOG_ENTRY_SIGNATURE, page + PAGE_SIZE)


def is_metadata(read: ReadAt, at: int) -> bool:
    """Return whether a metadata table with an item of the format begins at a place."""
    table = read(c.METADATA_TABLE_SIZE, at)
    if len(table) < c.METADATA_TABLE_SIZE or not table.startswith(c.METADATA_SIGNATURE):
        return False
    head_size, entry_size = MetadataTableHeader.packer.size, MetadataTableEntry.packer.size
    count = MetadataTableHeader.parse(table).entry_count
    entries = table[head_size : head_size + entry_size * count]
    known = (c.FILE_PARAMETERS.bytes_le, c.VIRTUAL_DISK_SIZE.bytes_le, c.LOGICAL_SECTOR_SIZE.bytes_le)
    return count <= c.MAX_METADATA_ENTRIES and any(
        entries[n : n + 16] in known for n in range(0, len(entries), 32)
    )


def _may_be_entries(page: bytes, storage: Storage, at: int, file_size: int) -> bool:
    if page == _ZERO_PAGE:  # the first blocks may have no content
        data = storage.read_at(c.MIB, at)
        start = next(
            (n for n in range(0, len(data), PAGE_SIZE) if data[n : n + PAGE_SIZE] != _ZERO_PAGE), None
        )
        if start is None:
            return False
        page = data[start : start + PAGE_SIZE]
    return _are_entries(integers("Q", page[: len(page) & -c.BAT_ENTRY_SIZE]), file_size)


def _are_entries(entries: array[int], file_size: int) -> bool:
    """Return whether so many of these are entries that the others may be damaged ones: three of four."""
    counts = Counter(entries)
    wrong, most = 0, (len(entries) - counts[0]) // 4
    for entry, count in counts.items():
        if entry and not is_entry(entry, file_size):
            wrong += count
            if wrong > most:
                return False
    return True


def measure(read: ReadAt, start: int, file_size: int, stop: int) -> Table:
    """Return what of *start* to *stop* is entries, up to the first 64 KiB that are not, or to a long gap."""
    owners = Owners()
    at = end = start
    while at < min(stop, file_size) and at - end < _MAX_GAP:
        data = read(min(_PIECE, stop - at), at)
        data = data[: len(data) & -c.BAT_ENTRY_SIZE]
        if not data:
            break
        if data.count(0) < len(data):
            entries = integers("Q", data)
            if not _are_entries(entries, file_size):
                break
            owners.add((at - start) // c.BAT_ENTRY_SIZE, entries, file_size)
            end = start + (owners.last + 1) * c.BAT_ENTRY_SIZE
        at += len(data)
    return Table(start, end, owners)


def choose_table(tables: list[Table], metadata_at: int | None, file_size: int) -> Table | None:
    """
    Return which of the tables is the BAT of the file.

    One that lies in a block of another is content, and one most of whose blocks share a place, lie on
    itself or on the metadata is none.  Of what is left the one with the most blocks counts.
    """
    fit = []
    for table in tables:
        places = sorted(set(table.owners.places))
        taken = {metadata_at, *range(table.start, table.end, c.MIB)}
        wrong = len(table.owners.places) - len(places) + sum(place in taken for place in places)
        if 2 * wrong <= len(table.owners.places):
            size = guess_parameters(table.owners, (), file_size).block_size
            fit.append((table, places, size))
    outer = [
        one
        for one in fit
        if not any(
            _lies_in_block(one[0].start, places, size) for other, places, size in fit if other is not one[0]
        )
    ]
    best = max(outer or fit, key=lambda one: len(one[1]), default=None)
    return None if best is None else best[0]


def _lies_in_block(at: int, places: list[int], size: int) -> bool:
    number = bisect_right(places, at) - 1
    return number >= 0 and at < places[number] + size


def choose_metadata(places: list[int], table: Table | None, file_size: int) -> int | None:
    """Return which of the metadata tables is the file's: the first that is not content of a block."""
    if table is None:
        return min(places, default=None)
    size = guess_parameters(table.owners, (), file_size).block_size
    owned = sorted(set(table.owners.places))
    return next((at for at in places if not _lies_in_block(at, owned, size)), None)
