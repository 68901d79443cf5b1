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
from pyvhdx._core.opening import header_copies, log_span
from pyvhdx._core.repairs.bitmaps import plan_bitmaps
from pyvhdx._core.repairs.blocks import BlockPlan, fixed_size
from pyvhdx._core.repairs.locator import plan_locator
from pyvhdx._core.repairs.mender import Mender, end_of
from pyvhdx._core.repairs.metadata import MetadataPlan, Traces
from pyvhdx._core.repairs.regions import plan_regions
from pyvhdx._core.repairs.rows import traces_in
from pyvhdx.errors import ImageError
from pyvhdx.format import constants as c
from pyvhdx.format.header import Header, is_valid_header

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvhdx._core.metadata import Metadata
    from pyvhdx._core.regions import Span
    from pyvhdx._core.repairs.locator import KnownParent
    from pyvhdx._core.repairs.plan import Plan
    from pyvhdx._core.repairs.regions import RegionPlan
    from pyvhdx.errors import Finding
    from pyvhdx.storage import Rehearsal

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
_OF_LOG_PLACE = {"LOG-RANGE", "LOG-OVERLAP", "LOG-LENGTH", "BAT-OVERLAP"}
_IDENTIFIER_UNIT = 512


class FileRepair:
    """
    One repair of one file.

    *findings* are those of a check before; *parent_of* gives the parent for the bytes of a locator,
    None where it is not known.
    """

    def __init__(
        self,
        storage: Rehearsal,
        plan: Plan,
        findings: list[Finding],
        parent_of: Callable[[], KnownParent | None],
        *,
        can_grow: bool,
    ) -> None:
        self._storage = storage
        self._plan = plan
        self._findings = findings
        self._codes = {finding.code for finding in findings}
        self._parent_of = parent_of
        self._can_grow = can_grow
        self.saw_the_table = False  # or what was mended may show it
        self._needs_session = False
        self._cut_at: int | None = None  # where the file ended that got its length back

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
            possible = ("extend", "drop") if error.code == "LOG-FILE-TRUNCATED" else ("drop",)
            choice = self._plan.choose(error.code, error.offset, possible if self._can_grow else ("drop",))
            if choice is None:
                return False
            self._plan.is_visible = True
            if choice == "drop":
                self._plan.lose(error.code, None, 0, "what stood in the log and nowhere else")
                self._plan.note(error.code, error.offset, "the log was given up")
                mender.begin(visible=True)
                return True
            return self._extend_and_replay(mender, ring, error)
        if replay.entries:
            mender.replay(replay)
        else:
            mender.begin(visible=False)
        return True

    def _extend_and_replay(self, mender: Mender, ring: Ring, error: ImageError) -> bool:
        """Give a cut file its length back and replay the log; the blocks that lost something are named later."""
        guid, cut_at = mender.header.log_guid, self._storage.size()
        try:
            # As if it were as long as anything can ask for, to learn how long it was; then as it will be.
            flushed = read_log(ring, guid, c.MAX_FILE_SIZE).entries[-1].header.flushed_file_offset
            replay = read_log(ring, guid, flushed)
        except ImageError:
            return False
        mender.replay(replay)
        self._cut_at = cut_at
        self._plan.note(error.code, error.offset, "the file got its length back, and the log was replayed")
        self._codes |= _OF_BLOCKS | _OF_BITMAPS
        return True

    # -- behind the log -----------------------------------------------------------------------

    def _mend_structures(self, mender: Mender) -> None:
        storage, plan = self._storage, self._plan
        first, second = (storage.read_at(c.REGION_TABLE_SIZE, at) for at in c.REGION_TABLE_OFFSETS)
        regions = plan_regions((first, second), storage.read_at, storage.size(), plan)
        rewrites_signature = self._signature_can_be_written(regions)
        blocks = table = None
        if regions is not None:
            table = MetadataPlan(regions.metadata, storage.read_at, plan)
            metadata = self._metadata_of(regions)
            traces = Traces(0, 0)
            if metadata is not None and not metadata.has_parent:
                geometry = Geometry(metadata.size, metadata.block_size, metadata.logical_sector_size)
                if self._codes & {"LOCATOR-LEFTOVER", "BAT-STATE", "BITMAP-SLOT"}:
                    traces = traces_in(storage, regions.bat, geometry)
            if table.is_usable:
                has_locator = table.find(c.PARENT_LOCATOR) is not None
                table.mend(traces)
                self._mend_locator(table)
                if metadata is not None:
                    self.saw_the_table = True
                    blocks = self._plan_blocks(mender.header, regions, table, metadata, traces, has_locator)
        self._carry_out(mender, regions, table, blocks, rewrites_signature=rewrites_signature)

    def _signature_can_be_written(self, regions: RegionPlan | None) -> bool:
        if self._storage.read_at(8, 0) == c.IDENTIFIER_SIGNATURE:
            return False
        # A right header and regions that lie as they should: nothing else looks like that.
        return regions is not None or self._plan.choose("IDENTIFIER", 0) == "rewrite"

    def _metadata_of(self, regions: RegionPlan) -> Metadata | None:
        try:
            return read_metadata(regions.metadata, self._storage.read_at)
        except ImageError:
            return None

    def _mend_locator(self, table: MetadataPlan) -> None:
        if table.find(c.PARENT_LOCATOR) is None:
            return
        wrong = {code for code in self._codes if code.startswith(("LOCATOR-", "PARENT-"))}
        if wrong - {"LOCATOR-LEFTOVER"}:
            codes = {(finding.code, finding.offset) for finding in self._findings}
            plan_locator(table, self._parent_of(), self._plan, codes)

    def _plan_blocks(
        self,
        header: Header,
        regions: RegionPlan,
        table: MetadataPlan,
        metadata: Metadata,
        traces: Traces,
        has_locator: bool,
    ) -> BlockPlan | None:
        geometry = Geometry(metadata.size, metadata.block_size, metadata.logical_sector_size)
        differencing = metadata.has_parent or table.has_parent
        if geometry.entries_needed(differencing=differencing) * c.BAT_ENTRY_SIZE > regions.bat.length:
            return None
        log = log_span(header)
        usable = _can_hold_a_log(log, regions.spans, self._storage.size())
        blocks = BlockPlan(
            self._storage,
            regions.bat,
            geometry,
            regions.spans,
            log if usable else None,
            self._plan,
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
        if self._cut_at is not None:
            blocks.name_what_was_cut(self._cut_at)
        return blocks

    # -- carrying out -------------------------------------------------------------------------

    def _carry_out(
        self,
        mender: Mender,
        regions: RegionPlan | None,
        table: MetadataPlan | None,
        blocks: BlockPlan | None,
        *,
        rewrites_signature: bool,
    ) -> None:
        """Make the changes; the first is the header with the new FileWriteGuid (2.2.2)."""
        storage, plan = self._storage, self._plan
        edits = [regions.edits if regions is not None else [], table.edits() if table is not None else []]
        bits: list[tuple[int, bytes]] = []
        if blocks is not None and self._codes & _OF_BITMAPS:
            # The entries of the blocks go first: bits of what is no partial block are nothing to a reader.
            bits = list(plan_bitmaps(storage, blocks.table, blocks.geometry, blocks.undecided_bitmaps))
        is_logged = any(edits) or bool(bits) or (blocks is not None and bool(blocks.table or blocks.copies))
        log = log_span(mender.header)
        ends = _Ends(storage.size(), regions, blocks, log)
        log_is_usable = (blocks is None or blocks.log_is_free) and _can_hold_a_log(
            log, regions.spans if regions is not None else [], storage.size()
        )
        if blocks is not None and not blocks.log_is_free:
            plan.is_visible = True  # a block on it could not be read
        new_log = None
        is_disputed = blocks is not None and blocks.log_is_disputed
        if not log_is_usable and not is_disputed and (is_logged or self._codes & _OF_LOG_PLACE):
            new_log = ends.take_log()
        if is_disputed or not (log_is_usable or new_log is not None):
            # Without a log only the headers can be mended.
            edits, bits, blocks, is_logged = [], [], None, False
            ends.end = storage.size()
        if blocks is not None:
            ends.take_copies(blocks)
        changes = is_logged or new_log is not None or rewrites_signature or ends.end > storage.size()
        if not (changes or self._needs_session or plan.is_visible):
            return
        mender.begin(visible=plan.is_visible)
        if rewrites_signature:
            start = storage.read_at(_IDENTIFIER_UNIT, 0)
            mender.write_unlogged(c.IDENTIFIER_SIGNATURE + start[8:], 0)
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
    """Return whether a session can use the empty log where it lies, the blocks aside."""
    return (
        c.ALIGNMENT <= log.end - log.start <= MAX_LOG_SIZE
        and not log.start % c.ALIGNMENT
        and not log.end % c.ALIGNMENT
        and log.start >= c.HEADER_SECTION_SIZE
        and log.end <= file_size
        and not any(span.start < log.end and log.start < span.end for span in spans)
    )
