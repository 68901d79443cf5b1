"""A strict judge of new files, with plain `struct`: the rules that keep every reader content."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from crc32c import crc32c

MIB = 1 << 20
BAT = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
METADATA = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
LOCATOR_TYPE = UUID("b04aefb7-d19e-4a81-b789-25b8e9445913").bytes_le


@dataclass
class Judged:
    """What stands in a file that passed."""

    size: int
    block_size: int
    sector: int
    kind: str
    entries: list[int]  # the payload entries, in the order of the disk
    bat: tuple[int, int]
    first_block: int
    locator: dict[str, str] | None


def _is_sealed(data: bytes) -> bool:
    return bool(struct.unpack_from("<I", data, 4)[0] == crc32c(data[:4] + bytes(4) + data[8:]))


def judge(path: Path) -> Judged:
    """Read a new file and assert every rule of its making."""
    length = path.stat().st_size
    assert length % MIB == 0
    with path.open("rb") as file:

        def at(offset: int, size: int) -> bytes:
            file.seek(offset)
            data = file.read(size)
            assert len(data) == size
            return data

        assert at(0, 8) == b"vhdxfile"
        log = _headers(at(0x10000, 4096), at(0x20000, 4096))
        assert not any(at(log[0], log[1])), "the log of a new file holds nothing"
        for start, end in ((0x208, 0x10000), (0x11000, 0x20000), (0x21000, 0x30000), (0x50000, MIB)):
            assert not any(at(start, end - start)), "what is reserved is zero"
        table = at(0x30000, 0x10000)
        assert table == at(0x40000, 0x10000)
        regions = _regions(table)
        used = [(0, MIB), log, *regions]
        metadata_at = regions[1][0]
        size, block_size, sector, flags, locator = _items(at(metadata_at, MIB))
        kind = {0: "dynamic", 1: "fixed", 2: "differencing"}[flags]
        assert (locator is not None) == (kind == "differencing")

        blocks = -(-size // block_size)
        ratio = (1 << 23) * sector // block_size
        chunks = -(-blocks // ratio)
        # Sized as for a differencing file, so that any disk could become one.
        assert regions[0][1] == -(-8 * chunks * (ratio + 1) // MIB) * MIB
        bat = struct.unpack(f"<{regions[0][1] // 8}Q", at(*regions[0]))
        indexes = [block + block // ratio for block in range(blocks)]
        entries = [bat[index] for index in indexes]
        used += [(entry >> 20 << 20, block_size) for entry in entries if entry]
        for entry in entries:
            assert entry & 0xFFFFF in ((6,) if kind == "fixed" else (0, 6)), "no reserved bit, no odd state"
            assert (entry >> 20 == 0) == (entry == 0)
        payload = set(indexes)
        assert not any(entry for index, entry in enumerate(bat) if entry and index not in payload), (
            "bitmap slots and padding are zero"
        )
    used.sort()
    for (start, size_), (following, _) in zip(used, used[1:], strict=False):
        assert start + size_ <= following, "nothing overlaps"
        assert start % MIB == 0
    assert used[-1][0] + used[-1][1] == length, "the last block is whole, and nothing follows"
    return Judged(size, block_size, sector, kind, entries, regions[0], min(_places(entries, length)), locator)


def _places(entries: list[int], end: int) -> list[int]:
    return [entry >> 20 << 20 for entry in entries if entry] or [end]


def _headers(one: bytes, other: bytes) -> tuple[int, int]:
    """Both are right and say the same, but for their numbers n and n + 1."""
    for header in (one, other):
        assert header[:4] == b"head"
        assert _is_sealed(header)
        assert not any(header[80:])
    assert one[16:] == other[16:]
    assert struct.unpack_from("<Q", other, 8)[0] == struct.unpack_from("<Q", one, 8)[0] + 1
    guids = one[16:32], one[32:48], one[48:64]
    assert any(guids[0])
    assert any(guids[1])
    assert guids[0] != guids[1]
    assert not any(guids[2]), "the log is empty"
    log_version, version, log_length, log_offset = struct.unpack_from("<HHIQ", one, 64)
    assert (log_version, version) == (0, 1)
    assert log_length
    assert log_length % MIB == 0
    return log_offset, log_length


def _regions(table: bytes) -> list[tuple[int, int]]:
    """BAT and metadata, both required, and nothing else."""
    assert table[:4] == b"regi"
    assert _is_sealed(table)
    assert struct.unpack_from("<II", table, 8) == (2, 0)
    assert not any(table[16 + 2 * 32 :])
    regions = []
    for number, guid in enumerate((BAT, METADATA)):
        assert table[16 + 32 * number :][:16] == guid
        offset, length, required = struct.unpack_from("<QII", table, 32 + 32 * number)
        assert required == 1
        assert offset % MIB == length % MIB == 0
        regions.append((offset, length))
    return regions


def _items(region: bytes) -> tuple[int, int, int, int, dict[str, str] | None]:
    """Items in Windows' order and places."""
    assert region[:8] == b"metadata"
    reserved, count = struct.unpack_from("<HH", region, 8)
    assert reserved == 0
    assert count in (5, 6)
    assert not any(region[12:32])
    places = []
    for number in range(count):
        offset, length, flags, reserved = struct.unpack_from("<IIII", region, 48 + 32 * number)
        assert reserved == 0
        places.append((offset, length, flags))
    assert places[:5] == [
        (0x10000, 8, 4),
        (0x10008, 8, 6),
        (0x10010, 4, 6),
        (0x10014, 4, 6),
        (0x10018, 16, 6),
    ]
    block_size, flags = struct.unpack_from("<II", region, 0x10000)
    (size,) = struct.unpack_from("<Q", region, 0x10008)
    logical, physical = struct.unpack_from("<II", region, 0x10010)
    assert logical in (512, 4096)
    assert physical in (512, 4096)
    assert any(region[0x10018:0x10028]), "the disk has an identity"
    locator = None
    end = 0x10028
    if count == 6:
        assert places[5][0] == end
        assert places[5][2] == 4
        locator = _locator(region[end : end + places[5][1]])
        end += places[5][1]
    assert not any(region[end:])
    return size, block_size, logical, flags, locator


def _locator(item: bytes) -> dict[str, str]:
    """Key and value after key and value right behind the table, as Windows packs them."""
    assert item[:16] == LOCATOR_TYPE
    reserved, count = struct.unpack_from("<HH", item, 16)
    assert reserved == 0
    pairs, at = {}, 20 + 12 * count
    for number in range(count):
        key_at, value_at, key_length, value_length = struct.unpack_from("<IIHH", item, 20 + 12 * number)
        assert (key_at, value_at) == (at, at + key_length)
        at = value_at + value_length
        key, value = item[key_at:value_at].decode("utf-16-le"), item[value_at:at].decode("utf-16-le")
        assert "\0" not in key + value
        pairs[key] = value
    assert at == len(item)
    return pairs
