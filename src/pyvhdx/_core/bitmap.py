"""Runs of equal bits in a sector bitmap (MS-VHDX 2.4): bit k of a byte, from the least, is sector k."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# A regular expression finds long runs of whole bytes far faster than arithmetic does.
_RUNS = re.compile(rb"\x00+|\xff+|[^\x00\xff]", re.DOTALL)
_RUNS_OF_BYTE = [
    [(bool(bit), len(list(run))) for bit, run in groupby(value >> k & 1 for k in range(8))]
    for value in range(256)
]


def runs(bits: bytes, first: int, count: int) -> Iterator[tuple[bool, int]]:
    """
    Yield (bit, length) of the runs of equal bits from bit *first* on, *count* bits in all.

    Neighbouring runs may be equal; *bits* must hold them all.
    """
    start, stop = first // 8, (first + count + 7) // 8
    skip = first - start * 8
    for match in _RUNS.finditer(bits, start, stop):
        byte = bits[match.start()]
        length = 8 * (match.end() - match.start())
        for bit, run in ((bool(byte), length),) if byte in (0, 255) else _RUNS_OF_BYTE[byte]:
            if run <= skip:
                skip -= run
                continue
            taken = min(run - skip, count)
            skip = 0
            if taken:
                yield bit, taken
            count -= taken


def with_ones(bits: bytes, first: int, count: int) -> bytes:
    """Return *bits* with *count* bits from bit *first* on set to 1."""
    if not count:
        return bits
    start, last = first // 8, (first + count - 1) // 8
    ones = bytearray(b"\xff" * (last - start + 1))
    ones[0] &= 0xFF << first % 8 & 0xFF
    ones[-1] &= 0xFF >> 7 - (first + count - 1) % 8
    changed = bytearray(bits)
    changed[start] |= ones[0]
    changed[last] |= ones[-1]
    changed[start + 1 : last] = ones[1:-1]
    return bytes(changed)


def is_one(bits: bytes, number: int) -> bool:
    """Return whether a bit is 1."""
    return bool(bits[number // 8] >> number % 8 & 1)
