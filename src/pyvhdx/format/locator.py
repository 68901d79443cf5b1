"""The parent locator item (MS-VHDX 2.6.2.6)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from uuid import UUID

from construct import Int16ul, Int32ul

from pyvhdx.format.constants import VHDX_LOCATOR_TYPE
from pyvhdx.format.record import Guid, Record, on_disk, record

if TYPE_CHECKING:
    from collections.abc import Mapping

# In the order of Windows' own locators.
LINKAGE = "parent_linkage"
ABSOLUTE_WIN32_PATH = "absolute_win32_path"
RELATIVE_PATH = "relative_path"
VOLUME_PATH = "volume_path"
LINKAGE2 = "parent_linkage2"

_DIGITS = "-".join(f"[0-9a-fA-F]{{{n}}}" for n in (8, 4, 4, 4, 12))
_GUID_TEXT = re.compile(rf"\{{({_DIGITS})\}}|({_DIGITS})")


@record
class ParentLocatorHeader(Record):
    """The first 20 bytes of the item (2.6.2.6.1)."""

    locator_type: UUID = on_disk(Guid, default=VHDX_LOCATOR_TYPE)
    reserved: int = on_disk(Int16ul, default=0)
    key_value_count: int = on_disk(Int16ul)


@record
class ParentLocatorEntry(Record):
    """Where a key and its value lie; offsets count from the start of the item (2.6.2.6.2)."""

    key_offset: int = on_disk(Int32ul)
    value_offset: int = on_disk(Int32ul)
    key_length: int = on_disk(Int16ul)
    value_length: int = on_disk(Int16ul)


def build_parent_locator(pairs: Mapping[str, str]) -> bytes:
    """Return the item, its strings packed behind the table, key then value, as Windows does."""
    head = ParentLocatorHeader(key_value_count=len(pairs)).build()
    offset = ParentLocatorHeader.packer.size + ParentLocatorEntry.packer.size * len(pairs)
    entries, strings = [], []
    for key, value in ((k.encode("utf-16-le"), v.encode("utf-16-le")) for k, v in pairs.items()):
        entry = ParentLocatorEntry(
            key_offset=offset,
            value_offset=offset + len(key),
            key_length=len(key),
            value_length=len(value),
        )
        entries.append(entry.build())
        strings += [key, value]
        offset += len(key) + len(value)
    return head + b"".join(entries) + b"".join(strings)


def format_linkage(guid: UUID) -> str:
    """Return a GUID as locators write it; libvhdi knows no other form."""
    return f"{{{guid}}}"


def parse_linkage(text: str) -> UUID | None:
    """Return the GUID in *text*, in any case and with or without braces; None if there is none."""
    match = _GUID_TEXT.fullmatch(text)
    return UUID(hex=match[1] or match[2]) if match else None
