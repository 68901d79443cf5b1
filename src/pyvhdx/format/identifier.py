"""The file type identifier (MS-VHDX 2.2.1)."""

from __future__ import annotations

from construct import Bytes

from pyvhdx.format.constants import CREATOR_SIZE, IDENTIFIER_SIGNATURE
from pyvhdx.format.record import Record, on_disk, record


@record
class FileIdentifier(Record):
    """The first 520 bytes of the file (2.2.1)."""

    signature: bytes = on_disk(Bytes(8), default=IDENTIFIER_SIGNATURE)
    creator: bytes = on_disk(Bytes(CREATOR_SIZE), default=bytes(CREATOR_SIZE))


def decode_creator(raw: bytes) -> str:
    """Return the creator up to the first NUL; what is not UTF-16 becomes a replacement character."""
    return raw.decode("utf-16-le", "replace").partition("\0")[0]


def encode_creator(text: str) -> bytes:
    """Return *text* as it stands on disk; raise `ValueError` for what does not fit or holds a NUL."""
    if "\0" in text:
        raise ValueError("the creator holds a NUL, where it would end")
    raw = text.encode("utf-16-le")
    if len(raw) > CREATOR_SIZE:
        raise ValueError(f"the creator has {len(raw) // 2} UTF-16 units, and at most {CREATOR_SIZE // 2} fit")
    return raw.ljust(CREATOR_SIZE, b"\0")
