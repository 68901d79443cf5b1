"""Streams that are closed, or that lead back to the file that is read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyvhdx

MIB = 1 << 20


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run ``pyvhdx`` as a shell does, with its redirections."""
    line = f'pyvhdx() {{ "{sys.executable}" -m pyvhdx "$@"; }}\npyvhdx {command}'
    done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, check=False)
    assert b"Traceback" not in done.stdout + done.stderr
    assert b"Exception ignored" not in done.stderr
    return done


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "disk.raw").write_bytes(b"x" * (3 * MIB))
    pyvhdx.convert(tmp_path / "disk.raw", tmp_path / "disk.vhdx")
    pyvhdx.create(tmp_path / "child.vhdx", parent=tmp_path / "disk.vhdx").close()
    return tmp_path / "disk.vhdx"


@pytest.mark.usefixtures("disk")
class TestClosed:
    @pytest.mark.parametrize(
        "command",
        [
            "info disk.vhdx",
            "info --output json disk.vhdx",
            "map disk.vhdx",
            "map --output json disk.vhdx",
            "read disk.vhdx",
            "dump header disk.vhdx",
            "convert disk.vhdx -",
        ],
    )
    def test_output_fails_the_command_in_one_sentence(self, command: str, tmp_path: Path) -> None:
        done = shell(f"{command} >&-", tmp_path)
        assert (done.returncode, done.stderr) == (1, b"pyvhdx: error: standard output is closed\n")

    def test_output_does_not_matter_to_what_prints_nothing(self, disk: Path, tmp_path: Path) -> None:
        for command, made in (
            ("convert -q disk.vhdx new.raw", "new.raw"),
            ("create -q new.vhdx 1M", "new.vhdx"),
            ("read disk.vhdx -o part.raw", "part.raw"),
        ):
            assert shell(f"{command} >&-", tmp_path).returncode == 0
            assert (tmp_path / made).exists()
        assert (tmp_path / "new.raw").read_bytes() == disk.with_name("disk.raw").read_bytes()

    def test_errors_lose_their_message_but_not_their_status(self, tmp_path: Path) -> None:
        for command, status in (
            ("info missing", 1),
            ("info", 2),
            ("convert disk.vhdx new.raw", 0),
            ("read -p disk.vhdx -o part.raw", 0),
        ):
            done = shell(f"{command} 2>&-", tmp_path)
            assert done.returncode == status
            assert b"error" not in done.stdout, "a message in place of the data"

    def test_input_is_wrong_use(self, tmp_path: Path) -> None:
        done = shell("convert - new.vhdx <&-", tmp_path)
        assert done.returncode == 2
        assert b"standard input is closed" in done.stderr
        assert not (tmp_path / "new.vhdx").exists()


@pytest.mark.parametrize("redirection", [">> disk.vhdx", "1<> disk.vhdx", ">> link.vhdx"])
@pytest.mark.parametrize(
    "command", ["convert disk.vhdx -", "convert child.vhdx -", "read disk.vhdx", "read child.vhdx 0 1M"]
)
def test_output_into_a_file_that_is_read_is_refused(
    command: str, redirection: str, disk: Path, tmp_path: Path
) -> None:
    os.link(disk, tmp_path / "link.vhdx")
    before = disk.read_bytes()
    done = shell(f"{command} {redirection}", tmp_path)
    assert done.returncode == 2
    assert b"is not replaced" in done.stderr
    assert disk.read_bytes() == before
