"""
The block allocation table, and who owns what of the file (MS-VHDX 2.5).

The table comes in runs of entries, chunk by chunk.  A run of blocks that are all FULLY_PRESENT is
judged as a whole, whatever their order; entries are taken apart one by one only where they differ.
Blocks without content that keep their space come last: where such a one shares a place, it is the
one that may go.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core.bat import pieces
from pyvhdx._core.checks.bitmaps import check_bitmap
from pyvhdx._core.checks.collector import LIMIT
from pyvhdx._core.checks.occupancy import Occupancy, unit_of
from pyvhdx._core.rules import WARNING
from pyvhdx.format import constants as c
from pyvhdx.format.table import integers, little_endian

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pyvhdx._core.checks.collector import Collector
    from pyvhdx._core.geometry import Geometry
    from pyvhdx._core.regions import Span
    from pyvhdx._types import NextData, ReadAt

_FULL = int(c.PayloadState.FULLY_PRESENT)
_PARTIAL = int(c.PayloadState.PARTIALLY_PRESENT)
_ANCHORS = (int(c.PayloadState.UNDEFINED), int(c.PayloadState.UNMAPPED))
_OF_NOBODY = (int(c.PayloadState.NOT_PRESENT), int(c.PayloadState.ZERO))
_DRAFT_UNMAPPED = 5
_PAGE = 4096


class Table(NamedTuple):
    """The table of one file and what its entries are measured by; *spans* are regions and log."""

    read: ReadAt
    next_data: NextData
    offset: int
    length: int
    geometry: Geometry
    kind: str
    creator: str
    file_size: int
    spans: list[Span]

    @property
    def needed(self) -> int:
        """How many entries the disk needs."""
        return self.geometry.entries_needed(differencing=self.kind == "differencing")

    @property
    def held(self) -> int:
        """How many entries the region holds, as far as it lies in the file."""
        end = min(self.offset + self.length, self.file_size)
        return max(0, end - self.offset) // c.BAT_ENTRY_SIZE

    def place(self, index: int) -> int:
        """Return the file offset of an entry."""
        return self.offset + index * c.BAT_ENTRY_SIZE

    def all_pieces(self) -> Iterator[tuple[int, array[int]]]:
        return pieces(self.read, self.next_data, self.offset, min(self.needed, self.held))

    def segments(self, first: int, entries: array[int]) -> Iterator[tuple[int, int | None, array[int]]]:
        """
        Take a run of entries apart: yield (block, None, entries) and (chunk, index, one entry).

        The first are payload blocks from *block* on, the second the slot of a chunk's sector bitmap.
        Entries that no block needs are yielded with the number of a block behind the last.
        """
        ratio = self.geometry.chunk_ratio
        at = 0
        while at < len(entries):
            chunk, position = divmod(first + at, ratio + 1)
            if position == ratio:
                yield chunk, first + at, entries[at : at + 1]
                at += 1
                continue
            stop = min(len(entries), at + ratio - position)
            block = chunk * ratio + position
            if block < self.geometry.block_count < block + stop - at:
                stop = at + self.geometry.block_count - block
            yield block, None, entries[at:stop]
            at = stop


class Usage(NamedTuple):
    """What the table says of the file: sizes in bytes, numbers of blocks."""

    allocated: int
    end: int
    unowned: int
    slack: int
    anchored: int
    unused_bitmaps: int


@dataclass(frozen=True)
class _Clash:
    """A block or bitmap, by its index in the table, that lies where another structure lies."""

    index: int
    name: str
    unit: int
    count: int
    is_anchor: bool


class BatCheck:
    """One pass over the table of a file, and more where something overlaps or keeps space."""

    def __init__(self, table: Table, collector: Collector, advance: Callable[[int], object]) -> None:
        self._table = table
        self._geometry = table.geometry
        self._differencing = table.kind == "differencing"
        self._collector = collector
        self._advance = advance
        self._map = Occupancy(table.file_size)
        self._count = table.geometry.block_size // c.ALIGNMENT
        self._last_unit = (table.file_size - table.geometry.block_size) // c.ALIGNMENT
        self._spans = [span for span in table.spans if span.start < span.end]
        self._full = 0
        self._allocated = 0
        self._clashes: list[_Clash] = []
        self._clash_count = Counter[bool]()
        self._has_anchors = False
        self._anchored = 0
        self._unused_bitmaps = 0
        self.partial_without_parent = 0
        self.slots_present = 0
        # The chunk whose payload entries were read last, and its PARTIALLY_PRESENT blocks.
        self._chunk = -1
        self._partial: list[int] = []
        self._masks: dict[int, tuple[int, int, int]] = {}

    def run(self) -> Usage:
        table, collector = self._table, self._collector
        self._map.claim(0, c.HEADER_SECTION_SIZE // c.ALIGNMENT)
        for span in self._spans:
            self._map.claim(unit_of(span.start), unit_of(span.end + c.ALIGNMENT - 1) - unit_of(span.start))
        self._check_size()
        done = 0
        for first, entries in table.all_pieces():
            for number, index, part in table.segments(first, entries):
                if index is not None:
                    self._slot(number, index, part[0])
                elif number < self._geometry.block_count:
                    self._blocks(number, part)
                else:
                    self._padding(first_index=self._geometry.payload_index(number), entries=part)
            self._advance((first + len(entries) - done) * c.BAT_ENTRY_SIZE)
            done = first + len(entries)
        self._advance((min(table.needed, table.held) - done) * c.BAT_ENTRY_SIZE)
        self._finish_chunks(self._geometry.chunk_count)
        self._check_padding()
        if self._has_anchors:
            self._check_anchors()
        self._name_clashes()
        if table.kind == "fixed" and self._full < self._geometry.block_count:
            collector.found(
                "BAT-FIXED",
                table.offset,
                f"{self._geometry.block_count - self._full} of the {self._geometry.block_count} blocks of this "
                "fixed disk are not FULLY_PRESENT",
            )
        return self._usage()

    def _check_size(self) -> None:
        table = self._table
        if table.needed * c.BAT_ENTRY_SIZE > table.length:
            self._collector.found(
                "BAT-SIZE",
                table.offset,
                f"{table.length} bytes do not hold the {table.needed} entries that the disk needs",
            )
        elif table.held < table.needed and table.offset + table.length <= c.round_up(
            table.file_size, c.ALIGNMENT
        ):
            self._collector.found("BAT-CUT", table.place(table.held), "the file ends before this entry")

    # -- payload blocks -----------------------------------------------------------------------

    def _blocks(self, block: int, entries: array[int]) -> None:
        count = len(entries)
        size = self._geometry.block_size
        if self._differencing:
            self._finish_chunks(block // self._geometry.chunk_ratio)
        first = entries[0]
        unit = unit_of(first)
        if (
            first == unit << 20 | _FULL
            and unit
            and unit + (count - 1) * self._count <= self._last_unit
            and entries == array("Q", range(first, first + size * count, size))
            and self._map.is_free(unit, count * self._count)
        ):
            # Most files have their blocks one behind the other.
            self._map.claim(unit, count * self._count)
            self._full += count
            self._allocated += count
            return
        number = int.from_bytes(little_endian(entries), "little")
        if not number:
            return
        low_mask, unit_mask, all_full = self._lanes(count)
        low_number = number & low_mask
        units = integers("Q", (number >> 20 & unit_mask).to_bytes(8 * count, "little"))
        if low_number == all_full:
            self._full += count
            self._stored(block, range(count), units)
        else:
            self._unlike_blocks(block, integers("Q", low_number.to_bytes(8 * count, "little")), units)

    def _lanes(self, count: int) -> tuple[int, int, int]:
        """Return, for so many entries as one number, the masks of low bits and places, and of FULLY_PRESENT."""
        if count not in self._masks:
            ones = int.from_bytes(b"\1\0\0\0\0\0\0\0" * count, "little")
            self._masks[count] = ones * (c.ALIGNMENT - 1), ones * ((1 << 44) - 1), ones * _FULL
        return self._masks[count]

    def _unlike_blocks(self, block: int, lows: array[int], units: array[int]) -> None:
        for low, count in Counter(lows).items():
            self._judge_low_bits(block, lows, low, count)
        if not any(units) and not {low & c.STATE_MASK for low in lows} & {_FULL, _PARTIAL}:
            return
        stored, places = [], []
        for number, (low, unit) in enumerate(zip(lows, units, strict=True)):
            state = low & c.STATE_MASK
            if state in (_FULL, _PARTIAL):
                stored.append(number)
                places.append(unit)
                if state == _FULL:
                    self._full += 1
                elif self._differencing:
                    self._partial.append(block + number)
            elif unit:
                if state in _OF_NOBODY:
                    if self._collector.wants("BAT-STALE-OFFSET"):
                        self._bad_block(
                            "BAT-STALE-OFFSET",
                            block + number,
                            f"it is absent, and has the offset {unit << 20:#x}",
                        )
                    else:
                        self._collector.skip("BAT-STALE-OFFSET", WARNING, 1)
                else:
                    self._has_anchors = True
        if stored:
            self._stored(block, stored, places)

    def _judge_low_bits(self, block: int, lows: array[int], low: int, count: int) -> None:
        """Judge state and reserved bits of the *count* entries that have the low bits *low*."""
        state = low & c.STATE_MASK
        if low & c.RESERVED_MASK:
            self._report_low("BAT-RESERVED", WARNING, block, lows, low, count, "reserved bits are set", True)
        if state == _PARTIAL and not self._differencing:
            self.partial_without_parent += count
            message = "its state PARTIALLY_PRESENT belongs in differencing files only"
            self._report_low("BAT-STATE", "corrupt", block, lows, low, count, message, False)
        elif state in (4, _DRAFT_UNMAPPED):
            self._report_low(
                "BAT-STATE",
                "corrupt",
                block,
                lows,
                low,
                count,
                f"its state {state} is reserved",
                state == _DRAFT_UNMAPPED,
            )

    def _report_low(
        self,
        code: str,
        severity: str,
        block: int,
        lows: array[int],
        low: int,
        count: int,
        message: str,
        repairable: bool,
    ) -> None:
        at = -1
        while count and self._collector.wants(code):
            at = lows.index(low, at + 1)
            self._bad_block(code, block + at, message, severity, repairable=repairable)
            count -= 1
        self._collector.skip(code, severity, count)

    def _stored(self, block: int, numbers: Sequence[int], units: Sequence[int]) -> None:
        """Enter blocks with content: *numbers* count from *block*."""
        self._allocated += len(numbers)
        if max(units) > self._last_unit or not min(units):
            kept_numbers, kept_units = [], []
            for number, unit in zip(numbers, units, strict=True):
                if unit and unit <= self._last_unit:
                    kept_numbers.append(number)
                    kept_units.append(unit)
                else:
                    self._misplaced(block + number, unit)
            numbers, units = kept_numbers, kept_units
        for at in self._map.claim_all(units, self._count):
            self._clash(block + numbers[at], units[at], is_anchor=False)

    def _misplaced(self, block: int, unit: int) -> None:
        place = unit << 20
        if not unit:
            self._bad_block(
                "BAT-OFFSET", block, f"it is present at {place:#x}, in the header section", "corrupt"
            )
            return
        if place + self._geometry.used_length(block) <= self._table.file_size:
            self._bad_block(
                "BAT-LAST-BLOCK",
                block,
                f"it lies at {place:#x}, and the file ends inside it at {self._table.file_size:#x}, behind the "
                "end of the disk",
            )
        else:
            self._bad_block(
                "BAT-RANGE",
                block,
                f"it lies at {place:#x}, and the file ends at {self._table.file_size:#x}",
                "corrupt",
            )
        if self._map.claim(unit, self._count):
            self._clash(block, unit, is_anchor=False)

    # -- sector bitmaps -----------------------------------------------------------------------

    def _slot(self, chunk: int, index: int, entry: int) -> None:
        if self._differencing:
            self._finish_chunks(chunk)
            self._finish_chunk(chunk, index, entry)
            self._chunk = chunk + 1
        elif entry:
            self.slots_present += entry & c.STATE_MASK == c.BitmapState.PRESENT
            self._collector.found(
                "BITMAP-SLOT",
                self._table.place(index),
                f"the slot of sector bitmap {chunk} holds {entry:#x}, in a file without a parent",
                repairable=True,
            )

    def _finish_chunks(self, chunk: int) -> None:
        """Finish the chunks before *chunk* whose bitmap entry was in a hole of the file."""
        if self._differencing and self._chunk < chunk:
            if self._partial:
                self._finish_chunk(self._chunk, self._geometry.bitmap_index(self._chunk), 0)
            self._chunk = chunk

    def _finish_chunk(self, chunk: int, index: int, entry: int) -> None:
        partial, self._partial = self._partial, []
        state, place = entry & c.STATE_MASK, entry & c.OFFSET_MASK
        at = self._table.place(index)
        name = f"BAT entry of sector bitmap {chunk}"
        found = self._collector.found
        if entry & c.RESERVED_MASK:
            found("BAT-RESERVED", at, "reserved bits are set", structure=name)
        if state not in (c.BitmapState.NOT_PRESENT, c.BitmapState.PRESENT, _PARTIAL) and not partial:
            found("BITMAP-STATE", at, f"its state {state} is reserved", structure=name)
        if state == _PARTIAL:
            message = "its state is 7, which is read as PRESENT"
            found("BITMAP-STATE", at, message, structure=name, severity=WARNING)
        if state not in (c.BitmapState.PRESENT, _PARTIAL):
            if place and state == c.BitmapState.NOT_PRESENT:
                found("BAT-STALE-OFFSET", at, f"it is absent, and has the offset {place:#x}", structure=name)
            wrong = f"its state is {state}" if partial else ""
        else:
            wrong = self._misplaced_bitmap(place)
            if not wrong and self._map.claim(unit_of(place), 1):
                self._clash(index, unit_of(place), is_anchor=False, bitmap=chunk)
        if wrong:
            if partial:
                count = f" and {len(partial) - 1} more" if len(partial) > 1 else ""
                wrong += f", and block {partial[0]}{count} is PARTIALLY_PRESENT"
            found("BITMAP-ENTRY", at, wrong, structure=name, repairable=not partial)
        elif state in (c.BitmapState.PRESENT, _PARTIAL):
            self._unused_bitmaps += not partial
            check_bitmap(
                self._table.read,
                self._table.next_data,
                place,
                chunk,
                partial,
                self._geometry,
                self._collector,
            )
            self._advance(c.SECTOR_BITMAP_SIZE)

    def _misplaced_bitmap(self, place: int) -> str:
        if place < c.HEADER_SECTION_SIZE:
            return f"it is present at {place:#x}, in the header section"
        if place + c.SECTOR_BITMAP_SIZE > self._table.file_size:
            return f"it lies at {place:#x}, and the file ends at {self._table.file_size:#x}"
        owner = self._span_at(unit_of(place), 1)
        return f"it lies at {place:#x}, on the {owner}" if owner else ""

    # -- padding ------------------------------------------------------------------------------

    def _padding(self, first_index: int, entries: array[int]) -> None:
        if not any(entries):
            return
        for index, entry in enumerate(entries, first_index):
            if entry:
                self.slots_present += entry & c.STATE_MASK == c.BitmapState.PRESENT and not self._differencing
                self._collector.found(
                    "BAT-PADDING", self._table.place(index), f"no block needs it, and it holds {entry:#x}"
                )

    def _check_padding(self) -> None:
        table = self._table
        if table.held > table.needed:
            for first, entries in pieces(
                table.read, table.next_data, table.place(table.needed), table.held - table.needed
            ):
                self._padding(table.needed + first, entries)

    # -- space --------------------------------------------------------------------------------

    def _check_anchors(self) -> None:
        """Enter what blocks without content, or with a reserved state, keep."""
        size = self._geometry.block_size
        for block, entry in self._entries_by_block():
            state, unit = entry & c.STATE_MASK, unit_of(entry)
            if not unit or state in (_FULL, _PARTIAL) or state in _OF_NOBODY:
                continue
            if state not in _ANCHORS:
                self._map.claim(unit, self._count)
            elif (unit << 20) + size > self._table.file_size:
                self._bad_block(
                    "BAT-RANGE",
                    block,
                    f"it keeps space at {unit << 20:#x}, and the file ends at {self._table.file_size:#x}",
                    WARNING,
                    repairable=True,
                )
            elif not self._map.is_free(unit, self._count):
                self._clash(block, unit, is_anchor=True)
            else:
                self._map.claim(unit, self._count)
                self._anchored += size

    def _entries_by_block(self) -> Iterator[tuple[int, int]]:
        for first, entries in self._table.all_pieces():
            for number, index, part in self._table.segments(first, entries):
                if index is None and number < self._geometry.block_count:
                    yield from enumerate(part, number)

    def _clash(self, number: int, unit: int, *, is_anchor: bool, bitmap: int | None = None) -> None:
        """Take note of a block *number*, or of a bitmap with the index *number*."""
        self._clash_count[is_anchor] += 1
        if len(self._clashes) < LIMIT:
            if bitmap is None:
                index, name = self._geometry.payload_index(number), f"BAT entry of block {number}"
            else:
                index, name = number, f"BAT entry of sector bitmap {bitmap}"
            count = self._count if bitmap is None else 1
            self._clashes.append(_Clash(index, name, unit, count, is_anchor))

    def _name_clashes(self) -> None:
        """Find out who else lies where blocks clash: a second pass, and only then."""
        if not self._clashes:
            return
        owners: dict[int, tuple[int, str]] = {}  # index of the clash -> index and name of the other owner
        for clash in self._clashes:
            span = self._span_at(clash.unit, clash.count)
            if span is not None:
                owners[clash.index] = -1, span
        wanted = {clash.index: clash for clash in self._clashes if clash.index not in owners}
        by_unit: dict[int, list[_Clash]] = {}
        for clash in wanted.values():
            for unit in range(clash.unit, clash.unit + clash.count):
                by_unit.setdefault(unit, []).append(clash)
        for first, entries in self._table.all_pieces() if wanted else ():
            if not wanted:
                break
            for number, index, part in self._table.segments(first, entries):
                self._find_owners(number, index, part, by_unit, wanted, owners)
        shifted = set()
        for clash in self._clashes:
            other, name = owners.get(clash.index, (-1, "another structure"))
            message = f"it lies at {clash.unit << 20:#x}, on the {name}"
            self._collector.found(
                "BAT-OVERLAP",
                self._table.place(clash.index),
                message,
                structure=clash.name,
                severity=WARNING if clash.is_anchor else None,
                repairable=clash.is_anchor,
            )
            page = clash.index * c.BAT_ENTRY_SIZE // _PAGE
            if other == clash.index - 1 and other * c.BAT_ENTRY_SIZE // _PAGE == page and page not in shifted:
                shifted.add(page)
                self._judge_shift(clash)
        for is_anchor, count in self._clash_count.items():
            kept = sum(clash.is_anchor == is_anchor for clash in self._clashes)
            self._collector.skip("BAT-OVERLAP", WARNING if is_anchor else "corrupt", count - kept)

    def _find_owners(
        self,
        number: int,
        index: int | None,
        entries: array[int],
        by_unit: dict[int, list[_Clash]],
        wanted: dict[int, _Clash],
        owners: dict[int, tuple[int, str]],
    ) -> None:
        count = self._count if index is None else 1
        if index is not None and not self._differencing:
            return
        if index is None and number >= self._geometry.block_count:
            return
        for at, entry in enumerate(entries):
            if entry & c.STATE_MASK not in (_FULL, _PARTIAL, *_ANCHORS):
                continue
            first = unit_of(entry)
            units = (first,) if count == 1 else range(first, first + count)
            touched = [clash for unit in units if unit in by_unit for clash in by_unit[unit]]
            if not touched:
                continue
            mine = self._geometry.payload_index(number + at) if index is None else index
            name = f"block {number + at}" if index is None else f"sector bitmap {number}"
            for clash in touched:
                if clash.index != mine and clash.index in wanted:
                    del wanted[clash.index]
                    owners[clash.index] = mine, name
                    for unit in range(clash.unit, clash.unit + clash.count):
                        by_unit[unit].remove(clash)
                        if not by_unit[unit]:
                            del by_unit[unit]

    def _judge_shift(self, clash: _Clash) -> None:
        if not self._table.creator.startswith("QEMU"):
            return
        if self._table.read(8, self._table.place(clash.index)) == self._table.read(
            8, self._table.place(clash.index - 1)
        ):
            self._collector.found(
                "BAT-SHIFT",
                self._table.place(clash.index),
                "this entry and the one before are equal: QEMU before 7.2.2 shifted entries when it wrote a page",
            )

    def _span_at(self, unit: int, count: int) -> str | None:
        start, end = unit << 20, unit + count << 20
        if start < c.HEADER_SECTION_SIZE:
            return "header section"
        return next((span.owner for span in self._spans if span.start < end and start < span.end), None)

    def _usage(self) -> Usage:
        table, used, end = self._table, self._map.used(), self._map.end()
        slack = max(0, table.file_size - (end << 20))
        needed = c.HEADER_SECTION_SIZE + sum(span.end - span.start for span in self._spans)
        needed += self._geometry.block_count * self._geometry.block_size
        if table.kind == "fixed":
            if table.file_size < needed:
                self._collector.found(
                    "FILE-FIXED-SIZE",
                    table.file_size,
                    f"every block of this fixed disk needs a file of {needed:#x} bytes",
                )
            slack = max(0, table.file_size - max(end << 20, needed))
        usage = Usage(
            allocated=self._allocated,
            end=min(end << 20, table.file_size),
            unowned=(end - used) << 20,
            slack=slack,
            anchored=self._anchored,
            unused_bitmaps=self._unused_bitmaps << 20,
        )
        for code, amount, what in (
            ("BITMAP-UNUSED", usage.unused_bitmaps, "in sector bitmaps that no block needs"),
            ("SPACE-UNOWNED", usage.unowned, "between structures belong to nothing"),
            ("SPACE-SLACK", usage.slack, "behind the last structure belong to nothing"),
            ("SPACE-ANCHORS", usage.anchored, "are kept by blocks without content"),
        ):
            if amount:
                place = {"SPACE-SLACK": usage.end, "SPACE-UNOWNED": self._map.first_free() << 20}
                self._collector.found(code, place.get(code, table.offset), f"{amount} bytes {what}")
        return usage

    def _bad_block(
        self,
        code: str,
        block: int,
        message: str,
        severity: str = WARNING,
        *,
        repairable: bool | None = None,
    ) -> None:
        if not self._collector.wants(code):
            self._collector.skip(code, severity, 1)
            return
        self._collector.found(
            code,
            self._table.place(self._geometry.payload_index(block)),
            message,
            severity=severity,
            structure=f"BAT entry of block {block}",
            repairable=repairable,
        )
