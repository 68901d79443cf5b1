"""
Long tables as machine integers: BAT entries and log descriptors come by the million.

construct declares one entry; a table is read in one piece, in C.
"""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvhdx._types import Buffer


def integers(code: str, data: Buffer) -> array[int]:
    """Return the little-endian integers of a type of the array module that make up *data*."""
    numbers = array(code)
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def little_endian(numbers: array[int]) -> bytes:
    """Return integers as they stand on disk."""
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()
