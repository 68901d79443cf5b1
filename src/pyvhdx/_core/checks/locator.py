"""The parent locator, beyond what finding the parent needs (MS-VHDX 2.6.2.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvhdx._core.findings import patiently
from pyvhdx._core.locator import examine_locator, examine_pairs
from pyvhdx.errors import ImageError
from pyvhdx.format import constants as c
from pyvhdx.format import locator as form
from pyvhdx.format.locator import ParentLocatorEntry, ParentLocatorHeader, parse_linkage

if TYPE_CHECKING:
    from pyvhdx._core.checks.collector import Collector
    from pyvhdx._core.locator import ParentLocator
    from pyvhdx._core.survey import Survey

_HEAD, _ENTRY = ParentLocatorHeader.packer.size, ParentLocatorEntry.packer.size
_PREFIXES = {form.ABSOLUTE_WIN32_PATH: "\\\\?\\", form.VOLUME_PATH: "\\\\?\\Volume{"}


def check_locator(known: Survey, collector: Collector) -> ParentLocator | None:
    """Look at the locator of a differencing file, and return it where it names a parent."""
    if known.items is None or known.metadata is None or not known.metadata.has_parent:
        return None
    if c.PARENT_LOCATOR not in known.items:  # said before
        return None
    place = known.items.place(c.PARENT_LOCATOR)
    try:
        item = known.items[c.PARENT_LOCATOR]
    except ImageError as error:
        collector.found(error.code, error.offset, error.message)
        return None
    locator, findings = patiently(examine_locator(item, place))
    collector.extend(findings)
    if len(item) < _HEAD:
        return None
    _check_form(item, place, collector)
    pairs, _ = patiently(examine_pairs(item, place))
    if pairs is not None:
        _check_pairs(pairs, place, collector, whole=not findings)
    return locator


def _check_form(item: bytes, place: int, collector: Collector) -> None:
    head = ParentLocatorHeader.parse(item)
    if head.reserved:
        collector.found("LOCATOR-RESERVED", place + 16, f"the reserved field is {head.reserved:#x}")
    if head.key_value_count > c.MAX_LOCATOR_ENTRIES:
        return
    end = _HEAD + _ENTRY * head.key_value_count
    if len(item) < end:
        return
    for at in range(_HEAD, end, _ENTRY):
        entry = ParentLocatorEntry.parse(item[at : at + _ENTRY])
        offset = min(entry.key_offset, entry.value_offset)
        if 0 < offset < end:
            collector.found(
                "LOCATOR-PLACE", place + at, f"a string at {offset:#x} lies in the head or among the entries"
            )


def _check_pairs(pairs: dict[str, str], place: int, collector: Collector, *, whole: bool) -> None:
    paths = (form.RELATIVE_PATH, form.VOLUME_PATH, form.ABSOLUTE_WIN32_PATH)
    if whole and not any(pairs.get(key) for key in paths):
        collector.found("LOCATOR-PATH", place, "it holds no path to the parent")
    for key, prefix in _PREFIXES.items():
        if key in pairs and not pairs[key].lower().startswith(prefix.lower()):
            collector.found("LOCATOR-PREFIX", place, f"{key} does not begin with {prefix}")
    second = parse_linkage(pairs.get(form.LINKAGE2, ""))
    if second not in (None, c.ZERO_GUID):
        collector.found("LOCATOR-MERGE", place, f"{form.LINKAGE2} is {second}: a merge was interrupted")
