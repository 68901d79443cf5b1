"""What is left of the region tables and of the metadata, and what takes the place of the rest."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from typing import TYPE_CHECKING

from pyvhdx._core import clues as content
from pyvhdx._core.findings import guessed, overcome, read_with
from pyvhdx._core.guess import Owners, guess_parameters, guess_size
from pyvhdx._core.metadata import Items, Metadata, examine_metadata, read_metadata
from pyvhdx._core.opening import log_span, region_spans, regions_of
from pyvhdx._core.regions import Regions
from pyvhdx._core.search import choose_metadata, choose_table, is_metadata, measure, search
from pyvhdx.errors import Finding, ImageError, RequestError
from pyvhdx.format import constants as c
from pyvhdx.format.metadata import (
    HAS_PARENT,
    LEAVE_BLOCKS_ALLOCATED,
    FileParameters,
    MetadataTableEntry,
    MetadataTableHeader,
    SectorSize,
    VirtualDiskId,
    VirtualDiskSize,
)
from pyvhdx.format.region import (
    RegionTableEntry,
    RegionTableHeader,
    is_valid_region_table,
    parse_region_entries,
)
from pyvhdx.format.table import integers

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from pyvhdx._core.findings import Problem
    from pyvhdx._core.geometry import Geometry
    from pyvhdx._core.recover import Hints
    from pyvhdx._core.regions import Span
    from pyvhdx.format.header import Header
    from pyvhdx.storage import Storage

_KNOWN = (c.BAT_REGION, c.METADATA_REGION)
_PIECE = 1 << 18


def find_regions(storage: Storage, header: Header, findings: list[Finding]) -> Regions:
    """
    Return where the BAT and the metadata are, by the tables or by a search.

    A metadata region that is not found has no length.  Raises what a strict open does where there is no
    BAT.
    """
    try:
        regions = regions_of(storage, header)
    except ImageError as error:
        findings.append(overcome(error))
        cause = error
    else:
        findings += regions.findings
        return regions
    size = storage.size()
    known = _named(storage, size, is_trusted=cause.code not in ("REGION-OVERLAP", "REGION-GUID"))
    missing = [guid for guid in _KNOWN if guid not in known]
    if missing:
        landmarks = search(storage, size)
        metadata = known.get(c.METADATA_REGION)
        tables = landmarks.tables
        first = metadata.file_offset if metadata else min(landmarks.metadata, default=None)
        table = choose_table(tables, first, size)
        if c.BAT_REGION in missing:
            if table is None:
                message = (
                    f"{cause.message}; a search found no BAT either, and nothing else tells where blocks lie"
                )
                raise type(cause)(message, cause.code, cause.structure, cause.offset, cause.section)
            known[c.BAT_REGION] = RegionTableEntry(
                guid=c.BAT_REGION,
                file_offset=table.start,
                length=c.round_up(table.end - table.start, c.ALIGNMENT),
            )
            _say(
                findings,
                "BAT region",
                table.start,
                f"{len(table.owners.indexes)} entries that own space begin there",
            )
        if c.METADATA_REGION in missing:
            at = choose_metadata(landmarks.metadata, table, size)
            known[c.METADATA_REGION] = RegionTableEntry(
                guid=c.METADATA_REGION, file_offset=at or 0, length=c.MIB if at is not None else 0
            )
            if at is not None:
                _say(findings, "metadata region", at, "its signature stands there")
    bat = known[c.BAT_REGION]
    if c.BAT_REGION in missing:
        bat = replace(bat, length=_room(bat, known[c.METADATA_REGION], header, storage))
    entries = [entry for entry in (bat, known[c.METADATA_REGION]) if entry.length]
    return Regions(bat, known[c.METADATA_REGION], entries, [])


def _say(findings: list[Finding], what: str, at: int, why: str) -> None:
    findings.append(guessed("GUESS-REGION", what, at, "2.2.3", f"found by a search: {why}"))


def _named(storage: Storage, size: int, *, is_trusted: bool) -> dict[UUID, RegionTableEntry]:
    """Return what the two tables say, as far as it can be; without a right checksum it must be there, too."""
    known: dict[UUID, RegionTableEntry] = {}
    for offset in c.REGION_TABLE_OFFSETS:
        data = storage.read_at(c.REGION_TABLE_SIZE, offset)
        if not data.startswith(c.REGION_SIGNATURE) or len(data) < c.REGION_TABLE_SIZE:
            continue
        is_right = is_trusted and is_valid_region_table(data)
        count = min(RegionTableHeader.parse(data).entry_count, c.MAX_REGION_ENTRIES)
        for entry in parse_region_entries(data, count):
            if (
                entry.guid in _KNOWN
                and entry.guid not in known
                and entry.file_offset % c.ALIGNMENT == 0
                and c.HEADER_SECTION_SIZE <= entry.file_offset < size
                and entry.length
                and (is_right or _is_there(storage, entry, size))
            ):
                known[entry.guid] = entry
    return known


def _is_there(storage: Storage, entry: RegionTableEntry, size: int) -> bool:
    if entry.guid == c.METADATA_REGION:
        return is_metadata(storage.read_at, entry.file_offset)
    table = measure(storage.read_at, entry.file_offset, size, min(entry.end, entry.file_offset + c.MIB))
    return bool(table.owners.indexes)


def _room(bat: RegionTableEntry, metadata: RegionTableEntry, header: Header, storage: Storage) -> int:
    """Return how long a BAT can be that was found by a search: up to what follows it."""
    owners = _owners(storage, bat)
    starts = [*owners.places, metadata.file_offset, log_span(header).start]
    after = min((start for start in starts if start > bat.file_offset), default=bat.end)
    return max(c.ALIGNMENT, min(after, bat.file_offset + _most_bat()) - bat.file_offset)


def _most_bat() -> int:
    """Return the length of the largest BAT there is, in bytes."""
    blocks = c.MAX_VIRTUAL_SIZE // c.MIN_BLOCK_SIZE
    ratio = c.SECTORS_PER_CHUNK * min(c.SECTOR_SIZES) // c.MIN_BLOCK_SIZE
    return c.round_up((blocks + blocks // ratio) * c.BAT_ENTRY_SIZE, c.ALIGNMENT)


def fit_bat(regions: Regions, geometry: Geometry, *, differencing: bool) -> Regions:
    """Return the regions with a BAT that was found by a search no longer than the disk needs."""
    needed = c.round_up(geometry.entries_needed(differencing=differencing) * c.BAT_ENTRY_SIZE, c.ALIGNMENT)
    if regions.bat.length <= needed:
        return regions
    bat = replace(regions.bat, length=needed)
    return regions._replace(bat=bat, entries=[bat if e.guid == c.BAT_REGION else e for e in regions.entries])


def find_metadata(
    regions: Regions, log: Span, storage: Storage, hints: Hints, findings: list[Finding]
) -> Metadata:
    """Return the parameters of the disk: as the caller says, else as the file says, else guessed."""
    region = regions.metadata
    if region.length:
        try:
            metadata = read_metadata(region, storage.read_at)
        except ImageError as error:
            findings += [overcome(error), *_also_found(region, storage)]
        else:
            findings += metadata.findings
            return _overridden(metadata, hints)
    system, user = _items(region, storage)
    said = _values(system)
    has_parent = bool(said["has_parent"]) if "has_parent" in said else None
    if hints.kind is not None:
        has_parent = hints.kind == "differencing"
    elif has_parent is None and c.PARENT_LOCATOR in system:
        has_parent = True
    owners = _owners(storage, regions.bat)
    clues = content.clues(_disk_head(owners, storage))
    block_size = hints.block_size or said.get("block_size")
    sector_size = hints.logical_sector_size or said.get("sector_size")
    named = next((clue for clue in clues if clue.sector_size), None)
    guess = guess_parameters(
        owners,
        [*region_spans(regions), log],
        storage.size(),
        block_size=block_size,
        sector_size=sector_size or (named.sector_size if named else None),
        has_parent=has_parent,
    )
    size = hints.size or said.get("size")
    place = region.file_offset
    if block_size is None:
        message = f"taken as {guess.block_size} bytes: so the blocks of the BAT lie beside one another"
        findings.append(guessed("GUESS-BLOCK-SIZE", "File Parameters", place, "2.6.2.1", message))
    if sector_size is None:
        why = f"by {named.source}" if named else "by the slots of the BAT; nothing in it is against that"
        message = f"taken as {guess.sector_size} bytes, {why}"
        findings.append(guessed("GUESS-SECTOR-SIZE", "Logical Sector Size", place, "2.6.2.4", message))
    if has_parent is None:
        kind = "a differencing disk" if guess.has_parent else "a disk without a parent"
        why = "there are sector bitmaps" if guess.has_parent else "there is no sector bitmap"
        findings.append(guessed("GUESS-KIND", "File Parameters", place, "2.6.2.1", f"taken as {kind}: {why}"))
    if size is None:
        size, why = guess_size(owners, guess, clues, regions.bat.length // c.BAT_ENTRY_SIZE)
        message = f"taken as {size} bytes, by {why}"
        findings.append(guessed("GUESS-SIZE", "Virtual Disk Size", place, "2.6.2.2", message))
    elif hints.size is None:
        size = max(size - size % guess.sector_size, guess.sector_size)
    metadata = Metadata(
        system=system,
        user=user,
        size=size,
        block_size=guess.block_size,
        logical_sector_size=guess.sector_size,
        physical_sector_size=said.get("physical_size") or 4096,
        disk_id=_disk_id(system),
        has_parent=guess.has_parent,
        leave_blocks_allocated=bool(said.get("is_fixed")),
        findings=[],
    )
    return _overridden(metadata, hints)


def _also_found(region: RegionTableEntry, storage: Storage) -> list[Finding]:
    """Return what a strict open tolerates, behind what it stops at too."""
    problems: list[Problem] = []
    read_with(problems.append, examine_metadata(region, storage.read_at))
    return [one for one in problems if isinstance(one, Finding)]


def block_finder(storage: Storage, header: Header, hints: Hints) -> Callable[[int], bool]:
    """Return a function that tells whether the MiB at a file offset is part of a block, by the BAT as it is found."""
    try:
        regions = find_regions(storage, header, [])
        metadata = find_metadata(regions, log_span(header), storage, hints, [])
    except ImageError:
        return lambda _: False
    places = sorted(set(_owners(storage, regions.bat).places))
    size = metadata.block_size

    def is_block(at: int) -> bool:
        number = bisect_right(places, at) - 1
        return number >= 0 and at < places[number] + size

    return is_block


def _overridden(metadata: Metadata, hints: Hints) -> Metadata:
    sector = hints.logical_sector_size or metadata.logical_sector_size
    size = hints.size or metadata.size
    if size % sector:
        if hints.size:
            raise RequestError(f"size is {size}, and must be a multiple of the sector size {sector}")
        size = max(sector, size - size % sector)
    return replace(
        metadata,
        size=size,
        block_size=hints.block_size or metadata.block_size,
        logical_sector_size=sector,
        has_parent=metadata.has_parent if hints.kind is None else hints.kind == "differencing",
    )


def _items(region: RegionTableEntry, storage: Storage) -> tuple[Items, Items]:
    """Return the items whose entries can be: system and user; of two alike the first."""
    read = storage.read_at
    table = read(c.METADATA_TABLE_SIZE, region.file_offset) if region.length else b""
    system: dict[UUID, MetadataTableEntry] = {}
    user: dict[UUID, MetadataTableEntry] = {}
    head_size, entry_size = MetadataTableHeader.packer.size, MetadataTableEntry.packer.size
    if table.startswith(c.METADATA_SIGNATURE) and len(table) == c.METADATA_TABLE_SIZE:
        count = min(MetadataTableHeader.parse(table).entry_count, c.MAX_METADATA_ENTRIES)
        end = min(region.length, storage.size() - region.file_offset)
        for entry in MetadataTableEntry.parse_table(table[head_size : head_size + entry_size * count]):
            is_placed = entry.offset >= c.METADATA_TABLE_SIZE and entry.offset + entry.length <= end
            if entry.item_id != c.ZERO_GUID and 0 < entry.length <= c.MAX_ITEM_SIZE and is_placed:
                (user if entry.is_user else system).setdefault(entry.item_id, entry)
    return Items(system, region, read), Items(user, region, read)


def _values(system: Items) -> dict[str, int]:
    """Return what the items say, as far as it can be."""
    said: dict[str, int] = {}
    if _length(system, c.FILE_PARAMETERS) == 8:
        parameters = FileParameters.parse(system[c.FILE_PARAMETERS])
        block_size = parameters.block_size
        if not block_size & (block_size - 1) and c.MIN_BLOCK_SIZE <= block_size <= c.MAX_BLOCK_SIZE:
            said["block_size"] = block_size
            said["has_parent"] = bool(parameters.flags & HAS_PARENT)
            said["is_fixed"] = bool(parameters.flags & LEAVE_BLOCKS_ALLOCATED)
    for item_id, name in ((c.LOGICAL_SECTOR_SIZE, "sector_size"), (c.PHYSICAL_SECTOR_SIZE, "physical_size")):
        if (
            _length(system, item_id) == 4
            and (size := SectorSize.parse(system[item_id]).size) in c.SECTOR_SIZES
        ):
            said[name] = size
    if _length(system, c.VIRTUAL_DISK_SIZE) == 8:
        size = VirtualDiskSize.parse(system[c.VIRTUAL_DISK_SIZE]).size
        if 0 < size <= c.MAX_VIRTUAL_SIZE:
            said["size"] = size
    return said


def _length(system: Items, item_id: UUID) -> int:
    return system.entry(item_id).length if item_id in system else 0


def _disk_id(system: Items) -> UUID:
    if _length(system, c.VIRTUAL_DISK_ID) != 16:
        return c.ZERO_GUID
    return VirtualDiskId.parse(system[c.VIRTUAL_DISK_ID]).disk_id


def _owners(storage: Storage, region: RegionTableEntry) -> Owners:
    """Return the entries of the BAT that own space."""
    owners = Owners()
    size = storage.size()
    at, end = region.file_offset, min(region.end, size)
    while at < end and (run := storage.next_data(at)) is not None and run[0] < end:
        at = max(at, run[0] & -_PIECE)
        stop = min(end, run[1])
        while at < stop:
            data = storage.read_at(min(_PIECE, end - at), at)
            data = data[: len(data) & -c.BAT_ENTRY_SIZE]
            if not data:
                return owners
            if data.count(0) < len(data):
                owners.add((at - region.file_offset) // c.BAT_ENTRY_SIZE, integers("Q", data), size)
            at += len(data)
    return owners


def _disk_head(owners: Owners, storage: Storage) -> bytes:
    """Return the first bytes of the disk where the file has them, whatever the block size is."""
    if not owners.indexes or owners.indexes[0] != 0 or 0 in owners.partial:
        return b""
    return storage.read_at(content.HEAD_SIZE, owners.places[0])
