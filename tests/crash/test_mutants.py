"""The seeded bugs are bugs of the code as it is; `python -m tests.crash.mutants` shows who sees them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.crash import mutants


@pytest.mark.parametrize("name", mutants.MUTANTS)
def test_a_mutant_fits_the_source(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(owner: Any, function: str, *changes: tuple[str, str]) -> None:
        compile(mutants.changed_source(owner, function, changes), function, "exec")

    monkeypatch.setattr(mutants, "edit", look)
    mutants.MUTANTS[name]()
