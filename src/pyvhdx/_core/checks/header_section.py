"""The first MiB of the file: identifier, headers and what is reserved between them (MS-VHDX 2.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvhdx._core.layout import MAX_LOG_SIZE
from pyvhdx._core.log_writer import LAST_SEQUENCE_NUMBER
from pyvhdx.format import constants as c
from pyvhdx.format.header import Header, is_valid_header
from pyvhdx.format.identifier import FileIdentifier

if TYPE_CHECKING:
    from uuid import UUID

    from pyvhdx._core.checks.collector import Collector
    from pyvhdx._core.survey import Survey

_SLOT = 64 * c.KIB
_END_OF_TABLES = c.REGION_TABLE_OFFSETS[1] + c.REGION_TABLE_SIZE
_MUST_AGREE = ("version", "log_version", "log_length", "log_offset", "data_write_guid")


def check_header_section(known: Survey, collector: Collector) -> None:
    """Look at the length of the file, and at everything in front of the region tables and behind them."""
    storage = known.raw
    size = storage.size()
    if size > c.MAX_FILE_SIZE:
        collector.found("FILE-SIZE", 0, f"it is {size} bytes long, over 256 TiB")
    if size % c.ALIGNMENT and size > c.HEADER_SECTION_SIZE:
        collector.found("FILE-ALIGNMENT", size, f"its {size} bytes are no multiple of 1 MiB")
    _check_identifier(storage.read_at(_SLOT, 0), collector)
    for raw, at in zip(known.headers, c.HEADER_OFFSETS, strict=True):
        if is_valid_header(raw):
            if any(raw[Header.packer.size :]):
                collector.found("HEADER-RESERVED", at + Header.packer.size, "reserved bytes of it are set")
            rest = storage.read_at(_SLOT - c.HEADER_SIZE, at + c.HEADER_SIZE)
            if any(rest):
                collector.found("HEADER-SLOT", at + c.HEADER_SIZE, "bytes behind it are set")
    if any(storage.read_at(c.HEADER_SECTION_SIZE - _END_OF_TABLES, _END_OF_TABLES)):
        collector.found("FILE-RESERVED", _END_OF_TABLES, "bytes behind the region tables are set")
    if known.header is not None:
        _check_current(known, known.header, collector)


def _check_identifier(slot: bytes, collector: Collector) -> None:
    end = FileIdentifier.packer.size
    if len(slot) < end:
        return
    creator = FileIdentifier.parse(slot).creator
    stop = next((at for at in range(0, len(creator), 2) if creator[at : at + 2] == b"\0\0"), len(creator))
    try:
        creator[:stop].decode("utf-16-le")
    except UnicodeDecodeError:
        collector.found("IDENTIFIER-CREATOR", 8, "the creator is no UTF-16")
    if any(slot[end:]):
        collector.found("IDENTIFIER-RESERVED", end, "bytes behind the creator are set")


def _check_current(known: Survey, header: Header, collector: Collector) -> None:
    at = known.header_offset
    if header.sequence_number > LAST_SEQUENCE_NUMBER:
        collector.found(
            "HEADER-SEQUENCE", at, f"the sequence number {header.sequence_number} leaves a writer no room"
        )
    if header.log_length > MAX_LOG_SIZE:
        collector.found("LOG-LENGTH", at, f"the log has {header.log_length} bytes, over 1 GiB")
    for name, guid, repairable in (
        ("FileWriteGuid", header.file_write_guid, True),
        ("DataWriteGuid", header.data_write_guid, False),  # a new one cuts off all children
    ):
        if guid == c.ZERO_GUID:
            collector.found("HEADER-GUID", at, f"{name} is zero", repairable=repairable)
        else:
            check_guid(name, guid, at, "header", collector)
    if header.log_guid != c.ZERO_GUID:
        check_guid("LogGuid", header.log_guid, at, "header", collector)
    other_at = sum(c.HEADER_OFFSETS) - at
    other = known.headers[c.HEADER_OFFSETS.index(other_at)]
    if is_valid_header(other):
        parsed = Header.parse(other)
        unlike = [name for name in _MUST_AGREE if getattr(parsed, name) != getattr(header, name)]
        if unlike and parsed.sequence_number != header.sequence_number:
            words = ", ".join("DataWriteGuid" if name == "data_write_guid" else name for name in unlike)
            collector.found("HEADER-FIELDS", other_at, f"it differs from the current header in {words}")


def check_guid(name: str, guid: UUID, at: int, structure: str, collector: Collector) -> None:
    """Look at the form of a GUID that a writer made up."""
    if guid.variant != "specified in RFC 4122" or guid.version != 4:
        collector.found(
            "GUID-FORM", at, f"{name} {guid} has not the form of a random GUID", structure=structure
        )
