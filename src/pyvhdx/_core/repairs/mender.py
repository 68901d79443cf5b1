"""Carrying out a repair: the session of a file of which much may be wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

from pyvhdx._core.log_writer import LogWriter
from pyvhdx._core.pages import PAGE_SIZE, pages_of
from pyvhdx.format.constants import ALIGNMENT, HEADER_OFFSETS, round_up
from pyvhdx.storage import Durable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvhdx._core.log_reader import Replay
    from pyvhdx.format.header import Header
    from pyvhdx.storage import Rehearsal

_PAGES_AT_ONCE = 100
_SMALL = 1
LAST_SEQUENCE_NUMBER = 2**64 - 2**32


class Mender:
    """
    Headers and log of the file that is repaired, by the rules of every writer (see `LogWriter`).

    *limit* is where the file may not grow beyond, in bytes: a block that lies there would turn into
    zeros that nobody wrote.
    """

    def __init__(self, storage: Rehearsal, header: Header, header_offset: int) -> None:
        self._storage = storage
        self._medium = Durable(storage, sync=True)
        self.has_begun = False
        if header.sequence_number > LAST_SEQUENCE_NUMBER:
            header, header_offset = self._renumber(header, header_offset)
        self._log = LogWriter(self._medium, header, header_offset)

    @property
    def header(self) -> Header:
        """The current header."""
        return self._log.header

    @property
    def size(self) -> int:
        """The length of the file in bytes."""
        return self._medium.size

    def _renumber(self, header: Header, header_offset: int) -> tuple[Header, int]:
        """Give the headers small numbers; the great one counts until its own copy is overwritten."""
        other = next(offset for offset in HEADER_OFFSETS if offset != header_offset)
        header = replace(header, file_write_guid=uuid4(), sequence_number=_SMALL)
        self._medium.write_metadata(header.sealed(), other)
        self._medium.barrier()
        header = replace(header, sequence_number=_SMALL + 1)
        self._medium.write_metadata(header.sealed(), header_offset)
        self._medium.barrier()
        self.has_begun = True
        return header, header_offset

    def replay(self, replay: Replay) -> None:
        """Replay the log into the file (2.3.3)."""
        self._log.replay(replay, self._storage)
        self.has_begun = True

    def begin(self, *, visible: bool) -> None:
        """Do what must come before the first change; a log that could not be replayed is given up."""
        self._log.begin(visible=visible)
        self.has_begun = True

    def place_log(self, offset: int) -> None:
        """Give the file an empty log of 1 MiB at *offset*, which lies in the file and holds zeros."""
        self._log.place_log(offset, ALIGNMENT)

    def lengthen(self, size: int) -> None:
        """Make the file at least *size* bytes long."""
        if size > self._medium.size:
            self._medium.grow(size)

    def write_unlogged(self, data: bytes, offset: int) -> None:
        """Write what holds good with any part of it written: the signature, or a copy that does not count."""
        self._medium.write_payload(data, offset)
        self._medium.barrier()

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy payload to a place that was added to the file."""
        self._medium.payload_pending = True
        self._storage.copied(source, target, length)

    def write(self, edits: Iterable[tuple[int, bytes]]) -> None:
        """Change metadata, (file offset, bytes) each, through the log; what is in 100 pages at once."""
        pages: dict[int, bytes] = {}
        for offset, data in edits:
            for at in pages_of(offset, len(data)):
                if at not in pages and len(pages) >= _PAGES_AT_ONCE:
                    self._commit(pages)
                    pages = {}
                page = pages.get(at) or self._storage.read_at(PAGE_SIZE, at).ljust(PAGE_SIZE, b"\0")
                start, stop = max(at, offset), min(at + PAGE_SIZE, offset + len(data))
                pages[at] = page[: start - at] + data[start - offset : stop - offset] + page[stop - at :]
        self._commit(pages)

    def _commit(self, pages: dict[int, bytes]) -> None:
        changed = {at: page for at, page in pages.items() if self._storage.read_at(PAGE_SIZE, at) != page}
        if changed:
            # A replay makes the file so long; it must not fill up a block that the file's end cuts.
            self._log.commit(changed, self._medium.size & -ALIGNMENT)

    def close(self) -> None:
        """End the session: no log, and two equal headers."""
        self._log.close(None)


def end_of(size: int) -> int:
    """Return where the file can go on: the next multiple of 1 MiB."""
    return round_up(size, ALIGNMENT)
