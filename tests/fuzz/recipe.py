"""
From the bytes of a fuzzer to an image: which specimen, and what is changed in it.

Random bytes have no right checksum.  A recipe names changes, and the checksums are put right after
them, unless it says otherwise.

=====  ==================================================================================
bytes
=====  ==================================================================================
1      the number of the specimen
1      flags, see below
2      places to read from and to write to, each in units of 4099 bytes: see `Recipe.places`
then   changes: the number of the part (1), the offset in it (2), what is done (1) and its bytes
=====  ==================================================================================
"""

from __future__ import annotations

from typing import NamedTuple

from pyvhdx.testing import MemoryStorage
from tests.corpus.specimens import Specimen, edges, specimens

# The three bits above are the further changes of `oracle.examine`.
UNSEALED, ALONE, WRITE, REFUSE_LOG, DEEP = 1, 2, 4, 8, 16

_MAX_CHANGES = 24
_LARGEST = 64 << 20
_UNIT = 16384


class Recipe(NamedTuple):
    """An image and what to do with it."""

    specimen: Specimen
    storage: MemoryStorage
    flags: int
    places: list[int]


def cook(data: bytes) -> Recipe:
    """Return the image that *data* describes; any bytes describe one."""
    data = data.ljust(4, b"\0")
    specimen = specimens()[data[0] % len(specimens())]
    flags = data[1]
    first = data[2] * 4099 * 13
    places = [first, data[3] * 4099 * 29 + 511, 0, 1 << 20, (5 << 20) - 700, (1 << 64) - 700]
    storage = specimen.storage.copy()
    at = 4
    for _ in range(_MAX_CHANGES):
        if at >= len(data):
            break
        at = _change(specimen, storage, data, at)
    if not flags & UNSEALED:
        specimen.seal(storage)
    return Recipe(specimen, storage, flags, places)


def _change(specimen: Specimen, storage: MemoryStorage, data: bytes, at: int) -> int:
    """Carry out the change at *at* and return where the next one begins."""
    head = data[at : at + 4].ljust(4, b"\0")
    number = head[0] % (len(specimen.parts) + 1)
    offset, what = int.from_bytes(head[1:3], "little"), head[3]
    at += 4
    if number == len(specimen.parts):
        storage.truncate(min(offset * _UNIT + what, _LARGEST))
        return at
    _, start, length = specimen.parts[number]
    start += offset % length
    if what < 0x80:  # so many bytes
        piece = data[at : at + what % 32 + 1]
        storage.write_at(piece, start)
        return at + len(piece)
    width = 1 << (what & 3)
    old = int.from_bytes(storage.read_at(width, start), "little")
    choice = data[at] if at < len(data) else 0
    if what < 0xC0:  # a value at which arithmetic goes wrong
        values = edges(old, width, storage.size())
        new = values[choice % len(values)]
    else:  # a little more or less
        new = (old + choice - 128) % (1 << 8 * width)
    storage.write_at(new.to_bytes(width, "little"), start)
    return at + 1


def seeds() -> list[bytes]:
    """Return recipes that reach every part: each specimen as it is, and with each of its fields changed."""
    made = []
    for number, specimen in enumerate(specimens()):
        flags = [
            0,
            ALONE,
            WRITE | ALONE,
            REFUSE_LOG,
            UNSEALED,
            DEEP,
            *(WRITE | more << 5 for more in range(8)),
        ]
        made += [bytes((number, flag, 3, 200)) for flag in flags]
        for part, (_, start, length) in enumerate(specimen.parts):
            inside = [f for f in specimen.fields if start <= f.offset < start + length]
            for where in inside[:40]:
                head = bytes((number, WRITE, where.offset % 251, 7, part))
                kind = 0x80 | (where.width.bit_length() - 1)
                made.append(
                    head + (where.offset - start).to_bytes(2, "little") + bytes((kind, where.offset % 97))
                )
    return made
