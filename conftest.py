"""
Every example in README.md and docs/ is a test.

```python blocks run in one namespace a page; ```console blocks are commands behind ``$`` with the
output that they must print, in which ``...`` stands for anything.  Blocks marked ```sh make whole
environments: `.ci/run` runs those.
"""

from __future__ import annotations

import doctest
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

import pyvhdx
from tests.corpus import handmade, handmade_logs

if TYPE_CHECKING:
    from sybil import Example

_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _run_console(example: Example) -> str | None:
    """Run the commands of a block one by one and compare what they print."""
    blocks = str(example.parsed).split("$ ")[1:]
    for block in blocks:
        command, _, expected = block.partition("\n")
        while command.endswith("\\"):
            line, _, expected = expected.partition("\n")
            command = command[:-1] + line
        shell = f'pyvhdx() {{ "{sys.executable}" -m pyvhdx "$@"; }}\n{command}'
        done = subprocess.run(  # noqa: S603 - our own documentation
            ["bash", "-c", shell],  # noqa: S607 - found on the PATH
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if not doctest.OutputChecker().check_output(
            expected.strip() + "\n", done.stdout.strip() + "\n", _FLAGS
        ):
            return f"$ {command}\nexpected:\n{expected}\ngot (status {done.returncode}):\n{done.stdout}"
    return None


def _prepare(namespace: dict[str, Any]) -> None:
    """A folder with the files that the pages speak of: disk.raw, base.vhdx, child.vhdx, dirty.vhdx."""
    namespace["_folder"] = folder = tempfile.mkdtemp()
    namespace["_before"] = os.getcwd()
    os.chdir(folder)
    Path("disk.raw").write_bytes(b"the first sector".ljust(512, b"\0") + bytes((8 << 20) - 512))
    pyvhdx.convert("disk.raw", "base.vhdx", seed="base")
    pyvhdx.create("child.vhdx", parent="base.vhdx", seed="child").close()
    bat = bytearray(4096)
    bat[:8] = (4 << 20 | 6).to_bytes(8, "little")
    entry = handmade_logs.Entry(7, 0, [(handmade.BAT_AT, bytes(bat))])
    dirty = handmade.Image(8 << 20, log=entry.build(), log_guid=handmade_logs.GUID)
    dirty.patches.append((4 << 20, b"only in the log's view".ljust(1 << 20, b"\0")))
    dirty.write(Path("dirty.vhdx"))


def _clean_up(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["_before"])
    shutil.rmtree(namespace["_folder"])


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser("console", _run_console), SkipParser()],
    patterns=["README.md", "docs/*.md"],
    setup=_prepare,
    teardown=_clean_up,
).pytest()
