"""
What an open image needs to change its file: plans are made in `_core` and carried out here.

Payload is in the file when a write returns; what it changes in BAT, bitmaps and metadata waits in
memory, and a commit sends it through the log.  One lock holds for everything that changes (R7);
readers take none.

An exception before the maps in memory change is a write that did not happen: what it took goes back.
One inside that change, in a commit or in a barrier leaves the image *failed*: the file is as it would
be after a power cut, and the next open replays its log.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from typing import TYPE_CHECKING

from pyvhdx._core.blocks import Kind
from pyvhdx._core.findings import corrupt, tolerated
from pyvhdx._core.log_reader import count_of
from pyvhdx._core.log_writer import LogWriter
from pyvhdx._core.metadata import read_metadata, read_table
from pyvhdx._core.opening import header_copies_contradict, log_span, open_file, region_spans
from pyvhdx._core.pages import PAGE_SIZE, pages_of
from pyvhdx._core.space import is_anchor, map_space
from pyvhdx._core.trim import TrimMode, plan_trim
from pyvhdx._core.user_items import MAX_PAGES_AT_ONCE, plan_change
from pyvhdx.errors import ImageError, ImageFailedError, StateError
from pyvhdx.format.constants import (
    ALIGNMENT,
    HEADER_OFFSETS,
    HEADER_SECTION_SIZE,
    OFFSET_MASK,
    SECTOR_BITMAP_SIZE,
    STATE_MASK,
    PayloadState,
    round_up,
)
from pyvhdx.storage import Durable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from pyvhdx._core.blocks import BlockWrite
    from pyvhdx._core.opening import OpenFile
    from pyvhdx._core.space import Space
    from pyvhdx.format.header import Header

# A commit comes by itself before a change that would let more pages wait; one entry holds 126.
MAX_WAITING_PAGES = 100
GROWTH_STEP = 32 << 20
_ANCHORS_AT_ONCE = 64
_STORED = (int(PayloadState.FULLY_PRESENT), int(PayloadState.PARTIALLY_PRESENT))
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ZEROS = memoryview(bytes(1 << 20))

# The images of this process that a fork would copy: the child must keep its hands off their files.
_writers: weakref.WeakSet[ImageWriter] = weakref.WeakSet()


def _forget_in_child() -> None:
    for writer in list(_writers):
        writer.is_foreign = True
        writer.file.blocks.places.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def prepare(file: OpenFile, *, sync: bool) -> OpenFile:
    """
    Return *file* ready to be written: a pending log is replayed into it (2.3.3).

    Raises `CorruptImageError` where nobody can say which header is current.
    """
    if header_copies_contradict(file.raw):
        raise corrupt(
            "HEADER-TIE",
            "headers",
            HEADER_OFFSETS[0],
            "2.2.2",
            "both copies have the same sequence number and differ; nothing is written into such a file",
        )
    if file.replay is None or not file.replay.entries:
        return file
    LogWriter(Durable(file.raw, sync=sync), file.header, file.header_offset).replay(file.replay, file.raw)
    pending = "LOG-PENDING"
    found = tolerated(
        pending,
        "log",
        file.header.log_offset,
        "2.3.3",
        f"{count_of(file.replay.entries)} replayed into the file",
    )
    findings = [found if finding.code == pending else finding for finding in file.findings]
    return open_file(file.raw)._replace(findings=findings)


class ImageWriter:
    """
    The writing side of one open file.

    *read* fills a buffer from an offset of the virtual disk, through the whole chain: it completes
    sectors that are written in part.
    """

    def __init__(self, file: OpenFile, *, sync: bool, read: Callable[[memoryview, int], None]) -> None:
        self.file = file
        self.lock = threading.RLock()
        self._turn = _Turn(self)
        self.is_foreign = False
        self._is_closed = False
        self._medium = Durable(file.raw, sync=sync)
        self._log = LogWriter(self._medium, file.header, file.header_offset)
        self._read = read
        self._space: Space | None = None
        self._failure: BaseException | None = None
        self._allocated: set[int] = set()  # pages whose place in the file is no hole
        self._size_at_open = self._medium.size
        self._has_committed = False
        self._anchors_from = 0
        self._is_ready = False
        self._log_is_usable = True
        _writers.add(self)

    @property
    def header(self) -> Header:
        """The current header."""
        return self._log.header

    # -- what a caller asks for ---------------------------------------------------------------

    def pwrite(self, data: memoryview, offset: int) -> None:
        """Write *data* at *offset*; the range lies inside the disk."""
        blocks, shift, size = self.file.blocks, self.file.geometry.block_shift, len(data)
        with self._turn:
            done = 0
            while done < size:
                block = offset + done >> shift
                start = offset + done - (block << shift)
                piece = min(size - done, (1 << shift) - start)
                place = blocks.places.get(block) if self._log.is_visible else None
                if place is not None:
                    self._medium.write_payload(data[done : done + piece], place + start)
                else:
                    self._write_block(block, start, data[done : done + piece])
                done += piece

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range inside the disk read as zeros, by the cheapest means."""
        geometry = self.file.geometry
        is_fixed = self.file.metadata.kind == "fixed"
        zero = int(PayloadState.ZERO)
        with self._turn:
            for block, start, end in self._parts_with_data(offset, length):
                if start == 0 and end >= geometry.used_length(block) and not is_fixed:
                    stop = block + -(-end // geometry.block_size)
                    self._change_entries(block, stop, zero, visible=True)
                    continue
                for at in range(start, end, len(_ZEROS)):
                    self._write_block(block, at, _ZEROS[: end - at])

    def trim(self, offset: int, length: int, mode: TrimMode) -> int:
        """Trim the whole blocks of a sector-aligned range inside the disk; return their virtual bytes."""
        file, changed = self.file, 0
        with self._turn:
            for trim in plan_trim(file.blocks, file.geometry, file.metadata.kind, offset, length, mode):
                self._change_entries(
                    trim.first, trim.stop, trim.entry, visible=mode is not TrimMode.REMOVE_SOFT_ANCHORS
                )
                changed += trim.length
        return changed

    def set_user_item(self, item_id: UUID, data: bytes | None, *, of_disk: bool | None) -> None:
        """Set or, with None, delete a user item; raise `KeyError` where there is none to delete."""
        with self._turn:
            region, pages = self.file.regions.metadata, self.file.pages
            _, entries = read_table(region, pages.read)
            change = plan_change(entries, region.length, item_id, data, of_disk=of_disk)
            at = region.file_offset + change.data_offset
            if not change.table and pages.read(len(change.data), at) == change.data:
                return
            table = [(region.file_offset + offset, piece) for offset, piece in change.table]
            self._begin(visible=True)
            if change.at_once:
                self._make_room({p for o, d in [*table, (at, change.data)] for p in pages_of(o, len(d))})
                with self._changing():
                    pages.write(change.data, at)
                    self._write_table(table)
                return
            step = MAX_PAGES_AT_ONCE * PAGE_SIZE
            self._commit()  # the place is free in the durable table now
            for start in range(0, len(change.data), step):
                piece = change.data[start : start + step]
                self._make_room(set(pages_of(at + start, len(piece))))
                with self._changing():
                    pages.write(piece, at + start)
                self._commit()
            self._make_room({p for o, d in table for p in pages_of(o, len(d))})
            with self._changing():
                self._write_table(table)

    def flush(self) -> None:
        """Make everything written so far survive a power cut."""
        with self._turn:
            if self.file.pages.waiting():
                self._commit()
            elif self._medium.payload_pending:
                with self._changing():
                    self._check_size()
                    self._medium.barrier()

    def close(self) -> None:
        """Commit what waits and end the session; raise `ImageFailedError` after a failure."""
        if self.is_foreign:
            return
        with self.lock:
            if self._is_closed:
                return
            self._is_closed = True
            if self._failure is not None:
                raise self._failed()
            self._commit()
            with self._changing():
                if self._log.has_begun:
                    self._check_size()
                self._log.close(self._size_at_close())

    # -- blocks -------------------------------------------------------------------------------

    def _parts_with_data(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield (block, start, end), in bytes of the block, where a range may read as anything but zeros."""
        shift, blocks = self.file.geometry.block_shift, self.file.blocks
        zeros = (Kind.ZERO,) if self.file.metadata.has_parent else (Kind.ZERO, Kind.ABSENT)
        end = offset + length
        while offset < end:
            block = offset >> shift
            if blocks.kind_of_absence(block) in zeros:
                offset = blocks.run_end(block, ((end - 1) >> shift) + 1) << shift
                continue
            start = block << shift
            stop = min(end, start + (1 << shift))
            if start == offset and stop < end:
                # Blocks without content can be taken as one.
                stop = max(stop, min(end, blocks.uniform_end(block, end >> shift) << shift))
            yield block, offset - start, stop - start
            offset = stop

    def _write_block(self, block: int, start: int, data: memoryview) -> None:
        geometry, blocks = self.file.geometry, self.file.blocks
        plan = blocks.plan_write(block, start, start + len(data))
        existing = blocks.pages_changed(block, plan)
        whole = self._whole_sectors(block, plan, start, data)
        self._begin(visible=True)
        if plan.place is not None:  # a begin may have taken the block's anchor for a log
            plan = blocks.plan_write(block, start, start + len(data))
        self._make_room(existing)
        taken: list[tuple[int, int]] = []
        try:
            place, is_zero = plan.place, False
            if place is None:
                place, is_zero = self._take(geometry.block_size, taken)
            bitmap_place = None
            if plan.needs_bitmap:
                bitmap_place, _ = self._take(SECTOR_BITMAP_SIZE, taken)
                self._medium.write_payload(_ZEROS[:SECTOR_BITMAP_SIZE], bitmap_place)
            if plan.zero_rest and not is_zero:
                self._write_zeros(place, place + plan.start)
                self._write_zeros(place + plan.end, place + geometry.block_size)
            self._medium.write_payload(whole, place + plan.start)
        except BaseException:
            for at, length in taken:
                self._space_map().give_back(at, length)
            raise
        with self._changing():
            if bitmap_place is not None:
                blocks.add_bitmap(block, bitmap_place)
                self._allocated.update(pages_of(bitmap_place, SECTOR_BITMAP_SIZE))
            if plan.place is not None and is_anchor(blocks.entry(block)):
                self._space_map().anchors -= 1
            blocks.adopt(block, plan, place)

    def _whole_sectors(self, block: int, plan: BlockWrite, start: int, data: memoryview) -> memoryview:
        """Complete the sectors at both ends with what they read as now, where the plan asks for it."""
        if plan.end - plan.start == len(data):
            return data
        buffer = memoryview(bytearray(plan.end - plan.start))
        before = start - plan.start
        at = (block << self.file.geometry.block_shift) + plan.start
        sector = self.file.geometry.logical_sector_size
        # A sector past the disk's end does not exist: the size is a multiple of the sector size.
        self._read(buffer[:sector], at)
        if len(buffer) > sector:
            self._read(buffer[-sector:], at + len(buffer) - sector)
        buffer[before : before + len(data)] = data
        return buffer

    def _write_zeros(self, start: int, end: int) -> None:
        for at in range(start, end, len(_ZEROS)):
            self._medium.write_payload(_ZEROS[: end - at], at)

    def _change_entries(self, first: int, stop: int, new: int, *, visible: bool) -> None:
        """Give blocks another entry, without content; what they leave is free after the commit."""
        blocks, size = self.file.blocks, self.file.geometry.block_size
        existing = {blocks.entry_page(first)} | blocks.bitmap_pages(first)
        self._begin(visible=visible)
        self._make_room(existing)
        with self._changing():
            if stop - first > 1:
                blocks.set_run(first, stop, new)
                return
            space = self._space_map()
            old = blocks.entry(first)
            blocks.set_entry(first, new)
            space.anchors += is_anchor(new) - is_anchor(old)
            if (old & STATE_MASK in _STORED or is_anchor(old)) and not is_anchor(new):
                space.free_later(old & OFFSET_MASK, size)

    # -- space --------------------------------------------------------------------------------

    def _space_map(self) -> Space:
        assert self._space is not None
        return self._space

    def _take(self, length: int, taken: list[tuple[int, int]]) -> tuple[int, bool]:
        """Find space in the file, or make the file longer; return the place and whether it holds zeros."""
        space = self._space_map()
        found = space.take(length)
        if found is None and space.anchors:
            self._clear_anchors()
            found = space.take(length)
        if found is None:
            try:
                self._grow(space.grown_size(length, GROWTH_STEP))
            except OSError as error:
                if error.errno not in _NO_SPACE:
                    raise
                if space.has_pending:  # what waits to be free helps out
                    self._commit()
                    found = space.take(length)
                if found is None:
                    self._grow(space.grown_size(length, 0))
            found = found or space.take(length)
        assert found is not None
        taken.append((found.place, length))
        return found.place, found.is_zero

    def _grow(self, size: int) -> None:
        self._medium.grow(size)
        self._space_map().grow(size)
        self.file.blocks.file_size = size

    def _clear_anchors(self) -> None:
        """Take the space of blocks without content that kept it; it is free when this is durable (R5)."""
        geometry, blocks = self.file.geometry, self.file.blocks
        cleared: list[tuple[int, int]] = []
        # On from where the last search ended, and round once.
        for first, stop in ((self._anchors_from, geometry.block_count), (0, self._anchors_from)):
            block = first
            while block < stop and len(cleared) < _ANCHORS_AT_ONCE:
                entry = blocks.entry(block)
                if is_anchor(entry):
                    cleared.append((block, entry & STATE_MASK))
                    block += 1
                else:
                    block = blocks.run_end(block, stop)
            if cleared:
                self._anchors_from = block
                break
        for cleared_block, state in cleared:
            self._change_entries(cleared_block, cleared_block + 1, state, visible=False)
        self._commit()

    def _size_at_close(self) -> int | None:
        """Return the length to cut the file to, in bytes; None where it stays as it is."""
        if self._space is None or not (self._has_committed or self._medium.size > self._size_at_open):
            return None
        size = self._space.used_end()
        if self.file.metadata.kind == "fixed":
            # A fixed disk's file has room for every block, allocated or not.
            size = max(size, min(round_up(self._size_at_open, ALIGNMENT), self._medium.size))
        return size if size < self._medium.size else None

    # -- sessions and commits -----------------------------------------------------------------

    def _begin(self, *, visible: bool) -> None:
        """Do what must come before the first change of the session, and before the first visible one."""
        if self._is_ready and (self._log.is_visible or not visible):
            return
        if self._space is None:
            self._map_space()
        if self._medium.has_shrunk():
            raise self._cut()
        header = self.header
        if self._log_is_usable and not self._is_ready:
            # A full disk must fail the write that needs the space, and never a commit.
            self._medium.reserve(header.log_offset, header.log_length)
        with self._changing():
            self._log.begin(visible=visible)
        # Some writers end the file inside its last block, or its last MiB.
        end = max(round_up(self._medium.size, ALIGNMENT), self._space_map().end)
        if end > self._medium.size:
            self._grow(end)
        if not self._log_is_usable:
            taken: list[tuple[int, int]] = []
            place, _ = self._take(ALIGNMENT, taken)
            self._medium.write_payload(_ZEROS[:ALIGNMENT], place)
            with self._changing():
                self._log.place_log(place, ALIGNMENT)
            self._log_is_usable = True
        self._is_ready = True

    def _map_space(self) -> None:
        file = self.file
        spans = region_spans(file.regions)
        log = log_span(file.header)
        # An empty log that lies badly is nobody's; the file gets another one.
        self._log_is_usable = (
            log.end - log.start >= ALIGNMENT
            and not log.start % ALIGNMENT
            and not log.end % ALIGNMENT
            and log.start >= HEADER_SECTION_SIZE
            and log.end <= self._medium.size
            and not any(span.start < log.end and log.start < span.end for span in spans)
        )
        try:
            self._space = map_space(
                file.bat,
                file.geometry,
                self._medium.size,
                [*spans, log] if self._log_is_usable else spans,
                file.raw.next_data,
                differencing=file.metadata.has_parent,
            )
        except ImageError as error:
            error.name = file.raw.name
            raise

    def _make_room(self, pages: set[int]) -> None:
        """Let *pages* be changed: commit first if too many wait, and see that each has its place on the medium."""
        if self.file.pages.count_with(pages) > MAX_WAITING_PAGES:
            self._commit()
        for at in sorted(pages - self._allocated):
            self._medium.reserve(at, PAGE_SIZE)
            self._allocated.add(at)

    def _write_table(self, pieces: list[tuple[int, bytes]]) -> None:
        for at, piece in pieces:
            self.file.pages.write(piece, at)
        file = self.file
        self.file = file._replace(metadata=read_metadata(file.regions.metadata, file.pages.read))

    def _commit(self) -> None:
        """Make what waits durable, put it in place, and free what it left."""
        pages = self.file.pages.waiting()
        if not pages:
            return
        with self._changing():
            self._check_size()
            self._log.commit(pages, self._space_map().end)
            self._has_committed = True
            self.file.pages.settle()
            # Who looked a place up before must look again from now on (R3).
            self.file.blocks.version += 1
            self._space_map().release()

    # -- failure ------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise where no change may be made."""
        if self._is_closed:
            raise ValueError("I/O operation on closed image")
        if self._failure is not None:
            raise self._failed()

    def _check_size(self) -> None:
        if self._medium.has_shrunk():
            raise self._cut()

    def _cut(self) -> ImageError:
        error = corrupt(
            "FILE-CUT",
            "file",
            self.file.raw.size(),
            "2.1",
            f"the file ends here, and was {self._medium.size:#x} bytes long: someone else made it shorter",
        )
        error.name = self.file.raw.name
        return error

    def _changing(self) -> _Changing:
        return _Changing(self)

    def fail(self, cause: BaseException) -> None:
        """Refuse every later change: what is in memory and what is in the file may differ."""
        if self._failure is None:
            self._failure = cause

    def _failed(self) -> ImageFailedError:
        error = ImageFailedError(
            f"{self.file.raw.name}: an earlier change failed ({self._failure!r}), and this image takes no more; "
            "open it again: what was flushed is there"
        )
        error.__cause__ = self._failure
        return error


class _Turn:
    """The lock of everything that changes (R7); an error about the file gets its name."""

    def __init__(self, writer: ImageWriter) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        if self._writer.is_foreign:  # its lock may be held for ever
            raise forked()
        self._writer.lock.acquire()
        try:
            self._writer.check()
        except BaseException:
            self._writer.lock.release()
            raise

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._writer.lock.release()
        if isinstance(error, ImageError) and error.name is None:
            error.name = self._writer.file.raw.name


class _Changing:
    """Whatever exception leaves the block makes the image failed."""

    def __init__(self, writer: ImageWriter) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None:
            self._writer.fail(error)


def forked() -> StateError:
    """Return what a child process gets that uses an image of its parent."""
    return StateError("this image is open for writing in the process that forked; open it again here")
