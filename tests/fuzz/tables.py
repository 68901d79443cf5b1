"""
The tables that say where everything lies: headers, region tables, metadata.

The first byte chooses; the rest are the bytes of the structure, put under a right checksum.  Of the
metadata: the length of the table's bytes (2), the table, and the items behind it.
"""

from __future__ import annotations

import struct

import pyvhdx
from pyvhdx._core.headers import choose_header
from pyvhdx._core.metadata import Metadata, read_metadata, read_table
from pyvhdx._core.regions import Span, read_regions
from pyvhdx._core.user_items import plan_change
from pyvhdx.format.region import RegionTableEntry
from pyvhdx.testing import MemoryStorage
from tests.corpus.handmade import METADATA, METADATA_AT, MIB, guid, sealed
from tests.corpus.specimens import specimens

_HEADERS, _REGIONS, _METADATA, _CHANGE, _DELETE = range(5)
_REGION = RegionTableEntry(guid=METADATA, file_offset=METADATA_AT, length=MIB)
_ITEMS_AT = 65536


def seeds() -> list[bytes]:
    """Return the structures of the specimens."""
    made = [b""]
    for specimen in specimens():
        headers = b"".join(specimen.storage.read_at(80, at) for at in (0x10000, 0x20000))
        made.append(bytes((_HEADERS, 64)) + headers)
        made += [bytes((_REGIONS, size)) + specimen.storage.read_at(176, 0x30000) for size in (12, 64)]
        table = specimen.storage.read_at(32 * 9, METADATA_AT)
        items = specimen.storage.read_at(400, METADATA_AT + _ITEMS_AT)
        made += [
            bytes((kind, size)) + struct.pack("<H", len(table)) + table + items
            for kind in (_METADATA, _CHANGE, _DELETE)
            for size in (0, 9, 200)
        ]
    return made


def try_tables(data: bytes) -> str:
    """Read a structure, and change the user items of a metadata region."""
    kind, more, rest = *data[:2].ljust(2, b"\0"), data[2:]
    kind %= 5
    try:
        if kind == _HEADERS:
            half = len(rest) // 2
            copies = tuple(sealed(piece.ljust(4096, b"\0")[:4096]) for piece in (rest[:half], rest[half:]))
            current = choose_header((copies[0], copies[1]), more * MIB)
            return f"header, {len(current.findings)} findings"
        if kind == _REGIONS:
            table = sealed(rest.ljust(65536, b"\0")[:65536])
            log = Span(MIB, 2 * MIB, "log")
            regions = read_regions((table, table), log, log_in_use=bool(more & 1), file_size=more * MIB)
            spans = sorted((entry.file_offset, entry.end) for entry in regions.entries)
            assert spans[0][0] >= MIB
            assert all(one[1] <= other[0] for one, other in zip(spans, spans[1:], strict=False))
            return f"{len(regions.entries)} regions"
        return _try_metadata(rest, more, change=kind != _METADATA, delete=kind == _DELETE)
    except pyvhdx.VHDXError as error:
        assert str(error)
        return f"refused: {getattr(error, 'code', '')}"


def _try_metadata(data: bytes, more: int, *, change: bool, delete: bool) -> str:
    length = int.from_bytes(data[:2], "little") % 4097
    storage = MemoryStorage()
    storage.truncate(METADATA_AT + MIB)
    storage.write_at(data[2 : 2 + length], METADATA_AT)
    storage.write_at(data[2 + length :], METADATA_AT + _ITEMS_AT)
    before = read_metadata(_REGION, storage.read_at)
    assert 0 < before.size <= 64 << 40
    assert before.size % before.logical_sector_size == 0
    if not change:
        return f"metadata, {len(before.findings)} findings"
    _, entries = read_table(_REGION, storage.read_at)
    item = next(iter(before.user), guid(9))
    value = None if delete else bytes([more]) * (more * 97)
    try:
        plan = plan_change(entries, MIB, item, value, of_disk=None)
    except KeyError:
        assert item not in before.user
        return "nothing to delete"
    for at, piece in [(plan.data_offset, plan.data), *plan.table]:
        assert at + len(piece) <= MIB
        storage.write_at(piece, METADATA_AT + at)
    after = read_metadata(_REGION, storage.read_at)
    assert after.user.get(item) == value
    assert _others(after, item) == _others(before, item), "another item was changed"
    return "changed"


def _others(metadata: Metadata, item: object) -> dict[object, bytes]:
    items: dict[object, bytes] = {("user", key): metadata.user[key] for key in metadata.user if key != item}
    return items | {key: metadata.system[key] for key in metadata.system}
