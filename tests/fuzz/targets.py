"""
The fuzz targets: functions of bytes that return for every input.

An exception that leaves one is a finding.  None of them needs atheris, so that a finding can be
repeated, and the suite runs them over their seeds, everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.fuzz import images, locators, logs, recipe, tables
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
    "check": Target(images.try_check, recipe.seeds, 256),
    "log": Target(logs.try_log, logs.seeds, 256),
    "metadata": Target(tables.try_tables, tables.seeds, 2048),
    "locator": Target(locators.try_locator, locators.seeds, 2048),
}
if images.REPAIR is not None:
    TARGETS["repair"] = Target(images.try_repair, recipe.seeds, 256)


def run_once(name: str, data: bytes) -> str:
    """Run a target on one input, within the limits of time and memory."""
    with limited():
        return TARGETS[name].run(data)
