"""
Who lies on whom: blocks and bitmaps that want a place which belongs to another (MS-VHDX 2.5.1).

The map of a file only says that a place was taken.  Who has it is found out by a second pass over
the table, and only where something clashes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvhdx._core.checks.collector import LIMIT
from pyvhdx._core.checks.occupancy import unit_of
from pyvhdx._core.rules import CORRUPT, WARNING
from pyvhdx.format import constants as c

if TYPE_CHECKING:
    from array import array

    from pyvhdx._core.checks.collector import Collector
    from pyvhdx._core.checks.table import Table

_CODE = "BAT-OVERLAP"
_PAGE_ENTRIES = 4096 // c.BAT_ENTRY_SIZE
_OWNING = frozenset((1, 3, 6, 7))


@dataclass(frozen=True)
class _Clash:
    """A block or bitmap, by its index in the table, whose *count* MiB from *unit* on are another's too."""

    index: int
    name: str
    unit: int
    count: int
    is_anchor: bool

    @property
    def units(self) -> range:
        return range(self.unit, self.unit + self.count)


class Overlaps:
    """Collects the clashes of one file; the first thousand are described."""

    def __init__(self, table: Table, collector: Collector) -> None:
        self._table = table
        self._collector = collector
        self._count = table.geometry.block_size // c.ALIGNMENT
        self._clashes: list[_Clash] = []
        self._skipped = Counter[bool]()

    @property
    def wants_more(self) -> bool:
        """Whether another clash would be described."""
        return len(self._clashes) < LIMIT

    def add_block(self, block: int, unit: int, *, is_anchor: bool = False) -> None:
        """Take note of a block; an anchor is one without content that keeps its space."""
        index = self._table.geometry.payload_index(block)
        self._add(_Clash(index, f"BAT entry of block {block}", unit, self._count, is_anchor))

    def add_bitmap(self, chunk: int, unit: int) -> None:
        """Take note of a sector bitmap."""
        index = self._table.geometry.bitmap_index(chunk)
        self._add(_Clash(index, f"BAT entry of sector bitmap {chunk}", unit, 1, is_anchor=False))

    def skip(self, count: int, *, are_anchors: bool) -> None:
        """Count blocks that nobody describes."""
        self._skipped[are_anchors] += count

    def _add(self, clash: _Clash) -> None:
        if self.wants_more:
            self._clashes.append(clash)
        else:
            self._skipped[clash.is_anchor] += 1

    def report(self) -> None:
        """Make findings of the clashes, each with who else has the place."""
        owners = self._find_owners()
        shifted = set()
        for clash in self._clashes:
            other, name = owners.get(clash.index, (-1, "another structure"))
            self._collector.found(
                _CODE,
                self._table.place(clash.index),
                f"it lies at {clash.unit << 20:#x}, on the {name}",
                structure=clash.name,
                severity=WARNING if clash.is_anchor else CORRUPT,
                repairable=clash.is_anchor,
            )
            page = clash.index // _PAGE_ENTRIES
            if other == clash.index - 1 and other // _PAGE_ENTRIES == page and page not in shifted:
                shifted.add(page)
                self._judge_shift(clash)
        for is_anchor, count in self._skipped.items():
            self._collector.skip(_CODE, WARNING if is_anchor else CORRUPT, count)

    def _find_owners(self) -> dict[int, tuple[int, str]]:
        """Return, by the index of a clash, the index and the name of the first other owner of its place."""
        owners: dict[int, tuple[int, str]] = {}
        by_unit: dict[int, list[_Clash]] = {}
        for clash in self._clashes:
            owner = self._table.owner_at(clash.unit, clash.count)
            if owner is not None:
                owners[clash.index] = -1, owner
                continue
            for unit in clash.units:
                by_unit.setdefault(unit, []).append(clash)
        if not by_unit:
            return owners
        for number, index, entries in self._table.entries():
            self._match(number, index, entries, by_unit, owners)
            if not by_unit:
                break
        return owners

    def _match(
        self,
        number: int,
        index: int | None,
        entries: array[int],
        by_unit: dict[int, list[_Clash]],
        owners: dict[int, tuple[int, str]],
    ) -> None:
        reach = range(self._count if index is None else 1)
        for at, entry in enumerate(entries):
            first = unit_of(entry)
            touched = [clash for step in reach for clash in by_unit.get(first + step, ())]
            if not touched or entry & c.STATE_MASK not in _OWNING:
                continue
            mine = self._table.geometry.payload_index(number + at) if index is None else index
            name = f"block {number + at}" if index is None else f"sector bitmap {number}"
            for clash in dict.fromkeys(touched):
                if clash.index != mine:
                    owners[clash.index] = mine, name
                    self._forget(clash, by_unit)

    def _forget(self, clash: _Clash, by_unit: dict[int, list[_Clash]]) -> None:
        for unit in clash.units:
            by_unit[unit].remove(clash)
            if not by_unit[unit]:
                del by_unit[unit]

    def _judge_shift(self, clash: _Clash) -> None:
        if not self._table.creator.startswith("QEMU"):
            return
        place = self._table.place(clash.index)
        if self._table.read(8, place) == self._table.read(8, place - c.BAT_ENTRY_SIZE):
            self._collector.found(
                "BAT-SHIFT",
                place,
                "this entry and the one before are equal: QEMU before 7.2.2 shifted entries when it wrote a page",
            )
