"""
The fuzz targets: functions of bytes that return for every input.

An exception that leaves one is a finding.  None of them needs atheris, so that a finding can be
repeated, and the suite runs them over their seeds, everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.fuzz import images, recipe
from tests.fuzz.oracle import limited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Target(NamedTuple):
    """What is run, and the inputs that a run begins with; the function says what came of one."""

    run: Callable[[bytes], str]
    seeds: Callable[[], Iterable[bytes]]
    longest: int  # bytes of an input


TARGETS = {
    "open": Target(images.try_open, recipe.seeds, 256),
}


def run_once(name: str, data: bytes) -> str:
    """Run a target on one input, within the limits of time and memory."""
    with limited():
        return TARGETS[name].run(data)
