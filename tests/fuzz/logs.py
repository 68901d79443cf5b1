"""
Logs: the active sequence and its replay.

An input is a log as a list of entries, most of them whole: random bytes have no right checksum.

1 byte: where the first entry lies; 1: the length of the file in MiB; then entries of 6 bytes and what
they write: step of the sequence number, tail, flags, flushed and last file offset, a change of a field.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from crc32c import crc32c

import pyvhdx
from pyvhdx._core.log_reader import Replay, Ring, read_log
from pyvhdx._core.log_writer import LogWriter
from pyvhdx.format.header import Header
from pyvhdx.storage import Durable, Overlay
from pyvhdx.testing import MemoryStorage
from tests.corpus.handmade import MIB, NO_GUID
from tests.corpus.handmade_logs import GUID, SECTOR, Entry, page
from tests.corpus.specimens import edges

if TYPE_CHECKING:
    from collections.abc import Iterator

# Shorter than a log may be, so that entries reach its end soon.
_LENGTH = 128 << 10
_MOST_ENTRIES = 12
_CHANGES = ("length", "tail", "sequence", "count", "flushed", "last", "descriptor_sequence", "data_sequence")
_SPOILED, _CHANGED, _GAP, _UNALIGNED = 4, 8, 16, 32


def seeds() -> list[bytes]:
    """Return logs of one entry and of three, that wrap, and with each kind of fault."""
    write, zero = bytes((1, 48, 0, 9)), bytes((0x82, 48, 0, 9))
    made = [b"", bytes((0, 8)), bytes((0, 8, 0, 0, 0, 0, 0, 0))]
    for flags in (0, _SPOILED, _CHANGED, _GAP, _UNALIGNED):
        for tail in (0, 1, 2, 200):
            entries = b"".join(
                bytes((0, tail, flags | 1, 0, 12, n)) + write
                + bytes((0, tail, 2, 0, 12, n)) + zero + write
                + bytes((n, tail, flags, 4, 4, n))
                for n in (0, 90)
            )  # fmt: skip
            made += [bytes((start, 8)) + entries for start in (0, 1, 250, 254)]
    made += [bytes((0, 8, 0, 0, _CHANGED | 1, 0, 12, n)) + write for n in range(256)]
    return made


class _Log(NamedTuple):
    storage: MemoryStorage
    ring: Ring


def _make(data: bytes) -> _Log:
    head = data[:2].ljust(2, b"\0")
    storage = MemoryStorage()
    storage.truncate((head[1] % 62 + 2) * MIB)
    at, sequence = head[0] * SECTOR % _LENGTH, 1 << 33
    position = 2
    starts: list[int] = []
    while position < len(data) and len(starts) < _MOST_ENTRIES:
        step, tail, flags, flushed, last, change = data[position : position + 6].ljust(6, b"\0")
        position += 6
        sequence += 1 if step < 200 else step - 228
        starts.append(at)
        entry = Entry(sequence, starts[tail % len(starts)] if tail < 128 else tail * SECTOR)
        entry.flushed, entry.last = flushed * MIB, last * MIB
        for _ in range(flags & 3):
            kind, low, high, fill = data[position : position + 4].ljust(4, b"\0")
            position += 4
            offset = (low + 256 * high) * SECTOR + (8 if flags & _UNALIGNED else 0)
            entry.writes.append((offset, page(fill) if kind < 0x80 else (kind & 0x7F) * SECTOR))
        if flags & _SPOILED:
            entry.changes["crc"] = 0
        if flags & _CHANGED:
            name = _CHANGES[change % len(_CHANGES)]
            old = {"length": entry.length, "count": len(entry.writes)}.get(name, sequence)
            width = 4 if name in ("length", "tail", "count") else 8
            values = edges(old % (1 << 8 * width), width, storage.size())
            entry.changes[name] = values[(change // len(_CHANGES) * 7) % len(values)]
        built = entry.build()
        first = min(len(built), _LENGTH - at)
        storage.write_at(built[:first], MIB + at)
        storage.write_at(built[first:], MIB)
        at = (at + len(built) + (SECTOR if flags & _GAP else 0)) % _LENGTH
    return _Log(storage, Ring(storage.read_at, MIB, _LENGTH))


def try_log(data: bytes) -> str:
    """Replay a log in memory and in the file, and compare both with what its entries say one by one."""
    storage, ring = _make(data)
    size = storage.size()
    try:
        replay = read_log(ring, GUID, size)
    except pyvhdx.VHDXError as error:
        assert str(error)
        return f"refused: {getattr(error, 'code', '')}"
    if not replay.entries:
        return "empty"
    raw = [_raw(storage, entry.position, entry.header.entry_length) for entry in replay.entries]
    _check_sequence(replay, raw)
    steps = [step for entry in raw for step in _steps(entry)]
    shown = Overlay(storage.copy(), replay.pages, replay.zeroed, replay.size, SECTOR)
    places = {at + skip for at, length, _ in steps for skip in (-SECTOR, 0, length - SECTOR, length)}
    for at in sorted(places):
        if 0 <= at < replay.size:
            below = storage.read_at(SECTOR, at).ljust(SECTOR, b"\0")
            assert shown.read_at(SECTOR, at).ljust(SECTOR, b"\0") == _last_word(steps, at, below), hex(at)
    header = Header(
        sequence_number=5, file_write_guid=NO_GUID, data_write_guid=NO_GUID, log_guid=GUID,
        log_length=_LENGTH, log_offset=MIB,
    )  # fmt: skip
    LogWriter(Durable(storage, sync=True), header, 0x10000).replay(replay, storage)
    assert storage.size() == replay.size
    for at in places:
        if 0x30000 <= at < replay.size:
            assert storage.read_at(SECTOR, at) == shown.read_at(SECTOR, at), hex(at)
    return f"{len(replay.entries)} entries"


def _raw(storage: MemoryStorage, position: int, length: int) -> bytes:
    first = min(length, _LENGTH - position)
    return storage.read_at(first, MIB + position) + storage.read_at(length - first, MIB)


def _check_sequence(replay: Replay, raw: list[bytes]) -> None:
    """What is replayed is a sequence by MS-VHDX 2.3.2, looked at with `struct`."""
    at = struct.unpack_from("<I", raw[-1], 12)[0]
    number = struct.unpack_from("<Q", raw[0], 16)[0]
    for entry, data in zip(replay.entries, raw, strict=True):
        assert entry.position == at
        assert struct.unpack_from("<4sIIIQ", data) == (
            b"loge", crc32c(data[:4] + bytes(4) + data[8:]), len(data), entry.header.tail, number,
        )  # fmt: skip
        assert data[32:48] == GUID.bytes_le
        at, number = (at + len(data)) % _LENGTH, number + 1


def _steps(entry: bytes) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (offset, length, page) of the descriptors of an entry."""
    (count,) = struct.unpack_from("<I", entry, 24)
    sector = (64 + 32 * count + SECTOR - 1) // SECTOR * SECTOR
    for at in range(64, 64 + 32 * count, 32):
        kind, last, first, offset = struct.unpack_from("<4s4s8sQ", entry, at)
        if kind == b"desc":
            yield offset, SECTOR, first + entry[sector + 8 : sector + SECTOR - 4] + last
            sector += SECTOR
        else:
            yield offset, int.from_bytes(first, "little"), None


def _last_word(steps: list[tuple[int, int, bytes | None]], at: int, below: bytes) -> bytes:
    """Return what the last step that touches a page leaves in it."""
    for offset, length, data in reversed(steps):
        if offset <= at < offset + length:
            return bytes(SECTOR) if data is None else data
    return below
