"""The commands that change an image: write, trim and meta; what they refuse leaves the file as it was."""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import pyvhdx
from pyvhdx.cli import common, main, meta
from pyvhdx.storage import LocalFile, locks
from tests.corpus.handmade import FULL, MIB, NOT_PRESENT, PARTIAL, UNDEFINED, UNMAPPED, ZERO, Block, Image
from tests.corpus.handmade_logs import GUID, Entry, ring

ROOT = Path(__file__).parent.parent.parent
SIZE = 8 * MIB
ITEM = UUID("6c8f2f5e-3d0b-4f0a-9b57-0f3c1f3f4a11")
OTHER = UUID("6c8f2f5e-3d0b-4f0a-9b57-0f3c1f3f4a12")
MODES = [mode.value for mode in pyvhdx.TrimMode]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command in this process."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as wrong_use:
        status = int(wrong_use.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def pipe(data: bytes, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """Run the real command with *data* in a pipe."""
    command = [sys.executable, "-m", "pyvhdx", *map(str, arguments)]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    assert b"Traceback" not in done.stderr
    return done


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a line of a shell in which ``pyvhdx`` is the real command."""
    line = f'pyvhdx() {{ "{sys.executable}" -m pyvhdx "$@"; }}\n{command}'
    done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, check=False)
    assert b"Traceback" not in done.stderr
    return done


def one_sentence(done: tuple[int, str, str], status: int, *words: str) -> None:
    assert done[0] == status
    assert done[1] == ""
    assert done[2].startswith("pyvhdx: error: ")
    assert done[2].count("\n") == 1
    for word in words:
        assert word in done[2]


def content_of(path: Path, **how: Any) -> bytes:
    with pyvhdx.open(path, **how) as image:
        return image.read()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """8 MiB in blocks of 2 MiB, of which the first holds data."""
    (tmp_path / "disk.raw").write_bytes(b"some data".ljust(4096, b".") + bytes(SIZE - 4096))
    pyvhdx.convert(tmp_path / "disk.raw", tmp_path / "disk.vhdx")
    return tmp_path / "disk.vhdx"


@pytest.fixture
def child(disk: Path) -> Path:
    pyvhdx.create(disk.with_name("child.vhdx"), parent=disk).close()
    return disk.with_name("child.vhdx")


@pytest.fixture
def dirty(tmp_path: Path) -> Path:
    Image(SIZE, log=ring(MIB, [(0, Entry(1, 0))]), log_guid=GUID).write(tmp_path / "dirty.vhdx")
    return tmp_path / "dirty.vhdx"


def a_file(folder: Path, data: bytes) -> Path:
    (folder / "input").write_bytes(data)
    return folder / "input"


class TestWrite:
    def test_takes_the_bytes_of_a_pipe(self, disk: Path) -> None:
        expected = bytearray(content_of(disk))
        data = random.Random(1).randbytes(3 * MIB + 77)
        done = pipe(data, "write", disk, "1000001")
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.decode() == f"{disk}: 3 MiB (3145805 bytes) written at 0xf4241\n"
        expected[1000001 : 1000001 + len(data)] = data
        assert content_of(disk) == expected

    def test_takes_the_bytes_of_a_file(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        source = a_file(disk.parent, b"\xff" * SIZE)
        assert call(capsys, "write", "-q", disk, "-i", source) == (0, "", "")
        assert content_of(disk) == b"\xff" * SIZE
        assert call(capsys, "write", "-q", disk, "--from", a_file(disk.parent, b"abc"), "4M")[0] == 0
        assert content_of(disk)[4 * MIB - 1 :][:5] == b"\xffabc\xff"

    def test_takes_a_redirected_file_from_where_it_stands(self, disk: Path) -> None:
        a_file(disk.parent, b"head" + b"t" * (SIZE - 4))
        done = shell("(dd bs=4 count=1 of=/dev/null; pyvhdx write disk.vhdx 4 -i -) < input", disk.parent)
        assert done.returncode == 0
        assert content_of(disk) == b"some" + b"t" * (SIZE - 4)

    def test_says_so_in_json(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        source = a_file(disk.parent, b"abc")
        said = json.loads(call(capsys, "write", disk, "1M", "-i", source, "--output", "json")[1])
        assert said == {"offset": MIB, "length": 3, "virtual-size": SIZE, "dry-run": False}

    @pytest.mark.parametrize("kind", ["dynamic", "fixed"])
    def test_makes_zeros(self, capsys: pytest.CaptureFixture[str], kind: Any, tmp_path: Path) -> None:
        pyvhdx.create(tmp_path / "x.vhdx", SIZE, kind=kind).close()
        call(capsys, "write", tmp_path / "x.vhdx", "-i", a_file(tmp_path, b"\xff" * SIZE))
        status, said, _ = call(capsys, "write", tmp_path / "x.vhdx", "5", "--zeroes", "3M")
        assert status == 0
        assert said == f"{tmp_path / 'x.vhdx'}: 3 MiB (3145728 bytes) made zero at 0x5\n"
        assert content_of(tmp_path / "x.vhdx") == b"\xff" * 5 + bytes(3 * MIB) + b"\xff" * (5 * MIB - 5)

    def test_makes_a_child_zero_and_leaves_its_parent_alone(
        self, capsys: pytest.CaptureFixture[str], disk: Path, child: Path
    ) -> None:
        before = disk.read_bytes()
        assert call(capsys, "write", "-q", child, "--zeroes", SIZE)[0] == 0
        assert content_of(child) == bytes(SIZE)
        assert disk.read_bytes() == before

    def test_makes_zeros_of_a_disk_larger_than_a_step(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        pyvhdx.create(tmp_path / "x.vhdx", 5 << 30).close()
        with pyvhdx.open(tmp_path / "x.vhdx", "r+") as image:
            for at in (0, (1 << 30) - 3, (3 << 30) - 3, (5 << 30) - 6):
                image.pwrite(b"marked", at)
        assert call(capsys, "write", "-q", tmp_path / "x.vhdx", "6", "--zeroes", (5 << 30) - 6) == (0, "", "")
        with pyvhdx.open(tmp_path / "x.vhdx") as image:
            assert image.pread(12, 0) == b"marked" + bytes(6)
            assert not any(image.pread(12, at).strip(b"\0") for at in range(1 << 30, 5 << 30, 1 << 30))
            assert {extent.kind for extent in image.extents(2 * MIB)} <= {"zero", "absent"}

    def test_of_nothing_changes_nothing(self, disk: Path) -> None:
        before = disk.read_bytes()
        for arguments in (("8M",), ("--zeroes", "0")):
            done = pipe(b"", "write", disk, *arguments)
            assert (done.returncode, done.stderr) == (0, b"")
            assert b": 0 bytes " in done.stdout
        assert disk.read_bytes() == before

    def test_replays_a_pending_log_into_the_file(self, dirty: Path) -> None:
        assert pipe(b"x", "write", dirty).returncode == 0
        with pyvhdx.open(dirty, log="refuse") as image:
            assert image.pread(1, 0) == b"x"

    @pytest.mark.peer("qemu-img")
    @pytest.mark.parametrize("of", ["dynamic", "fixed", "child"])
    def test_writes_what_qemu_reads(self, of: Any, tmp_path: Path) -> None:
        """QEMU reads no differencing images: a child is judged by what becomes of it."""
        draw = random.Random(3)
        path = tmp_path / "x.vhdx"
        kind = "dynamic" if of == "child" else of
        pyvhdx.create(tmp_path / "base.vhdx", 21 * MIB + 512, kind=kind, block_size=MIB).close()
        if of == "child":
            pyvhdx.create(path, parent=tmp_path / "base.vhdx").close()
        else:
            (tmp_path / "base.vhdx").rename(path)
        expected = bytearray(21 * MIB + 512)
        for _ in range(6):
            offset = draw.randrange(len(expected))
            data = draw.randbytes(min(draw.choice((1, 512, 100_000, 3 * MIB)), len(expected) - offset))
            assert pipe(data, "write", "-q", path, offset).returncode == 0
            expected[offset : offset + len(data)] = data
            start, length = sorted((draw.randrange(len(expected)), draw.randrange(4 * MIB)))[::-1]
            length = min(length, len(expected) - start)
            assert pipe(b"", "write", "-q", path, start, "--zeroes", length).returncode == 0
            expected[start : start + length] = bytes(length)
        assert content_of(path) == expected
        if of == "child":
            assert pipe(b"", "convert", "-q", path, tmp_path / "flat.vhdx").returncode == 0
            path = tmp_path / "flat.vhdx"
        subprocess.run(
            ["qemu-img", "convert", "-f", "vhdx", "-O", "raw", path, tmp_path / "qemu.raw"], check=True
        )
        assert (tmp_path / "qemu.raw").read_bytes()[: len(expected)] == expected


class TestWriteRefuses:
    """What is refused leaves every byte of the file as it was."""

    def test_a_file_that_does_not_fit_before_it_writes(
        self, capsys: pytest.CaptureFixture[str], disk: Path
    ) -> None:
        before = disk.read_bytes()
        source = a_file(disk.parent, bytes(3 * MIB))
        for extra in ([], ["--dry-run"]):
            one_sentence(call(capsys, "write", disk, "6M", "-i", source, *extra), 2, "0x600000", "0x900000")
            one_sentence(call(capsys, "write", disk, "9M", "-i", os.devnull, *extra), 2, "0x900000")
            one_sentence(call(capsys, "write", disk, "7M", "--zeroes", "2M", *extra), 2, "0x900000")
        done = shell("pyvhdx write disk.vhdx 6M < input", disk.parent)
        assert done.returncode == 2
        assert disk.read_bytes() == before

    def test_a_pipe_that_does_not_fit_and_says_how_much_it_wrote(self, disk: Path) -> None:
        before = disk.read_bytes()
        done = pipe(b"y" * (MIB + 1), "write", disk, "7M", "--dry-run")
        assert (done.returncode, b"nothing was written" in done.stderr) == (2, True)
        done = pipe(b"y" * 11, "write", disk, SIZE - 10)
        assert (done.returncode, b"nothing was written" in done.stderr) == (2, True)
        assert disk.read_bytes() == before
        done = pipe(b"y" * (3 * MIB), "write", disk, SIZE - 2 * MIB - 100)
        assert (done.returncode, done.stdout) == (2, b"")
        assert f"its first {MIB + 100} bytes were written".encode() in done.stderr
        assert content_of(disk)[-2 * MIB - 101 :] == b"\0" + b"y" * (MIB + 100) + bytes(MIB)

    def test_an_endless_input(self, disk: Path) -> None:
        done = shell("pyvhdx write disk.vhdx 1 -i /dev/zero", disk.parent)
        assert done.returncode == 2
        assert f"its first {SIZE - 1} bytes were written".encode() in done.stderr
        assert content_of(disk) == b"s" + bytes(SIZE - 1)

    @pytest.mark.parametrize(
        "command",
        [
            "write disk.vhdx -i disk.vhdx",
            "write disk.vhdx < disk.vhdx",
            "write child.vhdx -i link.vhdx",
            "write child.vhdx -i disk.vhdx",
            "write --dry-run child.vhdx < child.vhdx",
        ],
    )
    def test_the_image_itself_and_files_of_its_chain(self, command: str, disk: Path, child: Path) -> None:
        os.link(disk, disk.with_name("link.vhdx"))
        before = disk.read_bytes(), child.read_bytes()
        done = shell(f"pyvhdx {command}", disk.parent)
        assert done.returncode == 2
        assert b"cannot be what is written" in done.stderr
        assert done.stderr.count(b"\n") == 1
        assert (disk.read_bytes(), child.read_bytes()) == before

    def test_an_input_that_is_not_there(
        self, capsys: pytest.CaptureFixture[str], disk: Path, dirty: Path
    ) -> None:
        before = disk.read_bytes(), dirty.read_bytes()
        for path in (disk, dirty):
            one_sentence(call(capsys, "write", path, "-i", disk.with_name("none")), 1, "none: No such file")
            one_sentence(call(capsys, "write", path, "-i", disk.parent), 1, "Is a directory")
        done = shell("pyvhdx write dirty.vhdx <&-", disk.parent)
        assert (done.returncode, b"standard input is closed" in done.stderr) == (2, True)
        assert (disk.read_bytes(), dirty.read_bytes()) == before

    def test_an_input_that_must_not_block(self, disk: Path) -> None:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        command = [sys.executable, "-m", "pyvhdx", "write", str(disk)]
        done = subprocess.run(command, stdin=read_end, capture_output=True, check=False)
        os.close(read_end)
        os.close(write_end)
        assert (done.returncode, b"set not to block" in done.stderr) == (1, True)

    @pytest.mark.parametrize(
        "command",
        [
            ["write"],
            ["write", "x", "1Q"],
            ["write", "x", "-5"],
            ["write", "x", "1", "2"],
            ["write", "x", "-i", "y", "--zeroes", "1"],
            ["write", "x", "--zeroes", "much"],
            ["write", "x", "--output", "raw"],
            ["write", "x", "--zero", "1"],
            ["trim"],
            ["trim", "x", "0", "all"],
            ["trim", "x", "0", "1M", "2M"],
            ["trim", "x", "--mode", "ZERO"],
            ["meta"],
            ["meta", "x"],
            ["meta", "list"],
            ["meta", "list", "x", str(ITEM)],
            ["meta", "get", "x"],
            ["meta", "get", "x", "6c8f2f5e"],
            ["meta", "get", "x", str(ITEM), "--dry-run"],
            ["meta", "set", "x", "no-guid", "--value", "y"],
            ["meta", "set", "x", str(ITEM), "--value", "y", "-i", "z"],
            ["meta", "set", "x", str(ITEM), "--value", "y", "--of-disk", "--of-file"],
            ["meta", "set", "x", str(ITEM), "--val", "y"],
            ["meta", "delete", "x", "{}"],
        ],
    )
    def test_wrong_use(self, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
        status, said, err = call(capsys, *command)
        assert (status, said) == (2, "")
        assert "usage: pyvhdx" in err


def every_change(image: Path, folder: Path) -> list[list[object]]:
    """A call of each command that would change *image*."""
    return [
        ["write", image, "-i", a_file(folder, b"data")],
        ["write", image, "--zeroes", "1M"],
        ["trim", image],
        ["meta", "set", image, ITEM, "--value", "x"],
        ["meta", "delete", image, OTHER],
    ]


class TestEveryChange:
    """What the commands share: the exit status, and a file that stays as it is where they fail."""

    @pytest.fixture
    def item(self, disk: Path) -> Path:
        with pyvhdx.open(disk, "r+") as image:
            image.user_metadata[OTHER] = b"something"
        return disk

    def test_is_only_told_in_a_dry_run(self, capsys: pytest.CaptureFixture[str], item: Path) -> None:
        before, stamp = item.read_bytes(), item.stat().st_mtime_ns
        for command in every_change(item, item.parent):
            status, said, err = call(capsys, *command, "--dry-run")
            assert (status, err) == (0, "")
            assert " would be " in said
            assert json.loads(call(capsys, *command, "--dry-run", "--output", "json")[1])["dry-run"] is True
            assert call(capsys, *command, "--dry-run", "-q") == (0, "", "")
        assert (item.read_bytes(), item.stat().st_mtime_ns) == (before, stamp)

    def test_says_nothing_when_quiet(self, capsys: pytest.CaptureFixture[str], item: Path) -> None:
        for command in every_change(item, item.parent):
            before = item.read_bytes()
            assert call(capsys, *command, "-q") == (0, "", "")
            assert item.read_bytes() != before

    def test_is_1_for_a_file_that_is_not_there_or_no_image(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        (tmp_path / "x").write_bytes(b"QFI\xfb")
        for number in range(5):
            for name, word in (("none", "No such file"), ("x", "qcow2")):
                for extra in ([], ["--dry-run"]):
                    command = every_change(tmp_path / name, tmp_path)[number]
                    one_sentence(call(capsys, *command, *extra), 1, word)
        assert (tmp_path / "x").read_bytes() == b"QFI\xfb"
        assert not (tmp_path / "none").exists()

    @pytest.mark.skipif(sys.platform != "linux", reason="the locks are Linux's")
    def test_is_4_for_a_locked_file(self, capsys: pytest.CaptureFixture[str], item: Path) -> None:
        before = item.read_bytes()
        held = LocalFile(os.open(item, os.O_RDWR), "held")
        held.lock(locks.READER)
        for command in every_change(item, item.parent):
            one_sentence(call(capsys, *command), 4, str(item))
        assert item.read_bytes() == before
        assert call(capsys, "write", "-q", "-U", item, "--zeroes", "1")[0] == 0
        held.close()

    def test_is_5_for_a_missing_parent(
        self, capsys: pytest.CaptureFixture[str], disk: Path, child: Path
    ) -> None:
        before = child.read_bytes()
        moved = disk.rename(disk.with_name("moved.vhdx"))
        for command in every_change(child, disk.parent):
            one_sentence(call(capsys, *command), 5, "disk.vhdx")
            one_sentence(call(capsys, *command, "--dry-run"), 5, "disk.vhdx")
        assert child.read_bytes() == before
        assert call(capsys, "write", "-q", child, "--zeroes", "1", "--parent", moved)[0] == 0
        assert call(capsys, "meta", "set", "-q", child, ITEM, "--value", "x", "--no-parent")[0] == 0

    def test_is_2_where_the_parent_is_not_to_be_verified(
        self, capsys: pytest.CaptureFixture[str], disk: Path, child: Path
    ) -> None:
        before = child.read_bytes()
        for command in every_change(child, disk.parent):
            for extra in ([], ["--dry-run"]):
                done = call(capsys, *command, "--no-verify-parent", *extra)
                one_sentence(done, 2, "--no-verify-parent", "reading only")
        assert child.read_bytes() == before

    def test_is_6_for_a_log_that_must_not_be_replayed(
        self, capsys: pytest.CaptureFixture[str], dirty: Path
    ) -> None:
        before = dirty.read_bytes()
        for command in every_change(dirty, dirty.parent):
            one_sentence(call(capsys, *command, "--log", "refuse"), 6, "log")
        for command in every_change(dirty, dirty.parent)[:4]:
            assert call(capsys, *command, "--dry-run")[0] == 0
        assert dirty.read_bytes() == before, "a dry run replays in memory"

    @pytest.mark.parametrize("cause", [KeyboardInterrupt(), OSError("the medium is gone")])
    def test_that_is_stopped_inside_a_commit_tells_the_cause_and_leaves_a_good_image(
        self,
        cause: BaseException,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        item: Path,
    ) -> None:
        """The close of an image that has failed says so too, and that is not what people need."""

        def stop(*_: object) -> None:
            raise cause

        expected = content_of(item)
        for command in (
            ["write", item, "4M", "-i", a_file(item.parent, b"x")],
            ["meta", "delete", item, OTHER],
        ):
            with monkeypatch.context() as patch:
                patch.setattr("pyvhdx._core.log_writer.LogWriter.commit", stop)
                status, said, err = call(capsys, *command)
            told = "interrupted" if isinstance(cause, KeyboardInterrupt) else "error: the medium is gone"
            assert (status, said, err) == (130 if "int" in told else 1, "", f"pyvhdx: {told}\n")
            assert content_of(item) == expected
            with pyvhdx.open(item, "r+") as image:
                assert image.user_metadata[OTHER] == b"something"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_that_is_interrupted_is_130_and_leaves_a_good_image(self, number: int, disk: Path) -> None:
        old, before = content_of(disk), disk.read_bytes()
        command = [sys.executable, "-m", "pyvhdx", "write", str(disk), "1M"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdin
            process.stdin.write(b"x" * 3 * MIB)  # and no end: the command is waiting for more
            process.stdin.flush()
            until = time.monotonic() + 60
            while disk.read_bytes() == before and time.monotonic() < until:
                time.sleep(0.01)
            process.send_signal(number)
            said = process.communicate()
        assert (process.returncode, said) == (130, (b"", b"pyvhdx: interrupted\n"))
        with pyvhdx.open(disk, log="refuse") as image:
            new = image.read()
        assert set(new[MIB : 4 * MIB]) <= {0, ord("x")}
        assert (new[:MIB], new[4 * MIB :]) == (old[:MIB], old[4 * MIB :])


class TestTrim:
    def test_gives_space_back(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        call(capsys, "write", disk, "-i", a_file(disk.parent, b"\xff" * SIZE))
        full = disk.stat().st_size
        status, said, _ = call(capsys, "trim", disk, "1M", "5M")
        assert (status, said) == (0, f"{disk}: 4 MiB (4194304 bytes) trimmed\n")
        assert content_of(disk) == b"\xff" * 2 * MIB + bytes(4 * MIB) + b"\xff" * 2 * MIB
        said = json.loads(call(capsys, "trim", disk, "--output", "json")[1])
        assert said == {
            "offset": 0,
            "length": SIZE,
            "mode": "zero",
            "trimmed": 4 * MIB,
            "dry-run": False,
        }
        assert content_of(disk) == bytes(SIZE)
        assert disk.stat().st_size < full

    def test_makes_a_child_transparent(
        self, capsys: pytest.CaptureFixture[str], disk: Path, child: Path
    ) -> None:
        call(capsys, "write", child, "-i", a_file(disk.parent, b"mine"))
        assert content_of(child)[:9] == b"mine data"
        said = call(capsys, "trim", child, "0", "2M", "--mode", "make-transparent")[1]
        assert said == f"{child}: 2 MiB (2097152 bytes) trimmed\n"
        assert content_of(child) == content_of(disk)

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("kind", ["dynamic", "differencing", "fixed"])
    def test_says_in_a_dry_run_what_it_does_without(
        self, kind: str, mode: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        parent = Image(9 * MIB + 512, tag=2)
        parent.write(tmp_path / "parent.vhdx")
        states = [NOT_PRESENT, FULL, ZERO, FULL, FULL, UNMAPPED, UNDEFINED, NOT_PRESENT, FULL, FULL]
        if kind == "differencing":
            states[4] = PARTIAL
        blocks = {n: Block(state, frozenset({1, 5})) for n, state in enumerate(states)}
        model = Image(
            9 * MIB + 512, kind=kind, blocks=blocks, parent=parent if kind == "differencing" else None
        )
        path = tmp_path / "x.vhdx"
        ranges = [(), ("1M", "3M"), (512,), ("8M", MIB + 512), (0, 512), ("4.5M", "2M"), ("9M",), ("2M", 0)]
        for anchors in (False, True):
            for arguments in ranges:
                model.write(path)
                if anchors and kind != "fixed":
                    assert call(capsys, "trim", "-q", path, "1M", "3M", "--mode", "file-space")[0] == 0
                before = path.read_bytes()
                command = ["trim", path, *arguments, "--mode", mode]
                would = call(capsys, *command, "--dry-run")
                assert path.read_bytes() == before
                does = call(capsys, *command)
                assert (would[0], would[1].replace("would be ", ""), would[2]) == does
                assert does[0] == (2 if (kind, mode) == ("fixed", "make-transparent") else 0)

    def test_of_a_large_disk_goes_step_by_step(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        size = (5 << 30) + 512
        pyvhdx.create(tmp_path / "x.vhdx", size, block_size=256 * MIB).close()
        for extra in (["--dry-run"], []):
            said = json.loads(call(capsys, "trim", tmp_path / "x.vhdx", "512", *extra, "--output", "json")[1])
            assert said["trimmed"] == size - 256 * MIB
        with pyvhdx.open(tmp_path / "x.vhdx") as image:
            assert [(extent.offset, extent.kind) for extent in image.extents()] == [
                (0, "absent"),
                (256 * MIB, "zero"),
            ]

    def test_refuses_what_cannot_be_before_it_changes_anything(
        self, capsys: pytest.CaptureFixture[str], disk: Path
    ) -> None:
        pyvhdx.create(disk.with_name("fixed.vhdx"), SIZE, kind="fixed").close()
        pyvhdx.create(disk.with_name("large.vhdx"), 4 << 30).close()
        for name, arguments, word in (
            ("disk", ["6M", "3M"], "0x900000"),
            ("disk", ["9M"], "0x900000"),
            ("disk", ["100"], "multiples of the sector size 512"),
            ("large", ["0", (3 << 30) + 1], "multiples of the sector size 512"),
            ("fixed", ["--mode", "make-transparent"], "fixed"),
        ):
            path = disk.with_name(f"{name}.vhdx")
            before = path.read_bytes() if name != "large" else path.stat().st_mtime_ns
            for extra in ([], ["--dry-run"]):
                one_sentence(call(capsys, "trim", path, *arguments, *extra), 2, word)
            assert before == (path.read_bytes() if name != "large" else path.stat().st_mtime_ns)

    def test_stops_at_a_state_that_no_block_may_have(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        Image(SIZE, bat={3: 5}).write(tmp_path / "x.vhdx")
        for extra in (["--dry-run"], []):
            one_sentence(call(capsys, "trim", tmp_path / "x.vhdx", *extra), 1, "BAT-STATE")

    @pytest.mark.peer("qemu-img")
    @pytest.mark.parametrize("mode", ["zero", "free-space", "file-space"])
    def test_leaves_what_qemu_reads_as_zeros(
        self, mode: str, capsys: pytest.CaptureFixture[str], disk: Path
    ) -> None:
        call(capsys, "write", disk, "-i", a_file(disk.parent, b"\xff" * SIZE))
        assert call(capsys, "trim", "-q", disk, "2M", "2M", "--mode", mode)[0] == 0
        subprocess.run(["qemu-img", "convert", "-O", "raw", disk, disk.with_name("qemu.raw")], check=True)
        expected = b"\xff" * 2 * MIB + bytes(2 * MIB) + b"\xff" * 4 * MIB
        assert disk.with_name("qemu.raw").read_bytes() == expected == content_of(disk)


class TestMeta:
    def test_sets_lists_gets_and_deletes(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        assert call(capsys, "meta", "list", disk, "--output", "json")[1] == "[]\n"
        status, said, _ = call(capsys, "meta", "set", disk, ITEM, "--value", "na\u00efve")
        assert (status, said) == (0, f"{disk}: item {ITEM} set: 6 bytes that belong to the file\n")
        source = a_file(disk.parent, bytes(range(256)))
        said = call(capsys, "meta", "set", disk, OTHER, "-i", source, "--of-disk", "--output", "json")[1]
        described = {"item-id": str(OTHER), "size": 256, "belongs-to": "disk"}
        assert json.loads(said) == {**described, "dry-run": False}
        lines = call(capsys, "meta", "list", disk)[1].splitlines()
        assert [line.split() for line in lines] == [
            ["Item", "Size", "Belongs", "to"],
            [str(ITEM), "6", "file"],
            [str(OTHER), "256", "disk"],
        ]
        listed = json.loads(call(capsys, "meta", "list", disk, "--output", "json")[1])
        assert listed == [{"item-id": str(ITEM), "size": 6, "belongs-to": "file"}, described]
        assert pipe(b"", "meta", "get", disk, f"{{{str(ITEM).upper()}}}").stdout == "na\u00efve".encode()
        assert pipe(b"", "meta", "get", disk, OTHER).stdout == bytes(range(256))
        said = call(capsys, "meta", "get", disk, OTHER, "--output", "json")[1]
        assert json.loads(said) == {**described, "data": base64.b64encode(bytes(range(256))).decode()}
        assert call(capsys, "meta", "delete", disk, ITEM) == (0, f"{disk}: item {ITEM} deleted\n", "")
        said = call(capsys, "meta", "delete", disk, OTHER, "--output", "json")[1]
        assert json.loads(said) == {**described, "dry-run": False}
        assert call(capsys, "meta", "list", disk, "--output", "json")[1] == "[]\n"

    def test_writes_an_item_into_a_new_file(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        call(capsys, "meta", "set", disk, ITEM, "--value", "x")
        target = disk.with_name("item")
        assert call(capsys, "meta", "get", disk, ITEM, "-o", target) == (0, "", "")
        assert target.read_bytes() == b"x"
        one_sentence(call(capsys, "meta", "get", disk, ITEM, "--to", target), 1, "item exists; --force")
        call(capsys, "meta", "set", disk, ITEM, "--value", "y")
        assert call(capsys, "meta", "get", "--force", disk, ITEM, "-o", target)[0] == 0
        assert target.read_bytes() == b"y"
        one_sentence(call(capsys, "meta", "get", disk, ITEM, "--output", "json", "-o", target), 2, "JSON")
        one_sentence(call(capsys, "meta", "get", disk, OTHER, "--to", disk.with_name("new")), 1)
        assert not disk.with_name("new").exists()

    def test_takes_a_value_from_a_pipe_and_an_empty_one(self, disk: Path) -> None:
        assert pipe(b"\xff\0", "meta", "set", "-q", disk, ITEM, "-i", "-").returncode == 0
        assert pipe(b"", "meta", "set", "-q", disk, OTHER).returncode == 0
        assert pipe(b"unread", "meta", "set", "-q", disk, OTHER, "--value", "").returncode == 0
        with pyvhdx.open(disk) as image:
            assert dict(image.user_metadata) == {ITEM: b"\xff\0", OTHER: b""}

    @pytest.mark.skipif(sys.platform != "linux", reason="arguments are bytes on Linux")
    def test_takes_a_value_that_is_no_text_as_it_is(self, disk: Path) -> None:
        assert pipe(b"", "meta", "set", "-q", disk, ITEM, "--value", os.fsdecode(b"\xff")).returncode == 0
        with pyvhdx.open(disk) as image:
            assert image.user_metadata[ITEM] == b"\xff"

    def test_keeps_to_whom_an_item_belongs_unless_told(
        self, capsys: pytest.CaptureFixture[str], disk: Path
    ) -> None:
        for options, of_disk in (([], False), (["--of-disk"], True), ([], True), (["--of-file"], False)):
            for extra in (["--dry-run"], []):
                command = ["meta", "set", disk, ITEM, "--value", "x", "--output", "json", *options, *extra]
                said = json.loads(call(capsys, *command)[1])
                assert said["belongs-to"] == ("disk" if of_disk else "file")
            with pyvhdx.open(disk) as image:
                assert image.user_metadata.is_of_disk(ITEM) is of_disk

    def test_of_a_missing_item_is_1(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        """The system's items are no user items."""
        before = disk.read_bytes()
        with pyvhdx.open(disk) as image:
            system = next(iter(image.metadata))
        for item in (ITEM, system, UUID(int=0)):
            for command in (["get"], ["get", "--output", "json"], ["delete"], ["delete", "--dry-run"]):
                done = call(capsys, "meta", command[0], disk, item, *command[1:])
                one_sentence(done, 1, str(disk), f"no user item {item}", "meta list")
        assert disk.read_bytes() == before

    def test_refuses_what_cannot_be(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        half = a_file(disk.parent, bytes(600 << 10))
        assert call(capsys, "meta", "set", "-q", disk, OTHER, "-i", half)[0] == 0
        before = disk.read_bytes()
        for extra in (["--dry-run"], []):
            for source, item, word in (
                (half, ITEM, "no room"),
                ("/dev/zero", ITEM, "at most 1 MiB"),
                (os.devnull, UUID(int=0), "zero GUID"),
            ):
                one_sentence(call(capsys, "meta", "set", disk, item, "-i", source, *extra), 2, word)
            missing = disk.with_name("none")
            one_sentence(call(capsys, "meta", "set", disk, ITEM, "-i", missing, *extra), 1, "none")
        assert shell(f"pyvhdx meta set disk.vhdx {ITEM} <&-", disk.parent).returncode == 2
        assert disk.read_bytes() == before

    def test_does_not_write_an_item_into_the_image_that_it_reads(
        self, capsys: pytest.CaptureFixture[str], disk: Path
    ) -> None:
        call(capsys, "meta", "set", disk, ITEM, "--value", "x")
        before = disk.read_bytes()
        done = shell(f"pyvhdx meta get disk.vhdx {ITEM} >> disk.vhdx", disk.parent)
        assert (done.returncode, b"is not replaced" in done.stderr) == (2, True)
        one_sentence(call(capsys, "meta", "get", "--force", disk, ITEM, "-o", disk), 2, "is not replaced")
        assert disk.read_bytes() == before

    def test_has_each_option_of_each_action_on_the_commands_page(self) -> None:
        """The test for all sub-commands does not look into the actions of one."""
        page = (ROOT / "docs" / "command.md").read_text()
        parser: Any = argparse.ArgumentParser()
        commands = parser.add_subparsers()
        meta.add_to(commands)
        actions = next(action for action in commands.choices["meta"]._actions if action.choices)
        for name, sub in actions.choices.items():
            assert f"`pyvhdx meta {name} IMAGE" in page
            for action in sub._actions:
                for option in action.option_strings:
                    assert option in ("-h", "--help") or f"`{option}" in page, f"{name} {option}"


class TestSteps:
    @pytest.mark.parametrize("offset", [0, 1, (1 << 30) - 1, 1 << 30, (3 << 30) + 5])
    @pytest.mark.parametrize("length", [0, 1, 1 << 30, (1 << 30) + 1, 5 << 30])
    def test_cover_the_range_and_end_where_every_block_ends(self, offset: int, length: int) -> None:
        parts = list(common.steps(offset, length))
        assert sum(size for _, size in parts) == length
        at = offset
        for start, size in parts:
            assert start == at
            at += size
            assert at == offset + length or at % (256 * MIB) == 0
