"""
As much of a file as can be made out, whatever is wrong with it.

An open stops at the first thing that makes a byte's place uncertain; this goes on with what is left.
The log is replayed in memory where it can be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyvhdx._core.findings import as_finding, corrupt, patiently
from pyvhdx._core.geometry import Geometry
from pyvhdx._core.headers import examine_headers
from pyvhdx._core.log_reader import Ring, read_log
from pyvhdx._core.metadata import examine_metadata
from pyvhdx._core.opening import header_copies, log_span, overlay_of, read_identifier
from pyvhdx._core.regions import Span, examine_regions, region_name
from pyvhdx._core.rules import CORRUPT
from pyvhdx.errors import ImageError, NotVHDXError
from pyvhdx.format import constants as c
from pyvhdx.format.identifier import FileIdentifier, decode_creator
from pyvhdx.format.region import is_valid_region_table

if TYPE_CHECKING:
    from pyvhdx._core.log_reader import Replay
    from pyvhdx._core.metadata import Items, Metadata
    from pyvhdx.errors import Finding
    from pyvhdx.format.header import Header
    from pyvhdx.format.region import RegionTableEntry
    from pyvhdx.storage import Storage


_NO_LOG = Span(0, 0, "log")


@dataclass
class Survey:
    """
    What is known of one file; None where it cannot be made out.

    `raw` is the file as it is, `storage` shows it with its log replayed; `findings` are those of the
    rules that an open looks at.
    """

    raw: Storage
    storage: Storage
    creator: str = ""
    headers: tuple[bytes, bytes] = (b"", b"")
    header: Header | None = None
    header_offset: int = 0
    log: Span = _NO_LOG
    ring: Ring | None = None
    replay: Replay | None = None
    region_tables: tuple[bytes, bytes] = (b"", b"")
    regions: list[RegionTableEntry] = field(default_factory=list)
    bat: RegionTableEntry | None = None
    metadata_region: RegionTableEntry | None = None
    items: Items | None = None
    metadata: Metadata | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def geometry(self) -> Geometry | None:
        metadata = self.metadata
        if metadata is None:
            return None
        return Geometry(metadata.size, metadata.block_size, metadata.logical_sector_size)

    @property
    def spans(self) -> list[Span]:
        """The ranges of regions and log."""
        return [*(Span(entry.file_offset, entry.end, region_name(entry)) for entry in self.regions), self.log]


def survey(storage: Storage) -> Survey:
    """
    Return what can be made out of a file.

    Raises `NotVHDXError` where neither the identifier nor a header nor a region table is right.
    """
    known = Survey(raw=storage, storage=storage)
    _survey_identifier(known)
    known.headers = header_copies(storage)
    found, findings = patiently(examine_headers(known.headers, storage.size()))
    known.findings += findings
    if found is not None:
        known.header, known.header_offset = found
        known.log = log_span(known.header)
        if known.header.log_guid != c.ZERO_GUID and all(one.severity != CORRUPT for one in findings):
            _survey_log(known, known.header)
    _survey_regions(known)
    if known.metadata_region is not None:
        (known.items, known.metadata), findings = patiently(
            examine_metadata(known.metadata_region, known.storage.read_at)
        )
        known.findings += findings
    return known


def _survey_identifier(known: Survey) -> None:
    storage = known.raw
    try:
        read_identifier(storage)
    except NotVHDXError:
        tables = (storage.read_at(c.REGION_TABLE_SIZE, at) for at in c.REGION_TABLE_OFFSETS)
        if not any(is_valid_region_table(table) for table in tables):
            raise
        message = "the signature is wrong, and a region table follows that is right"
        known.findings.append(as_finding(corrupt("IDENTIFIER", "file identifier", 0, "2.2.1", message)))
    except ImageError as error:
        known.findings.append(as_finding(error))
    head = storage.read_at(FileIdentifier.packer.size, 0)
    if len(head) == FileIdentifier.packer.size:
        known.creator = decode_creator(FileIdentifier.parse(head).creator)


def _survey_log(known: Survey, header: Header) -> None:
    known.ring = Ring(known.raw.read_at, header.log_offset, header.log_length)
    try:
        known.replay = read_log(known.ring, header.log_guid, known.raw.size())
    except ImageError as error:
        known.findings.append(as_finding(error))
        return
    known.findings += known.replay.findings
    known.storage = overlay_of(known.raw, known.replay)


def _survey_regions(known: Survey) -> None:
    storage = known.storage
    first, second = (storage.read_at(c.REGION_TABLE_SIZE, at) for at in c.REGION_TABLE_OFFSETS)
    known.region_tables = first, second
    in_use = known.header is not None and known.header.log_guid != c.ZERO_GUID
    known.regions, findings = patiently(
        examine_regions(known.region_tables, known.log, log_in_use=in_use, file_size=storage.size())
    )
    known.findings += findings
    by_guid = {entry.guid: entry for entry in known.regions}
    known.bat, known.metadata_region = by_guid.get(c.BAT_REGION), by_guid.get(c.METADATA_REGION)
