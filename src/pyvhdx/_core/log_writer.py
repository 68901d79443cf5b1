"""
The one way by which metadata reaches the file (MS-VHDX 2.2.2, 2.3).

Theory of operation
-------------------

A commit makes a set of 4 KiB pages durable: all of them, or none.  Its entry goes into the log, a
barrier makes it durable, and then the pages are written in place at leisure; a power cut in between
is cured by a replay.

* *Payload before metadata.*  A barrier lies between the payload and the entry that makes it
  reachable, so that no entry leads to bytes that are not there.
* *The first entry before the header.*  A log begins with its first entry at offset 0 of the log,
  durable before a header names it: a header that names a log without a whole entry is an image that
  does not open.  That header is the first entry's commit point; its twin follows without a barrier.
* *The log never wraps.*  Entries follow one another and leave the last log sector alone.  When the
  next one does not fit, the log is ended: everything applied, a barrier, a header without a log, a
  barrier; and a new one begins.
* *The tail of every entry is 0.*  A replay then starts at the first entry, whoever does it, so the
  applied pages need no order among themselves and no barrier until the log ends.
* *Headers alternate.*  An update overwrites the copy that is not current, with the next sequence
  number, and at least one barrier lies between two updates of different content.
* *FlushedFileOffset never lies above the length that the last barrier covered*, and the file never
  shrinks while a header names a log.

A crash leaves every page old, or an entry that replay turns into every page new.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

from pyvhdx._core import log_entry
from pyvhdx._core.findings import corrupt
from pyvhdx.format.constants import (
    ALIGNMENT,
    FORMAT_VERSION,
    HEADER_OFFSETS,
    LOG_SECTOR_SIZE,
    LOG_VERSION,
    ZERO_GUID,
)
from pyvhdx.storage import data_runs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyvhdx._core.log_reader import Replay
    from pyvhdx.format.header import Header
    from pyvhdx.storage import Durable, Storage

# Some readers refuse an entry with more descriptors than fit into its first sector.
MAX_PAGES = 126
LAST_SEQUENCE_NUMBER = 2**64 - 2**32
_ZEROS = bytes(1 << 20)


class LogWriter:
    """Headers and log of one open file; for one thread at a time."""

    def __init__(
        self, medium: Durable, header: Header, header_offset: int, *, headers_may_tear: bool = False
    ) -> None:
        if header.sequence_number > LAST_SEQUENCE_NUMBER:
            raise corrupt(
                "HEADER-SEQUENCE",
                "header",
                header_offset,
                "2.2.2",
                f"the sequence number {header.sequence_number} leaves no room for updates",
            )
        self.header = header
        self._medium = medium
        self._header_offset = header_offset
        # The barriers that had been when the current header was written.  A process that was killed may
        # have left the current one behind its last; that matters where a header is more than one unit.
        self._header_epoch = medium.epoch if headers_may_tear else -1
        self._has_twin = False
        self._position = 0
        self._sequence_number = 0
        self._log_is_named = False
        self.has_begun = False
        self.is_visible = False

    def begin(self, *, visible: bool) -> None:
        """
        Announce the first change of a session, and the first that a user of the disk can observe.

        Every header that this writes is durable when it returns.
        """
        if self.has_begun and (self.is_visible or not visible):
            return
        header = self.header
        if not self._log_is_named:
            # A log that the file came with holds nothing, or it would have been replayed.
            header = replace(header, log_guid=ZERO_GUID)
        if not self.has_begun:
            header = replace(header, file_write_guid=uuid4())
        if visible and not self.is_visible:
            header = replace(header, data_write_guid=uuid4())
        self._update_header(header)
        self._medium.barrier()
        self.has_begun = True
        self.is_visible = self.is_visible or visible

    def place_log(self, offset: int, length: int) -> None:
        """Give the file a log at another place, which holds zeros; no log is in use."""
        self._medium.barrier()
        self._update_header(replace(self.header, log_offset=offset, log_length=length))
        self._medium.barrier()

    def commit(self, pages: Mapping[int, bytes], last_file_offset: int) -> None:
        """
        Make *pages*, file offset to 4 KiB, durable: all of them, or none; then put them in place.

        *last_file_offset* is where the file could end, in bytes, a multiple of 1 MiB.
        """
        assert 0 < len(pages) <= MAX_PAGES
        size = log_entry.size_of(len(pages))
        if self._log_is_named and self._position + size > self.header.log_length - LOG_SECTOR_SIZE:
            self._end_log()
        if self._log_is_named:
            if self._medium.payload_pending:
                self._medium.barrier()
            self._append(pages, last_file_offset)
            self._medium.barrier()
        else:
            self._begin_log(pages, last_file_offset)
        for at, page in pages.items():
            self._medium.write_metadata(page, at)

    def close(self, size: int | None) -> None:
        """
        End the session: no log, two equal headers, and the file cut to *size* bytes where that is given.

        Everything committed is in place.  A session that has not begun leaves the file alone.
        """
        if not self.has_begun:
            return
        if self._log_is_named:
            self._end_log()
        if not self._has_twin:
            self._write_twin()
        if size is not None:
            self._medium.cut(size)
        self._medium.barrier()

    def replay(self, replay: Replay, storage: Storage) -> None:
        """
        Do in the file what *replay* says, and end the log that asked for it (2.3.3).

        The first header keeps the log's name: a replay that is cut short is done again.
        """
        self._update_header(replace(self.header, file_write_guid=uuid4()))
        self._medium.barrier()
        size = self._medium.size
        if replay.size > size:
            self._medium.grow(replay.size)
        for start, end in zip(*replay.zeroed, strict=True):
            self._write_zeros(start, min(end, size), storage)  # what is new is zeros
        for at, page in replay.pages.items():
            self._medium.write_metadata(page, at)
        self._log_is_named = True
        self._end_log()
        self._write_twin()
        self._medium.barrier()

    def _write_zeros(self, start: int, end: int, storage: Storage) -> None:
        # A range may be as long as the file; where it has holes there is nothing to do.
        for first, stop in data_runs(storage.next_data, start, end):
            for at in range(first, stop, len(_ZEROS)):
                self._medium.write_metadata(_ZEROS[: stop - at], at)

    def _begin_log(self, pages: Mapping[int, bytes], last_file_offset: int) -> None:
        self.header = replace(self.header, log_guid=uuid4())
        self._position = 0
        # Any start above 0 will do; a random one keeps old entries from ever fitting.
        self._sequence_number = secrets.randbits(62) + 1
        self._append(pages, last_file_offset)
        self._medium.barrier()  # payload and entry
        self._update_header(self.header)
        self._medium.barrier()  # the commit point
        self._log_is_named = True
        self._write_twin()

    def _append(self, pages: Mapping[int, bytes], last_file_offset: int) -> None:
        entry = log_entry.encode(
            pages,
            log_guid=self.header.log_guid,
            sequence_number=self._sequence_number,
            tail=0,
            flushed_file_offset=min(self._medium.durable_size, self._medium.size) & -ALIGNMENT,
            last_file_offset=last_file_offset,
        )
        self._medium.write_metadata(entry, self.header.log_offset + self._position)
        self._position += len(entry)
        self._sequence_number += 1

    def _end_log(self) -> None:
        self._medium.barrier()  # everything applied
        self._update_header(replace(self.header, log_guid=ZERO_GUID))
        self._medium.barrier()
        self._log_is_named = False

    def _update_header(self, header: Header) -> None:
        """Write the next header over the copy that is not current; the caller's barrier makes it count."""
        if self._header_epoch == self._medium.epoch:
            # Were both copies on their way at once, a power cut could take both.
            self._medium.barrier()
        self.header = replace(
            header,
            sequence_number=self.header.sequence_number + 1,
            version=FORMAT_VERSION,
            log_version=LOG_VERSION,
        )
        first, second = HEADER_OFFSETS
        self._header_offset = second if self._header_offset == first else first
        self._medium.write_metadata(self.header.sealed(), self._header_offset)
        self._header_epoch = self._medium.epoch
        self._has_twin = False

    def _write_twin(self) -> None:
        """Bring the other copy up to date; the next barrier covers it."""
        self._update_header(self.header)
        self._has_twin = True
