"""
A checker that follows every event of a program that writes a VHDX file, and knows the rules.

Plain `struct` and the CRC, nothing of the package but the type of its events.  A `Checker` is made
from the content of the file when it was opened and fed every write, truncate, reserve and flush in
order.  It keeps the file as it is *now* and as the last flush left it (*durable*), reads both like
any reader would, and asserts what must hold at each moment:

* headers alternate, each one a whole valid copy with the next number, with a barrier in between; the
  first change of a session is one with a new FileWriteGuid, and a new DataWriteGuid comes before the
  first change that the disk's user can see, and not without one;
* the log is written entry behind entry, and metadata changes in place only to what a durable entry holds;
* what an entry makes reachable is durable before it, and no place ever has two owners, whatever a
  power cut leaves;
* in the end there are two equal headers, no log, and a tidy table of blocks.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from crc32c import crc32c

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pyvhdx.testing import Event

MIB = 1 << 20
PAGE = 4096
SLOTS = (0x10000, 0x20000)
REGION_TABLES = (0x30000, 0x40000)
NO_GUID = bytes(16)
NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, FULL, PARTIAL = 0, 1, 2, 3, 6, 7
BITMAP_PRESENT = 6

_BAT = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
_METADATA = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_FILE_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_SECTOR_SIZE = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f").bytes_le

_EMPTY = bytes(PAGE)


class Content:
    """The bytes of a file, kept in pages; those that hold zeros only are not kept."""

    def __init__(self, data: bytes = b"") -> None:
        self.pages: dict[int, bytes] = {}
        self.size = 0
        self.write(0, data)

    def copy(self) -> Content:
        other = Content()
        other.pages, other.size = dict(self.pages), self.size
        return other

    def page(self, at: int) -> bytes:
        """Return the page at a file offset."""
        return self.pages.get(at // PAGE, _EMPTY)

    def read(self, offset: int, length: int) -> bytes:
        first, last = offset // PAGE, (offset + length - 1) // PAGE
        if first == last:
            within = offset - first * PAGE
            return self.pages.get(first, _EMPTY)[within : within + length]
        data = b"".join([self.pages.get(number, _EMPTY) for number in range(first, last + 1)])
        return data[offset - first * PAGE :][:length]

    def write(self, offset: int, data: bytes) -> range:
        """Put *data* in and return the numbers of the pages that it touches."""
        end = offset + len(data)
        touched = range(offset // PAGE, -(-end // PAGE))
        for number in touched if data else ():
            start, stop = max(number * PAGE, offset), min(number * PAGE + PAGE, end)
            page = data[start - offset : stop - offset]
            if stop - start < PAGE:
                old, within = self.pages.get(number, _EMPTY), start - number * PAGE
                page = old[:within] + page + old[within + len(page) :]
            self._put(number, page)
        self.size = max(self.size, end)
        return touched

    def truncate(self, size: int) -> None:
        if size < self.size:
            for number in [number for number in self.pages if number >= size // PAGE]:
                self._put(number, self.pages[number][: max(0, size - number * PAGE)].ljust(PAGE, b"\0"))
        self.size = size

    def take_over(self, other: Content, numbers: Iterable[int]) -> None:
        """Become equal to *other*, of which the pages *numbers* have changed."""
        for number in numbers:
            self._put(number, other.pages.get(number, _EMPTY))
        self.truncate(other.size)

    def _put(self, number: int, page: bytes) -> None:
        if page == _EMPTY:
            self.pages.pop(number, None)
        else:
            self.pages[number] = page

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Content) and (self.size, self.pages) == (other.size, other.pages)

    __hash__ = None  # type: ignore[assignment]  # it changes


class Header(NamedTuple):
    sequence_number: int
    file_write_guid: bytes
    data_write_guid: bytes
    log_guid: bytes
    log_version: int
    version: int
    log_length: int
    log_offset: int
    reserved: bytes


class Entry(NamedTuple):
    """A log entry; *pages* are the images by file offset."""

    log_guid: bytes
    sequence_number: int
    tail: int
    flushed_file_offset: int
    last_file_offset: int
    length: int
    pages: dict[int, bytes]


def is_zero(data: bytes) -> bool:
    """Return whether there are only zeros; `any` takes ten times as long."""
    return data.count(0) == len(data)


def parse_header(raw: bytes) -> Header | None:
    """Return a header of 4096 bytes, None for one that is not valid."""
    if raw[:4] != b"head" or crc32c(raw[:4] + bytes(4) + raw[8:]) != int.from_bytes(raw[4:8], "little"):
        return None
    return Header._make((*struct.unpack_from("<Q16s16s16sHHIQ", raw, 8), raw[80:]))


def current_header(content: Content) -> tuple[int, Header]:
    """Return offset and content of the valid header with the higher number."""
    found = [(at, header) for at in SLOTS if (header := parse_header(content.read(at, PAGE))) is not None]
    assert found, "no header is valid"
    assert len({header.sequence_number for _, header in found}) == len(found), "both headers have one number"
    return max(found, key=lambda pair: pair[1].sequence_number)


def parse_entry(raw: bytes) -> Entry:
    """Return the log entry that *raw* is, whole; an `AssertionError` says what is wrong with it."""
    assert len(raw) >= PAGE, "a log entry is shorter than a sector"
    signature, crc, length, tail, number, count, reserved, guid, flushed, last = struct.unpack_from(
        "<4sIIIQII16sQQ", raw
    )
    assert signature == b"loge", f"a log entry begins with {signature!r}"
    assert length == len(raw), f"EntryLength is {length}, and {len(raw)} bytes were written"
    descriptors_end = -(-(64 + 32 * count) // PAGE) * PAGE
    assert crc32c(raw[:4] + bytes(4) + raw[8:]) == crc, "the CRC of a log entry is wrong"
    assert number > 0, "the sequence number of a log entry is 0"
    assert reserved == 0, "a reserved field of a log entry is set"
    assert length == descriptors_end + PAGE * count, f"{count} descriptors make no entry of {length} bytes"
    assert is_zero(raw[64 + 32 * count : descriptors_end]), "bytes behind the descriptors are not 0"
    pages: dict[int, bytes] = {}
    for descriptor in range(count):
        kind, trailing, leading, at, own = struct.unpack_from("<4s4s8sQQ", raw, 64 + 32 * descriptor)
        sector = raw[descriptors_end + PAGE * descriptor :][:PAGE]
        assert kind == b"desc", f"descriptor {descriptor} is {kind!r}, and only images of pages are expected"
        assert own == number, f"descriptor {descriptor} has the sequence number of another entry"
        assert sector[:4] == b"data", f"data sector {descriptor} begins with {sector[:4]!r}"
        high, low = struct.unpack_from("<I", sector, 4)[0], struct.unpack_from("<I", sector, 4092)[0]
        assert high << 32 | low == number, f"data sector {descriptor} has the number of another entry"
        assert at % PAGE == 0, f"descriptor {descriptor} has the target {at:#x}, which is no page"
        assert at not in pages, f"the page at {at:#x} comes twice in one entry"
        pages[at] = leading + sector[8:4092] + trailing
    return Entry(guid, number, tail, flushed, last, length, pages)


def entries_in(content: Content, header: Header) -> list[Entry]:
    """Return the entries of the log that *header* names, one behind the other from its beginning."""
    entries: list[Entry] = []
    at = 0
    while at + PAGE <= header.log_length:
        start = content.read(header.log_offset + at, PAGE)
        length = int.from_bytes(start[8:12], "little")
        if start[:4] != b"loge" or start[32:48] != header.log_guid or at + length > header.log_length:
            break
        try:
            entry = parse_entry(content.read(header.log_offset + at, length))
        except AssertionError:
            break
        if entries and entry.sequence_number != entries[-1].sequence_number + 1:
            break
        entries.append(entry)
        at += length
    return entries


class Layout:
    """What stays as it is as long as a file is open: where its regions are, and how large its blocks."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        table = read(REGION_TABLES[0], 65536)
        assert table[:4] == b"regi", "there is no region table"
        self.regions: dict[bytes, tuple[int, int]] = {}
        for number in range(int.from_bytes(table[8:12], "little")):
            guid, at, length = struct.unpack_from("<16sQI", table, 16 + 32 * number)
            self.regions[guid] = at, length
        self.bat, self.bat_length = self.regions[_BAT]
        self.metadata, self.metadata_length = self.regions[_METADATA]
        items = read(self.metadata, 65536)
        found = {}
        for number in range(int.from_bytes(items[10:12], "little")):
            guid, at, length, flags = struct.unpack_from("<16sIII", items, 32 + 32 * number)
            if not flags & 1:
                found[guid] = read(self.metadata + at, length)
        self.block_size = int.from_bytes(found[_FILE_PARAMETERS][:4], "little")
        kind = int.from_bytes(found[_FILE_PARAMETERS][4:], "little")
        self.is_fixed = kind == 1
        self.has_parent = bool(kind & 2)
        self.size = int.from_bytes(found[_DISK_SIZE], "little")
        self.sector = int.from_bytes(found[_SECTOR_SIZE], "little")
        self.ratio = (1 << 23) * self.sector // self.block_size
        self.blocks = -(-self.size // self.block_size)
        self.chunks = -(-self.blocks // self.ratio)
        self.bits_length = self.block_size // self.sector // 8  # of one block, in bytes

    def used_length(self, block: int) -> int:
        return min(self.block_size, self.size - block * self.block_size)


class View:
    """What the table of blocks says, in one state of the file, and whose each MiB is then."""

    def __init__(self, layout: Layout, read: Callable[[int, int], bytes], header: Header, what: str) -> None:
        self.payload: list[int] = []
        self.bitmaps: list[int] = []
        for chunk in range(layout.chunks):
            count = min(layout.ratio, layout.blocks - chunk * layout.ratio)
            at = layout.bat + 8 * chunk * (layout.ratio + 1)
            self.payload += struct.unpack(f"<{count}Q", read(at, 8 * count))
            if layout.has_parent:
                self.bitmaps += struct.unpack("<Q", read(at + 8 * layout.ratio, 8))
        self.owners: dict[int, str] = {0: "the header section"}
        self._what = what
        self._own("the log", header.log_offset, header.log_length)
        for guid, (at, length) in layout.regions.items():
            self._own(f"region {UUID(bytes_le=guid)}", at, length)
        for chunk, entry in enumerate(self.bitmaps):
            if entry & 7 == BITMAP_PRESENT:
                self._own(f"bitmap {chunk}", entry & -MIB, MIB)
        for block, entry in enumerate(self.payload):
            state = entry & 7
            assert state not in (4, 5), f"{what}: block {block} has the reserved state {state}"
            if state in (FULL, PARTIAL):
                assert entry & -MIB, f"{what}: block {block} is present without a place"
            if state == PARTIAL:
                assert layout.has_parent, f"{what}: block {block} is PARTIALLY_PRESENT without a parent"
                bitmap = self.bitmaps[block // layout.ratio]
                assert bitmap & 7 == BITMAP_PRESENT, f"{what}: block {block} is partial without a bitmap"
            if state in (FULL, PARTIAL) or (state in (UNDEFINED, UNMAPPED) and entry & -MIB):
                self._own(f"block {block}", entry & -MIB, layout.block_size)
        self.end = (max(self.owners) + 1) * MIB

    def _own(self, name: str, at: int, length: int) -> None:
        for unit in range(at // MIB, -(-(at + length) // MIB)):
            other = self.owners.setdefault(unit, name)
            assert other == name, f"{self._what}: {name} and {other} both own the MiB at {unit * MIB:#x}"


class _Reachable(NamedTuple):
    """What an entry makes reachable in a place of the file: the sectors whose bit in *sectors* is 1."""

    what: str
    place: int
    end: int
    sectors: int


class Checker:
    """Follows one session, from open to close; `operations` tells in words what each event was."""

    def __init__(self, content: Content) -> None:
        self.now = content
        self.durable = content.copy()
        self.operations: list[str] = []
        self.has_changed = False
        self.slot, self.header = current_header(content)
        self._durable_header = self._start_header = self.header
        self._durable_size = 0  # no barrier of this session has covered anything
        self._touched: set[int] = set()  # numbers of the pages written since the last flush
        self._unflushed: list[tuple[int, int]] = []  # payload ranges written since then
        self._header_is_flushed = True
        self._is_flushed = True
        self._has_new_data_guid = False
        self._saw_visible_change = False
        self._guids = {self.header.file_write_guid, self.header.data_write_guid}
        self._logs = {self.header.log_guid}
        # The log: images that a power cut leaves in force, all images of this log, entries on their way.
        self._committed: dict[int, bytes] = {}
        self._images: dict[int, set[bytes]] = {}
        self._pending: list[Entry] = []
        self._reachable: list[_Reachable] = []
        self._first_is_flushed = False
        self._log_end = 0
        self._last_number = 0
        if self.header.log_guid != NO_GUID:
            for entry in entries_in(content, self.header):
                self._commit(entry)
                self._log_end += entry.length
                self._last_number = entry.sequence_number
        self.layout = Layout(self._read_durable)
        self._durable_view = self._target = self._view(self._read_durable, "the file as it was opened")
        self._first_payload = list(self._target.payload)
        self._fixed = {
            at: self._read_durable(at, 65536) for at in (0, *REGION_TABLES)
        }  # what nothing here changes
        self._written: dict[int, int] = {}  # the last payload event by MiB
        self._free_since: dict[int, int] = {}  # the flush that freed a MiB

    # -- events -------------------------------------------------------------------------------

    def feed(self, events: Iterable[Event]) -> None:
        """Follow more events."""
        for event in events:
            try:
                self._feed(event)
            except AssertionError as error:
                where = f"event {len(self.operations)}, {event.kind} {event.offset:#x} +{event.length:#x}"
                raise AssertionError(f"{where}: {error}") from error

    def _feed(self, event: Event) -> None:
        if event.kind == "reserve":
            return  # changes no byte
        if event.kind == "flush":
            self._flush()
            self.operations.append("flush")
            return
        self.has_changed = True
        self._is_flushed = False
        if event.kind == "truncate":
            self._check_has_begun()
            self.operations.append("cut" if event.length < self.now.size else "grow")
            self._truncate(event.length)
            return
        assert event.kind == "write", f"what is {event.kind}?"
        assert event.length == len(event.data), "the event is not consistent"
        self.operations.append(self._write(event.offset, event.data))
        self._touched.update(self.now.write(event.offset, event.data))

    def _check_has_begun(self) -> None:
        assert self._durable_header.file_write_guid != self._start_header.file_write_guid, (
            "something changed before a header with a new FileWriteGuid was durable"
        )

    def _write(self, offset: int, data: bytes) -> str:
        end = offset + len(data)
        if offset < REGION_TABLES[0]:
            self._write_header(offset, data)
            return "header"
        self._check_has_begun()
        log, log_end = self.header.log_offset, self.header.log_offset + self.header.log_length
        if offset < log_end and log < end:
            assert offset + len(data) <= log_end, "a write reaches out of the log"
            self._write_entry(offset, data)
            return "log"
        for name, start, stop in self._metadata_places():
            if offset < stop and start < end:
                assert start <= offset, f"a write reaches into the {name}"
                assert end <= stop, f"a write reaches out of the {name}"
                self._write_pages(name, offset, data)
                return name
        assert offset >= MIB, "a write hits the reserved part of the header section"
        self._write_payload(offset, data)
        return "payload"

    def _metadata_places(self) -> list[tuple[str, int, int]]:
        layout = self.layout
        places = [
            ("regions", REGION_TABLES[0], REGION_TABLES[1] + 65536),
            ("bat", layout.bat, layout.bat + layout.bat_length),
            ("metadata", layout.metadata, layout.metadata + layout.metadata_length),
        ]
        bitmaps = {*self._durable_view.bitmaps, *self._target.bitmaps}
        places += [("bitmap", e & -MIB, (e & -MIB) + MIB) for e in bitmaps if e & 7 == BITMAP_PRESENT]
        return places

    def _flush(self) -> None:
        self._is_flushed = True
        self._header_is_flushed = True
        self.durable.take_over(self.now, self._touched)
        self._touched.clear()
        self._unflushed.clear()
        self._durable_size = self.now.size
        self._durable_header = self.header
        if not self._pending:
            return
        if self.header.log_guid == NO_GUID:
            self._first_is_flushed = True  # durable, and in force as soon as a header names it
            return
        for entry in self._pending:
            self._commit(entry)
        self._pending.clear()
        replayed: dict[int, bytes] = {}
        entries = entries_in(self.durable, self._durable_header)
        for entry in entries:
            replayed |= entry.pages
        assert replayed == self._committed, "a replay of the durable file does not give what was committed"
        before = self._durable_view
        self._durable_view = self._view(self._read_durable, "after a power cut")
        for unit in before.owners.keys() - self._durable_view.owners.keys():
            self._free_since[unit] = len(self.operations)

    def _commit(self, entry: Entry) -> None:
        self._committed |= entry.pages
        for at, page in entry.pages.items():
            self._images.setdefault(at, set()).add(page)

    def _truncate(self, size: int) -> None:
        if size < self.now.size:
            for header in (self.header, self._durable_header):
                assert header.log_guid == NO_GUID, "the file became shorter while a header names a log"
            assert not self._pending, "the file became shorter under an entry"
            for view in (self._durable_view, self._target):
                assert size >= view.end, (
                    f"the file was cut to {size:#x}, and something lies up to {view.end:#x}"
                )
            self._touched.update(n for n in self.now.pages if n >= size // PAGE)
        self.now.truncate(size)

    # -- headers ------------------------------------------------------------------------------

    def _write_header(self, offset: int, data: bytes) -> None:
        assert offset in SLOTS, "a write hits the first 192 KiB, and is no header"
        assert len(data) == PAGE, "a header was not written whole"
        new = parse_header(data)
        old = self.header
        assert new is not None, "a header is not valid"
        assert self._header_is_flushed, "two headers were on their way without a barrier between them"
        assert offset != self.slot, "the current header was overwritten; headers must alternate"
        assert new.sequence_number == old.sequence_number + 1, (
            "the sequence number of a header is not the next"
        )
        assert (new.version, new.log_version) == (1, 0), "the versions of a header are wrong"
        assert is_zero(new.reserved), "reserved bytes of a header are set"
        if new.file_write_guid != old.file_write_guid:
            assert new.file_write_guid not in self._guids, "the FileWriteGuid is an old one"
        else:
            assert old is not self._start_header, "the session's first header has the old FileWriteGuid"
        if new.data_write_guid != old.data_write_guid:
            assert new.data_write_guid not in self._guids, "the DataWriteGuid is an old one"
            assert not self._has_new_data_guid, "the DataWriteGuid changed twice in one session"
            self._has_new_data_guid = True
        self._guids |= {new.file_write_guid, new.data_write_guid}
        if new.log_guid != old.log_guid:
            if new.log_guid == NO_GUID:
                self._check_log_has_ended()
            else:
                assert old.log_guid == NO_GUID, "one log follows another without an end"
                assert self._pending, "a header names a log that has no entry"
                assert self._pending[0].log_guid == new.log_guid, "a header names a log that has no entry"
                assert self._first_is_flushed, "a header names a log whose first entry is not durable"
                self._check_reachable_is_durable()
            self._logs.add(new.log_guid)
        else:
            assert new.log_guid != NO_GUID or not self._pending, (
                "an entry was written, and no header names it"
            )
        if (new.log_offset, new.log_length) != (old.log_offset, old.log_length):
            assert old.log_guid == new.log_guid == NO_GUID, "a log moved while it was in use"
            assert new.log_offset % MIB == 0, "the log does not lie at a MiB"
            assert new.log_length % MIB == 0, "the length of the log is no multiple of 1 MiB"
            self.header = new
            self._target = self._view(self._read_target, "with a log in another place")
            self._durable_view = self._target
        self.header, self.slot = new, offset
        self._header_is_flushed = False

    def _check_log_has_ended(self) -> None:
        assert not self._pending, "the log ended with an entry that is not durable"
        for at, page in self._committed.items():
            assert self.now.page(at) == page, f"the log ended before the page at {at:#x} was in place"
            assert self.durable.page(at) == page, (
                f"the log ended before the page at {at:#x} was durable in place"
            )
        self._committed.clear()
        self._images.clear()

    # -- the log ------------------------------------------------------------------------------

    def _write_entry(self, offset: int, data: bytes) -> None:
        entry = parse_entry(data)
        at = offset - self.header.log_offset
        is_first = self.header.log_guid == NO_GUID
        if is_first:
            assert self._durable_header.log_guid == NO_GUID, (
                "an old log was overwritten before its end was durable"
            )
            assert not self._pending, "a second entry came before a header named the log"
            assert at == 0, f"the first entry of a log is at {at:#x}"
            assert entry.log_guid not in self._logs, "the LogGuid of a new log is an old one"
            self._log_end = 0
            self._first_is_flushed = False
        else:
            assert entry.log_guid == self.header.log_guid, "an entry has the LogGuid of another log"
            assert self._durable_header.log_guid == entry.log_guid, (
                "a second entry came before the header was durable"
            )
            assert at == self._log_end, (
                f"an entry is at {at:#x}, and the one before ends at {self._log_end:#x}"
            )
            assert entry.sequence_number == self._last_number + 1, "the number of an entry is not the next"
        assert entry.tail == 0, f"the tail of an entry is {entry.tail:#x}, and not the log's first entry"
        assert 0 < len(entry.pages) <= 126, f"an entry holds {len(entry.pages)} pages"
        assert at + len(data) <= self.header.log_length - PAGE, "an entry uses the last sector of the log"
        assert entry.flushed_file_offset % MIB == 0, "FlushedFileOffset is no multiple of 1 MiB"
        assert entry.last_file_offset % MIB == 0, "LastFileOffset is no multiple of 1 MiB"
        assert entry.flushed_file_offset <= self._durable_size, (
            f"FlushedFileOffset is {entry.flushed_file_offset:#x}, and no flush covered more than {self._durable_size:#x}"
        )
        self._log_end = at + len(data)
        self._last_number = entry.sequence_number

        before, places = self._target, self._metadata_places()
        old_pages = {page: self._read_target(page, PAGE) for page in entry.pages}
        old_bits = self._bits_under(entry)
        self._pending.append(entry)
        after = self._target = self._view(self._read_target, "what an entry says")
        places += self._metadata_places()
        for page in entry.pages:
            assert any(start <= page < stop for _, start, stop in places), (
                f"an entry holds the page at {page:#x}, which is no metadata"
            )
        assert entry.last_file_offset >= after.end, (
            f"LastFileOffset is {entry.last_file_offset:#x}, and something lies up to {after.end:#x}"
        )
        self._check_owners(before, after)
        self._check_new_bitmaps(before, after)
        new_bits = self._bits_under(entry)
        if self._is_visible(before, after, old_pages, entry) or old_bits != new_bits:
            self._see_change()
        self._reachable = self._newly_reachable(before, after, old_bits, new_bits)
        if not is_first:
            self._check_reachable_is_durable()

    def _see_change(self) -> None:
        self._saw_visible_change = True
        assert self._durable_header.data_write_guid != self._start_header.data_write_guid, (
            "the disk changed visibly before a new DataWriteGuid was durable"
        )

    def _bits_under(self, entry: Entry) -> dict[int, int]:
        """Return the bits, as one number, of each partial block that has some in the pages of *entry*."""
        layout, view = self.layout, self._target
        bits = {}
        for chunk, bitmap in enumerate(view.bitmaps):
            first = chunk * layout.ratio
            for page in entry.pages:
                within = page - (bitmap & -MIB)
                if bitmap & 7 != BITMAP_PRESENT or not 0 <= within < MIB:
                    continue
                start = within // layout.bits_length
                for number in range(start, start + max(1, PAGE // layout.bits_length)):
                    block = first + number
                    if block < layout.blocks and view.payload[block] & 7 == PARTIAL:
                        bits[block] = self._bits(view, block)
        return bits

    def _bits(self, view: View, block: int) -> int:
        layout = self.layout
        chunk, number = divmod(block, layout.ratio)
        at = (view.bitmaps[chunk] & -MIB) + number * layout.bits_length
        return int.from_bytes(self._read_target(at, layout.bits_length), "little")

    def _is_visible(self, before: View, after: View, old_pages: dict[int, bytes], entry: Entry) -> bool:
        for old, new in zip(before.payload, after.payload, strict=True):
            clears_anchor = old & 7 == new & 7 and old & 7 in (UNDEFINED, UNMAPPED) and not new & -MIB
            if old != new and not clears_anchor:
                return True
        layout = self.layout
        return any(
            page != old_pages[at] and 0 <= at - layout.metadata < layout.metadata_length
            for at, page in entry.pages.items()
        )

    def _check_owners(self, before: View, after: View) -> None:
        taken: dict[str, list[int]] = {}
        for unit, owner in after.owners.items():
            old = before.owners.get(unit)
            if old == owner:
                continue
            assert old is None, (
                f"{owner} took the MiB at {unit * MIB:#x} while the durable file gives it to {old}"
            )
            durable = self._durable_view.owners.get(unit)
            assert durable is None, (
                f"{owner} took the MiB at {unit * MIB:#x}, which a power cut gives to {durable}"
            )
            taken.setdefault(owner, []).append(unit)
        for owner, units in taken.items():
            assert any(self._written.get(unit, -1) > self._free_since.get(unit, -1) for unit in units), (
                f"{owner} got a place that nothing was written to since it became free"
            )

    def _check_new_bitmaps(self, before: View, after: View) -> None:
        layout = self.layout
        for chunk, (old, new) in enumerate(zip(before.bitmaps, after.bitmaps, strict=True)):
            if old == new:
                continue
            assert new & 7 == BITMAP_PRESENT, f"bitmap {chunk} became {new:#x}"
            for at in range(0, MIB, PAGE):
                page = self._read_target((new & -MIB) + at, PAGE)
                if page == _EMPTY:
                    continue
                step = min(PAGE, layout.bits_length)
                for start in range(0, PAGE, step):
                    block = chunk * layout.ratio + (at + start) // layout.bits_length
                    is_partial = block < layout.blocks and after.payload[block] & 7 == PARTIAL
                    assert is_partial or not any(page[start : start + step]), (
                        f"the new bitmap {chunk} has bits of block {block}, which is not partial"
                    )

    def _newly_reachable(
        self, before: View, after: View, old_bits: dict[int, int], new_bits: dict[int, int]
    ) -> list[_Reachable]:
        layout, found = self.layout, []
        for chunk, (old, new) in enumerate(zip(before.bitmaps, after.bitmaps, strict=True)):
            if old != new:
                found.append(_Reachable(f"bitmap {chunk}", new & -MIB, (new & -MIB) + MIB, -1))
        every = (1 << layout.block_size // layout.sector) - 1
        for block, (old, new) in enumerate(zip(before.payload, after.payload, strict=True)):
            if new & 7 not in (FULL, PARTIAL):
                continue
            had = 0  # the sectors that were reachable at this place before
            if old & -MIB == new & -MIB and old & 7 == FULL:
                had = every
            elif old & -MIB == new & -MIB and old & 7 == PARTIAL:
                # A block that is not partial any more has its bits cleared in the same entry.
                had = old_bits[block] if block in old_bits else self._bits(before, block)
            has = every
            if new & 7 == PARTIAL:
                has = new_bits[block] if block in new_bits else self._bits(after, block)
            if has & ~had:
                place = new & -MIB
                end = place + layout.used_length(block)
                found.append(_Reachable(f"block {block}", place, end, has & ~had))
        return found

    def _check_reachable_is_durable(self) -> None:
        for what, place, end, sectors in self._reachable:
            assert end <= self._durable_size, (
                f"{what} became reachable before the file's new length was durable"
            )
            for start, stop in self._unflushed:
                if not (start < end and place < stop):
                    continue
                first = (max(start, place) - place) // self.layout.sector
                last = (min(stop, end) - 1 - place) // self.layout.sector
                mask = ((1 << (last - first + 1)) - 1) << first
                assert not sectors & mask, (
                    f"{what} became reachable before its bytes at {start:#x} were durable"
                )
        self._reachable = []

    # -- metadata in place, and payload -------------------------------------------------------

    def _write_pages(self, name: str, offset: int, data: bytes) -> None:
        assert offset % PAGE == 0, f"a write to the {name} is not a whole page"
        assert len(data) % PAGE == 0, f"a write to the {name} is not a whole page"
        for start in range(0, len(data), PAGE):
            images = self._images.get(offset + start, set())
            assert data[start : start + PAGE] in images, (
                f"the {name} at {offset + start:#x} became what no durable entry holds"
            )

    def _write_payload(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        is_owned = False
        for unit in range(offset // MIB, -(-end // MIB)):
            durable, target = self._durable_view.owners.get(unit), self._target.owners.get(unit)
            assert durable is None or durable == target, (
                f"payload was written where a power cut gives the place to {durable}"
            )
            owner = durable or target
            assert owner is None or owner.startswith("block "), f"payload was written into {owner}"
            is_owned = is_owned or owner is not None
            self._written[unit] = len(self.operations)
        logged = [*self._committed, *(page for entry in self._pending for page in entry.pages)]
        assert not any(at < end and offset < at + PAGE for at in logged), (
            "payload was written where the log has an image of a page"
        )
        if is_owned or not is_zero(data):
            self._see_change()
        self._unflushed.append((offset, end))

    # -- states of the file -------------------------------------------------------------------

    def _view(self, read: Callable[[int, int], bytes], what: str) -> View:
        return View(self.layout, read, self.header, what)

    def _read_durable(self, offset: int, length: int) -> bytes:
        """Read the file that a power cut leaves, after the replay of its log."""
        return _read(self.durable, (self._committed,), offset, length)

    def _read_target(self, offset: int, length: int) -> bytes:
        """Read the file as it will be when all that was written is in place."""
        layers = [entry.pages for entry in reversed(self._pending)]
        return _read(self.now, (*layers, self._committed), offset, length)

    # -- the end ------------------------------------------------------------------------------

    def finish(self, *, is_visible: bool = True) -> None:
        """
        Assert what holds of a file that was closed.

        *is_visible* tells whether anything was asked for that a user of the disk can observe; that may
        still come to nothing.
        """
        if not self.has_changed:
            return
        assert self._is_flushed, "the file was closed, and its last change not flushed"
        assert not self._pending, "the file was closed with an entry that is not in force"
        headers = [parse_header(self.now.read(at, PAGE)) for at in SLOTS]
        first, second = headers
        assert first is not None, "header 1 is not valid"
        assert second is not None, "header 2 is not valid"
        assert first._replace(sequence_number=0) == second._replace(sequence_number=0), (
            "the two headers of a closed file differ"
        )
        assert abs(first.sequence_number - second.sequence_number) == 1, (
            "the headers' numbers are not neighbours"
        )
        assert first.log_guid == NO_GUID, "a closed file has a log"
        assert self.now.size % MIB == 0, f"the file is {self.now.size:#x} bytes long, no multiple of 1 MiB"
        assert is_visible or not self._saw_visible_change, (
            "the disk changed visibly, and nobody asked for that"
        )
        assert is_visible or not self._has_new_data_guid, "the DataWriteGuid changed, and nothing visible did"
        for at, data in self._fixed.items():
            assert self.now.read(at, 65536) == data, f"what lies at {at:#x} changed"
        self._check_blocks()

    def _check_blocks(self) -> None:
        layout = self.layout
        view = self._view(self.now.read, "the closed file")
        assert view.end <= self.now.size, f"the file ends at {self.now.size:#x}, and something behind it"
        if layout.is_fixed:
            assert all(entry & 7 == FULL for entry in view.payload), "a fixed disk lost a block"
        for block, (old, new) in enumerate(zip(self._first_payload, view.payload, strict=True)):
            if old == new and not layout.has_parent:
                continue
            assert not new & (MIB - 1) & ~7, f"the entry of block {block}, {new:#x}, has reserved bits"
            if new & 7 in (NOT_PRESENT, ZERO):
                assert not new & -MIB, f"the entry of block {block}, {new:#x}, has an offset"
            if not layout.has_parent or view.bitmaps[block // layout.ratio] & 7 != BITMAP_PRESENT:
                continue
            bits = self._bits(view, block)
            if new & 7 != PARTIAL:
                assert old == new or not bits, f"block {block} is not partial, and has bits"
            else:
                used = layout.used_length(block) // layout.sector
                assert not bits >> used, f"block {block} has bits behind the disk's end"


def _read(content: Content, layers: Iterable[dict[int, bytes]], offset: int, length: int) -> bytes:
    first = offset - offset % PAGE
    layers = [layer for layer in layers if layer]
    pieces = [
        next((layer[at] for layer in layers if at in layer), None) or content.page(at)
        for at in range(first, offset + length, PAGE)
    ]
    return b"".join(pieces)[offset - first :][:length]


def content_of(read_at: Callable[[int, int], bytes], size: int) -> Content:
    """Return what a storage holds; *read_at* takes a size and an offset."""
    content = Content()
    for start in range(0, size, MIB):
        data = read_at(min(MIB, size - start), start)
        if not is_zero(data):
            content.write(start, data)
    content.truncate(size)
    return content
