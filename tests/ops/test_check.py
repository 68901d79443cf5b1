"""What `check` finds: exactly the damage that is there, in any file, and it never changes one."""

from __future__ import annotations

from pathlib import Path

import pytest

import pyvhdx
from tests.corpus.broken import SPECIMENS, Specimen


def run(specimen: Specimen, folder: Path) -> tuple[Path, pyvhdx.CheckReport]:
    path = specimen.make(folder)
    how = dict(specimen.how)
    if "search" in how:
        how["search"] = [folder / how["search"]]
    return path, pyvhdx.check(path, **how)


@pytest.mark.parametrize("specimen", SPECIMENS, ids=lambda specimen: specimen.name)
def test_each_damage_is_named_and_no_other(specimen: Specimen, tmp_path: Path) -> None:
    path, report = run(specimen, tmp_path)
    found = [finding for finding in report.findings if finding.code == specimen.code]
    assert set(report.counts) == {specimen.code, *specimen.also}
    assert {finding.severity for finding in found} == {specimen.severity}
    assert {finding.repairable for finding in found} == {specimen.repairable}
