"""The documentation names everything there is, and nothing else."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pyvhdx
from pyvhdx import cli

ROOT = Path(__file__).parent.parent
SOURCE = Path(pyvhdx.__file__).parent
_CODE = re.compile(r'"([A-Z]+(?:-[A-Z]+)+|IDENTIFIER)"')


def test_every_code_is_in_the_table_of_errors_and_every_row_is_a_code() -> None:
    used = {code for path in SOURCE.rglob("*.py") for code in _CODE.findall(path.read_text())}
    table = set(re.findall(r"^\| `([A-Z-]+)` \|", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE))
    assert used == table


def test_every_public_name_is_on_the_api_page() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert [name for name in pyvhdx.__all__ if f"pyvhdx.{name}" not in page] == []


def test_every_option_of_every_sub_command_is_on_the_commands_page() -> None:
    page = (ROOT / "docs" / "command.md").read_text()
    parser = argparse.ArgumentParser()
    commands: Any = parser.add_subparsers()
    for command in cli._COMMANDS:
        command.add_to(commands)
    for name, sub in commands.choices.items():
        assert f"## {name}\n" in page
        for action in sub._actions:
            for option in action.option_strings:
                if option not in ("-h", "--help"):
                    assert f"`{option}" in page or f" {option} " in page, f"{name} {option}"


def test_no_two_pages_make_a_file_of_the_same_name() -> None:
    """Who tries all examples in one folder meets no file of another page."""
    made: dict[str, str] = {}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        blocks = "".join(
            re.findall(r"^```(?:python|console)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
        )
        names = re.findall(r'create\("(.+?)"|convert\(".+?", "(.+?)"', blocks)
        for line in re.findall(r"pyvhdx ((?:create|convert) .*)", blocks):
            files = re.findall(r"(?<!-b )\b[\w-]+\.(?:vhdx|raw)\b", line.partition("|")[0])
            names.append((files[-1], "") if " - |" not in line else ("", ""))
        for name in {"".join(pair) for pair in names} - {""}:
            assert made.setdefault(name, path.name) == path.name, name
    assert len(made) > 12


def test_every_page_is_in_the_site() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert {page for page in pages if f"\n{page}\n" in index} == pages
