"""
Every error that pyvhdx raises on its own account.

The first branch says whose fault it is::

    VHDXError
    +-- ImageError               the file's            .code .structure .offset .section .name
    |   +-- NotVHDXError         it is something else, and the message says what opens it
    |   +-- CorruptImageError    it breaks a rule of the format
    |   +-- UnsupportedImageError  it asks for something this version does not know
    |   +-- LogPendingError      its log must be replayed first, and that was refused
    +-- ParentError              the chain's           .tried
    |   +-- ParentNotFoundError  no candidate could be opened
    |   +-- ParentMismatchError  candidates opened, none is the parent    .expected .actual
    |   +-- ParentCycleError     the chain comes back to itself, or is too deep
    +-- RequestError             the caller's          (also ValueError)
    +-- StateError               the moment's
        +-- LockedError          another process holds the file    (also BlockingIOError)
        +-- ImageFailedError     an earlier write failed; reopen the image

An `OSError` of the storage passes through unchanged.  A closed image raises `ValueError` and
a read-only one `io.UnsupportedOperation`, as Python's own files do.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "CorruptImageError",
    "Finding",
    "ImageError",
    "ImageFailedError",
    "LockedError",
    "LogPendingError",
    "NotVHDXError",
    "ParentCycleError",
    "ParentError",
    "ParentMismatchError",
    "ParentNotFoundError",
    "RequestError",
    "StateError",
    "UnsupportedImageError",
    "VHDXError",
]


@dataclass(frozen=True)
class Finding:
    """
    Something in a file that breaks a rule of the format.

    `code` is stable and listed in the documentation; `severity` is ``"corrupt"``, ``"warning"`` or
    ``"note"``; `offset` is in bytes from the start of the file; `section` is the section of MS-VHDX
    that states the rule; `repairable` says whether `repair` can mend it without being told how.
    """

    code: str
    severity: str
    structure: str
    offset: int
    section: str
    message: str
    repairable: bool = False

    def __str__(self) -> str:
        where = f"{self.structure} at {self.offset:#x}" if self.offset else self.structure  # 0: nowhere else
        return f"{where}: {self.message} [{self.code}, MS-VHDX {self.section}]"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class VHDXError(Exception):
    """The base of every error of this package."""


class ImageError(VHDXError):
    """
    The file breaks a rule, or is not what it should be.

    `code` is a stable word for the rule, `structure` what was looked at, `offset` its byte offset
    in the file, `section` the section of MS-VHDX with the rule, `name` the file when it is known.
    """

    def __init__(self, message: str, code: str, structure: str, offset: int, section: str) -> None:
        super().__init__(message, code, structure, offset, section)
        self.message = message
        self.code = code
        self.structure = structure
        self.offset = offset
        self.section = section
        self.name: str | None = None

    def __str__(self) -> str:
        where = f"{self.name}: " if self.name else ""
        return (
            f"{where}{self.structure} at {self.offset:#x}: {self.message} "
            f"[{self.code}, MS-VHDX {self.section}]"
        )


class NotVHDXError(ImageError):
    """The file is not a VHDX file; the message says what it is where that can be told."""

    def __str__(self) -> str:
        where = f"{self.name}: " if self.name else ""
        return f"{where}not a VHDX file: {self.message} [{self.code}]"


class CorruptImageError(ImageError):
    """The file breaks a rule that the place of a byte depends on."""


class UnsupportedImageError(ImageError):
    """The file needs a version or a feature that this package does not know."""


class LogPendingError(ImageError):
    """The log holds updates that are not in place, and ``log="refuse"`` forbids to replay them."""


class ParentError(VHDXError):
    """
    The parent of a differencing image is missing, wrong, or leads in a circle.

    `tried` lists what was looked at and why it was not taken, as pairs of strings.
    """

    def __init__(self, message: str, tried: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message, tried)
        self.message = message
        self.tried = tried

    def __str__(self) -> str:
        if not any(why not in self.message for _, why in self.tried):
            return self.message
        return self.message + "; tried " + "; ".join(f"{what} ({why})" for what, why in self.tried)


class ParentNotFoundError(ParentError):
    """No candidate for the parent could be opened."""


class ParentMismatchError(ParentError):
    """
    A candidate opened but is not the parent that the child was made from.

    `expected` is what the child names, `actual` what the candidate has: two GUIDs, or two logical
    sector sizes in bytes.
    """

    def __init__(
        self, message: str, expected: object, actual: object, tried: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message, tried)
        self.args = (message, expected, actual, tried)
        self.expected = expected
        self.actual = actual


class ParentCycleError(ParentError):
    """The chain of parents comes back to a file it holds already, or is deeper than 256."""


class RequestError(VHDXError, ValueError):
    """The caller asked for something that cannot be."""


class StateError(VHDXError):
    """The image or its file is in a state that does not allow the request now."""


class LockedError(StateError, BlockingIOError):
    """Another process holds the file in a way that excludes this use."""


class ImageFailedError(StateError):
    """An earlier write of this image failed; its file replays when it is opened again."""
