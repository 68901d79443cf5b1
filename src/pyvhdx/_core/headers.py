"""Which of the two headers is current, and what it may say (MS-VHDX 2.2.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core.findings import Steps, corrupt, strictly, tolerated, unsupported
from pyvhdx._core.rules import CORRUPT, WARNING
from pyvhdx.format.constants import (
    ALIGNMENT,
    FORMAT_VERSION,
    HEADER_OFFSETS,
    HEADER_SECTION_SIZE,
    LOG_VERSION,
    ZERO_GUID,
)
from pyvhdx.format.header import Header, is_valid_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvhdx._core.findings import Problem
    from pyvhdx.errors import Finding

_SECTION = "2.2.2"


class CurrentHeader(NamedTuple):
    """The header that counts, where it lies, and what was odd about the pair."""

    header: Header
    offset: int
    findings: list[Finding]


def choose_header(copies: tuple[bytes, bytes], file_size: int) -> CurrentHeader:
    """
    Return the current one of the two 4096-byte *copies*.

    It is the only valid one, or the one with the greater sequence number.  Two valid ones with
    equal numbers are accepted if all that decides what is read agrees; the first is taken then.
    Raises `CorruptImageError` where none is current or its log fields cannot be, and
    `UnsupportedImageError` for another version.
    """
    found, findings = strictly(examine_headers(copies, file_size))
    assert found is not None  # or that was raised
    return CurrentHeader(*found, findings)


def examine_headers(copies: tuple[bytes, bytes], file_size: int) -> Steps[tuple[Header, int] | None]:
    """Yield what is wrong with the pair, and return the current header with its place; None without any."""
    valid = [
        (Header.parse(data), at)
        for data, at in zip(copies, HEADER_OFFSETS, strict=True)
        if is_valid_header(data)
    ]
    if not valid:
        yield corrupt(
            "HEADER-NONE",
            "headers",
            HEADER_OFFSETS[0],
            _SECTION,
            "neither copy has the signature 'head' and a right checksum",
        )
        return None
    if len(valid) == 1:
        bad = HEADER_OFFSETS[1] if valid[0][1] == HEADER_OFFSETS[0] else HEADER_OFFSETS[0]
        yield tolerated(
            "HEADER-COPY",
            "header",
            bad,
            _SECTION,
            "this copy has a wrong signature or checksum; the other is used",
        )
    elif valid[0][0].sequence_number == valid[1][0].sequence_number:
        yield _judge_tie(valid[0][0], valid[1][0], identical=copies[0] == copies[1])
    header, offset = max(valid, key=lambda pair: pair[0].sequence_number)
    if header.version != FORMAT_VERSION:
        yield unsupported(
            "HEADER-VERSION",
            "header",
            offset,
            _SECTION,
            f"the version is {header.version}, and only {FORMAT_VERSION} is known",
        )
    yield from _check_log_fields(header, offset, file_size)
    return header, offset


def _judge_tie(first: Header, second: Header, *, identical: bool) -> Problem:
    if not identical:
        for name in ("log_guid", "log_offset", "log_length", "log_version", "version"):
            if getattr(first, name) != getattr(second, name):
                return corrupt(
                    "HEADER-TIE",
                    "headers",
                    HEADER_OFFSETS[0],
                    _SECTION,
                    f"both copies have sequence number {first.sequence_number} and differ in {name}",
                )
    what = "are identical" if identical else "differ, but agree on version and log; the first is used"
    return tolerated(
        "HEADER-TIE",
        "headers",
        HEADER_OFFSETS[0],
        _SECTION,
        f"both copies have sequence number {first.sequence_number} and {what}",
        WARNING if identical else CORRUPT,
    )


def _check_log_fields(header: Header, offset: int, file_size: int) -> Iterator[Problem]:
    """With a LogGuid the log decides what is read, and its fields must be right; else nothing hangs on them."""
    wrong = []
    if header.log_version != LOG_VERSION:
        if header.log_guid != ZERO_GUID:
            yield unsupported(
                "LOG-VERSION",
                "header",
                offset,
                _SECTION,
                f"the log has version {header.log_version}, and only {LOG_VERSION} is known",
            )
        else:
            wrong.append(("LOG-VERSION", f"the version of the empty log is {header.log_version}"))
    if header.log_length == 0 and header.log_guid != ZERO_GUID:
        wrong.append(("LOG-RANGE", "a LogGuid is set, and the log has no length"))
    if header.log_length % ALIGNMENT or header.log_offset % ALIGNMENT:
        wrong.append(
            (
                "LOG-RANGE",
                f"log offset {header.log_offset:#x} and length {header.log_length:#x} are not multiples of 1 MiB",
            )
        )
    elif header.log_length and header.log_offset < HEADER_SECTION_SIZE:
        wrong.append(("LOG-RANGE", f"the log at {header.log_offset:#x} lies in the header section"))
    if header.log_offset + header.log_length > file_size:
        wrong.append(
            (
                "LOG-RANGE",
                f"the log ends at {header.log_offset + header.log_length:#x}, behind the end of the file at {file_size:#x}",
            )
        )
    judge = tolerated if header.log_guid == ZERO_GUID else corrupt
    for code, message in wrong:
        yield judge(code, "header", offset, _SECTION, message)
