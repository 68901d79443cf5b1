"""
The session of an image that is open for writing: from its first change to its close.

It knows who owns which space, when the headers must say that something changes, which pages wait for
a commit, and whether the image has failed.  Pages and maps are changed under its lock (R7); readers
take none.

An exception before the maps in memory change is a write that did not happen: what it took goes back.
One inside that change, in a commit or in a barrier leaves the image *failed*: the file is as it would
be after a power cut, and the next open replays its log.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections import deque
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

from pyvhdx._core.findings import corrupt, tolerated, unsupported
from pyvhdx._core.log_reader import count_of
from pyvhdx._core.log_writer import LogWriter
from pyvhdx._core.opening import (
    header_copies_contradict,
    headers_have_reserved_bytes,
    lies_well,
    log_span,
    open_file,
    region_spans,
)
from pyvhdx._core.pages import PAGE_SIZE
from pyvhdx._core.space import is_anchor, map_space
from pyvhdx.errors import ImageError, ImageFailedError, StateError
from pyvhdx.format.constants import (
    ALIGNMENT,
    HEADER_OFFSETS,
    OFFSET_MASK,
    STATE_MASK,
    PayloadState,
    round_up,
)
from pyvhdx.storage import Durable, FileObject, data_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyvhdx._core.opening import OpenFile
    from pyvhdx._core.space import Space
    from pyvhdx.format.header import Header

# A commit comes by itself before a change that would let more pages wait; one entry holds 126.
MAX_WAITING_PAGES = 100
GROWTH_STEP = 32 << 20
# A log may ask for a file of 256 TiB: not where that many zeros might be written.
_MOST_FILLED = 2 * GROWTH_STEP
_ANCHORS_AT_ONCE = 64
_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)
_MAX_RUNS = 1000
_STORED = (int(PayloadState.FULLY_PRESENT), int(PayloadState.PARTIALLY_PRESENT))
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# The images of this process that a fork would copy: the child must keep its hands off their files.
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _forget_in_child() -> None:
    for session in list(_sessions):
        session.is_foreign = True
        session.file.blocks.places.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def prepare(file: OpenFile, *, sync: bool) -> OpenFile:
    """
    Return *file* ready to be written: a pending log is replayed into it (2.3.3).

    Raises `CorruptImageError` where nobody can say which header is current, and `UnsupportedImageError`
    where the log wants a file object to grow too far.
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
    growth = file.replay.size - file.raw.size()
    if growth > _MOST_FILLED and isinstance(file.raw, FileObject):
        raise unsupported(
            "LOG-TARGET",
            "log",
            file.header.log_offset,
            "2.3.3",
            f"it asks for {growth:#x} bytes more, and a file object may have to be filled with zeros up to there; "
            "open the file by its path",
        )
    _log_writer(file, Durable(file.raw, sync=sync)).replay(file.replay, file.raw)
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


def _log_writer(file: OpenFile, medium: Durable) -> LogWriter:
    return LogWriter(
        medium, file.header, file.header_offset, headers_may_tear=headers_have_reserved_bytes(file.raw)
    )


class Session:
    """What is common to every change of one open file; `in_turn` holds for the whole of one."""

    def __init__(self, file: OpenFile, *, sync: bool) -> None:
        self.file = file
        self.medium = Durable(file.raw, sync=sync)
        self.lock = threading.RLock()
        self.is_foreign = False
        self._is_closed = False
        self._failure: BaseException | None = None
        self.is_changing = False
        self._log = _log_writer(file, self.medium)
        self._log_is_usable = True
        self._is_ready = False
        self._space: Space | None = None
        self.allocated: set[int] = set()  # pages whose place in the file is no hole
        self._size_at_open = self._used_at_open = self.medium.size
        self._has_committed = False
        self._anchors_from = 0
        _sessions.add(self)

    @property
    def header(self) -> Header:
        """The current header."""
        return self._log.header

    @property
    def is_visible(self) -> bool:
        """Whether everything is done that must come before a visible change."""
        return self._is_ready and self._log.is_visible

    @property
    def has_unflushed(self) -> bool:
        """Whether changes wait that only a flush or a close makes durable."""
        return bool(self.file.pages.waiting()) or self.medium.payload_pending

    @property
    def space(self) -> Space:
        """The map of the file; there from the first change on."""
        assert self._space is not None
        return self._space

    def flush(self) -> None:
        """Make everything written so far survive a power cut; in a turn."""
        if self.file.pages.waiting():
            self.commit()
        elif self.medium.payload_pending:
            with self.changing():
                self._check_size()
                self.medium.barrier()

    def close(self) -> None:
        """Commit what waits and end the session; raise `ImageFailedError` after a failure."""
        if self.is_foreign:
            return
        with self.lock:
            if self._is_closed:
                return
            self._is_closed = True
            if self._has_failed:
                raise self._failed()
            self.commit()
            with self.changing():
                if self._log.has_begun:
                    self._check_size()
                self._log.close(self._size_at_close())

    def change_entries(self, first: int, stop: int, new: int, *, visible: bool) -> None:
        """Give blocks another entry, without content; what they leave is free after the commit."""
        blocks, size = self.file.blocks, self.file.geometry.block_size
        existing = {blocks.entry_page(first)} | blocks.bitmap_pages(first)
        self.begin(visible=visible)
        self.make_room(existing)
        with self.changing():
            if stop - first > 1:
                blocks.set_run(first, stop, new)
                return
            space = self.space
            old = blocks.entry(first)
            blocks.set_entry(first, new)
            space.anchors += is_anchor(new) - is_anchor(old)
            if (old & STATE_MASK in _STORED or is_anchor(old)) and not is_anchor(new):
                space.free_later(old & OFFSET_MASK, size)

    # -- space --------------------------------------------------------------------------------

    def take(self, length: int, taken: list[tuple[int, int]]) -> tuple[int, bool]:
        """Find space in the file, or make the file longer; return the place and whether it holds zeros."""
        space = self.space
        found = space.take(length)
        if found is None and space.anchors:
            self._clear_anchors()
            found = space.take(length)
        if found is None:
            if not self._grow_by_step(length):
                if space.has_pending:  # what waits to be free helps out
                    self.commit()
                    found = space.take(length)
                if found is None:
                    self._grow(space.grown_size(length, 0))
            found = found or space.take(length)
        assert found is not None
        taken.append((found.place, length))
        return found.place, found.is_zero

    def _grow_by_step(self, length: int) -> bool:
        """Make the file longer by more than *length* needs; return False on a medium that is too full."""
        try:
            self._grow(self.space.grown_size(length, GROWTH_STEP))
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            return False
        return True

    def _make_whole(self) -> None:
        """Some writers end the file inside its last block, or its last MiB; an entry may name no such end."""
        end = max(round_up(self.medium.size, ALIGNMENT), self.space.end)
        if end > self.medium.size:
            self._grow(end)

    def _grow(self, size: int) -> None:
        size = self.medium.grow(size)
        self.space.grow(size)
        self.file.blocks.file_size = size

    def _clear_anchors(self) -> None:
        """Take the space of blocks without content that kept it; it is free when this is durable (R5)."""
        geometry, blocks = self.file.geometry, self.file.blocks
        cleared: list[tuple[int, int]] = []
        # On from where the last search ended, and round once.
        for first, stop in ((self._anchors_from, geometry.block_count), (0, self._anchors_from)):
            block = blocks.first_anchor(first, stop)
            while block < stop and len(cleared) < _ANCHORS_AT_ONCE:
                cleared.append((block, blocks.entry(block) & STATE_MASK))
                block = blocks.first_anchor(block + 1, stop)
            if cleared:
                self._anchors_from = block
                break
        for cleared_block, state in cleared:
            self.change_entries(cleared_block, cleared_block + 1, state, visible=False)
        self.commit()

    def _size_at_close(self) -> int | None:
        """Return the length to cut the file to, in bytes; None where it stays as it is."""
        if self._space is None or not (self._has_committed or self.medium.size > self._size_at_open):
            return None
        size = max(self._space.used_end(), self._forgotten_end())
        if self.file.metadata.kind == "fixed":
            # A fixed disk's file has room for every block, allocated or not.
            size = max(size, min(round_up(self._size_at_open, ALIGNMENT), self.medium.size))
        return size if size < self.medium.size else None

    def _forgotten_end(self) -> int:
        """
        Return where data ends that belonged to nothing when the file was opened; 0 if there is none.

        They may be all that is left of blocks that the BAT has lost, and nobody but us would take them away.
        What cannot be read may be such, and a close does not fail for it.
        """
        raw, end = self.file.raw, self._size_at_open
        try:
            runs = deque(data_runs(raw.next_data, self._used_at_open, end), maxlen=_MAX_RUNS)
            for start, stop in reversed(runs):
                for end in range(stop, start, -_PIECE):
                    size = min(_PIECE, end - start)
                    if raw.read_at(size, end - size) != _ZEROS[:size]:
                        return round_up(end, ALIGNMENT)
        except OSError:
            return round_up(end, ALIGNMENT)
        return runs[0][0] if len(runs) == _MAX_RUNS else 0

    # -- sessions and commits -----------------------------------------------------------------

    def begin(self, *, visible: bool) -> None:
        """Do what must come before the first change of the session, and before the first visible one."""
        if self._is_ready and (self._log.is_visible or not visible):
            return
        if self._space is None:
            self._map_space()
        if self.medium.has_shrunk():
            raise self._cut()
        header = self.header
        if self._log_is_usable and not self._is_ready:
            # A full disk must fail the write that needs the space, and never a commit.
            self.medium.reserve(header.log_offset, header.log_length)
        with self.changing():
            self._log.begin(visible=visible)
        if not self._log_is_usable:
            # Not by clearing anchors, which would be a change before its log is there.
            found = self.space.take(ALIGNMENT)
            if found is None:
                if not self._grow_by_step(ALIGNMENT):
                    self._grow(self.space.grown_size(ALIGNMENT, 0))
                found = self.space.take(ALIGNMENT)
            assert found is not None
            place = found.place
            try:
                self.medium.write_payload(bytes(ALIGNMENT), place)
            except BaseException:
                self.space.give_back(place, ALIGNMENT)
                raise
            with self.changing():
                self._log.place_log(place, ALIGNMENT)
            self.file.blocks.taken = [*self.file.blocks.taken, log_span(self.header)]
            self._log_is_usable = True
        self._is_ready = True

    def _map_space(self) -> None:
        file = self.file
        spans = region_spans(file.regions)
        log = log_span(file.header)
        # An empty log that lies badly is nobody's; the file gets another one, and blocks its place.
        self._log_is_usable = lies_well(log, spans, self.medium.size)
        self._space = map_space(
            file.bat,
            file.geometry,
            self.medium.size,
            [*spans, log] if self._log_is_usable else spans,
            file.raw.next_data,
            differencing=file.metadata.has_parent,
        )
        self._used_at_open = self._space.used_end()
        if not self._log_is_usable:
            file.blocks.taken = spans

    def make_room(self, pages: set[int]) -> None:
        """Let *pages* be changed: commit first if too many wait, and see that each has its place on the medium."""
        if pages:
            self._make_whole()
        if self.file.pages.count_with(pages) > MAX_WAITING_PAGES:
            self.commit()
        for start, end in _runs(pages - self.allocated):
            self.medium.reserve(start, end - start)
            self.allocated.update(range(start, end, PAGE_SIZE))

    def commit(self) -> None:
        """Make what waits durable, put it in place, and free what it left."""
        pages = self.file.pages.waiting()
        if not pages:
            return
        with self.changing():
            self._check_size()
            self._log.commit(pages, self.space.end)
            self._has_committed = True
            self.file.pages.settle()
            # Who looked a place up before must look again from now on (R3).
            self.file.blocks.version += 1
            self.space.release()

    # -- failure ------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise where no change may be made."""
        if self._is_closed:
            raise ValueError("I/O operation on closed image")
        if self._has_failed:
            raise self._failed()

    @property
    def _has_failed(self) -> bool:
        # An interrupt may come where a change ends, before anybody knows whether it did.
        return self._failure is not None or self.is_changing

    def _check_size(self) -> None:
        if self.medium.has_shrunk():
            raise self._cut()

    def _cut(self) -> ImageError:
        error = corrupt(
            "FILE-CUT",
            "file",
            self.file.raw.size(),
            "2.1",
            f"the file ends here, and was {self.medium.size:#x} bytes long: someone else made it shorter",
        )
        error.name = self.file.raw.name
        return error

    def changing(self) -> _Changing:
        return _Changing(self)

    def fail(self, cause: BaseException) -> None:
        """Refuse every later change: what is in memory and what is in the file may differ."""
        if self._failure is None:
            self._failure = cause

    def _failed(self) -> ImageFailedError:
        error = ImageFailedError(
            f"{self.file.raw.name}: an earlier change failed ({self._failure or 'interrupted'!r}), and this image takes no more; "
            "open it again: what was flushed is there"
        )
        error.__cause__ = self._failure
        return error


def _runs(pages: set[int]) -> Iterator[tuple[int, int]]:
    """Yield start and end, in bytes, of pages that lie one behind the other."""
    start = end = -1
    for at in sorted(pages):
        if at != end:
            if end > start:
                yield start, end
            start = at
        end = at + PAGE_SIZE
    if end > start:
        yield start, end


class _Writer(Protocol):
    @property
    def session(self) -> Session: ...


_W = TypeVar("_W", bound=_Writer)
_P = ParamSpec("_P")
_T = TypeVar("_T")


def in_turn(change: Callable[Concatenate[_W, _P], _T]) -> Callable[Concatenate[_W, _P], _T]:
    """
    Let a method that changes something take its turn (R7); an error about the file gets its name.

    The lock itself is the context: an interrupt that comes into an `__enter__` of ours, behind the
    lock's own, would leave it taken for ever.
    """

    @wraps(change)
    def call(writer: _W, /, *arguments: _P.args, **how: _P.kwargs) -> _T:
        session = writer.session
        if session.is_foreign:  # its lock may be held for ever
            raise forked()
        with session.lock:
            session.check()
            try:
                return change(writer, *arguments, **how)
            except ImageError as error:
                if error.name is None:
                    error.name = session.file.raw.name
                raise

    return call


class _Changing:
    """Whatever exception leaves the block makes the image failed."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> None:
        self._session.is_changing = True

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None:
            self._session.fail(error)
        self._session.is_changing = False


def forked() -> StateError:
    """Return what a child process gets that uses an image of its parent."""
    return StateError("this image is open for writing in the process that forked; open it again here")
