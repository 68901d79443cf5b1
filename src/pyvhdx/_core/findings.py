"""
What can be said of a rule that a file breaks, and two ways to read on.

A reader of a structure is a generator: it yields what is wrong, an `ImageError` where a reader must
not go on and a `Finding` where it may, and returns what it read.  Who opens a file reads `strictly`
and stops at the first error; who checks one reads `patiently` to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

from pyvhdx._core.rules import CORRUPT, RULES, WARNING
from pyvhdx.errors import CorruptImageError, Finding, ImageError, UnsupportedImageError

_T = TypeVar("_T")

Problem: TypeAlias = ImageError | Finding
Steps: TypeAlias = Generator[Problem, None, _T]


def corrupt(code: str, structure: str, offset: int, section: str, message: str) -> CorruptImageError:
    """The file cannot be read on, or not this part of it."""
    return CorruptImageError(message, code, structure, offset, section)


def unsupported(code: str, structure: str, offset: int, section: str, message: str) -> UnsupportedImageError:
    """The file asks for what this package does not know."""
    return UnsupportedImageError(message, code, structure, offset, section)


def tolerated(
    code: str,
    structure: str,
    offset: int,
    section: str,
    message: str,
    severity: str = WARNING,
    *,
    repairable: bool | None = None,
) -> Finding:
    """The rule is broken, and a reader goes on all the same."""
    if repairable is None:
        of_rule = RULES[code].repairable
        repairable = of_rule == "yes" or (of_rule == "some" and severity == WARNING)
    return Finding(code, severity, structure, offset, section, message, repairable)


def as_finding(problem: Problem) -> Finding:
    """Return what stopped a reader as a finding like any other."""
    if isinstance(problem, Finding):
        return problem
    return Finding(
        problem.code,
        CORRUPT,
        problem.structure,
        problem.offset,
        problem.section,
        problem.message,
        RULES[problem.code].repairable == "yes",
    )


def strictly(steps: Steps[_T]) -> tuple[_T, list[Finding]]:
    """Read until the first error, and raise it; return what was read, and what was tolerated."""
    findings: list[Finding] = []

    def take(problem: Problem) -> None:
        if isinstance(problem, ImageError):
            raise problem
        findings.append(problem)

    return read_with(take, steps), findings


def patiently(steps: Steps[_T]) -> tuple[_T, list[Finding]]:
    """Read to the end; return what was read, and all that is wrong."""
    findings: list[Finding] = []
    return read_with(lambda problem: findings.append(as_finding(problem)), steps), findings


def read_with(take: Callable[[Problem], object], steps: Steps[_T]) -> _T:
    """Read to the end, unless *take*, which is given all that is wrong, raises; return what was read."""
    while True:
        try:
            problem = next(steps)
        except StopIteration as end:
            value: _T = end.value
            return value
        take(problem)
