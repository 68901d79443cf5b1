"""The three things that can be said of a rule that a file breaks."""

from __future__ import annotations

from pyvhdx.errors import CorruptImageError, Finding, UnsupportedImageError


def corrupt(code: str, structure: str, offset: int, section: str, message: str) -> CorruptImageError:
    """The file cannot be read on, or not this part of it."""
    return CorruptImageError(message, code, structure, offset, section)


def unsupported(code: str, structure: str, offset: int, section: str, message: str) -> UnsupportedImageError:
    """The file asks for what this package does not know."""
    return UnsupportedImageError(message, code, structure, offset, section)


def tolerated(code: str, structure: str, offset: int, section: str, message: str) -> Finding:
    """The rule is broken, and what is read is right all the same."""
    return Finding(code, "warning", structure, offset, section, message)
