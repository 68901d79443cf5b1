"""
Pages of metadata of which nobody can say whether they are current.

A log that no header names, or that holds no valid sequence, may have been on its way into the file or
be long done with.  What it says and the file says too is certain all the same; where the two differ,
what hangs on it is not.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx.format.constants import LOG_SECTOR_SIZE

if TYPE_CHECKING:
    from array import array
    from collections.abc import Mapping, Sequence

_PAGE = LOG_SECTOR_SIZE
_ZERO_PAGE = bytes(_PAGE)


class Alternative(NamedTuple):
    """
    What a log would make of the file: pages by file offset, None where what it holds is lost.

    *zeroed* are the starts and the ends of ranges, sorted and apart, that become zeros where no
    page lies on them.
    """

    pages: Mapping[int, bytes | None]
    zeroed: tuple[array[int], array[int]]

    def says(self, at: int) -> bool:
        """Return whether the page at a file offset is touched."""
        if at in self.pages:
            return True
        starts, ends = self.zeroed
        number = bisect_right(starts, at) - 1
        return number >= 0 and at < ends[number]

    def touched(self, start: int, end: int) -> set[int]:
        """Return the file offsets of the pages touched in a range."""
        found = {at for at in self.pages if start - _PAGE < at < end}
        for first, stop in zip(*self.zeroed, strict=True):
            found.update(range(max(first, start - start % _PAGE), min(stop, end), _PAGE))
        return found


class Doubts:
    """What several logs would make of the same file."""

    def __init__(self, alternatives: Sequence[Alternative] = ()) -> None:
        self._alternatives = alternatives

    def touched(self, start: int, end: int) -> list[int]:
        """Return the file offsets of the pages in a range that are in doubt, sorted."""
        found: set[int] = set()
        for alternative in self._alternatives:
            found |= alternative.touched(start, end)
        return sorted(found)

    def contradict(self, data: bytes, offset: int) -> bool:
        """Return whether *data*, which stands at a file offset inside one page, is in doubt."""
        at = offset - offset % _PAGE
        for alternative in self._alternatives:
            if alternative.says(at):
                page = alternative.pages.get(at, _ZERO_PAGE)
                if page is None or page[offset - at : offset - at + len(data)] != data:
                    return True
        return False
