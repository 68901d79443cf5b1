"""The things that can be said of a rule that a file breaks."""

from __future__ import annotations

from pyvhdx.errors import CorruptImageError, Finding, ImageError, UnsupportedImageError


def corrupt(code: str, structure: str, offset: int, section: str, message: str) -> CorruptImageError:
    """The file cannot be read on, or not this part of it."""
    return CorruptImageError(message, code, structure, offset, section)


def unsupported(code: str, structure: str, offset: int, section: str, message: str) -> UnsupportedImageError:
    """The file asks for what this package does not know."""
    return UnsupportedImageError(message, code, structure, offset, section)


def tolerated(code: str, structure: str, offset: int, section: str, message: str) -> Finding:
    """The rule is broken, and what is read is right all the same."""
    return Finding(code, "warning", structure, offset, section, message)


def overcome(error: ImageError) -> Finding:
    """The rule is broken, a strict open stops there, and a salvage went on."""
    return Finding(error.code, "corrupt", error.structure, error.offset, error.section, error.message)


def guessed(code: str, structure: str, offset: int, section: str, message: str) -> Finding:
    """What the file does not tell any more was taken from elsewhere."""
    return Finding(code, "warning", structure, offset, section, message)
