"""
What the BAT should hold, and how long the file must be for it (MS-VHDX 2.5).

The table is walked a few times: for blocks with content, for the kept space of blocks without, and for who
else lies at a place.  An entry that is not decided stays as it is, byte for
byte, and where it points behind the end of the file, the file does not grow over that place.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core.checks.occupancy import Occupancy
from pyvhdx._core.repairs.entries import EditedTable
from pyvhdx._core.repairs.mender import end_of
from pyvhdx._core.repairs.plan import MAX_OFFERS
from pyvhdx._core.repairs.rows import Rows, Slot
from pyvhdx.format.constants import (
    ALIGNMENT,
    BAT_ENTRY_SIZE,
    HEADER_SECTION_SIZE,
    MAX_FILE_SIZE,
    OFFSET_MASK,
    RESERVED_MASK,
    SECTOR_BITMAP_SIZE,
    STATE_MASK,
    BitmapState,
    PayloadState,
)

if TYPE_CHECKING:
    from pyvhdx._core.geometry import Geometry
    from pyvhdx._core.regions import Span
    from pyvhdx._core.repairs.metadata import Traces
    from pyvhdx._core.repairs.plan import Plan
    from pyvhdx.format.region import RegionTableEntry
    from pyvhdx.storage import Storage

_NOT_PRESENT = int(PayloadState.NOT_PRESENT)
_ZERO = int(PayloadState.ZERO)
_FULL = int(PayloadState.FULLY_PRESENT)
_PARTIAL = int(PayloadState.PARTIALLY_PRESENT)
_UNMAPPED = int(PayloadState.UNMAPPED)
_DRAFT_UNMAPPED = 5
_ANCHORS = (int(PayloadState.UNDEFINED), int(PayloadState.UNMAPPED))
_WITHOUT_PLACE = (_NOT_PRESENT, _ZERO)
_STORED = (_FULL, _PARTIAL)
_PRESENT = int(BitmapState.PRESENT)
_STATE_OF = {"zero": _ZERO, "absent": _NOT_PRESENT, "present": _FULL}
_WORDS = {"zero": "it is ZERO now", "absent": "it is NOT_PRESENT now", "present": "it is FULLY_PRESENT now"}


class Copy(NamedTuple):
    """What gets a copy of its own at the end of the file; *position* is that of its entry."""

    position: int
    source: int
    length: int
    room: int
    state: int


class BlockPlan:
    """
    The plan for the BAT; `table` has the entries as they should be.

    `size` is how long the file becomes for the blocks it has, `limit` where it must not grow beyond,
    and `limit_before` the same as long as the entries are as they were. *log* is the place of the empty
    log, None where that cannot be used anyway.  Where a block lies on it, its bytes may be the log's:
    then `log_is_disputed`, and nothing may be logged until that is decided.  *traces* are those of a
    child, with its locator, in a file without HasParent.
    """

    def __init__(
        self,
        storage: Storage,
        region: RegionTableEntry,
        geometry: Geometry,
        spans: list[Span],
        log: Span | None,
        plan: Plan,
        *,
        differencing: bool,
        traces: Traces,
        has_locator: bool,
        can_grow: bool,
    ) -> None:
        self._storage = storage
        self._region = region
        self.geometry = geometry
        self._log = log
        self._plan = plan
        self._differencing = differencing
        self._traces = traces
        self._has_locator = has_locator
        self._file_size = storage.size()
        self.table = EditedTable(storage.read_at, region.file_offset)
        self.size = self._file_size
        needed = geometry.entries_needed(differencing=differencing) * BAT_ENTRY_SIZE
        # A table that the end of the file cuts is not to go on with zeros either.
        is_whole = region.file_offset + needed <= self._file_size
        self.limit = self.limit_before = MAX_FILE_SIZE if can_grow and is_whole else self._file_size
        self.log_is_disputed = False
        self.copies: list[Copy] = []
        self.undecided_bitmaps: set[int] = set()
        self._taken = Occupancy(self._file_size)
        self._structures = Occupancy(self._file_size)
        for start, end in [(0, HEADER_SECTION_SIZE), *((span.start, span.end) for span in spans)]:
            for map_ in (self._taken, self._structures):
                map_.claim(start // ALIGNMENT, (end - start) // ALIGNMENT)
        if log is not None:
            for map_ in (self._taken, self._structures):
                map_.claim(log.start // ALIGNMENT, (log.end - log.start) // ALIGNMENT)
        self._rows = Rows(storage, region, geometry, differencing=differencing)
        self._units_of_block = geometry.block_size // ALIGNMENT
        self._last_unit = (self._file_size - geometry.block_size) // ALIGNMENT
        self._bitmap_units: set[int] = set()
        self._clashed = Occupancy(self._file_size)  # what an undecided entry shares
        self._has_clash = False
        self._has_anchors = False
        self._open_chunk = -1  # whose blocks are walked, and whose bitmap's entry has not come yet
        self._partial: set[int] = set()  # its PARTIALLY_PRESENT blocks
        self._doomed: dict[int, tuple[str, int]] = {}  # unit -> the code and entry by which its holder goes
        self._winners: dict[int, int] = {}  # place -> the entry that keeps it
        self._wishes: list[int] = []
        self._hints: list[int] = []  # entries behind the last needed that look like those of blocks
        self._has_padding = False
        self.stored = 0

    def mend(self) -> None:
        """Plan everything."""
        for slot, number, index, entries in self._rows.all():
            if slot is Slot.BLOCK:
                self._open(number // self.geometry.chunk_ratio)
                self.stored += sum(entry & STATE_MASK in _STORED for entry in entries)
                self._blocks(number, index, entries)
            elif slot is Slot.PADDING:
                for at, entry in enumerate(entries, index):
                    if entry:
                        self._has_padding = True
                        self._note_hint(at, entry)
            elif self._differencing:
                self._open(number)
                self._bitmap(number, index, entries[0])
                self._open_chunk = -1
            elif entries[0]:
                self._slot(index)
        self._open(-1)
        if self._has_anchors:
            for _, index, entry in self._rows.of_blocks():
                if entry & STATE_MASK in _ANCHORS and entry & OFFSET_MASK:
                    self._anchor(index, entry)
        if self._doomed:
            self._drop_holders()
        if self._has_padding:
            self._mend_padding()
        for wish in self._wishes:
            self.grow_to(wish)
        if self._has_clash:
            for chunk in range(self.geometry.chunk_count if self._differencing else 0):
                entry = self.table.get(self.geometry.bitmap_index(chunk))
                if entry & STATE_MASK == _PRESENT and not self._clashed.is_free(entry // ALIGNMENT, 1):
                    self.undecided_bitmaps.add(chunk)

    def give_places(self, at: int) -> None:
        """Give the copies their places, one behind the other from file offset *at* on."""
        for copy in self.copies:
            self.table.set(copy.position, at | copy.state)
            at += copy.room

    def give_up_copies(self) -> None:
        """Make no copies: there is no room that no other block claims."""
        for copy in self.copies:
            self._plan.take_back(
                "BAT-OVERLAP",
                self._place_of(copy.position),
                "a copy needs room at the end of the file; decide about the blocks behind its end first (BAT-RANGE)",
            )
        self.copies.clear()

    def grow_to(self, size: int) -> None:
        """Let the file become so long, where nothing forbids it."""
        if size <= self.limit:
            self.size = max(self.size, size)

    def is_sound(self, block: int) -> bool:
        """Return whether the place of a block with content is in the file, and no other's."""
        place = self.table.get(self.geometry.payload_index(block)) & OFFSET_MASK
        inside = HEADER_SECTION_SIZE <= place <= self._file_size - self.geometry.used_length(block)
        return inside and self._clashed.is_free(place // ALIGNMENT, self._units_in_file(place))

    def name_what_was_cut(self, cut_at: int, plan: Plan) -> None:
        """Name the blocks that lie behind where the file ended before it got its length back."""
        geometry = self.geometry
        for block, _, entry in self._rows.of_blocks():
            place, used = entry & OFFSET_MASK, geometry.used_length(block)
            if entry & STATE_MASK in (_FULL, _PARTIAL) and place + used > cut_at:
                kept = max(0, cut_at - place)
                plan.lose(
                    "LOG-FILE-TRUNCATED",
                    (block << geometry.block_shift) + kept,
                    used - kept,
                    "it lay behind the end of the file, and reads as zeros now",
                )

    # -- one entry ----------------------------------------------------------------------------

    def _blocks(self, block: int, index: int, entries: array[int]) -> None:
        """Plan a run of blocks; what is as it should be takes little time."""
        count, size = self._units_of_block, self.geometry.block_size
        first = entries[0]
        unit = first // ALIGNMENT
        if (
            first == unit * ALIGNMENT + _FULL
            and 0 < unit <= self._last_unit - (len(entries) - 1) * count
            and entries == array("Q", range(first, first + size * len(entries), size))
            and self._taken.is_free(unit, count * len(entries))
        ):
            self._taken.claim(unit, count * len(entries))
            return
        numbers, units = [], []  # those that lie in the file
        last = self._last_unit
        partial = _PARTIAL if self._differencing else _FULL
        for number, entry in enumerate(entries):
            state = entry & STATE_MASK
            if state in (_FULL, partial) and 0 < entry >> 20 <= last:
                numbers.append(number)
                units.append(entry >> 20)
                if entry & RESERVED_MASK:
                    self.table.set(index + number, entry & ~RESERVED_MASK)
                if state == _PARTIAL:
                    self._partial.add(block + number)
            elif state in _WITHOUT_PLACE:
                if entry != state:
                    self.table.set(index + number, state)
            elif state in _ANCHORS:
                self._has_anchors = self._has_anchors or entry > ALIGNMENT
                if entry & RESERVED_MASK:
                    self.table.set(index + number, entry & ~RESERVED_MASK)
            else:
                self._odd_or_misplaced(block + number, index + number, entry)
        for at in self._taken.claim_all(units, count):
            number = numbers[at]
            self._clash(block + number, index + number, entries[number])

    def _open(self, chunk: int) -> None:
        """Go on to a chunk: the one before may have no bitmap."""
        if chunk != self._open_chunk:
            self._check_bitmap_is_there(self._open_chunk)
            self._partial.clear()
            self._open_chunk = chunk

    def _place_of(self, index: int) -> int:
        return self._region.file_offset + index * BAT_ENTRY_SIZE

    def _odd_or_misplaced(self, block: int, index: int, entry: int) -> None:
        if entry & RESERVED_MASK:
            self.table.set(index, entry & ~RESERVED_MASK)
        state, place = entry & STATE_MASK, entry & OFFSET_MASK
        if state == _FULL or (state == _PARTIAL and self._differencing):
            self._misplaced(block, index, entry)
        else:
            self._odd_block(block, index, state, place)
        if self.table.get(index) & STATE_MASK == _PARTIAL and self._differencing:
            self._partial.add(block)

    def _misplaced(self, block: int, index: int, entry: int) -> None:
        """Plan a block with content that does not lie wholly in the file, or in its header section."""
        geometry, plan, at = self.geometry, self._plan, self._place_of(index)
        place = entry & OFFSET_MASK
        used, size = geometry.used_length(block), geometry.block_size
        if place < HEADER_SECTION_SIZE:
            if not plan.is_moot("BAT-OFFSET"):
                self._settle(block, index, plan.choose("BAT-OFFSET", at), "BAT-OFFSET")
        elif place + used <= self._file_size:
            if self._claim(index, entry, size):
                self._wishes.append(place + size)
            else:
                self._clash(block, index, entry)
        else:
            behind = max(place, self._file_size)
            self.limit_before = min(self.limit_before, behind)
            if plan.is_moot("BAT-RANGE"):
                self.limit = min(self.limit, behind)
                return
            possible = ("extend", "zero", "absent") if place < self._file_size else ("zero", "absent")
            choice = plan.choose("BAT-RANGE", at, possible)
            if choice is None:
                self.limit = min(self.limit, behind)
            elif choice == "extend":
                self._wishes.append(place + size)
                kept = self._file_size - place
                plan.note("BAT-RANGE", at, f"the file was made longer; the block keeps {kept} bytes")
                plan.is_visible = True
                start = (block << geometry.block_shift) + kept
                plan.lose("BAT-RANGE", start, used - kept, "it lay behind the end of the file")
                if not self._claim(index, entry, size):
                    self._clash(block, index, entry)
            else:
                self._settle(block, index, choice, "BAT-RANGE")

    def _odd_block(self, block: int, index: int, state: int, place: int) -> None:
        """Plan a block whose state is reserved, or PARTIALLY_PRESENT in a file without a parent."""
        if state != _DRAFT_UNMAPPED and self._traces.partial_blocks != 1 and self._plan.is_moot("BAT-STATE"):
            return
        plan, at = self._plan, self._place_of(index)
        inside = HEADER_SECTION_SIZE <= place <= self._file_size - self.geometry.used_length(block)
        fits = inside and self._taken.is_free(place // ALIGNMENT, self.geometry.block_size // ALIGNMENT)
        alone = self._traces.partial_blocks <= 1 and not self._traces.bitmaps and not self._has_locator
        if state == _PARTIAL and fits and alone:
            choice: str | None = "present"
        elif state == _DRAFT_UNMAPPED and not inside and plan.choices.for_place("BAT-STATE", at) is None:
            self.table.set(index, _UNMAPPED)
            plan.is_visible = True
            plan.note("BAT-STATE", at, "it is UNMAPPED now, as a draft of the format meant it")
            return
        else:
            choice = plan.choose(
                "BAT-STATE", at, ("present", "zero", "absent") if fits else ("zero", "absent")
            )
        if choice == "present":
            self._claim(index, place | _FULL, self.geometry.block_size)
            plan.is_visible = True
            plan.note("BAT-STATE", at, _WORDS["present"])
        else:
            self._settle(block, index, choice, "BAT-STATE")

    def _settle(self, block: int, index: int, choice: str | None, code: str) -> None:
        """Let a block read as *choice* says, and name what is lost with that; None leaves it."""
        if choice is None:
            return
        at, geometry = self._place_of(index), self.geometry
        self.table.set(index, _STATE_OF[choice])
        self._partial.discard(block)
        self._plan.is_visible = True
        self._plan.note(code, at, _WORDS[choice])
        why = "it reads as zeros now" if choice == "zero" else "it is NOT_PRESENT now"
        self._plan.lose(code, block << geometry.block_shift, geometry.used_length(block), why)

    def _claim(self, index: int, entry: int, size: int) -> bool:
        """Take the place of an entry for it, unless something else lies there."""
        place = entry & OFFSET_MASK
        first, count = place // ALIGNMENT, size // ALIGNMENT
        inside = min(first + count, self._taken.units) - first
        if not self._taken.is_free(first, max(1, inside)):
            return False
        self._taken.claim(first, count)
        self.table.set(index, entry & ~RESERVED_MASK)
        return True

    def _units_in_file(self, place: int) -> int:
        """Return how many units of a block at *place* lie in the file."""
        first = place // ALIGNMENT
        return max(0, min(self._units_of_block, self._taken.units - first))

    def _note_hint(self, index: int, entry: int) -> None:
        """Remember an entry that no block needs and that names a place: the size may be what is wrong."""
        place = entry & OFFSET_MASK
        fits = HEADER_SECTION_SIZE <= place <= self._file_size - self.geometry.block_size
        wanted = len(self._hints) <= MAX_OFFERS or self._plan.choices.has("BAT-PADDING")
        if entry & STATE_MASK in _STORED and fits and wanted:
            self._hints.append(index)

    def _mend_padding(self) -> None:
        """Clear what no block needs; as long as one may be a block's, all of it stays, and so do its bits."""
        is_decided = True
        for index in self._hints:
            place, at = self.table.get(index) & OFFSET_MASK, self._place_of(index)
            if not self._taken.is_free(place // ALIGNMENT, self._units_in_file(place)):
                continue  # a block's, which only now are all known
            if self._plan.choose("BAT-PADDING", at) is None:
                is_decided = False
            else:
                self._plan.note("BAT-PADDING", at, "it is 0 now")
        if not is_decided:
            self.undecided_bitmaps.add(self.geometry.chunk_count - 1)
            return
        for slot, _, first, entries in self._rows.all():
            if slot is Slot.PADDING:
                for index, entry in enumerate(entries, first):
                    if entry:
                        self.table.set(index, 0)

    def _clash(self, block: int, index: int, entry: int) -> None:
        """Plan a block at a place that is taken."""
        plan, geometry = self._plan, self.geometry
        at, place = self._place_of(index), entry & OFFSET_MASK
        first, count = place // ALIGNMENT, self._units_of_block
        units = range(first, min(first + count, self._taken.units))
        log = self._log
        of_log = log is not None and place < log.end and log.start < place + geometry.block_size
        if plan.is_moot("BAT-OVERLAP") and plan.is_moot("BAT-SHIFT") and not self._differencing:
            self.log_is_disputed = self.log_is_disputed or of_log
            return
        of_structure = of_log or not self._structures.is_free(first, len(units))
        possible: tuple[str, ...] = ("copy", "first", "second", "zero")
        if of_structure or any(unit in self._bitmap_units for unit in units):
            possible = ("copy", "first")
        choice = self._choose_overlap(at, possible)
        if choice in (None, "copy"):  # a copy may find no room
            self._clashed.claim(first, count)
            self._has_clash = True
        if choice is None:
            self.log_is_disputed = self.log_is_disputed or of_log
            return
        if choice == "copy":
            length = min(geometry.block_size, self._file_size - place)
            self.copies.append(Copy(index, place, length, geometry.block_size, entry & STATE_MASK))
            plan.note("BAT-OVERLAP", at, "the block got a copy of its own at the end of the file")
            # Where only this one could not be read before, it can now.
            plan.is_visible = plan.is_visible or of_structure
        else:
            if choice in ("first", "zero"):
                self._settle(block, index, "zero", "BAT-OVERLAP")
            else:
                self.table.set(index, entry & ~RESERVED_MASK)
                self._winners[place] = index
                plan.note("BAT-OVERLAP", at, "the block keeps its place, and the other one reads as zeros")
            if choice in ("second", "zero"):
                self._doomed.update(dict.fromkeys(units, ("BAT-OVERLAP", at)))

    def _choose_overlap(self, at: int, possible: tuple[str, ...]) -> str | None:
        code = "BAT-SHIFT" if self._plan.choices.for_place("BAT-SHIFT", at) is not None else "BAT-OVERLAP"
        return self._plan.choose(code, at, possible)

    def _drop_holders(self) -> None:
        """Make ZERO what lies at a place that was given to another block, or to none."""
        count = self._units_of_block
        copied = {copy.position for copy in self.copies}
        for block, index, _ in self._rows.of_blocks():
            entry = self.table.get(index)
            place = entry & OFFSET_MASK
            if not place or self._winners.get(place) == index or index in copied:
                continue
            first = place // ALIGNMENT
            if any(unit in self._doomed for unit in range(first, first + count)):
                self._settle(block, index, "zero", "BAT-OVERLAP")

    def _anchor(self, index: int, entry: int) -> None:
        """Plan a block without content that kept its space; it gives way to everything else."""
        place = entry & OFFSET_MASK
        if not place:
            return
        fits = HEADER_SECTION_SIZE <= place <= self._file_size - self.geometry.block_size
        if not fits or not self._claim(index, entry, self.geometry.block_size):
            self.table.set(index, entry & STATE_MASK)

    # -- bitmaps ------------------------------------------------------------------------------

    def _slot(self, index: int) -> None:
        """Plan the slot of a bitmap in a file without a parent."""
        if self._has_locator or self._traces.partial_blocks:
            if self._plan.choose("BITMAP-SLOT", self._place_of(index)) is None:
                return
            self._plan.note("BITMAP-SLOT", self._place_of(index), "it is 0 now")
        self.table.set(index, 0)

    def _bitmap(self, chunk: int, index: int, entry: int) -> None:
        state, place = entry & STATE_MASK, entry & OFFSET_MASK
        at = self._place_of(index)
        if entry & RESERVED_MASK:
            self.table.set(index, place | state)
        if state not in (_PRESENT, _PARTIAL):  # Microsoft's own implementation reads the state 7 as 6
            if not self._partial or (
                not self._without_bitmap(chunk, index, at) and state == int(BitmapState.NOT_PRESENT)
            ):
                self.table.set(index, 0)
            return
        inside = HEADER_SECTION_SIZE <= place <= self._file_size - SECTOR_BITMAP_SIZE
        if inside and self._claim(index, place | _PRESENT, SECTOR_BITMAP_SIZE):
            self._bitmap_units.add(place // ALIGNMENT)
        elif not self._partial:
            self.table.set(index, 0)
        elif not inside or not self._structures.is_free(place // ALIGNMENT, 1):
            if place > self._file_size - SECTOR_BITMAP_SIZE:
                self.limit_before = min(self.limit_before, max(place, self._file_size))
            decided = self._without_bitmap(chunk, index, at)
            if not decided and place > self._file_size - SECTOR_BITMAP_SIZE:
                self.limit = min(self.limit, max(place, self._file_size))
        elif self._choose_overlap(at, ("copy",)) == "copy":
            self.copies.append(Copy(index, place, SECTOR_BITMAP_SIZE, SECTOR_BITMAP_SIZE, _PRESENT))
            self._plan.note("BAT-OVERLAP", at, "the bitmap got a copy of its own at the end of the file")
            self.undecided_bitmaps.add(chunk)  # its bits are looked at the next time
        else:
            self._clashed.claim(place // ALIGNMENT, 1)
            self._has_clash = True
            self.undecided_bitmaps.add(chunk)

    def _check_bitmap_is_there(self, chunk: int) -> None:
        """Plan a chunk whose bitmap's entry is 0, if it has partial blocks."""
        if chunk >= 0 and self._partial:
            index = self.geometry.bitmap_index(chunk)
            if not self.table.get(index):
                self._without_bitmap(chunk, index, self._place_of(index))

    def _without_bitmap(self, chunk: int, index: int, at: int) -> bool:
        """Let the partial blocks of a chunk whose bitmap is lost become what was chosen; return whether they did."""
        code = "BITMAP-ENTRY"
        choice = self._plan.choose(code, at)
        if choice is None:
            self.undecided_bitmaps.add(chunk)
            return False
        geometry = self.geometry
        for block in sorted(self._partial):
            own = geometry.payload_index(block)
            place = self.table.get(own) & OFFSET_MASK
            self.table.set(own, _STATE_OF[choice] | (place if choice == "present" else 0))
            why = {
                "present": "nobody knows which of its sectors are the parent's",
                "zero": "it reads as zeros now",
                "absent": "it shows the parent now",
            }[choice]
            self._plan.lose(code, block << geometry.block_shift, geometry.used_length(block), why)
        self._plan.is_visible = True
        self._plan.note(
            code, at, f"its partial blocks are {'FULLY_PRESENT' if choice == 'present' else choice.upper()}"
        )
        self._partial.clear()
        self.table.set(index, 0)
        return True


def fixed_size(geometry: Geometry, spans: list[Span], log_length: int) -> int:
    """Return how long the file of a fixed disk must be at least: room for every block (2.5.1.1)."""
    used = HEADER_SECTION_SIZE + log_length + sum(span.end - span.start for span in spans)
    return end_of(used + geometry.block_count * geometry.block_size)
