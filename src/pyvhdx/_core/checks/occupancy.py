"""
Which MiB of a file belong to something: a bit for each, so that no file needs more than 32 MiB.

Every claim is entered, and a claim that touches another one is a clash.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyvhdx.format.constants import ALIGNMENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_BITS = (1, 2, 4, 8, 16, 32, 64, 128)
_SHIFT = 20
_NOT_FULL = re.compile(rb"\0+|[^\0\xff]")


class Occupancy:
    """The map of a file of *file_size* bytes; places are counted in units of 1 MiB."""

    def __init__(self, file_size: int) -> None:
        self.units = -(-file_size // ALIGNMENT)
        self._map = bytearray(self.units // 8 + 2)

    def claim(self, first: int, count: int) -> bool:
        """Enter a range as far as it lies in the file; return whether a part was taken before."""
        count = min(first + count, self.units) - first
        if count <= 0:
            return False
        bits = self._map
        start, last = first >> 3, (first + count - 1) >> 3
        head, foot = 0xFF << (first & 7) & 0xFF, 0xFF >> 7 - ((first + count - 1) & 7)
        if start == last:
            taken = bits[start] & head & foot
            bits[start] |= head & foot
            return bool(taken)
        inner = slice(start + 1, last)
        size = last - start - 1
        taken = bits[start] & head | bits[last] & foot
        clash = bool(taken) or bits.count(0, start + 1, last) < size
        bits[start] |= head
        bits[last] |= foot
        bits[inner] = b"\xff" * size
        return clash

    def is_free(self, first: int, count: int) -> bool:
        """Return whether nothing has been entered in a range inside the file; *count* is not 0."""
        bits = self._map
        start, last = first >> 3, (first + count - 1) >> 3
        head, foot = 0xFF << (first & 7) & 0xFF, 0xFF >> 7 - ((first + count - 1) & 7)
        if start == last:
            return not bits[start] & head & foot
        if bits[start] & head or bits[last] & foot:
            return False
        return bits.count(0, start + 1, last) == last - start - 1

    def claim_all(self, places: Iterable[int], count: int) -> list[int]:
        """
        Enter a range of *count* units at each of *places*, all inside the file.

        Returns the numbers, counted from 0, of those that clash.  A table can have 67 million
        entries in any order; these loops are most of the time that a check takes.
        """
        bits = self._map
        clashes = []
        if count == 1:
            powers = _BITS
            for number, unit in enumerate(places):
                at = unit >> 3
                bit = powers[unit & 7]
                byte = bits[at]
                if byte & bit:
                    clashes.append(number)
                else:
                    bits[at] = byte | bit
        elif count <= 8:
            ones = (1 << count) - 1
            for number, unit in enumerate(places):
                at = unit >> 3
                mine = ones << (unit & 7)
                word = bits[at] | bits[at + 1] << 8
                if word & mine:
                    clashes.append(number)
                word |= mine
                bits[at] = word & 0xFF
                bits[at + 1] = word >> 8
        else:
            clashes = [number for number, unit in enumerate(places) if self.claim(unit, count)]
        return clashes

    def used(self) -> int:
        """Return how many units belong to something."""
        return int.from_bytes(self._map, "little").bit_count()

    def free_runs(self) -> Iterator[tuple[int, int]]:
        """Yield (first, end) of the ranges that belong to nothing, in order, up to the end of the file."""
        first = end = 0
        for found in _NOT_FULL.finditer(self._map):
            runs = [(8 * found.start(), 8 * found.end())]
            if found[0][0]:
                units = range(*runs[0])
                runs = [(unit, unit + 1) for unit in units if not found[0][0] >> (unit & 7) & 1]
            for start, stop in runs:
                if start != end:
                    if first < end:
                        yield first, end
                    first = start
                end = min(stop, self.units)
        if first < end:
            yield first, end

    def end(self) -> int:
        """Return the number of units up to the last that belongs to something."""
        return int.from_bytes(self._map, "little").bit_length()


def unit_of(place: int) -> int:
    """Return the number of the MiB that a file offset lies in."""
    return place >> _SHIFT
