"""What stands in each structure of a file, as values; also where the file cannot be opened as a whole."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pyvhdx._core import log_entry, opening
from pyvhdx._core.locator import read_pairs
from pyvhdx._core.log_reader import Ring, active_sequence, scan
from pyvhdx._core.metadata import KNOWN_ITEMS, Items, read_metadata, read_table
from pyvhdx.errors import ImageError, RequestError
from pyvhdx.format import constants as c
from pyvhdx.format.bat import split_entry
from pyvhdx.format.header import Header, is_valid_header
from pyvhdx.format.identifier import FileIdentifier, decode_creator
from pyvhdx.format.metadata import (
    ChsParameters,
    FileParameters,
    PmemLabelStorage,
    SectorSize,
    VirtualDiskId,
    VirtualDiskSize,
)
from pyvhdx.format.record import vars_of
from pyvhdx.format.region import (
    RegionTableHeader,
    is_valid_region_table,
    parse_region_entries,
)
from pyvhdx.storage import LocalFile, open_file_object, open_local
from pyvhdx.storage.locks import READER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvhdx._core.geometry import Geometry
    from pyvhdx._types import Source
    from pyvhdx.format.record import Record
    from pyvhdx.storage import Storage

_ITEM_RECORDS: dict[UUID, type[Record]] = {
    c.FILE_PARAMETERS: FileParameters,
    c.VIRTUAL_DISK_SIZE: VirtualDiskSize,
    c.VIRTUAL_DISK_ID: VirtualDiskId,
    c.LOGICAL_SECTOR_SIZE: SectorSize,
    c.PHYSICAL_SECTOR_SIZE: SectorSize,
    c.CHS_PARAMETERS: ChsParameters,
    c.PMEM_LABEL_STORAGE: PmemLabelStorage,
}


@contextlib.contextmanager
def opened(source: Source, *, lock: bool = True) -> Iterator[Storage]:
    """Open *source* for the functions below, which look no further than they must."""
    storage: Storage = (
        open_local(source) if isinstance(source, (str, os.PathLike)) else open_file_object(source)
    )
    try:
        if lock and isinstance(storage, LocalFile):
            storage.lock(READER)
        if not opening.has_a_right_header(storage):
            opening.read_identifier(storage)  # says what it is instead
        yield storage
    except ImageError as error:
        error.name = storage.name
        raise
    finally:
        storage.close()


def dump_header(storage: Storage) -> dict[str, Any]:
    """Return both headers, valid or not, and which one is current."""
    copies = []
    for offset in c.HEADER_OFFSETS:
        data = storage.read_at(c.HEADER_SIZE, offset).ljust(c.HEADER_SIZE, b"\0")
        copies.append({"offset": offset, "valid": is_valid_header(data), **_plain(Header.parse(data))})
    try:
        current: int | None = opening.read_headers(storage).offset
    except ImageError:
        current = None
    identifier = FileIdentifier.parse(storage.read_at(FileIdentifier.packer.size, 0))
    return {
        "signature": identifier.signature.decode("ascii", "backslashreplace"),
        "creator": decode_creator(identifier.creator),
        "current": current,
        "headers": copies,
    }


def dump_regions(storage: Storage) -> list[dict[str, Any]]:
    """Return both region tables as they are after the replay."""
    shown = _replayed(storage)
    tables = []
    for offset in c.REGION_TABLE_OFFSETS:
        data = shown.read_at(c.REGION_TABLE_SIZE, offset).ljust(c.REGION_TABLE_SIZE, b"\0")
        count = min(RegionTableHeader.parse(data).entry_count, c.MAX_REGION_ENTRIES)
        valid = is_valid_region_table(data)
        entries = [_plain(entry) for entry in parse_region_entries(data, count)] if valid else []
        tables.append({"offset": offset, "valid": valid, "entries": entries})
    return tables


# Items are small, and few; what is more would be a file's way to fill the reader's memory.
_LARGEST_SHOWN = 64 << 10
_MOST_SHOWN = 4 << 20
# So many does a log of 100 MiB hold when others have written it.
_MOST_DESCRIPTORS = 100_000


def dump_metadata(storage: Storage) -> list[dict[str, Any]]:
    """
    Return the entries of the metadata table, and what the items say.

    Large items, and those after the first 4 MiB, come without their value.
    """
    shown = _replayed(storage)
    region = opening.regions_of(shown, opening.read_headers(storage).header).metadata
    _, entries = read_table(region, shown.read_at)
    items, room = [], _MOST_SHOWN
    for entry in entries:
        name = None if entry.is_user else KNOWN_ITEMS.get(entry.item_id)
        item: dict[str, Any] = {
            "name": name,
            **_plain(entry),
            "file_offset": region.file_offset + entry.offset,
        }
        if entry.length <= min(_LARGEST_SHOWN, room):
            room -= entry.length
            data = Items({entry.item_id: entry}, region, shown.read_at)[entry.item_id]
            kind = None if entry.is_user else _ITEM_RECORDS.get(entry.item_id)
            if kind is not None and len(data) >= kind.packer.size:
                item["value"] = _plain(kind.parse(data))
            else:
                item["value"] = data.hex()
        items.append(item)
    return items


def dump_log(storage: Storage) -> dict[str, Any]:
    """
    Return every entry in the log that carries the header's LogGuid, and which of them are active.

    Whole entries have their descriptors, as long as these are no more than 100,000 in all.
    """
    header = opening.read_headers(storage).header
    answer: dict[str, Any] = {
        "offset": header.log_offset,
        "length": header.log_length,
        "log_guid": str(header.log_guid),
        "entries": [],
    }
    if header.log_guid == c.ZERO_GUID:
        return answer
    ring = Ring(storage.read_at, header.log_offset, header.log_length)
    candidates = scan(ring, header.log_guid)
    active = {entry.position for entry in active_sequence(candidates, ring.length)}
    room = _MOST_DESCRIPTORS
    for entry, fault in candidates:
        described: dict[str, Any] = {
            "position": entry.position,
            "active": entry.position in active,
            "fault": fault,
        }
        described |= _plain(entry.header)
        if fault is None and entry.header.descriptor_count <= room:
            room -= entry.header.descriptor_count
            described["descriptors"] = list(_describe_targets(entry, ring))
        answer["entries"].append(described)
    return answer


def _describe_targets(entry: log_entry.Entry, ring: Ring) -> Iterator[dict[str, Any]]:
    for kinds, _, values, offsets, _ in log_entry.descriptors(entry, ring.reader(entry.position)):
        for kind, value, offset in zip(kinds, values, offsets, strict=True):
            if kind == log_entry.DATA:
                yield {"kind": "data", "offset": offset, "length": c.LOG_SECTOR_SIZE}
            else:
                yield {"kind": "zero", "offset": offset, "length": value}


def dump_bat(storage: Storage, *, every: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the entries of the BAT after the replay; those that are zero only if *every*."""
    file = opening.open_file(storage)
    geometry: Geometry = file.geometry
    differencing = file.metadata.has_parent
    block = 0
    while block < geometry.block_count:
        entry = file.bat.payload(block)
        if entry or every:
            yield _describe_entry("payload", block, geometry.payload_index(block), entry)
            block += 1
        else:
            # A chunk's bitmap entry comes after its last block, skipped or not.
            chunk_end = block - block % geometry.chunk_ratio + geometry.chunk_ratio
            block = file.bat.run_end(block, min(chunk_end, geometry.block_count))
        if block % geometry.chunk_ratio == 0 or (block == geometry.block_count and differencing):
            chunk = (block - 1) // geometry.chunk_ratio
            if block < geometry.block_count or differencing:
                entry = file.bat.bitmap(chunk)
                if entry or every:
                    yield _describe_entry("bitmap", chunk, geometry.bitmap_index(chunk), entry)


def _describe_entry(what: str, number: int, index: int, entry: int) -> dict[str, Any]:
    state, reserved, offset = split_entry(entry)
    names: dict[int, str] = {int(s): s.name for s in (c.PayloadState if what == "payload" else c.BitmapState)}
    return {
        "kind": what,
        "number": number,
        "index": index,
        "state": names.get(state, str(state)),
        "offset": offset,
        "reserved": reserved,
    }


def dump_locator(storage: Storage) -> dict[str, str]:
    """Return the keys and values of the parent locator; raise `RequestError` where there is none."""
    shown = _replayed(storage)
    region = opening.regions_of(shown, opening.read_headers(storage).header).metadata
    system = read_metadata(region, shown.read_at).system
    if c.PARENT_LOCATOR not in system:
        raise RequestError(f"{storage.name} has no parent locator")
    return read_pairs(system[c.PARENT_LOCATOR], system.place(c.PARENT_LOCATOR))


def _replayed(storage: Storage) -> Storage:
    header = opening.read_headers(storage).header
    replay = opening.replay_of(storage, header) if header.log_guid != c.ZERO_GUID else None
    return opening.overlay_of(storage, replay)


def _plain(record: Record) -> dict[str, Any]:
    """Return the fields of a structure as values that JSON can hold."""
    plain = {}
    for name, value in vars_of(record).items():
        if isinstance(value, bytes):
            plain[name] = value.decode("ascii") if value.isascii() and value.isalnum() else value.hex()
        else:
            plain[name] = str(value) if isinstance(value, UUID) else value
    return plain
