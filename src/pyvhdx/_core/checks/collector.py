"""Findings as they come in: all are counted, and of each code the first thousand are kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from pyvhdx._core.rules import RULES
from pyvhdx.errors import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable

LIMIT = 1000


class Collector:
    """What is wrong with one file: `kept` findings in the order they came, and the `counts` of all."""

    def __init__(self) -> None:
        self.kept: list[Finding] = []
        self.counts: Counter[str] = Counter()
        self._severities: Counter[tuple[str, str]] = Counter()

    def add(self, finding: Finding) -> None:
        """Take a finding; behind the first thousand of its code only the number grows."""
        if self.wants(finding.code):
            self.kept.append(finding)
        self.skip(finding.code, finding.severity, 1)

    def extend(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.add(finding)

    def wants(self, code: str) -> bool:
        """Return whether another finding of *code* would be kept."""
        return self.counts[code] < LIMIT

    def skip(self, code: str, severity: str, count: int) -> None:
        """Count findings that nobody describes."""
        self.counts[code] += count
        self._severities[code, severity] += count

    def found(
        self,
        code: str,
        offset: int,
        message: str,
        *,
        severity: str | None = None,
        structure: str | None = None,
        section: str | None = None,
        repairable: bool | None = None,
    ) -> None:
        """Make a finding of what the rule says, but for what is given, and take it."""
        rule = RULES[code]
        severity = severity or rule.severities[0]
        if repairable is None:
            repairable = rule.repairable == "yes"
        if self.wants(code):
            self.kept.append(
                Finding(
                    code,
                    severity,
                    structure or rule.structure,
                    offset,
                    section or rule.section,
                    message,
                    repairable,
                )
            )
        self.skip(code, severity, 1)

    def count_of(self, severity: str) -> int:
        """Return how many findings have a severity."""
        return sum(count for (_, found), count in self._severities.items() if found == severity)

    def revise(self, code: str, *, severity: str | None = None, repairable: bool) -> None:
        """Judge the findings of *code* anew, when more is known."""
        for number, finding in enumerate(self.kept):
            if finding.code == code:
                self.kept[number] = replace(
                    finding, severity=severity or finding.severity, repairable=repairable
                )
        if severity is not None:
            for found, count in list(self._severities.items()):
                if found[0] == code:
                    del self._severities[found]
                    self._severities[code, severity] += count
