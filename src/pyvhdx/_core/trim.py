"""What a trim makes of a block's entry; the five modes of Microsoft's own implementation."""

from __future__ import annotations

from enum import Enum

from pyvhdx.format.constants import OFFSET_MASK, STATE_MASK, PayloadState

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
