"""
The block allocation table, and who owns what of the file (MS-VHDX 2.5).

The table comes in runs of entries, chunk by chunk.  A run of blocks that are all FULLY_PRESENT is
judged as a whole, whatever their order; entries are taken apart one by one only where they differ.
Blocks without content that keep their space come last: where such a one shares a place, it is the
one that may go.
"""

from __future__ import annotations

from array import array
from itertools import compress, islice
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core.bat import pieces
from pyvhdx._core.checks.bitmaps import check_bitmap
from pyvhdx._core.checks.occupancy import Occupancy, unit_of
from pyvhdx._core.checks.overlaps import Overlaps
from pyvhdx._core.rules import CORRUPT, WARNING
from pyvhdx.format import constants as c
from pyvhdx.format.table import integers, little_endian

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyvhdx._core.checks.collector import Collector
    from pyvhdx._core.checks.table import Table

_FULL = int(c.PayloadState.FULLY_PRESENT)
_PARTIAL = int(c.PayloadState.PARTIALLY_PRESENT)
_STORED = (_FULL, _PARTIAL)
_ANCHORS = (int(c.PayloadState.UNDEFINED), int(c.PayloadState.UNMAPPED))
_OF_NOBODY = (int(c.PayloadState.NOT_PRESENT), int(c.PayloadState.ZERO))
_DRAFT_UNMAPPED = 5
_RESERVED = (4, _DRAFT_UNMAPPED)
_KEEPING = (*_ANCHORS, *_RESERVED)
_SHOWN = 10
_STATE_OF = bytes(byte & c.STATE_MASK for byte in range(256))
_SELECT: dict[tuple[int, ...], bytes] = {}


class Usage(NamedTuple):
    """What the table says of the file: sizes in bytes, numbers of blocks; *space* is who owns what."""

    allocated: int
    end: int
    unowned: int
    slack: int
    anchored: int
    unused_bitmaps: int
    space: Occupancy


class _Lanes(NamedTuple):
    """Masks for a run of entries taken as one number, and the number of a run that is all FULLY_PRESENT."""

    low: int
    reserved: int
    unit: int
    full: int


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
        self._overlaps = Overlaps(table, collector)
        self._full = 0
        self._allocated = 0
        self._has_anchors = False
        self._anchored = 0
        self._unused_bitmaps = 0
        self.partial_without_parent = 0
        self.slots_present = 0
        # The chunk whose payload entries were read last, and its PARTIALLY_PRESENT blocks.
        self._chunk = -1
        self._partial: list[int] = []
        self._masks: dict[int, _Lanes] = {}

    def run(self) -> Usage:
        table, collector = self._table, self._collector
        self._map.claim(0, c.HEADER_SECTION_SIZE // c.ALIGNMENT)
        for span in table.spans:
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
        self._overlaps.report()
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
        raw = little_endian(entries)
        number = int.from_bytes(raw, "little")
        if not number:
            return
        lanes = self._lanes(count)
        units = self._units(number, count)
        low_bits = number & lanes.low
        if low_bits == lanes.full:
            self._full += count
            self._stored(block, range(count), units)
            return
        states = raw[::8].translate(_STATE_OF)
        if low_bits & lanes.reserved:
            self._reserved(block, integers("Q", (low_bits & lanes.reserved).to_bytes(8 * count, "little")))
        self._states(block, states, units)

    def _units(self, number: int, count: int) -> array[int]:
        """Return the places of a run of *count* entries, taken as one number, in MiB."""
        return integers("Q", (number >> 20 & self._lanes(count).unit).to_bytes(8 * count, "little"))

    def _lanes(self, count: int) -> _Lanes:
        if count not in self._masks:
            ones = int.from_bytes(b"\1\0\0\0\0\0\0\0" * count, "little")
            self._masks[count] = _Lanes(
                low=ones * (c.ALIGNMENT - 1),
                reserved=ones * c.RESERVED_MASK,
                unit=ones * ((1 << 44) - 1),
                full=ones * _FULL,
            )
        return self._masks[count]

    def _reserved(self, block: int, bits: array[int]) -> None:
        if not self._collector.wants("BAT-RESERVED"):
            self._collector.skip("BAT-RESERVED", WARNING, len(bits) - bits.count(0))
            return
        numbers = [number for number, one in enumerate(bits) if one]
        self._report("BAT-RESERVED", block, numbers, "reserved bits are set", WARNING, repairable=True)

    def _states(self, block: int, states: bytes, units: array[int]) -> None:
        """Judge blocks by their states, of which not all are FULLY_PRESENT."""
        self._full += states.count(_FULL)
        if not self._differencing:
            self.partial_without_parent += states.count(_PARTIAL)
            message = "its state PARTIALLY_PRESENT belongs in differencing files only"
            self._bad_states(block, states, units, _PARTIAL, message)
        for state in _RESERVED:
            self._bad_states(block, states, units, state, f"its state {state} is reserved")
        if self._differencing and _PARTIAL in states:
            self._partial += [block + number for number in _where(states, (_PARTIAL,))]
        stored = _where(states, _STORED)
        if stored:
            self._stored(block, stored, [units[number] for number in stored])
        if len(stored) < len(states) and any(units):
            stale = [number for number in _where(states, _OF_NOBODY) if units[number]]
            self._report("BAT-STALE-OFFSET", block, stale, "it is absent, and has an offset", WARNING)
            self._has_anchors |= any(units[number] for number in _where(states, _KEEPING))

    def _bad_states(self, block: int, states: bytes, units: array[int], state: int, message: str) -> None:
        if not self._collector.wants("BAT-STATE"):
            self._collector.skip("BAT-STATE", CORRUPT, states.count(state))
            return
        numbers = _where(states, (state,)) if state in states else []
        drafts: list[int] = []
        if state == _DRAFT_UNMAPPED:
            # A draft of the format had 5 for UNMAPPED; but at a place in the file there may be content.
            drafts = [number for number in numbers if not self._has_place(block + number, units[number])]
            numbers = sorted({*numbers} - {*drafts})
        self._report("BAT-STATE", block, numbers, message, CORRUPT, repairable=False)
        self._report("BAT-STATE", block, drafts, message, CORRUPT, repairable=True)

    def _has_place(self, block: int, unit: int) -> bool:
        return 0 < unit << 20 <= self._table.file_size - self._geometry.used_length(block)

    def _report(
        self,
        code: str,
        block: int,
        numbers: list[int],
        message: str,
        severity: str,
        *,
        repairable: bool | None = None,
    ) -> None:
        """Find the same of many blocks, whose *numbers* count from *block*."""
        for done, number in enumerate(numbers):
            if not self._collector.wants(code):
                self._collector.skip(code, severity, len(numbers) - done)
                return
            self._bad_block(code, block + number, message, severity, repairable=repairable)

    def _stored(self, block: int, numbers: Sequence[int], units: Sequence[int]) -> None:
        """Enter blocks with content: *numbers* count from *block*."""
        self._allocated += len(numbers)
        if max(units) > self._last_unit or not min(units):
            end = self._map.units
            outside = [number for number, unit in zip(numbers, units, strict=True) if unit >= end]
            self._report(
                "BAT-RANGE",
                block,
                outside,
                f"it lies behind the end of the file at {self._table.file_size:#x}",
                CORRUPT,
                repairable=False,
            )
            inside = []
            for number, unit in zip(numbers, units, strict=True):
                if 0 < unit <= self._last_unit:
                    inside.append((number, unit))
                elif unit < end:
                    self._misplaced(block + number, unit)
            numbers, units = [number for number, _ in inside], [unit for _, unit in inside]
        clashes = self._map.claim_all(units, self._count)
        self._add_clashes(block, numbers, units, clashes, are_anchors=False)

    def _add_clashes(
        self,
        block: int,
        numbers: Sequence[int],
        units: Sequence[int],
        clashes: list[int],
        *,
        are_anchors: bool,
    ) -> None:
        for done, at in enumerate(clashes):
            if not self._overlaps.wants_more:
                self._overlaps.skip(len(clashes) - done, are_anchors=are_anchors)
                return
            self._overlaps.add_block(block + numbers[at], units[at], is_anchor=are_anchors)

    def _misplaced(self, block: int, unit: int) -> None:
        place = unit << 20
        if not unit:
            self._bad_block(
                "BAT-OFFSET", block, f"it is present at {place:#x}, in the header section", CORRUPT
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
                CORRUPT,
            )
        if self._map.claim(unit, self._count):
            self._overlaps.add_block(block, unit)

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
                self._overlaps.add_bitmap(chunk, unit_of(place))
                return  # what stands there is another's
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
        owner = self._table.owner_at(unit_of(place), 1)
        return f"it lies at {place:#x}, on the {owner}" if owner else ""

    # -- padding ------------------------------------------------------------------------------

    def _padding(self, first_index: int, entries: array[int]) -> None:
        if not any(entries):
            return
        for index, entry in enumerate(entries, first_index):
            if entry:
                self.slots_present += entry & c.STATE_MASK == c.BitmapState.PRESENT and not self._differencing
                unit = unit_of(entry)
                # One that names a place of its own may mean that the size of the disk is what is wrong.
                is_hint = (
                    entry & c.STATE_MASK in _STORED
                    and 0 < unit <= self._last_unit
                    and self._map.is_free(unit, self._count)
                )
                self._collector.found(
                    "BAT-PADDING",
                    self._table.place(index),
                    f"no block needs it, and it holds {entry:#x}",
                    repairable=not is_hint,
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
        last, end = self._last_unit, self._map.units
        for first, index, part in self._table.entries():
            if index is not None:
                continue
            raw = little_endian(part)
            states = raw[::8].translate(_STATE_OF)
            places = self._units(int.from_bytes(raw, "little"), len(part))
            for unit in {unit for unit in compress(places, _select(states, _RESERVED)) if unit < end}:
                self._map.claim(unit, self._count)
            kept = [number for number in _where(states, _ANCHORS) if places[number]]
            numbers = [number for number in kept if places[number] <= last]
            if len(numbers) < len(kept):
                self._report_outside(first, kept, places, last)
            units = [places[number] for number in numbers]
            clashes = self._map.claim_all(units, self._count)
            self._anchored += (len(units) - len(clashes)) * size
            self._add_clashes(first, numbers, units, clashes, are_anchors=True)

    def _report_outside(self, block: int, kept: list[int], places: array[int], last: int) -> None:
        outside = [number for number in kept if places[number] > last]
        message = f"it keeps space behind the end of the file at {self._table.file_size:#x}"
        self._report("BAT-RANGE", block, outside, message, WARNING, repairable=True)

    def _usage(self) -> Usage:
        table, used, end = self._table, self._map.used(), self._map.end()
        slack = max(0, table.file_size - (end << 20))
        needed = c.HEADER_SECTION_SIZE + sum(span.end - span.start for span in table.spans)
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
            space=self._map,
        )
        holes = [run for run in islice(self._map.free_runs(), _SHOWN + 1) if run[1] <= end]
        first_hole = holes[0][0] << 20 if holes else 0
        for code, place, amount, what in (
            (
                "BITMAP-UNUSED",
                table.offset,
                usage.unused_bitmaps,
                "in sector bitmaps that no block needs",
            ),
            (
                "SPACE-UNOWNED",
                first_hole,
                usage.unowned,
                f"between structures belong to nothing: {_ranges(holes)}",
            ),
            ("SPACE-SLACK", usage.end, usage.slack, "behind the last structure belong to nothing"),
            ("SPACE-ANCHORS", table.offset, usage.anchored, "are kept by blocks without content"),
        ):
            if amount:
                self._collector.found(code, place, f"{amount} bytes {what}")
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


def _ranges(runs: list[tuple[int, int]]) -> str:
    """Name ranges of MiB by their file offsets, the first ten."""
    named = ", ".join(f"{first << 20:#x} to {end << 20:#x}" for first, end in runs[:_SHOWN])
    return f"{named}, and more" if len(runs) > _SHOWN else named


def _select(states: bytes, wanted: tuple[int, ...]) -> bytes:
    """Return a 1 for each block that has one of some states, and a 0 for each other."""
    table = _SELECT.get(wanted)
    if table is None:
        table = _SELECT[wanted] = bytes(byte in wanted for byte in range(256))
    return states.translate(table)


def _where(states: bytes, wanted: tuple[int, ...]) -> list[int]:
    """Return the numbers of the blocks that have one of some states."""
    return list(compress(range(len(states)), _select(states, wanted)))
