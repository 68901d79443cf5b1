"""What the parent locator should hold (MS-VHDX 2.6.2.6)."""

from __future__ import annotations

import ntpath
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core.findings import patiently
from pyvhdx._core.locator import examine_pairs
from pyvhdx.errors import RequestError
from pyvhdx.format import locator as form
from pyvhdx.format.constants import PARENT_LOCATOR, VHDX_LOCATOR_TYPE, ZERO_GUID
from pyvhdx.format.locator import ParentLocatorEntry, ParentLocatorHeader, build_parent_locator, parse_linkage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from pyvhdx._core.repairs.metadata import MetadataPlan
    from pyvhdx._core.repairs.plan import Plan

_HEAD, _ENTRY = ParentLocatorHeader.packer.size, ParentLocatorEntry.packer.size
_PATHS = (form.RELATIVE_PATH, form.VOLUME_PATH, form.ABSOLUTE_WIN32_PATH)
_LONG = "\\\\?\\"
_VOLUME = _LONG + "Volume{"


class KnownParent(NamedTuple):
    """
    The parent that the child has or is to have: its DataWriteGuid, and the paths that lead to it.

    `named` is whether the caller named it.
    """

    data_write_guid: UUID
    paths: Mapping[str, str]
    named: bool


def plan_locator(
    metadata: MetadataPlan, parent: KnownParent | None, plan: Plan, codes: set[tuple[str, int]]
) -> None:
    """Plan the locator of a child; *codes* are the codes and places of what a check has found."""
    item = metadata.item(PARENT_LOCATOR)
    if len(item) < _HEAD or ParentLocatorHeader.parse(item).locator_type != VHDX_LOCATOR_TYPE:
        return
    place = metadata.place(PARENT_LOCATOR)
    found, problems = patiently(examine_pairs(item, place))
    pairs = dict(found or {})
    linkage = parse_linkage(pairs.get(form.LINKAGE, ""))
    wanted = _with_prefixes(pairs)
    relink = None
    if parent is not None and parent.named:
        code = "LOCATOR-LINKAGE" if linkage is None else "PARENT-MISMATCH"
        if parent.data_write_guid not in (linkage, parse_linkage(wanted.get(form.LINKAGE2, ""))):
            relink = plan.choose(code, place)
        if relink is not None:
            linkage = parent.data_write_guid
            wanted = {form.LINKAGE: form.format_linkage(linkage), **wanted}
            wanted[form.LINKAGE] = form.format_linkage(linkage)
            plan.is_visible = True
            plan.lose(
                code,
                None,
                0,
                "the name of the parent that the child was made from; what is read "
                "through the child may be a mixture now",
            )
    is_the_one = parent is not None and parent.data_write_guid == linkage
    if parent is not None and is_the_one:
        if relink or problems or {"LOCATOR-PATH", "PARENT-PATH"} & {code for code, _ in codes}:
            for key in _PATHS:
                wanted.pop(key, None)
            wanted |= parent.paths
        second = parse_linkage(wanted.get(form.LINKAGE2, ""))
        if second not in (None, ZERO_GUID):
            wanted[form.LINKAGE2] = form.format_linkage(ZERO_GUID)
    if problems and not is_the_one:
        return  # what cannot be read might be the path or the linkage
    if linkage is None or not any(wanted.get(key) for key in _PATHS):
        return
    if wanted != pairs or problems or _is_odd(item):
        try:
            metadata.set_item(PARENT_LOCATOR, build_parent_locator(_in_order(wanted)))
        except RequestError:  # a region without room
            return
        for code, at in codes:
            if code.startswith(("LOCATOR-", "PARENT-PATH")):
                plan.note(code, at, "the locator was written anew")


def _with_prefixes(pairs: dict[str, str]) -> dict[str, str]:
    """Return the pairs with the Windows paths as they should begin; one that names no volume goes, if it can."""
    wanted = dict(pairs)
    path = wanted.get(form.ABSOLUTE_WIN32_PATH)
    if path is not None and not path.startswith(_LONG):
        if path.startswith("\\\\"):
            wanted[form.ABSOLUTE_WIN32_PATH] = _LONG + "UNC" + path[1:]
        elif ntpath.splitdrive(path)[0]:
            wanted[form.ABSOLUTE_WIN32_PATH] = _LONG + path
        elif form.RELATIVE_PATH in wanted:
            del wanted[form.ABSOLUTE_WIN32_PATH]
    path = wanted.get(form.VOLUME_PATH)
    if (
        path is not None
        and not path.lower().startswith(_VOLUME.lower())
        and (form.RELATIVE_PATH in wanted or form.ABSOLUTE_WIN32_PATH in wanted)
    ):
        del wanted[form.VOLUME_PATH]
    return wanted


def _is_odd(item: bytes) -> bool:
    """Return whether the reserved field is set, or strings lie in the head or among the entries."""
    head = ParentLocatorHeader.parse(item)
    end = _HEAD + _ENTRY * head.key_value_count
    entries = [ParentLocatorEntry.parse(item[at : at + _ENTRY]) for at in range(_HEAD, end, _ENTRY)]
    return bool(head.reserved) or any(min(entry.key_offset, entry.value_offset) < end for entry in entries)


def _in_order(pairs: dict[str, str]) -> dict[str, str]:
    """Return the pairs in Windows' order, others behind."""
    order = (form.LINKAGE, form.ABSOLUTE_WIN32_PATH, form.RELATIVE_PATH, form.VOLUME_PATH, form.LINKAGE2)
    return {key: pairs[key] for key in (*order, *pairs) if key in pairs}
