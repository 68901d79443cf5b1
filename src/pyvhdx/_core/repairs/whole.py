"""
A whole file, structure by structure: headers, log, region tables, metadata, BAT, bitmaps, chain.

All this happens in a rehearsal.  What a structure should hold is planned from what the ones before it
say, the log being replayed; the first change that is made is the header with the new FileWriteGuid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvhdx._core.geometry import Geometry
from pyvhdx._core.headers import CurrentHeader, choose_header
from pyvhdx._core.layout import MAX_LOG_SIZE
from pyvhdx._core.log_reader import Ring, read_log
from pyvhdx._core.metadata import read_metadata
from pyvhdx._core.opening import header_copies, lies_well, log_span
from pyvhdx._core.repairs.bitmaps import plan_bitmaps
from pyvhdx._core.repairs.blocks import BlockPlan, fixed_size
from pyvhdx._core.repairs.cut_file import is_payload_alone
from pyvhdx._core.repairs.locator import plan_locator
from pyvhdx._core.repairs.mender import Mender, end_of
from pyvhdx._core.repairs.metadata import MetadataPlan, Traces
from pyvhdx._core.repairs.regions import plan_regions
from pyvhdx._core.repairs.rows import traces_in
from pyvhdx._core.repairs.undecided import Found, undecided
from pyvhdx.errors import ImageError
from pyvhdx.format import constants as c
from pyvhdx.format.header import Header, is_valid_header

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvhdx._core.log_reader import Replay
    from pyvhdx._core.metadata import Metadata
    from pyvhdx._core.regions import Span
    from pyvhdx._core.repairs.locator import KnownParent
    from pyvhdx._core.repairs.plan import Plan
    from pyvhdx._core.repairs.regions import RegionPlan
    from pyvhdx._types import ReadAt
    from pyvhdx.errors import Finding
    from pyvhdx.storage import Rehearsal, Storage

# What is cured by the headers that every session writes: whole, equal, and without a log.
_BY_ANY_SESSION = {
    "HEADER-COPY",
    "HEADER-TIE",
    "HEADER-SEQUENCE",
    "HEADER-RESERVED",
    "HEADER-FIELDS",
    "LOG-VERSION",
    "LOG-EMPTY",
}
_OF_BLOCKS = {
    "BAT-RESERVED",
    "BAT-STATE",
    "BAT-OFFSET",
    "BAT-STALE-OFFSET",
    "BAT-RANGE",
    "BAT-LAST-BLOCK",
    "BAT-PADDING",
    "BAT-OVERLAP",
    "BAT-SHIFT",
    "BITMAP-SLOT",
    "BITMAP-STATE",
    "BITMAP-ENTRY",
}
_OF_BITMAPS = {"BITMAP-STALE", "BITMAP-TAIL", "BITMAP-FULL", "BITMAP-NONE"}
# What needs the file longer than it is, or may.
_OF_SPACE = {"FILE-ALIGNMENT", "FILE-FIXED-SIZE", "REGION-RANGE", "LOG-RANGE", "LOG-OVERLAP", "LOG-LENGTH"}
_OF_LOG_PLACE = {"LOG-RANGE", "LOG-OVERLAP", "LOG-LENGTH"}
_IDENTIFIER_UNIT = 512


class FileRepair:
    """
    One repair of one file.

    *found* is what a check before found; *parent_of* gives the parent for the bytes of a locator, None
    where it is not known, *names_parent* tells that the caller names it.  *cut_at* is where the file
    ended that got its length back.

    As long as something is `undecided`, only that is mended which cannot hang on it: identifier, headers,
    log, and a copy of the region table that does not count.
    """

    def __init__(
        self,
        storage: Rehearsal,
        plan: Plan,
        found: Found,
        parent_of: Callable[[], KnownParent | None],
        *,
        names_parent: bool,
        can_grow: bool,
        cut_at: int | None,
    ) -> None:
        self._storage = storage
        self._plan = plan
        self._found = found
        self._codes = {finding.code for finding in found.findings}
        self._parent_of = parent_of
        self._names_parent = names_parent
        self._can_grow = can_grow
        self.undecided: list[Finding] = []
        self.cut_at = cut_at
        self.is_halfway = False  # what was found before is no longer to be trusted
        self.saw_the_table = False  # or what was mended may show it
        self._needs_session = False

    def mend(self) -> None:
        """Do in the rehearsal what can be done."""
        if self._storage.size() < c.HEADER_SECTION_SIZE:
            return
        current = self._current_header()
        if current is None:
            return
        mender = Mender(self._storage, *current)
        if self._settle_log(mender):
            self._mend_structures(mender)
        mender.close()

    # -- headers and log ----------------------------------------------------------------------

    def _current_header(self) -> tuple[Header, int] | None:
        """Return the header to begin with and its place; None where nobody can say which."""
        copies = header_copies(self._storage)
        if all(map(is_valid_header, copies)) and copies[0] != copies[1]:
            first, second = map(Header.parse, copies)
            if first.sequence_number == second.sequence_number:
                place = c.HEADER_OFFSETS[0]
                choice = self._plan.choose("HEADER-TIE", place)
                if choice is None:
                    return None
                self._plan.note("HEADER-TIE", place, f"the {choice} header counts, and was written twice")
                number = ("first", "second").index(choice)
                # Judged alone: the other one is no longer there.
                copies = (copies[number], b"") if number == 0 else (b"", copies[number])
        try:
            current: CurrentHeader = choose_header(copies, self._storage.size())
        except ImageError:
            return None
        guids = current.header.file_write_guid, current.header.data_write_guid
        if guids[1] == c.ZERO_GUID and self._plan.choose("HEADER-GUID", current.offset) == "new":
            self._plan.is_visible = True
            self._plan.note("HEADER-GUID", current.offset, "the file got a new DataWriteGuid")
        self._needs_session = guids[0] == c.ZERO_GUID or bool(self._codes & _BY_ANY_SESSION)
        return current.header, current.offset

    def _settle_log(self, mender: Mender) -> bool:
        """Replay the log, or give it up; return whether what is behind it can be looked at."""
        header = mender.header
        if header.log_guid == c.ZERO_GUID:
            return True
        storage = self._storage
        ring = Ring(storage.read_at, header.log_offset, header.log_length)
        try:
            replay = read_log(ring, header.log_guid, storage.size())
        except ImageError as error:
            if error.code not in ("LOG-NO-SEQUENCE", "LOG-FILE-TRUNCATED"):
                return False
            longer = (
                self._replay_of_a_longer_file(ring, header) if error.code == "LOG-FILE-TRUNCATED" else None
            )
            possible = ("drop",) if longer is None else ("extend", "drop")
            choice = self._plan.choose(error.code, error.offset, possible)
            if choice is None:
                return False
            self._plan.is_visible = True
            self.is_halfway = True
            if choice == "extend" and longer is not None:
                # The blocks that lost something are named later.
                self.cut_at = storage.size()
                mender.replay(longer)
                self._plan.note(
                    error.code, error.offset, "the file got its length back, and the log was replayed"
                )
            else:
                self._plan.lose(error.code, None, 0, "what stood in the log and nowhere else")
                self._plan.note(error.code, error.offset, "the log was given up")
                mender.begin(visible=True)
            return False
        if replay.entries:
            mender.replay(replay)
        else:
            mender.begin(visible=False)
        return True

    def _replay_of_a_longer_file(self, ring: Ring, header: Header) -> Replay | None:
        """Return what the log does to a cut file that got its length back; None where that would make things up."""
        if not self._can_grow:
            return None
        try:
            # As if it were as long as anything can ask for, to learn how long it was; then as it will be.
            flushed = read_log(ring, header.log_guid, c.MAX_FILE_SIZE).entries[-1].header.flushed_file_offset
            replay = read_log(ring, header.log_guid, flushed)
        except ImageError:
            return None
        return replay if is_payload_alone(self._storage, header, replay) else None

    # -- behind the log -----------------------------------------------------------------------

    def _mend_structures(self, mender: Mender) -> None:
        storage = self._storage
        plan = self._plan.aside()
        first, second = (storage.read_at(c.REGION_TABLE_SIZE, at) for at in c.REGION_TABLE_OFFSETS)
        log = log_span(mender.header)
        regions = plan_regions((first, second), storage, log, plan)
        unlogged = regions.copies if regions is not None else []
        if self._signature_can_be_written(regions):
            start = storage.read_at(_IDENTIFIER_UNIT, 0)
            unlogged = [*unlogged, (0, c.IDENTIFIER_SIGNATURE + start[8:])]
        if regions is not None and regions.is_settled:
            self.is_halfway = True
            self._plan.adopt(plan)
            self._carry_out(mender, unlogged, None, None, None)
            return
        blocks = table = None
        if regions is not None:
            table = MetadataPlan(regions.metadata, storage.read_at, plan)
            if table.is_usable:
                blocks = self._plan_behind(regions, table, log, plan)
        self.undecided = undecided(self._found, plan, storage.read_at, names_parent=self._names_parent)
        # Without the blocks nobody knows what the log lies on, nor what anything else does.
        if self.undecided or blocks is None:
            regions = table = blocks = None
        else:
            self._plan.adopt(plan)
        self._carry_out(mender, unlogged, regions, table, blocks)

    def _plan_behind(
        self, regions: RegionPlan, table: MetadataPlan, log: Span, plan: Plan
    ) -> BlockPlan | None:
        """Plan metadata and blocks; None where the metadata, as they will be, do not tell of any blocks."""
        storage = self._storage
        metadata = _metadata_or_none(regions, storage.read_at)
        traces: Traces | None = None
        if metadata is not None and not metadata.has_parent:
            traces = Traces(0, 0)
            geometry = Geometry(metadata.size, metadata.block_size, metadata.logical_sector_size)
            if self._codes & {"LOCATOR-LEFTOVER", "BAT-STATE", "BITMAP-SLOT"}:
                traces = traces_in(storage, regions.bat, geometry)
        self.saw_the_table = metadata is not None
        has_locator = table.find(c.PARENT_LOCATOR) is not None
        table.mend(traces)
        self._mend_locator(table, plan)
        edits = table.edits()
        planned = _metadata_or_none(regions, lambda length, at: _with_edits(storage, edits, length, at))
        if planned is None:
            return None
        return self._plan_blocks(log, regions, planned, traces or Traces(0, 0), has_locator, plan)

    def _signature_can_be_written(self, regions: RegionPlan | None) -> bool:
        if self._storage.read_at(8, 0) == c.IDENTIFIER_SIGNATURE:
            return False
        # A right header and regions that lie as they should: nothing else looks like that.
        return regions is not None or self._plan.choose("IDENTIFIER", 0) == "rewrite"

    def _mend_locator(self, table: MetadataPlan, plan: Plan) -> None:
        if table.find(c.PARENT_LOCATOR) is None:
            return
        wrong = {code for code in self._codes if code.startswith(("LOCATOR-", "PARENT-"))}
        if wrong - {"LOCATOR-LEFTOVER"}:
            codes = {(finding.code, finding.offset) for finding in self._found.findings}
            plan_locator(table, self._parent_of(), plan, codes)

    def _plan_blocks(
        self,
        log: Span,
        regions: RegionPlan,
        metadata: Metadata,
        traces: Traces,
        has_locator: bool,
        plan: Plan,
    ) -> BlockPlan | None:
        geometry = Geometry(metadata.size, metadata.block_size, metadata.logical_sector_size)
        differencing = metadata.has_parent
        if geometry.entries_needed(differencing=differencing) * c.BAT_ENTRY_SIZE > regions.bat.length:
            return None
        usable = _can_hold_a_log(log, regions.spans, self._storage.size())
        blocks = BlockPlan(
            self._storage,
            regions.bat,
            geometry,
            regions.spans,
            log if usable else None,
            plan,
            differencing=differencing,
            traces=traces,
            has_locator=has_locator,
            can_grow=self._can_grow,
        )
        if self._codes & (_OF_BLOCKS | _OF_BITMAPS | _OF_SPACE):
            blocks.mend()
        if "FILE-FIXED-SIZE" in self._codes:
            length = log.end - log.start if usable else c.ALIGNMENT
            blocks.grow_to(fixed_size(geometry, regions.spans, length))
        if self.cut_at is not None:
            blocks.name_what_was_cut(self.cut_at, self._plan)
            self.cut_at = None
        return blocks

    # -- carrying out -------------------------------------------------------------------------

    def _carry_out(
        self,
        mender: Mender,
        unlogged: list[tuple[int, bytes]],
        regions: RegionPlan | None,
        table: MetadataPlan | None,
        blocks: BlockPlan | None,
    ) -> None:
        """Make the changes; the first is the header with the new FileWriteGuid (2.2.2)."""
        storage, plan = self._storage, self._plan
        edits = [regions.edits if regions is not None else [], table.edits() if table is not None else []]
        bits: list[tuple[int, bytes]] = []
        if blocks is not None and self._codes & _OF_BITMAPS:
            # The entries of the blocks go first: bits of what is no partial block are nothing to a reader.
            bits = list(
                plan_bitmaps(
                    storage, blocks.table, blocks.geometry, blocks.undecided_bitmaps, blocks.is_sound
                )
            )
        is_logged = any(edits) or bool(bits) or (blocks is not None and bool(blocks.table or blocks.copies))
        log = log_span(mender.header)
        ends = _Ends(storage.size(), regions, blocks, log)
        log_is_usable = regions is not None and _can_hold_a_log(log, regions.spans, storage.size())
        new_log = None
        is_disputed = blocks is None or blocks.log_is_disputed
        if not log_is_usable and not is_disputed and (is_logged or self._codes & _OF_LOG_PLACE):
            new_log = ends.take_log()
        if is_disputed or not (log_is_usable or new_log is not None):
            # Without a log only the headers can be mended.
            edits, bits, blocks, is_logged = [], [], None, False
            ends.end = storage.size()
        if blocks is not None:
            ends.take_copies(blocks)
        changes = is_logged or new_log is not None or bool(unlogged) or ends.end > storage.size()
        if not (changes or self._needs_session or plan.is_visible):
            return
        mender.begin(visible=plan.is_visible)
        for offset, data in unlogged:
            mender.write_unlogged(data, offset)
        mender.lengthen(ends.before_entries)
        if new_log is not None:
            mender.place_log(new_log)
        if blocks is not None and ends.copies_come_first:
            _copy(mender, blocks, ends)
        for part in edits:
            mender.write(part)
        if blocks is not None:
            mender.write(blocks.table.edits())
        # Entries that pointed behind the end do so no more: now the file may lie there.
        mender.lengthen(ends.end)
        if blocks is not None:
            if not ends.copies_come_first:
                _copy(mender, blocks, ends)
                mender.write(blocks.table.edits())
            mender.write(bits)


def _metadata_or_none(regions: RegionPlan, read: ReadAt) -> Metadata | None:
    """Return the metadata, None where they cannot be read."""
    try:
        return read_metadata(regions.metadata, read)
    except ImageError:
        return None


def _with_edits(storage: Storage, edits: list[tuple[int, bytes]], length: int, at: int) -> bytes:
    """Read what a range will hold."""
    data = bytearray(storage.read_at(length, at))
    for offset, new in edits:
        start, stop = max(at, offset), min(at + len(data), offset + len(new))
        if start < stop:
            data[start - at : stop - at] = new[start - offset : stop - offset]
    return bytes(data)


def _copy(mender: Mender, blocks: BlockPlan, ends: _Ends) -> None:
    blocks.give_places(ends.copies_at)
    for copy in blocks.copies:
        mender.copy(copy.source, blocks.table.get(copy.position) & c.OFFSET_MASK, copy.length)


class _Ends:
    """
    Where the file will end, and what is put there: a new log, and copies of blocks.

    What some entry claims that is about to be changed is claimed until that change is durable; until
    then the file ends at `before_entries`.
    """

    def __init__(self, size: int, regions: RegionPlan | None, blocks: BlockPlan | None, log: Span) -> None:
        # Without the blocks nobody knows what the file must not grow over.
        self._limit = size if blocks is None else blocks.limit
        self._first_limit = size if blocks is None else min(blocks.limit, blocks.limit_before)
        self._size = size
        self._old_log = log
        self._log_end = size
        self.end = size
        self.copies_at = 0
        wishes = [blocks.size if blocks is not None else size, regions.size if regions is not None else size]
        for wish in (*wishes, end_of(max(wishes))):
            if wish <= self._limit:
                self.end = max(self.end, wish)

    @property
    def before_entries(self) -> int:
        """How long the file must be before the first change that is logged, and may be."""
        return self.end if self.copies_come_first else max(self._size, self._log_end)

    @property
    def copies_come_first(self) -> bool:
        """Whether the file may take its full length at once."""
        return self.end <= self._first_limit

    def take_log(self) -> int | None:
        """Return the place of a new log of 1 MiB; None where there is no room."""
        at = end_of(self.end)
        if at + c.ALIGNMENT > self._first_limit:
            return None
        self.end = self._log_end = at + c.ALIGNMENT
        return at

    def take_copies(self, blocks: BlockPlan) -> None:
        """Find room for the copies, or give them up."""
        self.copies_at = end_of(self.end)
        end = self.copies_at + sum(copy.room for copy in blocks.copies)
        # What lies on the log must be copied before anything is logged.
        hurry = any(
            copy.source < self._old_log.end and self._old_log.start < copy.source + copy.length
            for copy in blocks.copies
        )
        if end > (self._first_limit if hurry else self._limit):
            blocks.give_up_copies()
        elif blocks.copies:
            self.end = end


def _can_hold_a_log(log: Span, spans: list[Span], file_size: int) -> bool:
    """Return whether the empty log can stay what and where it is, the blocks aside."""
    return log.end - log.start <= MAX_LOG_SIZE and lies_well(log, spans, file_size)
