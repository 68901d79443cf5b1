"""A small chain with data in every file, for tests that are about something else."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pyvhdx

MIB = 1 << 20
SECTOR = 512
_BAT = 3 * MIB  # where create puts it


def put_blocks(path: Path, blocks: dict[int, tuple[bytes, bytes | None]]) -> None:
    """
    Put 1 MiB blocks into an empty child as `create` made it (512-byte sectors, 1 MiB blocks).

    Each is (payload, bitmap); without a bitmap of 256 bytes it is FULLY_PRESENT.
    """
    ratio = 4096
    end = path.stat().st_size
    with path.open("r+b") as file:
        bitmap_at = end
        file.truncate(end + MIB)
        end += MIB
        file.seek(_BAT + 8 * ratio)
        file.write(struct.pack("<Q", bitmap_at | 6))
        for block, (payload, bits) in blocks.items():
            file.seek(end)
            file.write(payload)
            file.seek(_BAT + 8 * block)
            file.write(struct.pack("<Q", end | (6 if bits is None else 7)))
            if bits is not None:
                file.seek(bitmap_at + 256 * block)
                file.write(bits)
            end += MIB


def three_levels(folder: Path, blocks: int = 24) -> tuple[Path, bytes]:
    """Make base.vhdx, middle.vhdx and top.vhdx; return the top and what it reads as."""
    draw = random.Random(7)
    content = bytearray(draw.randbytes(blocks * MIB))
    raw = folder / "base.raw"
    raw.write_bytes(content)
    pyvhdx.convert(raw, folder / "base.vhdx", block_size=MIB)
    raw.unlink()
    parent = folder / "base.vhdx"
    for name in ("middle.vhdx", "top.vhdx"):
        pyvhdx.create(folder / name, parent=parent).close()
        put: dict[int, tuple[bytes, bytes | None]] = {}
        for block in range(blocks):
            choice = draw.randrange(3)
            if choice == 0:
                continue
            payload = draw.randbytes(MIB)
            bits = None if choice == 1 else draw.choice((draw.randbytes(256), b"\xff" * 128 + bytes(128)))
            put[block] = (payload, bits)
            for sector in range(MIB // SECTOR):
                if bits is None or bits[sector // 8] >> sector % 8 & 1:
                    at = block * MIB + sector * SECTOR
                    content[at : at + SECTOR] = payload[sector * SECTOR : (sector + 1) * SECTOR]
        put_blocks(folder / name, put)
        parent = folder / name
    return parent, bytes(content)
