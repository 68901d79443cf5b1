"""What a trim makes of the blocks of a range; the five modes of Microsoft's own implementation."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx.errors import RequestError
from pyvhdx.format.constants import OFFSET_MASK, STATE_MASK, PayloadState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvhdx._core.blocks import BlockMap
    from pyvhdx._core.geometry import Geometry

_NOT_PRESENT = int(PayloadState.NOT_PRESENT)
_UNDEFINED = int(PayloadState.UNDEFINED)
_ZERO = int(PayloadState.ZERO)
_UNMAPPED = int(PayloadState.UNMAPPED)
_FULLY_PRESENT = int(PayloadState.FULLY_PRESENT)
_PARTIALLY_PRESENT = int(PayloadState.PARTIALLY_PRESENT)


class TrimMode(Enum):
    """
    What becomes of the blocks that are trimmed (MS-VHDX 2.5.1.1).

    All but the last change what the disk reads as, or may do so in another program.
    """

    FILE_SPACE = "file-space"
    """Blocks become UNMAPPED and keep their space: a rewrite needs none, and others may take it."""
    FREE_SPACE = "free-space"
    """Blocks become UNDEFINED and give their space back."""
    ZERO = "zero"
    """Blocks become ZERO, which reads as zeros everywhere, and give their space back."""
    MAKE_TRANSPARENT = "make-transparent"
    """Blocks become NOT_PRESENT: a child shows its parent again."""
    REMOVE_SOFT_ANCHORS = "remove-soft-anchors"
    """Blocks without content give back the space that they kept; nothing reads differently."""


class Trim(NamedTuple):
    """Blocks *first* up to *stop*, all with the same entry now, get *entry*; they have *length* virtual bytes."""

    first: int
    stop: int
    entry: int
    length: int


def plan_trim(
    blocks: BlockMap, geometry: Geometry, kind: str, offset: int, length: int, mode: TrimMode
) -> Iterator[Trim]:
    """
    Yield what changes where a range inside the disk is trimmed, in order; an entry at a time is looked at.

    Only whole blocks are; the last one counts as whole where the range ends at the disk's end.
    Raises `CorruptImageError` for a reserved state, which may mean anything, and `RequestError` for
    what would leave a fixed disk with blocks that it may not have.
    """
    if kind == "fixed" and mode is not TrimMode.REMOVE_SOFT_ANCHORS:
        if mode is TrimMode.MAKE_TRANSPARENT:
            raise RequestError("the blocks of a fixed disk stay allocated, and cannot be made transparent")
        return
    end = offset + length
    block = -(-offset // geometry.block_size)
    stop = geometry.block_count if end == geometry.size else end >> geometry.block_shift
    while block < stop:
        blocks.kind_of_absence(block)  # raises
        entry = blocks.entry(block)
        new = trimmed(entry, mode)
        if new == entry:
            block = blocks.run_end(block, stop)
            continue
        after = blocks.uniform_end(block, stop)
        last = min(after << geometry.block_shift, geometry.size)
        yield Trim(block, after, new, last - (block << geometry.block_shift))
        block = after


def trimmed(entry: int, mode: TrimMode) -> int:
    """Return what *mode* makes of a payload entry of the BAT; the same entry for no change."""
    state = entry & STATE_MASK
    place = entry & OFFSET_MASK
    stored = state in (_FULLY_PRESENT, _PARTIALLY_PRESENT)
    if mode is TrimMode.ZERO:
        return _ZERO
    if mode is TrimMode.MAKE_TRANSPARENT:
        return _NOT_PRESENT
    if mode is TrimMode.REMOVE_SOFT_ANCHORS:
        return state if state in (_UNMAPPED, _UNDEFINED) and place else entry
    if mode is TrimMode.FILE_SPACE:
        # A soft anchor holds the block's own former content, and of a partial block that is not known.
        if state == _FULLY_PRESENT:
            return place | _UNMAPPED
        return _UNMAPPED if stored else entry
    if stored or state == _ZERO:
        return _UNDEFINED
    return place | _UNDEFINED if state == _UNMAPPED else entry
