"""The command as people and scripts use it: what it prints, and how it ends."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pyvhdx
from pyvhdx.cli import main
from pyvhdx.cli.common import Progress, human, size
from tests.corpus.handmade import FULL, MIB, Block, Image, guid
from tests.corpus.handmade_logs import GUID, Entry, ring
from tests.corpus.simple import three_levels


def run(*arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run the real command; whatever happens there is no traceback."""
    command = [sys.executable, "-m", "pyvhdx", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **how)
    assert "Traceback" not in done.stderr
    return done


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command in this process."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "disk.raw").write_bytes(b"some data".ljust(4096, b".") + bytes(8 * MIB - 4096))
    pyvhdx.convert(tmp_path / "disk.raw", tmp_path / "disk.vhdx")
    return tmp_path / "disk.vhdx"


@pytest.fixture
def child(disk: Path) -> Path:
    pyvhdx.create(disk.with_name("child.vhdx"), parent=disk).close()
    return disk.with_name("child.vhdx")


class TestTheWholeCommand:
    def test_is_found_as_module_and_script(self) -> None:
        version = f"pyvhdx {pyvhdx.__version__}\n"
        assert run("--version").stdout == version
        script = Path(sys.executable).with_name("pyvhdx")
        if script.exists():
            assert (
                subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
                == version
            )

    @pytest.mark.parametrize(
        "command",
        [
            [],
            ["nothing"],
            ["info"],
            ["read", "x", "1Q"],
            ["read", "x", "0", "1.3"],
            ["read", "x", "0xg"],
            ["create", "x", "big"],
            ["dump", "x", "y"],
            ["info", "x", "--output", "xml"],
        ],
    )
    def test_wrong_use_is_2(self, command: list[str]) -> None:
        done = run(*command)
        assert done.returncode == 2
        assert "usage:" in done.stderr

    @pytest.mark.parametrize("command", ["create", "info", "map", "read", "convert", "dump"])
    def test_each_sub_command_has_help(self, command: str) -> None:
        assert "usage: pyvhdx " + command in run(command, "--help").stdout

    def test_a_reader_that_has_enough_is_no_error_message(self, tmp_path: Path) -> None:
        pyvhdx.create(tmp_path / "disk.vhdx", 64 << 20).close()
        done = subprocess.run(
            f"{sys.executable} -m pyvhdx read disk.vhdx | head -c 10",
            shell=True,
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert (done.stdout, done.stderr) == (bytes(10), b"")


class TestExitStatus:
    """0 done, 1 failed, 2 wrong use, 4 locked, 5 parent missing or wrong, 6 log pending and refused."""

    def one_sentence(self, done: tuple[int, str, str], status: int, *words: str) -> None:
        assert done[0] == status
        assert done[1] == ""
        assert done[2].startswith("pyvhdx: error: ")
        assert done[2].count("\n") == 1
        for word in words:
            assert word in done[2]

    def test_1_for_a_file_that_cannot_be_read(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        self.one_sentence(call(capsys, "info", tmp_path / "missing"), 1, "missing: No such file")
        self.one_sentence(call(capsys, "info", tmp_path), 1, "Is a directory")
        (tmp_path / "x").write_bytes(b"QFI\xfb")
        self.one_sentence(call(capsys, "info", tmp_path / "x"), 1, "qcow2", "qemu-img")
        Image(8 * MIB, headers=({"crc": 0},) * 2).write(tmp_path / "x")
        self.one_sentence(
            call(capsys, "map", tmp_path / "x"), 1, "HEADER-NONE", "0x10000", str(tmp_path / "x")
        )

    def test_1_for_an_existing_target(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        self.one_sentence(call(capsys, "create", disk, "1G"), 1, str(disk), "--force")
        self.one_sentence(call(capsys, "convert", disk, disk.with_suffix(".raw")), 1, "--force")
        self.one_sentence(call(capsys, "read", disk, "-o", disk.with_suffix(".raw")), 1)

    def test_2_for_what_cannot_be(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        self.one_sentence(call(capsys, "read", disk, "8M", "1"), 2, "0x800000")
        self.one_sentence(call(capsys, "create", disk.with_name("new"), "1000"), 2, "multiple of 512")
        self.one_sentence(call(capsys, "dump", "locator", disk), 2, "no parent locator")

    def test_4_for_a_locked_file(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        from pyvhdx.storage import LocalFile, locks  # noqa: PLC0415

        held = LocalFile(os.open(disk, os.O_RDWR), "held")
        held.lock(locks.WRITER)
        for command in (("info", disk), ("dump", "header", disk), ("create", disk, "1M", "--force")):
            self.one_sentence(call(capsys, *command), 4, str(disk))
        assert call(capsys, "info", "-U", disk)[0] == 0
        held.close()

    def test_5_for_a_missing_or_wrong_parent(
        self, capsys: pytest.CaptureFixture[str], disk: Path, child: Path
    ) -> None:
        moved = disk.rename(disk.with_name("moved.vhdx"))
        self.one_sentence(call(capsys, "map", child), 5, "disk.vhdx", "No such file")
        self.one_sentence(call(capsys, "info", "--chain", child), 5)
        assert call(capsys, "map", child, "--parent", moved)[0] == 0
        pyvhdx.create(disk, 8 * MIB).close()
        self.one_sentence(call(capsys, "read", child, 0, 512), 5, "DataWriteGuid")
        assert call(capsys, "map", child, "--no-verify-parent")[0] == 0

    def test_6_for_a_pending_log_that_must_not_be_replayed(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        Image(8 * MIB, log=ring(MIB, [(0, Entry(1, 0))]), log_guid=GUID).write(tmp_path / "x.vhdx")
        assert call(capsys, "info", tmp_path / "x.vhdx")[0] == 0
        self.one_sentence(call(capsys, "info", tmp_path / "x.vhdx", "--log", "refuse"), 6, "log")


class TestInfo:
    def test_for_people(self, capsys: pytest.CaptureFixture[str], disk: Path, child: Path) -> None:
        _, said, _ = call(capsys, "info", child)
        assert (
            f"image: {child}\nfile format: vhdx, differencing\nvirtual size: 8 MiB (8388608 bytes)\n" in said
        )
        assert f"parent: {disk}\n" in said
        _, said, _ = call(capsys, "info", "--chain", child)
        assert said.count("image: ") == 2
        disk.unlink()
        status, said, _ = call(capsys, "info", child)
        assert status == 0
        assert "parent: .\\disk.vhdx (not open)" in said
        assert "parent missing: " in said

    def test_as_json_with_qemus_keys(
        self, capsys: pytest.CaptureFixture[str], disk: Path, child: Path
    ) -> None:
        said = json.loads(call(capsys, "info", "--output", "json", disk)[1])
        assert said["virtual-size"] == 8 * MIB
        assert said["cluster-size"] == 2 * MIB
        assert (said["format"], said["dirty-flag"]) == ("vhdx", False)
        chain = json.loads(call(capsys, "info", "--output", "json", "--chain", child)[1])
        assert [member["filename"] for member in chain] == [str(child), str(disk)]
        assert chain[0]["backing-filename"] == ".\\disk.vhdx"
        assert chain[0]["full-backing-filename"] == str(disk)
        assert chain[0]["format-specific"]["data"]["kind"] == "differencing"

    @pytest.mark.peer("qemu-img")
    def test_says_what_qemu_says(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        qemu = json.loads(
            subprocess.run(
                ["qemu-img", "info", "--output", "json", disk], check=True, capture_output=True
            ).stdout
        )
        ours = json.loads(call(capsys, "info", "--output", "json", disk)[1])
        for key in ("virtual-size", "filename", "cluster-size", "format", "actual-size", "dirty-flag"):
            assert ours[key] == qemu[key], key

    def test_names_what_was_tolerated(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        Image(8 * MIB, headers=({"crc": 0}, {})).write(tmp_path / "x.vhdx")
        assert "warning: header at 0x10000: " in call(capsys, "info", tmp_path / "x.vhdx")[1]
        said = json.loads(call(capsys, "info", "--output", "json", tmp_path / "x.vhdx")[1])
        assert said["format-specific"]["data"]["warnings"][0]["code"] == "HEADER-COPY"


class TestNamesFromStrangers:
    def test_no_byte_of_an_image_steers_the_terminal(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        evil = "\x1b]0;owned\x07"
        pairs = {"parent_linkage": f"{{{guid(5)}}}", "relative_path": evil, evil: evil}
        Image(8 * MIB, kind="differencing", locator=pairs, patches=[(8, evil.encode("utf-16-le"))]).write(
            tmp_path / "x.vhdx"
        )
        for command in (["info"], ["map"], ["dump", "locator"], ["dump", "header"]):
            _, said, err = call(capsys, *command, tmp_path / "x.vhdx")
            assert "\x1b" not in said + err
            assert "\\x1b" in said + err

    @pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
    def test_a_file_name_need_not_be_text(self, tmp_path: Path) -> None:
        path = os.fsencode(tmp_path) + b"/\xff.vhdx"
        pyvhdx.create(os.fsdecode(path), 8 * MIB).close()
        for command in ("info", "map"):
            done = subprocess.run(
                [sys.executable, "-m", "pyvhdx", command, path], capture_output=True, check=False
            )
            assert (done.returncode, done.stderr) == (0, b"")


class TestMap:
    def test_as_json_with_qemus_keys(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        top, content = three_levels(tmp_path, 6)
        entries = json.loads(call(capsys, "map", "--output", "json", top)[1])
        assert sum(entry["length"] for entry in entries) == len(content)
        files = [top, tmp_path / "middle.vhdx", tmp_path / "base.vhdx"]
        for entry in entries:
            assert set(entry) - {"offset", "filename"} == {
                "start",
                "length",
                "depth",
                "present",
                "zero",
                "data",
                "kind",
            }
            if entry["data"]:
                assert entry["filename"] == str(files[entry["depth"]])
                with files[entry["depth"]].open("rb") as file:
                    file.seek(entry["offset"])
                    assert (
                        file.read(entry["length"])
                        == content[entry["start"] : entry["start"] + entry["length"]]
                    )
        part = json.loads(call(capsys, "map", "--output", "json", "-s", "1M", "-l", "512K", top)[1])
        assert (part[0]["start"], sum(entry["length"] for entry in part)) == (MIB, MIB // 2)

    def test_for_people(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        status, said, _ = call(capsys, "map", disk)
        assert status == 0
        lines = said.splitlines()
        assert lines[0].split() == ["Offset", "Length", "Kind", "In", "file", "at", "File"]
        assert lines[1].split() == ["0x0", "0x200000", "data", "0x400000", str(disk)]
        assert lines[2].split() == ["0x200000", "0x600000", "absent"]

    def test_of_what_cannot_be_read_prints_no_heading(
        self, capsys: pytest.CaptureFixture[str], child: Path
    ) -> None:
        status, said, err = call(capsys, "map", "--no-parent", child)
        assert (status, said) == (5, "")
        assert "--no-parent" in err

    def test_of_an_empty_range_is_an_empty_list(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        assert call(capsys, "map", "--output", "json", "-s", "8M", disk)[1] == "[]\n"


class TestRead:
    def test_writes_the_bytes(self, disk: Path) -> None:
        assert run("read", disk, 5, 4).stdout == "data"
        done = subprocess.run([sys.executable, "-m", "pyvhdx", "read", disk], capture_output=True, check=True)
        assert done.stdout == disk.with_suffix(".raw").read_bytes()
        assert done.stderr == b""
        assert run("read", disk, "8M", 0).stdout == ""

    def test_into_a_file(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        target = disk.with_name("part.bin")
        assert call(capsys, "read", disk, "0", "3M", "-o", target) == (0, "", "")
        assert target.read_bytes() == disk.with_suffix(".raw").read_bytes()[: 3 * MIB]

    def test_as_json(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        said = json.loads(call(capsys, "read", "--output", "json", disk, 0, 9)[1])
        assert said == {"offset": 0, "length": 9, "data": base64.b64encode(b"some data").decode()}


class TestCreate:
    def test_makes_a_disk_and_says_what_it_is(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        status, said, _ = call(
            capsys,
            "create",
            tmp_path / "a.vhdx",
            "10G",
            "--kind",
            "fixed",
            "--block-size",
            "32M",
            "--seed",
            "s",
        )
        assert status == 0
        assert "vhdx, fixed" in said
        said = json.loads(
            call(
                capsys,
                "create",
                tmp_path / "b.vhdx",
                "1.5G",
                "--output",
                "json",
                "--logical-sector-size",
                "4096",
            )[1]
        )
        assert said["virtual-size"] == 3 << 29
        assert call(
            capsys,
            "create",
            "-q",
            "--force",
            tmp_path / "b.vhdx",
            "1G",
            "--disk-id",
            guid(5),
            "--creator",
            "me",
            "--log-size",
            "2M",
        ) == (0, "", "")
        with pyvhdx.open(tmp_path / "b.vhdx") as image:
            assert (image.disk_id, image.creator, image.info().log_length) == (guid(5), "me", 2 * MIB)

    def test_makes_a_child(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        assert call(capsys, "create", "-q", "-b", disk, disk.with_name("c.vhdx"))[0] == 0
        with pyvhdx.open(disk.with_name("c.vhdx")) as image:
            assert image.pread(9, 0) == b"some data"


class TestConvert:
    def test_there_and_back(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        raw = disk.with_suffix(".raw")
        status, said, err = call(capsys, "convert", raw, disk.with_name("new.vhdx"))
        assert (status, err) == (0, "")
        assert "8 MiB" in said
        said = json.loads(
            call(
                capsys, "convert", "--output", "json", disk.with_name("new.vhdx"), disk.with_name("new.raw")
            )[1]
        )
        assert said["target-format"] == "raw"
        assert disk.with_name("new.raw").read_bytes() == raw.read_bytes()
        assert call(
            capsys,
            "convert",
            "-q",
            "-f",
            "raw",
            "-O",
            "vhdx",
            "--force",
            raw,
            disk.with_name("new.vhdx"),
            "--kind",
            "fixed",
        ) == (0, "", "")

    def test_through_pipes(self, disk: Path) -> None:
        """Raw in on standard input, raw out on standard output."""
        python = f"{sys.executable} -m pyvhdx"
        done = subprocess.run(
            f"cat disk.raw | {python} convert - piped.vhdx && {python} convert piped.vhdx - | cmp - disk.raw",
            shell=True, cwd=disk.parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout.count("->"), done.stderr.count("->")) == (0, 1, 1)

    def test_a_warning_is_one_sentence(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "odd.raw").write_bytes(bytes(1000))
        status, _, err = call(capsys, "convert", "-q", tmp_path / "odd.raw", tmp_path / "odd.vhdx")
        assert status == 0
        assert err.startswith("pyvhdx: warning: ")
        assert err.count("\n") == 1

    def test_of_a_child_takes_the_options_of_an_open(
        self, capsys: pytest.CaptureFixture[str], disk: Path, child: Path
    ) -> None:
        (disk.parent / "other").mkdir()
        disk.rename(disk.parent / "other" / "disk.vhdx")
        assert call(capsys, "convert", child, disk.with_name("x.raw"))[0] == 5
        assert (
            call(capsys, "convert", child, disk.with_name("x.raw"), "--search", disk.parent / "other")[0] == 0
        )


class TestDump:
    @pytest.mark.parametrize("structure", ["header", "regions", "metadata", "log", "bat", "locator"])
    def test_each_structure_for_people_and_as_json(
        self, capsys: pytest.CaptureFixture[str], structure: str, child: Path
    ) -> None:
        status, said, err = call(capsys, "dump", structure, child)
        assert (status, err) == (0, "")
        assert said or structure == "bat"
        json.loads(call(capsys, "dump", structure, child, "--output", "json")[1])

    def test_the_bat(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        assert call(capsys, "dump", "bat", disk)[1].split() == ["payload", "0", "FULLY_PRESENT", "0x400000"]
        assert len(call(capsys, "dump", "bat", "--all", disk)[1].splitlines()) == 4

    def test_a_file_that_cannot_be_opened(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        Image(8 * MIB, headers=({"crc": 0},) * 2, blocks={0: Block(FULL)}).write(tmp_path / "x.vhdx")
        status, said, _ = call(capsys, "dump", "header", tmp_path / "x.vhdx")
        assert status == 0
        assert said.count("valid: False") == 2
        assert "current: -" in said


class TestArguments:
    def test_may_stand_behind_options(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        assert call(capsys, "create", disk.with_name("a.vhdx"), "--kind", "fixed", "10M", "-q") == (0, "", "")
        assert call(capsys, "create", disk.with_name("b.vhdx"), "-b", disk, "16M", "-q") == (0, "", "")
        assert call(capsys, "read", disk, "-o", disk.with_name("part"), "5", "4") == (0, "", "")
        assert disk.with_name("part").read_bytes() == b"data"

    @pytest.mark.parametrize("rest", [["-q", "10M", "20M"], ["-q", "big"], ["--nothing"]])
    def test_that_are_too_many_or_wrong_are_wrong_use(
        self, capsys: pytest.CaptureFixture[str], rest: list[str]
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            call(capsys, "create", "x.vhdx", *rest)
        assert caught.value.code == 2

    def test_may_be_the_offsets_that_map_prints(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        assert json.loads(call(capsys, "read", "--output", "json", disk, "0x5", "0x4")[1])["offset"] == 5


class TestStandardOutput:
    """It is written in order from where it stands, whatever it is."""

    def test_that_is_a_file_is_appended_to(self, disk: Path) -> None:
        script = f"(echo HDR; {sys.executable} -m pyvhdx convert -q disk.vhdx -) > out"
        subprocess.run(script, shell=True, cwd=disk.parent, check=True)
        assert disk.with_name("out").read_bytes() == b"HDR\n" + disk.with_suffix(".raw").read_bytes()

    def test_that_is_a_device_is_written_to(self, disk: Path) -> None:
        assert (
            subprocess.run(
                f"{sys.executable} -m pyvhdx convert -q {disk} - > /dev/null", shell=True, check=False
            ).returncode
            == 0
        )
        done = subprocess.run(
            f"{sys.executable} -m pyvhdx convert -q {disk} - > /dev/full",
            shell=True,
            check=False,
            capture_output=True,
        )
        assert done.returncode == 1
        assert b"No space left" in done.stderr
        assert b"Traceback" not in done.stderr

    def test_takes_no_vhdx(self, capsys: pytest.CaptureFixture[str], disk: Path) -> None:
        status, _, err = call(capsys, "convert", "-O", "vhdx", disk, "-")
        assert (status, "cannot seek" in err) == (2, True)

    def test_of_another_encoding_is_no_traceback(self, disk: Path) -> None:
        path = disk.rename(disk.with_name("k\u00efd \u0434.vhdx"))
        for encoding in ("ascii", "cp1252"):
            command = [sys.executable, "-m", "pyvhdx", "info", str(path)]
            environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, check=False)
            assert (done.returncode, done.stderr) == (0, b"")
            assert b"\\u0434" in done.stdout


class TestSizes:
    @pytest.mark.parametrize(
        ("text", "bytes_"),
        [
            ("0", 0),
            ("512", 512),
            ("512b", 512),
            ("1k", 1024),
            ("10G", 10 << 30),
            ("1.5M", 3 << 19),
            ("64T", 64 << 40),
            ("2MiB", 2 << 20),
            ("2MB", 2 << 20),
            ("0x1000", 4096),
        ],
    )
    def test_are_read_as_qemu_img_does(self, text: str, bytes_: int) -> None:
        assert size(text) == bytes_

    def test_are_written_for_people(self) -> None:
        assert human(0) == "0 bytes"
        assert human(1536) == "1.5 KiB (1536 bytes)"
        assert human(64 << 40) == "64 TiB (70368744177664 bytes)"


class TestProgress:
    class Terminal:
        def __init__(self, *, terminal: bool) -> None:
            self.text = ""
            self.terminal = terminal

        def isatty(self) -> bool:
            return self.terminal

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None:
            pass

    def shown(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        terminal: bool,
        progress: bool,
        quiet: bool = False,
        after: float = 0,
    ) -> str:
        import argparse  # noqa: PLC0415
        import time  # noqa: PLC0415

        stderr = self.Terminal(terminal=terminal)
        monkeypatch.setattr(sys, "stderr", stderr)
        with Progress(argparse.Namespace(progress=progress, quiet=quiet)) as show:
            if after:
                now = time.monotonic()
                monkeypatch.setattr(time, "monotonic", lambda: now + after)
            show(1, 4)
        monkeypatch.undo()
        return stderr.text

    def test_on_a_terminal_from_the_third_second_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.shown(monkeypatch, terminal=True, progress=False) == ""
        assert "25.0 %" in self.shown(monkeypatch, terminal=True, progress=False, after=2.1)
        assert "25.0 %" in self.shown(monkeypatch, terminal=True, progress=True)

    def test_never_in_a_pipe_or_when_quiet(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.shown(monkeypatch, terminal=False, progress=True, after=5) == ""
        assert self.shown(monkeypatch, terminal=True, progress=True, quiet=True, after=5) == ""
