"""Run the two ```sh commands of README.md, each in a fresh clone and a fresh environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def main(checkout: str) -> None:
    """Clone *checkout* once for each command; fail if one fails or there are not two."""
    commands = re.findall(
        r"^```sh\n(.*?)^```", Path(checkout, "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(commands) == 2, f"README.md has {len(commands)} sh blocks, not two"
    # As on a stranger's machine: none of our variables but one, and the interpreter that runs this.
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYVHDX", "PYTHONPATH", "VIRTUAL_ENV"))
    }
    # The whole suite runs in the next step; here counts that it runs with the core dependencies alone.
    environment["PYVHDX_TEST_PROFILE"] = "short"
    environment["PATH"] = os.path.dirname(os.path.realpath(sys.executable)) + os.pathsep + environment["PATH"]
    for command in commands:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["git", "clone", "--quiet", checkout, folder], check=True)  # noqa: S603, S607 - our own
            print(f"$ {command}", flush=True)
            subprocess.run(["bash", "-ec", command], cwd=folder, env=environment, check=True)  # noqa: S603, S607 - our own


main(sys.argv[1])
