"""What a parent locator says (MS-VHDX 2.6.2.6).  It is written by strangers: every number is checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyvhdx._core.findings import Steps, corrupt, strictly, unsupported
from pyvhdx.format import locator as form
from pyvhdx.format.constants import MAX_LOCATOR_ENTRIES, VHDX_LOCATOR_TYPE, ZERO_GUID
from pyvhdx.format.locator import ParentLocatorEntry, ParentLocatorHeader, parse_linkage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

_STRUCTURE = "Parent Locator"
_SECTION = "2.6.2.6"


class ParentLocator(Mapping[str, str]):
    """
    The keys and values of a parent locator, and the meaning of the standard ones.

    `linkages` are the values of the parent's DataWriteGuid that the child accepts; the paths are as
    they stand in the file, None where the key is missing.
    """

    def __init__(self, pairs: dict[str, str], linkages: tuple[UUID, ...]) -> None:
        self._pairs = pairs
        self.linkages = linkages

    def __getitem__(self, key: str) -> str:
        return self._pairs[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __repr__(self) -> str:
        return f"ParentLocator({self._pairs!r})"

    @property
    def relative_path(self) -> str | None:
        return self._pairs.get(form.RELATIVE_PATH)

    @property
    def volume_path(self) -> str | None:
        return self._pairs.get(form.VOLUME_PATH)

    @property
    def absolute_win32_path(self) -> str | None:
        return self._pairs.get(form.ABSOLUTE_WIN32_PATH)

    def to_dict(self) -> dict[str, Any]:
        return dict(self._pairs)


def read_locator(item: bytes, place: int) -> ParentLocator:
    """Return what the bytes of the item say; *place* is its file offset, for the errors."""
    locator, _ = strictly(examine_locator(item, place))
    assert locator is not None  # or that was raised
    return locator


def examine_locator(item: bytes, place: int) -> Steps[ParentLocator | None]:
    """Yield what is wrong with the item, and return what it says; None where it names no parent."""
    pairs = yield from examine_pairs(item, place)
    if pairs is None:
        return None
    linkage = parse_linkage(pairs.get(form.LINKAGE, ""))
    if linkage is None:
        yield corrupt("LOCATOR-LINKAGE", _STRUCTURE, place, _SECTION, f"{form.LINKAGE} is missing or no GUID")
        return None
    # Windows writes zeros where there is no second one; they must never match anything.
    second = parse_linkage(pairs.get(form.LINKAGE2, ""))
    linkages = (linkage,) if second in (None, ZERO_GUID, linkage) else (linkage, second)
    return ParentLocator(pairs, linkages)


def read_pairs(item: bytes, place: int) -> dict[str, str]:
    """Return the keys and values of the item."""
    pairs, _ = strictly(examine_pairs(item, place))
    assert pairs is not None  # or that was raised
    return pairs


def examine_pairs(item: bytes, place: int) -> Steps[dict[str, str] | None]:
    """Yield what is wrong with keys and values, and return those that can be read."""
    head_size, entry_size = ParentLocatorHeader.packer.size, ParentLocatorEntry.packer.size
    if len(item) < head_size:
        yield corrupt(
            "LOCATOR-LENGTH", _STRUCTURE, place, _SECTION, f"{len(item)} bytes are less than its head"
        )
        return None
    head = ParentLocatorHeader.parse(item)
    if head.locator_type != VHDX_LOCATOR_TYPE:
        yield unsupported(
            "LOCATOR-TYPE", _STRUCTURE, place, _SECTION, f"the type {head.locator_type} is not known"
        )
    count = head.key_value_count
    if not 0 < count <= MAX_LOCATOR_ENTRIES:
        yield corrupt(
            "LOCATOR-COUNT", _STRUCTURE, place, _SECTION, f"{count} entries, and 1 to 256 are allowed"
        )
        return None
    if len(item) < head_size + entry_size * count:
        yield corrupt(
            "LOCATOR-LENGTH", _STRUCTURE, place, _SECTION, f"{len(item)} bytes do not hold {count} entries"
        )
        return None
    pairs: dict[str, str] = {}
    for start in range(head_size, head_size + entry_size * count, entry_size):
        entry = ParentLocatorEntry.parse(item[start : start + entry_size])
        key = yield from _string(item, entry.key_offset, entry.key_length, place)
        if key is not None and key in pairs:
            yield corrupt(
                "LOCATOR-KEY", _STRUCTURE, place + start, _SECTION, f"the key {key!r} appears twice"
            )
            continue
        value = yield from _string(item, entry.value_offset, entry.value_length, place)
        if key is not None and value is not None:
            pairs[key] = value
    return pairs


def _string(item: bytes, offset: int, length: int, place: int) -> Steps[str | None]:
    if not offset or not length or length % 2 or offset + length > len(item):
        yield corrupt(
            "LOCATOR-STRING",
            _STRUCTURE,
            place + offset,
            _SECTION,
            f"a string of {length} bytes at {offset:#x} is empty, odd or not inside the item of {len(item)} bytes",
        )
        return None
    try:
        text = item[offset : offset + length].decode("utf-16-le")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        yield corrupt(
            "LOCATOR-STRING", _STRUCTURE, place + offset, _SECTION, "a string is no UTF-16, or holds a NUL"
        )
        return None
    return text
