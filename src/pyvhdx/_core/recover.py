"""
From a storage to an open file where a strict open would stop: the way of `opening`, with what is left.

Each step first does what a strict open does.  Where that fails, what it found wrong becomes a finding,
and the next best source is taken: the other copy, what a search of the file shows, a guess.  What is
taken on a guess is a finding of its own, with a code that begins with ``GUESS``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core.doubts import Doubts
from pyvhdx._core.findings import guessed, overcome
from pyvhdx._core.geometry import Geometry
from pyvhdx._core.left_over import block_finder, find_metadata, find_regions, fit_bat
from pyvhdx._core.log_reader import Replay, Ring, read_log, scan
from pyvhdx._core.lost_log import (
    Traces,
    as_alternative,
    cut_replay,
    find_sequences,
    is_done,
    rings,
    what_it_touches,
)
from pyvhdx._core.opening import (
    SALVAGE_HINT,
    OpenFile,
    log_span,
    overlay_of,
    read_headers,
    read_identifier,
    refuse_pending,
    region_spans,
)
from pyvhdx._core.pages import Pages
from pyvhdx._core.search import log_pages, search
from pyvhdx._core.uncertain import UncertainMap, UncertainTable
from pyvhdx.errors import Finding, ImageError, NotVHDXError
from pyvhdx.format import constants as c
from pyvhdx.format.foreign import FOOTER_SIZE, HEAD_SIZE, recognise
from pyvhdx.format.header import Header, is_valid_header
from pyvhdx.format.identifier import FileIdentifier, decode_creator
from pyvhdx.format.region import RegionTableHeader, is_valid_region_table, parse_region_entries
from pyvhdx.storage import Forgiving

if TYPE_CHECKING:
    from uuid import UUID

    from pyvhdx._core.doubts import Alternative
    from pyvhdx.storage import Storage


class Hints(NamedTuple):
    """
    What the caller knows better than the file; sizes in bytes.

    *log* says what becomes of a log that is not known to be current: ``"auto"`` leaves what it would
    change unreadable, ``"replay"`` replays the newest, ``"ignore"`` reads as if there was none.
    """

    size: int | None = None
    block_size: int | None = None
    logical_sector_size: int | None = None
    kind: str | None = None
    log: str = "auto"


class _Head(NamedTuple):
    """
    The header that counts, or a blank one.

    *lost_log* is a log that it names and whose place it does not tell.  Without *is_certain* nobody
    knows whether there is a log.  *claims* are places and lengths of logs that a header speaks of.
    """

    header: Header
    offset: int
    is_certain: bool = True
    lost_log: UUID | None = None
    claims: tuple[tuple[int, int], ...] = ()


def recover_file(storage: Storage, hints: Hints, *, replay_log: bool = True) -> OpenFile:
    """
    Read what is left of a file.

    Raises `NotVHDXError` where there is no trace of the format, `ImageError` where no BAT is found,
    `LogPendingError` as a strict open does, and `RequestError` for hints that contradict one another.
    """
    findings: list[Finding] = []
    safe = Forgiving(storage)
    file_size = storage.size()
    creator = _identifier(safe, hints, findings)
    head = _head(safe, findings)
    replay, doubts = _log(head, safe, hints, findings, replay_log=replay_log)
    shown = overlay_of(storage, replay)
    readable = overlay_of(safe, replay)
    regions = find_regions(readable, head.header, findings)
    is_searched = any(
        one.code == "GUESS-REGION" and one.offset == regions.bat.file_offset for one in findings
    )
    metadata = find_metadata(regions, log_span(head.header), readable, hints, findings)
    geometry = Geometry(metadata.size, metadata.block_size, metadata.logical_sector_size)
    if is_searched:
        regions = fit_bat(regions, geometry, differencing=metadata.has_parent)
    _judge_doubts(doubts, regions.metadata.file_offset, regions.metadata.end, readable, findings)
    if safe.failed:
        message = (
            f"the medium gives errors, here and at {len(safe.failed) - 1} more places that an open looks at"
        )
        findings.append(guessed("READ-ERROR", "file", safe.failed[0], "2.1", message))
    pages = Pages(shown.read_at)
    bat = UncertainTable(pages, regions.bat, geometry, shown.size(), doubts, differencing=metadata.has_parent)
    blocks = UncertainMap(
        geometry,
        bat,
        pages,
        shown.size(),
        [*region_spans(regions), log_span(head.header)],
        doubts,
        differencing=metadata.has_parent,
    )
    if bat.known_blocks < geometry.block_count:
        end = min(regions.bat.end, file_size)
        message = f"it ends at {end:#x}, and {geometry.block_count - bat.known_blocks} entries are missing"
        findings.append(Finding("BAT-CUT", "corrupt", "BAT region", end, "2.5", message))
    return OpenFile(
        raw=storage,
        storage=shown,
        creator=creator,
        header=head.header,
        header_offset=head.offset,
        pages=pages,
        regions=regions,
        metadata=metadata,
        geometry=geometry,
        bat=bat,
        blocks=blocks,
        replay=replay,
        findings=findings,
    )


def _identifier(storage: Storage, hints: Hints, findings: list[Finding]) -> str:
    try:
        return read_identifier(storage)
    except NotVHDXError as error:
        if storage.size() < c.HEADER_SECTION_SIZE:
            raise
        _look_for_traces(storage, hints, error)
        message = error.message.removesuffix(SALVAGE_HINT)
        findings.append(Finding("IDENTIFIER", "corrupt", error.structure, 0, error.section, message))
    except ImageError as error:
        if storage.size() < c.HEADER_SECTION_SIZE:
            raise
        findings.append(overcome(error))
    return decode_creator(FileIdentifier.parse(storage.read_at(HEAD_SIZE, 0)).creator)


def _look_for_traces(storage: Storage, hints: Hints, error: NotVHDXError) -> None:
    """Raise where a file that does not begin as VHDX has nothing of it behind its first bytes, and say what helps."""
    if any(is_valid_region_table(data) for data in _region_tables(storage)):
        return
    size = storage.size()
    head, footer = storage.read_at(HEAD_SIZE, 0), storage.read_at(FOOTER_SIZE, size - FOOTER_SIZE)
    if recognise(head, footer, storage.name) is not None:
        raise error
    found = search(storage, size)
    if found.metadata or (hints.block_size and found.tables):
        return
    if found.tables:
        why = (
            "neither headers, region tables nor metadata are left; if it was one, give block_size "
            "(--block-size) and, if you know it, size (--size), and its BAT is searched for"
        )
    else:
        why = "neither headers, region tables nor metadata are left, and a search found no BAT"
    raise NotVHDXError(why, error.code, error.structure, error.offset, error.section)


def _region_tables(storage: Storage) -> list[bytes]:
    return [storage.read_at(c.REGION_TABLE_SIZE, offset) for offset in c.REGION_TABLE_OFFSETS]


def _head(storage: Storage, findings: list[Finding]) -> _Head:
    try:
        current = read_headers(storage)
    except ImageError as error:
        findings.append(overcome(error))
        code = error.code
    else:
        findings += current.findings
        return _Head(current.header, current.offset)
    copies = [(storage.read_at(c.HEADER_SIZE, offset), offset) for offset in c.HEADER_OFFSETS]
    claims = tuple(
        (header.log_offset, header.log_length)
        for data, _ in copies
        if data.startswith(c.HEADER_SIGNATURE)
        for header in (Header.parse(data),)
    )
    valid = [(Header.parse(data), offset) for data, offset in copies if is_valid_header(data)]
    if not valid:
        blank = Header(
            sequence_number=0,
            file_write_guid=c.ZERO_GUID,
            data_write_guid=c.ZERO_GUID,
            log_guid=c.ZERO_GUID,
            log_length=0,
            log_offset=0,
        )
        return _Head(blank, c.HEADER_OFFSETS[0], is_certain=False, claims=claims)
    header, offset = max(valid, key=lambda pair: pair[0].sequence_number)
    quiet = replace(header, log_guid=c.ZERO_GUID, log_offset=0, log_length=0)
    if code in ("LOG-RANGE", "HEADER-VERSION"):
        lost = header.log_guid if header.log_guid != c.ZERO_GUID else None
        return _Head(quiet, offset, lost_log=lost, claims=claims)
    return _Head(quiet, offset, is_certain=False, claims=claims)


def _log(
    head: _Head, storage: Storage, hints: Hints, findings: list[Finding], *, replay_log: bool
) -> tuple[Replay | None, Doubts]:
    """Return what is to be replayed, and what a log puts in doubt."""
    header = head.header
    is_named = header.log_guid != c.ZERO_GUID
    if head.is_certain and not is_named and head.lost_log is None:
        return None, Doubts()
    if hints.log == "ignore":
        message = "it is ignored, as was asked: changes that it holds are missing"
        findings.append(guessed("LOG-DOUBT", "log", header.log_offset, "2.3.3", message))
        return None, Doubts()
    if is_named:
        return _named_log(header, storage, findings, replay_log=replay_log)
    size = storage.size()
    traces = Traces(log_pages(storage, size, block_finder(storage, header, hints)), head.lost_log)
    places = [*head.claims, *_likely_places(storage), *traces.places()]
    found = find_sequences(rings(places, storage.read_at, size), head.lost_log, size)
    if head.lost_log is not None:
        if not found:
            doubts = _loose_entries(traces, storage)
            message = "no valid sequence of the log that the header names was found: changes that it held are missing"
            if doubts:
                message += ", and what its entries would change is unreadable"
            findings.append(Finding("LOG-DOUBT", "corrupt", "log", head.offset, "2.3.3", message))
            return None, Doubts(doubts)
        if not replay_log:
            refuse_pending(found[0].replay, found[0].offset)
        message = f"the log that the header names was found at {found[0].offset:#x}"
        findings += [
            guessed("GUESS-LOG", "log", found[0].offset, "2.3.3", message),
            *found[0].replay.findings,
        ]
        return found[0].replay, Doubts()
    pending = [one for one in found if not is_done(one.replay, storage.read_at)]
    if pending and hints.log == "replay":
        message = (
            f"the newest sequence of log {pending[0].guid} is replayed, as was asked; no header names it"
        )
        findings += [
            guessed("GUESS-LOG", "log", pending[0].offset, "2.3.3", message),
            *pending[0].replay.findings,
        ]
        return pending[0].replay, Doubts()
    loose = [] if found else _loose_entries(traces, storage)
    if loose:
        at = traces.clusters()[0][1]
        message = (
            "entries of a log without a valid sequence, which no header names; what they would change is "
            "unreadable, unless the caller of salvage ignores them (log=, --log)"
        )
        findings.append(Finding("LOG-DOUBT", "corrupt", "log", at, "2.3.3", message))
    for one in pending:
        message = (
            f"log {one.guid} may hold changes that are not in place, and no header names it; what it would change "
            'is unreadable; try log="ignore" (--log ignore) and log="replay" (--log replay), and compare'
        )
        findings.append(Finding("LOG-DOUBT", "corrupt", "log", one.offset, "2.3.3", message))
    return None, Doubts([*loose, *(as_alternative(one.replay) for one in pending)])


def _loose_entries(traces: Traces, storage: Storage) -> list[Alternative]:
    """Return what entries would change that are in no valid sequence, wherever they lie."""
    found = [
        what_it_touches(ring, scan(ring, guid))
        for guid, offset, length in traces.clusters()
        for ring in rings([(offset, length)], storage.read_at, storage.size())
    ]
    return [one for one in found if one.pages or one.zeroed[0]]


def _named_log(
    header: Header, storage: Storage, findings: list[Finding], *, replay_log: bool
) -> tuple[Replay | None, Doubts]:
    ring = Ring(storage.read_at, header.log_offset, header.log_length)
    size = storage.size()
    try:
        replay = read_log(ring, header.log_guid, size)
    except ImageError as error:
        findings.append(overcome(error))
        is_cut = error.code == "LOG-FILE-TRUNCATED"
    else:
        if not replay_log:
            refuse_pending(replay, header.log_offset)
        findings += replay.findings
        return replay, Doubts()
    cut = cut_replay(ring, header.log_guid) if is_cut else None
    if cut is not None:
        if not replay_log:
            refuse_pending(cut, header.log_offset)
        # What lies behind the end of the file is lost, and no zeros.
        return cut._replace(size=size), Doubts()
    message = (
        'what the log would change is unreadable; try log="ignore" (--log ignore) and compare, '
        "as its changes may be in place already"
    )
    findings.append(Finding("LOG-DOUBT", "corrupt", "log", header.log_offset, "2.3.3", message))
    return None, Doubts([what_it_touches(ring, scan(ring, header.log_guid))])


def _likely_places(storage: Storage) -> list[tuple[int, int]]:
    """Return where writers put logs, and how long they may be there."""
    starts = [
        entry.file_offset
        for data in _region_tables(storage)
        if is_valid_region_table(data)
        for entry in parse_region_entries(
            data, min(RegionTableHeader.parse(data).entry_count, c.MAX_REGION_ENTRIES)
        )
    ]
    usual = c.HEADER_SECTION_SIZE
    after = min((start for start in starts if start > usual), default=2 * usual)
    return [(usual, after - usual), (usual, c.MIB)]


def _judge_doubts(doubts: Doubts, start: int, end: int, storage: Storage, findings: list[Finding]) -> None:
    """The parameters of the disk may be older ones; which blocks are, the map finds."""
    for at in doubts.touched(start, end):
        if doubts.contradict(storage.read_at(c.LOG_SECTOR_SIZE, at), at):
            message = "a log that may be current has other metadata here"
            findings.append(guessed("LOG-DOUBT", "metadata", at, "2.3.3", message))
            break
