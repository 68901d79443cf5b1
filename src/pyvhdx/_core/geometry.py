"""The arithmetic of blocks, chunks and the interleaved BAT (MS-VHDX 2.4, 2.5)."""

from __future__ import annotations

from pyvhdx.format.constants import (
    BAT_ENTRY_SIZE,
    SECTOR_BITMAP_SIZE,
    SECTORS_PER_CHUNK,
)


class Geometry:
    """
    What follows from the size of a disk, its block size and its logical sector size.

    All sizes are in bytes; *size* need not be a multiple of *block_size*.  After each
    `chunk_ratio` payload entries the BAT has one sector bitmap entry, in files of every kind.
    """

    def __init__(self, size: int, block_size: int, logical_sector_size: int) -> None:
        self.size = size
        self.block_size = block_size
        self.block_shift = block_size.bit_length() - 1
        self.logical_sector_size = logical_sector_size
        self.sector_shift = logical_sector_size.bit_length() - 1
        self.chunk_ratio = SECTORS_PER_CHUNK * logical_sector_size // block_size
        self.block_count = -(-size // block_size)
        self.chunk_count = -(-self.block_count // self.chunk_ratio)
        self.bitmap_bytes_per_block = SECTOR_BITMAP_SIZE // self.chunk_ratio

    def payload_index(self, block: int) -> int:
        """Return the index in the BAT of a payload block."""
        return block + block // self.chunk_ratio

    def bitmap_index(self, chunk: int) -> int:
        """Return the index in the BAT of the sector bitmap block of a chunk."""
        return chunk * (self.chunk_ratio + 1) + self.chunk_ratio

    def blocks_before(self, index: int) -> int:
        """Return how many payload entries lie before an index of the BAT."""
        return index - index // (self.chunk_ratio + 1)

    def entries_needed(self, *, differencing: bool) -> int:
        """
        Return how many entries the BAT must have.

        A differencing file needs the bitmap entry of its last chunk, other files end with their
        last payload block.
        """
        if differencing:
            return self.chunk_count * (self.chunk_ratio + 1)
        return self.block_count + (self.block_count - 1) // self.chunk_ratio

    def bat_size(self) -> int:
        """Return the bytes that a new BAT takes: room for every entry of a differencing file."""
        return self.entries_needed(differencing=True) * BAT_ENTRY_SIZE

    def used_length(self, block: int) -> int:
        """Return how many bytes of a block belong to the disk; all but the last are used whole."""
        return min(self.block_size, self.size - (block << self.block_shift))
