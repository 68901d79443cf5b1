"""
What must be decided before anything else is mended.

A place that two things claim, or a table that cannot be right, makes everything uncertain that is found by
it: what looks like a stale bit may be another block's bytes.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core.rules import CORRUPT, RULES
from pyvhdx.format.constants import BAT_ENTRY_SIZE, STATE_MASK, PayloadState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pyvhdx._core.repairs.plan import Plan
    from pyvhdx._types import ReadAt
    from pyvhdx.errors import Finding

_AREAS = ("FILE-", "REGION-", "METADATA-", "LOCATOR-", "BAT-", "BITMAP-", "SPACE-")
# What a parent that the caller names is the answer to.
_ANSWERED_BY_A_PARENT = {"LOCATOR-PATH", "LOCATOR-STRING", "LOCATOR-KEY"}


class Found(NamedTuple):
    """What a check found in the file; of one code not all need be listed, and the numbers are those of all."""

    findings: list[Finding]
    counts: Mapping[str, int]
    corruptions: int


def undecided(found: Found, plan: Plan, read: ReadAt, *, names_parent: bool) -> list[Finding]:
    """Return the findings that forbid to mend what may hang on them."""
    findings, counts, corruptions = found
    corrupt = [finding for finding in findings if finding.severity == CORRUPT]
    # An entry of which the state is decided has no other trouble left.
    settled = {one.offset for one in corrupt if one.code == "BAT-STATE" and _is_chosen(one, plan, read)}
    listed = Counter(finding.code for finding in findings)
    open_ = [
        finding
        for finding in corrupt
        if finding.code.startswith(_AREAS)
        and (not finding.repairable or (finding.code, finding.offset) in plan.offers)
        and not (names_parent and finding.code in _ANSWERED_BY_A_PARENT)
        and not (finding.code.startswith("BAT-") and finding.offset in settled)
        and not _is_chosen(finding, plan, read)
    ]
    if corruptions > len(corrupt):
        open_ += _beyond_the_list(findings, counts, listed, plan)
    return open_


def _is_chosen(finding: Finding, plan: Plan, read: ReadAt) -> bool:
    choices, at = plan.choices, finding.offset
    codes = ("BAT-OVERLAP", "BAT-SHIFT") if finding.code in ("BAT-OVERLAP", "BAT-SHIFT") else (finding.code,)
    if any((code, at) in plan.offers for code in codes):  # what was chosen for its code is no choice here
        return False
    if any(choices.for_place(code, at) is not None for code in codes):
        return True
    if finding.code == "BAT-STATE" and choices.is_chosen("LOCATOR-LEFTOVER", "parent"):
        # In a child the state means what it says.
        entry = int.from_bytes(read(BAT_ENTRY_SIZE, at), "little")
        return entry & STATE_MASK == PayloadState.PARTIALLY_PRESENT
    return False


def _beyond_the_list(
    findings: list[Finding], counts: Mapping[str, int], listed: Counter[str], plan: Plan
) -> Iterator[Finding]:
    """Yield the last finding listed of each code of which more are corrupt, or may be."""
    for code, count in counts.items():
        rule = RULES[code]
        can_be = CORRUPT in rule.severities and rule.repairable != "yes" and code.startswith(_AREAS)
        if can_be and count > listed[code] and not plan.choices.is_chosen(code):
            yield next(finding for finding in reversed(findings) if finding.code == code)
