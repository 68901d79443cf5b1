"""
What the content of a disk says of its size and its sectors: partition tables and file systems.

Pure functions of the disk's first bytes; nothing in them is trusted further than a guess.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

HEAD_SIZE = 8192
"""How many bytes from the disk's beginning are looked at."""

_GPT_SIGNATURE = b"EFI PART"
_GPT_FIELDS = struct.Struct("<8sIIIIQQ")
_GPT_MAX_HEADER = 512
_PROTECTIVE = 0xEE


class Clue(NamedTuple):
    """
    Sizes in bytes that the content names, and where they stand.

    *is_exact*: the disk has *size*; otherwise it has no less.
    """

    size: int
    sector_size: int | None
    source: str
    is_exact: bool


def clues(head: bytes) -> list[Clue]:
    """Return what the first bytes of a disk say, the most certain first."""
    found = [clue for sector in (512, 4096) if (clue := _gpt(head, sector)) is not None]
    found += [clue for look in (_ntfs, _ext, _xfs) if (clue := look(head)) is not None]
    if (clue := _mbr(head)) is not None and not (found and found[0].is_exact):
        found.append(clue)
    return found


def _gpt(head: bytes, sector: int) -> Clue | None:
    data = head[sector : sector + _GPT_MAX_HEADER]
    if len(data) < _GPT_MAX_HEADER or not data.startswith(_GPT_SIGNATURE):
        return None
    _, _, length, checksum, _, _, backup = _GPT_FIELDS.unpack_from(data)
    if not 92 <= length <= _GPT_MAX_HEADER:
        return None
    if zlib.crc32(data[:16] + bytes(4) + data[20:length]) != checksum:
        return None
    return Clue((backup + 1) * sector, sector, "the GPT partition table", is_exact=True)


def _mbr(head: bytes) -> Clue | None:
    """Return where the last partition ends; a boot sector of a file system has no valid entries there."""
    if head[510:512] != b"\x55\xaa":
        return None
    end = 0
    for at in range(446, 510, 16):
        status, kind, first, count = struct.unpack_from("<B3xB3xII", head, at)
        if status not in (0, 0x80):
            return None
        if kind == _PROTECTIVE:
            return None  # its count may be anything; the GPT says it better
        if kind and count:
            end = max(end, first + count)
    return Clue(end * 512, None, "the MBR partition table", is_exact=False) if end else None


def _ntfs(head: bytes) -> Clue | None:
    if head[3:11] != b"NTFS    ":
        return None
    sector, sectors = struct.unpack_from("<H", head, 11)[0], struct.unpack_from("<Q", head, 0x28)[0]
    if sector not in (512, 4096):
        return None
    return Clue((sectors + 1) * sector, sector, "the NTFS boot sector", is_exact=False)


def _ext(head: bytes) -> Clue | None:
    if head[1024 + 56 : 1024 + 58] != b"\x53\xef":
        return None
    blocks, shift = struct.unpack_from("<I", head, 1024 + 4)[0], struct.unpack_from("<I", head, 1024 + 24)[0]
    return Clue(blocks << 10 + shift, None, "the ext superblock", is_exact=False) if shift <= 6 else None


def _xfs(head: bytes) -> Clue | None:
    if not head.startswith(b"XFSB") or len(head) < 16:
        return None
    block, blocks = struct.unpack_from(">IQ", head, 4)
    return Clue(block * blocks, None, "the XFS superblock", is_exact=False) if block <= 65536 else None
