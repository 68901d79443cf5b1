"""Standard input and output as shells connect them: pipes, files, terminals, and what breaks them."""

from __future__ import annotations

import os
import pty
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

import pyvhdx

MIB = 1 << 20
PYVHDX = f'"{sys.executable}" -m pyvhdx'


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a line of a shell in which ``pyvhdx`` is the real command; the status is that of its last command."""
    line = f'set -o pipefail\npyvhdx() {{ {PYVHDX} "$@"; }}\n{command}'
    done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, check=False)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    return done


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    content = bytearray(9 * MIB)
    for at in (0, 3 * MIB + 1, 8 * MIB + 65536):
        content[at : at + 70_000] = random.Random(at).randbytes(70_000)
    (tmp_path / "disk.raw").write_bytes(content)
    pyvhdx.convert(tmp_path / "disk.raw", tmp_path / "disk.vhdx")
    return tmp_path / "disk.vhdx"


class TestPipes:
    @pytest.mark.parametrize(
        "command",
        [
            "cat disk.raw | pyvhdx convert -q - new.vhdx && pyvhdx convert -q new.vhdx new.raw",
            "pyvhdx convert -q - new.vhdx < disk.raw && pyvhdx convert -q new.vhdx - > new.raw",
            "pyvhdx convert -q disk.vhdx - | pyvhdx convert -q - x.vhdx && pyvhdx read x.vhdx | cat > new.raw",
            "pyvhdx convert -q disk.vhdx - | cat | cat > new.raw",
            "pyvhdx convert -q --logical-sector-size 4096 - x.vhdx < disk.raw && pyvhdx read x.vhdx > new.raw",
            "dd if=disk.raw bs=1000 status=none | pyvhdx convert -q - x.vhdx && pyvhdx read x.vhdx > new.raw",
            "pyvhdx convert -q - - < disk.raw | cat > new.raw",
            "(pyvhdx read disk.vhdx 0 4M; pyvhdx read disk.vhdx 4M 5M) > new.raw",
        ],
    )
    @pytest.mark.usefixtures("disk")
    def test_carry_the_disk_both_ways(self, command: str, tmp_path: Path) -> None:
        done = shell(command, tmp_path)
        assert (done.returncode, done.stdout) == (0, b"")
        assert (tmp_path / "new.raw").read_bytes() == (tmp_path / "disk.raw").read_bytes()

    def test_of_an_odd_length_are_padded_with_a_warning(self, tmp_path: Path) -> None:
        done = shell("printf abc | pyvhdx convert -q - new.vhdx && pyvhdx read new.vhdx", tmp_path)
        assert done.stdout == b"abc".ljust(512, b"\0")
        assert done.stderr.startswith(b"pyvhdx: warning: ")

    def test_that_bring_nothing_leave_nothing(self, tmp_path: Path) -> None:
        for command in ("true | pyvhdx convert - new.vhdx", "pyvhdx convert - new.vhdx < /dev/null"):
            done = shell(command, tmp_path)
            assert done.returncode == 2
            assert b"empty" in done.stderr
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("packed", ["gzip", "xz"])
    def test_that_bring_something_packed_are_refused_with_advice(self, packed: str, tmp_path: Path) -> None:
        done = shell(f"head -c 100000 /dev/urandom | {packed} | pyvhdx convert - new.vhdx", tmp_path)
        assert done.returncode == 1
        assert b"decompress" in done.stderr
        assert done.stderr.count(b"\n") == 1
        assert os.listdir(tmp_path) == []


class TestAReaderThatHasEnough:
    @pytest.mark.parametrize(
        "command",
        [
            "read disk.vhdx",
            "convert disk.vhdx -",
            "map --output json many.vhdx",
            "map many.vhdx",
            "dump bat --all many.vhdx",
            "dump bat --all --output json many.vhdx",
        ],
    )
    @pytest.mark.usefixtures("disk")
    def test_is_told_nothing(self, command: str, tmp_path: Path) -> None:
        with (tmp_path / "many.raw").open("wb") as file:
            for at in range(0, 8000 * MIB, 2 * MIB):
                file.seek(at)
                file.write(b"x")
            file.truncate(8000 * MIB)
        pyvhdx.convert(tmp_path / "many.raw", tmp_path / "many.vhdx", block_size=MIB)
        done = shell(f"pyvhdx {command} | head -c 20 | wc -c", tmp_path)
        assert done.stdout.split() == [b"20"]
        assert done.stderr == b""

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
    @pytest.mark.parametrize(
        "command",
        ["info disk.vhdx", "map --output json disk.vhdx", "read disk.vhdx", "convert -q disk.vhdx -"],
    )
    @pytest.mark.usefixtures("disk")
    def test_and_a_full_one_fails_the_command(self, command: str, tmp_path: Path) -> None:
        done = shell(f"pyvhdx {command} > /dev/full", tmp_path)
        assert done.returncode == 1
        assert b"No space left" in done.stderr
        assert done.stderr.count(b"\n") == 1


def on_a_terminal(*arguments: object, **how: Any) -> tuple[int, bytes, bytes]:
    """Run the command with its errors on a terminal; return status, standard output, what the terminal got."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pyvhdx", *map(str, arguments)]
    shown = b""
    with tempfile.TemporaryFile() as out:
        with subprocess.Popen(command, stderr=theirs, stdout=out, **how) as process:
            os.close(theirs)
            while True:
                try:
                    shown += os.read(ours, 65536)
                except OSError:  # it has ended
                    break
        os.close(ours)
        out.seek(0)
        return process.returncode, out.read(), shown


class TestOnATerminal:
    def test_progress_is_shown_and_wiped(self, disk: Path) -> None:
        status, said, shown = on_a_terminal("convert", "-p", disk, disk.with_name("new.raw"))
        assert status == 0
        assert b" %" in shown
        assert shown.endswith(b"\r\x1b[K")
        assert b"->" in said
        assert b"%" not in said

    def test_of_a_stream_it_counts_bytes(self, disk: Path) -> None:
        with open(disk.with_name("disk.raw"), "rb") as source:
            pipe = subprocess.Popen(["cat"], stdin=source, stdout=subprocess.PIPE)
            status, _, shown = on_a_terminal(
                "convert", "-p", "-", disk.with_name("new.vhdx"), stdin=pipe.stdout
            )
            assert pipe.stdout
            pipe.stdout.close()
            pipe.wait()
        assert status == 0
        assert b"MiB" in shown
        assert b"%" not in shown

    @pytest.mark.parametrize("options", [(), ("-q",), ("-p", "-q")])
    def test_nothing_is_shown_of_what_is_quick_or_quiet(self, options: tuple[str, ...], disk: Path) -> None:
        status, _, shown = on_a_terminal("convert", *options, disk, disk.with_name("new.raw"))
        assert (status, shown) == (0, b"")

    def test_an_error_is_one_line(self, disk: Path) -> None:
        status, said, shown = on_a_terminal("convert", "-p", disk, disk)
        assert (status, said) == (2, b"")
        assert shown.startswith(b"pyvhdx: error: ")
        assert shown.count(b"\n") == 1

    def test_reading_shows_it_too(self, disk: Path) -> None:
        status, said, shown = on_a_terminal("read", "-p", disk)
        assert status == 0
        assert said == disk.with_name("disk.raw").read_bytes()
        assert b" %" in shown

    @pytest.mark.usefixtures("disk")
    def test_in_a_pipe_there_is_none(self, tmp_path: Path) -> None:
        done = shell("pyvhdx convert -p disk.vhdx new.raw", tmp_path)
        assert (done.returncode, done.stderr) == (0, b"")


class TestSignals:
    """130, one word, and nothing half-made, whatever is being done."""

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("target", ["new.vhdx", "new.raw", "old.vhdx"])
    def test_end_a_conversion(self, target: str, number: signal.Signals, tmp_path: Path) -> None:
        pyvhdx.create(tmp_path / "old.vhdx", MIB).close()
        before = (tmp_path / "old.vhdx").read_bytes()
        command = [sys.executable, "-m", "pyvhdx", "convert", "--force", "-", str(tmp_path / target)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin
            process.stdin.write(b"x" * 3 * MIB)  # and no end: the command is waiting for more
            process.stdin.flush()
            until = time.monotonic() + 60
            while len(os.listdir(tmp_path)) < 2 and time.monotonic() < until:
                time.sleep(0.01)
            process.send_signal(number)
            _, said = process.communicate()
        assert (process.returncode, said) == (130, b"pyvhdx: interrupted\n")
        assert os.listdir(tmp_path) == ["old.vhdx"]
        assert (tmp_path / "old.vhdx").read_bytes() == before

    def test_end_a_reader_that_nobody_listens_to(self, disk: Path) -> None:
        command = [sys.executable, "-m", "pyvhdx", "read", str(disk)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.read(1)  # it has begun, and soon the pipe is full
            process.send_signal(signal.SIGTERM)
            process.stdout.read()
            assert process.stderr
            said = process.stderr.read()
        assert (process.returncode, said) == (130, b"pyvhdx: interrupted\n")
