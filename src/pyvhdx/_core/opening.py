"""
From a storage to an open file, in the order that the format asks for (MS-VHDX 2.3.3).

Identifier, headers, log, region tables, metadata, BAT.  Nothing behind the headers may be read
before the log has been replayed, because the log may rewrite it; here that happens in an `Overlay`
and the file stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core.bat import BlockAllocationTable
from pyvhdx._core.blocks import BlockMap
from pyvhdx._core.findings import corrupt
from pyvhdx._core.geometry import Geometry
from pyvhdx._core.headers import CurrentHeader, choose_header
from pyvhdx._core.log_reader import Replay, Ring, count_of, read_log
from pyvhdx._core.metadata import Metadata, read_metadata
from pyvhdx._core.pages import Pages
from pyvhdx._core.regions import Regions, Span, read_regions, region_name
from pyvhdx.errors import LogPendingError, NotVHDXError
from pyvhdx.format import constants as c
from pyvhdx.format.foreign import FOOTER_SIZE, HEAD_SIZE, recognise
from pyvhdx.format.header import Header, is_valid_header
from pyvhdx.format.identifier import FileIdentifier, decode_creator
from pyvhdx.storage import Overlay

if TYPE_CHECKING:
    from pyvhdx.errors import Finding
    from pyvhdx.storage import Storage


SALVAGE_HINT = "; if it was one, pyvhdx salvage may still find its contents"


class OpenFile(NamedTuple):
    """One file, ready to read: `raw` is the file as it is, `storage` shows it with its log replayed."""

    raw: Storage
    storage: Storage
    creator: str
    header: Header
    header_offset: int
    pages: Pages
    regions: Regions
    metadata: Metadata
    geometry: Geometry
    bat: BlockAllocationTable
    blocks: BlockMap
    replay: Replay | None
    findings: list[Finding]


def open_file(storage: Storage, *, replay_log: bool = True) -> OpenFile:
    """
    Read what every later read depends on; raise `ImageError` for what is wrong with it.

    Without *replay_log* a log that holds anything raises `LogPendingError`.
    """
    creator = read_identifier(storage)
    current = read_headers(storage)
    header = current.header
    replay = None
    if header.log_guid != c.ZERO_GUID:
        replay = replay_of(storage, header)
        if not replay_log:
            refuse_pending(replay, header.log_offset)
    shown = overlay_of(storage, replay)
    regions = regions_of(shown, header)
    pages = Pages(shown.read_at)
    metadata = read_metadata(regions.metadata, pages.read)
    geometry = Geometry(metadata.size, metadata.block_size, metadata.logical_sector_size)
    bat = BlockAllocationTable(pages, regions.bat, geometry, differencing=metadata.has_parent)
    blocks = BlockMap(
        geometry,
        bat,
        pages,
        shown.size(),
        [*region_spans(regions), log_span(header)],
        differencing=metadata.has_parent,
    )
    findings = [
        *current.findings,
        *(replay.findings if replay else ()),
        *regions.findings,
        *metadata.findings,
    ]
    return OpenFile(
        raw=storage,
        storage=shown,
        creator=creator,
        header=header,
        header_offset=current.offset,
        pages=pages,
        regions=regions,
        metadata=metadata,
        geometry=geometry,
        bat=bat,
        blocks=blocks,
        replay=replay,
        findings=findings,
    )


def refuse_pending(replay: Replay, log_offset: int) -> None:
    """Raise `LogPendingError` where there is anything to replay."""
    if replay.entries:
        raise LogPendingError(
            f"{count_of(replay.entries)} must be replayed first, and that was refused; "
            'log="auto" replays: in memory where the file is only read, and into a file that is written',
            "LOG-PENDING",
            "log",
            log_offset,
            "2.3.3",
        )


def read_identifier(storage: Storage) -> str:
    """Return the creator; raise `NotVHDXError` for a file that is something else."""
    head = storage.read_at(HEAD_SIZE, 0)
    size = storage.size()
    if not head.startswith(c.IDENTIFIER_SIGNATURE):
        if has_a_right_header(storage):
            raise corrupt(
                "IDENTIFIER",
                "file identifier",
                0,
                "2.2.1",
                f"the signature is {head[:8]!r}, not 'vhdxfile', and a header follows that is right",
            )
        raise NotVHDXError(_what_it_is(storage, head, size), "NOT-VHDX", "file identifier", 0, "2.2.1")
    if size < c.HEADER_SECTION_SIZE:
        raise corrupt(
            "FILE-SIZE", "file", size, "2.1", f"the file ends after {size} bytes, inside the header section"
        )
    return decode_creator(FileIdentifier.parse(head).creator)


def has_a_right_header(storage: Storage) -> bool:
    """Return whether this was a VHDX file, whatever its first bytes say."""
    return any(is_valid_header(data) for data in header_copies(storage))


def _what_it_is(storage: Storage, head: bytes, size: int) -> str:
    if size == 0:
        return "the file is empty"
    footer = storage.read_at(FOOTER_SIZE, max(0, size - FOOTER_SIZE))
    known = recognise(head, footer, storage.name)
    if known is None:
        # Not its bytes: who named it as a parent in a locator may read this message, and not the file.
        hint = SALVAGE_HINT if size > c.HEADER_SECTION_SIZE else ""
        return f"it does not begin with 'vhdxfile', and nothing else is recognised{hint}"
    return f"it is {known[0]}"


def read_headers(storage: Storage) -> CurrentHeader:
    """Return the current header."""
    return choose_header(header_copies(storage), storage.size())


def header_copies_contradict(storage: Storage) -> bool:
    """Return whether both headers are right, have the same sequence number, and are not the same."""
    first, second = header_copies(storage)
    return (
        first != second
        and is_valid_header(first)
        and is_valid_header(second)
        and Header.parse(first).sequence_number == Header.parse(second).sequence_number
    )


def headers_have_reserved_bytes(storage: Storage) -> bool:
    """Return whether a header has anything behind its first 512 bytes, so that a write over it may tear."""
    return any(any(data[512:]) for data in header_copies(storage))


def header_copies(storage: Storage) -> tuple[bytes, bytes]:
    """Return the 4096 bytes of both headers, right or not."""
    first, second = (storage.read_at(c.HEADER_SIZE, offset) for offset in c.HEADER_OFFSETS)
    return first, second


def replay_of(storage: Storage, header: Header) -> Replay:
    """Return what a replay of the log that *header* names would do."""
    ring = Ring(storage.read_at, header.log_offset, header.log_length)
    return read_log(ring, header.log_guid, storage.size())


def overlay_of(storage: Storage, replay: Replay | None) -> Storage:
    """Return the file as it is after the replay."""
    if replay is None or not replay.entries:
        return storage
    return Overlay(storage, replay.pages, replay.zeroed, replay.size, c.LOG_SECTOR_SIZE)


def regions_of(storage: Storage, header: Header) -> Regions:
    """Return the regions of a file whose log has been replayed."""
    first, second = (storage.read_at(c.REGION_TABLE_SIZE, offset) for offset in c.REGION_TABLE_OFFSETS)
    in_use = header.log_guid != c.ZERO_GUID
    return read_regions((first, second), log_span(header), log_in_use=in_use, file_size=storage.size())


def region_spans(regions: Regions) -> list[Span]:
    """Return the ranges that the regions take, known or not."""
    return [Span(entry.file_offset, entry.end, region_name(entry)) for entry in regions.entries]


def log_span(header: Header) -> Span:
    """Return the range that the log takes, empty where there is none."""
    return Span(header.log_offset, header.log_offset + header.log_length, "log")


def lies_well(log: Span, spans: list[Span], file_size: int) -> bool:
    """Return whether a session can use the empty log where it lies, the blocks aside (2.2.2)."""
    return (
        log.end - log.start >= c.ALIGNMENT
        and not log.start % c.ALIGNMENT
        and not log.end % c.ALIGNMENT
        and log.start >= c.HEADER_SECTION_SIZE
        and log.end <= file_size
        and not any(span.start < log.end and log.start < span.end for span in spans)
    )
