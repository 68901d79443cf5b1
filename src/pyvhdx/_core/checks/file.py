"""All rules of one file, in the order in which it is opened."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pyvhdx._core.checks.bat import BatCheck
from pyvhdx._core.checks.header_section import check_header_section
from pyvhdx._core.checks.locator import check_locator
from pyvhdx._core.checks.log import check_log
from pyvhdx._core.checks.metadata import check_metadata, may_be_dropped
from pyvhdx._core.checks.regions import check_regions, used_end
from pyvhdx._core.checks.table import Table
from pyvhdx._core.regions import region_name
from pyvhdx._core.rules import CORRUPT

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvhdx._core.checks.bat import Usage
    from pyvhdx._core.checks.collector import Collector
    from pyvhdx._core.survey import Survey
    from pyvhdx.errors import Finding

_LEFTOVER, _STATE, _SLOT = "LOCATOR-LEFTOVER", "BAT-STATE", "BITMAP-SLOT"


def table_of(known: Survey) -> Table | None:
    """Return the BAT of a file; None where nobody can say where it lies or what disk it describes."""
    if known.bat is None or known.metadata is None or known.geometry is None:
        return None
    return Table(
        read=known.storage.read_at,
        next_data=known.storage.next_data,
        offset=known.bat.file_offset,
        length=known.bat.length,
        geometry=known.geometry,
        kind=known.metadata.kind,
        creator=known.creator,
        file_size=known.storage.size(),
        spans=known.spans,
    )


def check_file(known: Survey, collector: Collector, advance: Callable[[int], object]) -> Usage | None:
    """
    Look at everything in a file but its payload; return how its space is used, where that is known.

    *advance* is told how many bytes of BAT and bitmaps have been looked at.
    """
    for finding in known.findings:
        collector.add(_judged(known, finding))
    check_header_section(known, collector)
    check_log(known, collector)
    check_regions(known, collector)
    check_metadata(known, collector)
    check_locator(known, collector)
    table = table_of(known)
    if table is None:
        return None
    check = BatCheck(table, collector, advance)
    usage = check.run()
    if table.kind != "differencing":
        _judge_traces(collector, check.partial_without_parent, check.slots_present)
    return usage


def _judged(known: Survey, finding: Finding) -> Finding:
    """Say whether what an open found can be repaired, where that hangs on more than an open looks at."""
    if finding.code == "REGION-RANGE":
        size = known.storage.size()
        regions = [entry for entry in (known.bat, known.metadata_region) if entry is not None]
        said_of = [entry for entry in regions if finding.message.startswith(f"the {region_name(entry)} ends")]
        return replace(finding, repairable=any(size >= used_end(known, entry) for entry in said_of))
    if finding.code == "METADATA-RANGE":
        return replace(finding, repairable=may_be_dropped(known, finding.offset))
    if finding.code == "IDENTIFIER":
        header_and_regions = known.header is not None and bool(known.regions)
        return replace(finding, repairable=header_and_regions)
    return finding


def _judge_traces(collector: Collector, partial: int, slots: int) -> None:
    """
    Judge what looks like a child's in a file without HasParent.

    Metadata has no checksum: where more than one trace is left, it may be the bit that was lost, and
    taking the traces away would destroy what the child holds.
    """
    locator = bool(collector.counts[_LEFTOVER])
    if locator and (partial or slots):
        collector.revise(_LEFTOVER, severity=CORRUPT, repairable=False)
    if locator or partial > 0:
        collector.revise(_SLOT, repairable=False)
    if partial == 1 and not locator and not slots:
        for number, finding in enumerate(collector.kept):
            if finding.code == _STATE and "PARTIALLY" in finding.message:
                collector.kept[number] = replace(finding, repairable=True)
