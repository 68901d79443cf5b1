"""
Writing a new file in bulk.

Nobody can see the file before it is complete, so it needs no log: payload first, then the tables
that lead to it and the headers, and the identifier, without which it is no VHDX file, last of all.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from pyvhdx._core import layout as lay
from pyvhdx.format import constants as c
from pyvhdx.format.table import little_endian

if TYPE_CHECKING:
    from pyvhdx._core.geometry import Geometry
    from pyvhdx._types import Buffer
    from pyvhdx.storage import Storage

_ENTRIES = 512
_ZEROS = bytes(1 << 20)


class Builder:
    """
    Puts a disk into an empty storage: `write` in ascending order, then `finish`.

    *size_known* tells whether the size in *disk* is final.  If not, blocks come before the BAT, and
    `finish` is told the size.
    """

    def __init__(self, storage: Storage, disk: lay.Disk, *, size_known: bool = True) -> None:
        self._storage = storage
        self._disk = disk
        self._layout = lay.Layout.of(disk.log_size, len(lay.metadata(disk)))
        self._block_shift = disk.geometry.block_shift
        self._pages: dict[int, array[int]] = {}
        self._current = (-1, 0)  # the block written last, and its place
        self._bat: tuple[int, int] | None = None
        self._next = self._layout.end
        if size_known:
            self._bat = self._take_bat(disk.geometry)
        self._first_block = self._next
        # Real zeros, so that no later commit fails for want of space.
        for offset in range(self._layout.log_offset, self._layout.metadata_offset, len(_ZEROS)):
            storage.write_at(_ZEROS, offset)

    def _take_bat(self, geometry: Geometry) -> tuple[int, int]:
        offset, length = self._next, c.round_up(geometry.bat_size(), c.ALIGNMENT)
        self._next += length
        return offset, length

    def write(self, data: Buffer, offset: int) -> None:
        """Write *data*, which lies in one block, at *offset* of the virtual disk."""
        block = offset >> self._block_shift
        within = offset - (block << self._block_shift)
        self._storage.write_at(data, self._place(block) + within)

    def _place(self, block: int) -> int:
        size = self._disk.block_size
        if self._disk.kind == "fixed" and self._bat is not None:
            return self._first_block + block * size
        if self._current[0] != block:  # blocks come in order: no older one comes again
            self._current = (block, self._next)
            self._enter(block, self._next)
            self._next += size
        return self._current[1]

    def _enter(self, block: int, place: int) -> None:
        # The index depends on the chunk ratio only, not on the size.
        index = self._disk.geometry.payload_index(block)
        page = self._pages.setdefault(index // _ENTRIES, array("Q", bytes(8 * _ENTRIES)))
        page[index % _ENTRIES] = lay.present(place)

    def finish(self, disk: lay.Disk | None = None, *, flush: bool = True) -> int:
        """
        Write everything but the payload and return the length of the file in bytes.

        *disk* is given where its size was not known at first.  With *flush* there is a barrier
        before the identifier, for a storage that others can see.
        """
        disk = disk or self._disk
        geometry = disk.geometry
        storage = self._storage
        if self._bat is None and disk.kind == "fixed":
            for block in range(geometry.block_count):
                if not self._is_entered(block):
                    place, self._next = self._next, self._next + disk.block_size
                    self._enter(block, place)
        bat_offset, bat_length = self._bat or self._take_bat(geometry)
        if disk.kind == "fixed" and self._bat is not None:
            self._next = self._first_block + geometry.block_count * disk.block_size
            offset = bat_offset
            for entries in lay.fixed_bat(geometry, self._first_block):
                storage.write_at(little_endian(entries), offset)
                offset += len(entries) * c.BAT_ENTRY_SIZE
        for number, page in sorted(self._pages.items()):
            storage.write_at(little_endian(page), bat_offset + number * _ENTRIES * c.BAT_ENTRY_SIZE)
        storage.truncate(self._next)
        storage.write_at(lay.metadata(disk), self._layout.metadata_offset)
        for offset, table in lay.region_tables(self._layout, bat_offset, bat_length):
            storage.write_at(table, offset)
        for offset, header in lay.headers(disk, self._layout):
            storage.write_at(header, offset)
        if flush:
            storage.flush()
        storage.write_at(lay.identifier(disk), c.IDENTIFIER_OFFSET)
        return self._next

    def _is_entered(self, block: int) -> bool:
        index = self._disk.geometry.payload_index(block)
        page = self._pages.get(index // _ENTRIES)
        return page is not None and page[index % _ENTRIES] != 0
