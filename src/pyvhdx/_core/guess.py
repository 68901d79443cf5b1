"""
Guessing what a disk was from its BAT: block size, sector size, whether it has a parent, and its size.

Pure functions of the entries and of what else is known.  Whoever knows better says so, and is believed.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx.format import constants as c

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyvhdx._core.clues import Clue
    from pyvhdx._core.regions import Span

MAX_OWNERS = 1 << 18
_STORED = 6
_PARTIAL = 7
# An impossible neighbour counts against a block size as much as so many exact ones count for it.
_WEIGHT = 4
_MAX_SAMPLE = 4096


class Owners:
    """The entries of a BAT that own space, no more than `MAX_OWNERS`, and the last entry that is not 0."""

    def __init__(self) -> None:
        self.indexes = array("Q")
        self.places = array("Q")
        self.partial: set[int] = set()
        self.last = -1
        self._last_without_place = -1
        # The last ones behind the end of the file, two because one may be a bitmap's.
        self._behind: deque[int] = deque(maxlen=2)

    def add(self, first: int, entries: Sequence[int], file_size: int) -> None:
        """Take note of the entries from index *first* on; those that no block may have are left out."""
        good = {entry for entry in set(entries) if entry and is_entry(entry, file_size)}
        behind = {entry for entry in set(entries) if _lies_behind(entry, file_size)}
        if behind:
            self._behind.extend(index for index, entry in enumerate(entries, first) if entry in behind)
        if not good:
            return
        if len(self.indexes) == MAX_OWNERS:
            self.last = first + next(n for n in range(len(entries) - 1, -1, -1) if entries[n] in good)
            return
        for index, entry in enumerate(entries, first):
            if entry not in good:
                continue
            self.last = index
            if entry & c.STATE_MASK < _STORED:
                self._last_without_place = index
            elif len(self.indexes) < MAX_OWNERS:
                self.indexes.append(index)
                self.places.append(entry & c.OFFSET_MASK)
                if entry & c.STATE_MASK == _PARTIAL:
                    self.partial.add(index)

    def last_payload(self, ratio: int) -> int:
        """Return the last index that is not 0 and no slot of a sector bitmap; -1 without any."""
        behind = next((i for i in reversed(self._behind) if i % (ratio + 1) != ratio), -1)
        if len(self.indexes) == MAX_OWNERS:
            return max(self.last, behind)
        last = next((i for i in reversed(self.indexes) if i % (ratio + 1) != ratio), -1)
        return max(last, self._last_without_place, behind)


class Parameters(NamedTuple):
    """What a disk is guessed to be, sizes in bytes."""

    block_size: int
    sector_size: int
    has_parent: bool


def is_entry(entry: int, file_size: int) -> bool:
    """Return whether a BAT of a file of *file_size* bytes may hold an entry (2.5.1)."""
    state = entry & c.STATE_MASK
    if entry & c.RESERVED_MASK or state in (4, 5) or entry >= c.round_up(file_size, c.ALIGNMENT):
        return False
    return state < _STORED or entry >= c.HEADER_SECTION_SIZE


def _lies_behind(entry: int, file_size: int) -> bool:
    """Return whether an entry is right but for the end of the file, which may have been cut off."""
    return (
        entry & c.STATE_MASK in (_STORED, _PARTIAL)
        and not entry & c.RESERVED_MASK
        and c.round_up(file_size, c.ALIGNMENT) <= entry < c.MAX_FILE_SIZE
    )


def guess_parameters(
    owners: Owners,
    taken: Iterable[Span],
    file_size: int,
    *,
    block_size: int | None = None,
    sector_size: int | None = None,
    has_parent: bool | None = None,
) -> Parameters:
    """
    Return the parameters under which the blocks lie best; those that are given stay.

    Blocks that lie at one another's ends speak for a size, blocks that would overlap against it.  The
    slots of the sector bitmaps must be empty without a parent; with one, each PARTIALLY_PRESENT block
    needs its own.
    """
    fixed = sorted(span.start for span in taken if span.start < span.end)
    block_sizes = [block_size] if block_size else [c.MAX_BLOCK_SIZE >> n for n in range(9)]
    sample = _sample(owners, fixed, file_size)
    best: tuple[int, Parameters] | None = None
    for parent in (False, True) if has_parent is None else (has_parent,):
        for sector in (sector_size,) if sector_size else c.SECTOR_SIZES:
            for size in block_sizes:
                parameters = Parameters(size, sector, parent)
                score = _score(sample, parameters, file_size)
                if best is None or score > best[0]:
                    best = score, parameters
    assert best is not None
    return best[1]


class _Sample(NamedTuple):
    """Enough of the owners to judge by: the first ones in the file, and where something follows each."""

    pairs: list[tuple[int, int, int]]  # index, place, where the next thing begins
    partial: set[int]
    indexes: set[int]
    last: int


def _sample(owners: Owners, fixed: list[int], file_size: int) -> _Sample:
    by_place = dict(zip(owners.places, owners.indexes, strict=True))
    stops = sorted({*by_place, *fixed, file_size})
    following = zip(stops, stops[1:], strict=False)
    pairs = [(by_place[place], place, stop) for place, stop in following if place in by_place]
    pairs = pairs[:_MAX_SAMPLE]
    return _Sample(pairs, owners.partial & {index for index, _, _ in pairs}, set(owners.indexes), owners.last)


def _score(sample: _Sample, parameters: Parameters, file_size: int) -> int:
    size, sector, has_parent = parameters
    ratio = c.SECTORS_PER_CHUNK * sector // size
    last_slot = min(sample.last, (ratio + 1) * _MAX_SAMPLE)
    slots = sum(index in sample.indexes for index in range(ratio, last_slot + 1, ratio + 1))
    score = 0
    if has_parent:
        for index in sample.partial:
            slot = index // (ratio + 1) * (ratio + 1) + ratio
            score -= _WEIGHT * (index == slot or slot not in sample.indexes)
        score += slots or -1  # without a bitmap nothing speaks for a parent
    else:
        score -= _WEIGHT * (slots + len(sample.partial))
    for index, place, stop in sample.pairs:
        if has_parent and index % (ratio + 1) == ratio:
            continue  # a bitmap is 1 MiB long, and everything is aligned to that
        gap = stop - place
        if gap == size:
            score += 1
        elif gap < size:  # a file may end inside its last block
            score -= 1 if stop == file_size else _WEIGHT
    return score


def guess_size(
    owners: Owners, parameters: Parameters, clues: Sequence[Clue], held_entries: int
) -> tuple[int, str]:
    """
    Return the size of the disk in bytes, and what says so.

    *held_entries* is how many entries the BAT has room for.  Clues count as far as the used blocks and
    that room allow.
    """
    block_size, sector, has_parent = parameters
    ratio = c.SECTORS_PER_CHUNK * sector // block_size
    last = owners.last_payload(ratio)
    blocks = last + 1 - (last + 1) // (ratio + 1)
    most = min((held_entries - held_entries // (ratio + 1)) * block_size, c.MAX_VIRTUAL_SIZE)
    used = min(max(blocks, 1) * block_size, max(most, block_size))
    for clue in clues:
        if clue.is_exact and used - block_size < clue.size <= most and clue.size % sector == 0:
            return clue.size, clue.source
    for clue in clues:
        size = c.round_up(clue.size, c.MIB)
        if not clue.is_exact and used < size <= most:
            return size, f"{clue.source}: it is no less"
    if has_parent:
        return used, "the last entry of the BAT that is not 0; the parent may have had more"
    return used, "the last entry of the BAT that is not 0"
