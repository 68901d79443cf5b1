"""Found by a newcomer: requests that gave garbage, a traceback, or a sentence that did not help."""

from __future__ import annotations

import errno
import io
import json
import mmap
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

import pyvhdx
from pyvhdx.cli import main
from pyvhdx.format.constants import FILE_PARAMETERS
from pyvhdx.storage import LocalFile, locks, open_local

MIB = 1 << 20


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"begin".ljust(MIB, b"\0") + bytes(2 * MIB) + b"end".ljust(MIB, b"\0"))
    return path


@pytest.fixture
def disk(raw: Path) -> Path:
    pyvhdx.convert(raw, raw.with_name("disk.vhdx"))
    return raw.with_name("disk.vhdx")


@pytest.fixture
def child(disk: Path) -> Path:
    pyvhdx.create(disk.with_name("child.vhdx"), parent=disk).close()
    return disk.with_name("child.vhdx")


class TestFileObjects:
    @pytest.mark.parametrize("mode", ["ab", "a+b"])
    @pytest.mark.parametrize("buffering", [-1, 0])
    def test_opened_for_appending_take_no_image(
        self, mode: str, buffering: int, raw: Path, tmp_path: Path
    ) -> None:
        with open(tmp_path / "new.vhdx", mode, buffering) as file:
            with pytest.raises(pyvhdx.RequestError, match="appending"):
                pyvhdx.create(file, MIB)
            with pytest.raises(pyvhdx.RequestError, match="appending"):
                pyvhdx.convert(raw, file)
        assert (tmp_path / "new.vhdx").read_bytes() == b""

    @pytest.mark.skipif(sys.platform == "win32", reason="descriptors have no such flag there")
    def test_whose_descriptor_appends_take_none_either(self, tmp_path: Path) -> None:
        fd = os.open(tmp_path / "new.vhdx", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        with os.fdopen(fd, "r+b") as file, pytest.raises(pyvhdx.RequestError, match="appending"):
            pyvhdx.create(file, MIB)

    def test_opened_for_appending_are_not_opened_for_writing(self, disk: Path) -> None:
        with disk.open("a+b") as file, pytest.raises(pyvhdx.RequestError, match="appending"):
            pyvhdx.open(file, "r+")

    @pytest.mark.parametrize("mode", ["ab", "a+b"])
    @pytest.mark.parametrize("buffering", [-1, 0])
    def test_opened_for_appending_take_a_raw_disk_in_order(
        self, mode: str, buffering: int, raw: Path, disk: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "new.raw").write_bytes(b"old")
        with open(tmp_path / "new.raw", mode, buffering) as file:
            with pytest.raises(FileExistsError):
                pyvhdx.convert(disk, file)
            pyvhdx.convert(disk, file, overwrite=True)
        assert (tmp_path / "new.raw").read_bytes() == raw.read_bytes()

    @pytest.mark.parametrize("buffering", [-1, 0])
    def test_that_cannot_be_read_hold_no_new_image(self, buffering: int, tmp_path: Path) -> None:
        with (
            open(tmp_path / "new.vhdx", "wb", buffering) as file,
            pytest.raises(pyvhdx.RequestError, match=r"w\+b"),
        ):
            pyvhdx.create(file, MIB)
        assert (tmp_path / "new.vhdx").read_bytes() == b""

    def test_that_are_maps_of_memory_are_read(self, disk: Path, raw: Path, tmp_path: Path) -> None:
        with (
            disk.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            assert pyvhdx.is_vhdx(mapped)
            with pyvhdx.open(mapped) as image:
                assert image.read() == raw.read_bytes()
            pyvhdx.convert(mapped, tmp_path / "copy.raw")
            with pytest.raises(io.UnsupportedOperation, match="size"):
                pyvhdx.open(mapped, "r+")
        assert (tmp_path / "copy.raw").read_bytes() == raw.read_bytes()

    @pytest.mark.parametrize("thing", [None, 5, b"disk.raw", io.StringIO()])
    def test_are_what_is_asked_for(self, thing: Any, raw: Path, tmp_path: Path) -> None:
        for ask in (
            lambda: pyvhdx.open(thing),
            lambda: pyvhdx.is_vhdx(thing),
            lambda: pyvhdx.create(thing, MIB),
            lambda: pyvhdx.convert(thing, tmp_path / "new.vhdx"),
            lambda: pyvhdx.convert(raw, thing),
            lambda: pyvhdx.convert(raw, thing, format="raw"),
        ):
            with pytest.raises(pyvhdx.RequestError, match="a path or a binary file object is needed"):
                ask()

    def test_that_cannot_go_back_are_not_looked_into(self) -> None:
        source, sink = os.pipe()
        os.close(sink)
        with os.fdopen(source, "rb") as file, pytest.raises(pyvhdx.RequestError, match="cannot seek"):
            pyvhdx.is_vhdx(file)


class TestParents:
    @pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
    @pytest.mark.parametrize("name", ["bad\udcff.vhdx", "a\\b.vhdx"])
    def test_that_no_locator_can_name_get_no_child(self, name: str, tmp_path: Path) -> None:
        pyvhdx.create(tmp_path / name, MIB).close()
        with pytest.raises(pyvhdx.RequestError, match="locator"):
            pyvhdx.create(tmp_path / "kid.vhdx", parent=tmp_path / name)
        assert os.listdir(tmp_path) == [name]

    @pytest.mark.skipif(os.name == "nt", reason="a separator there")
    def test_a_backslash_above_both_does_not_matter(self, tmp_path: Path) -> None:
        folder = tmp_path / "a\\b"
        folder.mkdir()
        pyvhdx.create(folder / "base.vhdx", MIB).close()
        pyvhdx.create(folder / "kid.vhdx", parent=folder / "base.vhdx").close()
        pyvhdx.open(folder / "kid.vhdx").close()

    def test_at_the_greatest_depth_get_no_child(
        self, child: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pyvhdx.format.constants.MAX_CHAIN_DEPTH", 1)
        with pytest.raises(pyvhdx.ParentCycleError, match="1 parent"):
            pyvhdx.create(tmp_path / "kid.vhdx", parent=child)
        assert not (tmp_path / "kid.vhdx").exists()

    @pytest.mark.parametrize("search", [None, [5], 5, [b"."]])
    def test_are_searched_in_folders(self, search: Any, child: Path) -> None:
        with pytest.raises(pyvhdx.RequestError, match="search"):
            pyvhdx.open(child, search=search)

    @pytest.mark.parametrize("within", ["nowhere", "disk.raw", 5])
    def test_lie_within_a_folder(self, within: Any, child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(child.parent)
        with pytest.raises(pyvhdx.RequestError, match="within"):
            pyvhdx.open(child, within=within)

    def test_that_a_function_names_are_named_in_its_error(self, child: Path, tmp_path: Path) -> None:
        with pytest.raises(pyvhdx.ParentNotFoundError) as caught:
            pyvhdx.open(child, parent=lambda _: tmp_path / "gone.vhdx")
        assert caught.value.tried == ((str(tmp_path / "gone.vhdx"), "No such file or directory"),)

    def test_that_were_given_are_not_asked_for_again(self, child: Path, disk: Path, tmp_path: Path) -> None:
        disk.unlink()
        how: dict[str, Any]
        for how in ({"parent": disk}, {"parent": lambda _: None}, {"within": tmp_path}):
            with pytest.raises(pyvhdx.ParentNotFoundError) as caught:
                pyvhdx.open(child, **how)
            assert "--parent" not in str(caught.value)
        with pytest.raises(pyvhdx.ParentNotFoundError, match="--parent"):
            pyvhdx.open(child)

    def test_cannot_be_replaced_by_their_grandchild(self, child: Path, disk: Path) -> None:
        with pytest.raises(pyvhdx.RequestError, match="a file of its own chain"):
            pyvhdx.create(disk, parent=child, exist_ok=True)


class TestParameters:
    def test_creator_is_measured_in_what_it_is_stored_in(self, tmp_path: Path) -> None:
        with pytest.raises(
            pyvhdx.RequestError, match="the creator has 257 UTF-16 units, and at most 256 fit"
        ):
            pyvhdx.create(tmp_path / "x.vhdx", MIB, creator="x" * 257)

    def test_target_has_a_name(self, raw: Path, disk: Path) -> None:
        for ask in (
            lambda: pyvhdx.create("", MIB),
            lambda: pyvhdx.create("", parent=disk),
            lambda: pyvhdx.convert(raw, "", format="vhdx"),
        ):
            with pytest.raises(pyvhdx.RequestError, match="empty"):
                ask()

    def test_that_convert_does_not_know_are_refused_in_its_name(self, raw: Path, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=r"convert\(\) got an unexpected keyword argument 'foo'"):
            pyvhdx.convert(raw, tmp_path / "x.vhdx", foo=1)
        assert not (tmp_path / "x.vhdx").exists()

    def test_seed_need_not_be_text(self, tmp_path: Path) -> None:
        pyvhdx.create(tmp_path / "x.vhdx", MIB, seed="\udcff").close()


class TestSentences:
    @pytest.mark.skipif(sys.platform != "linux", reason="no such locks there")
    def test_advise_the_option_only_where_there_is_one(
        self, disk: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        held = open_local(disk, write=True)
        held.lock(locks.WRITER)
        with pytest.raises(pyvhdx.LockedError, match="lock=False"):
            pyvhdx.open(disk)
        _, _, said = call(capsys, "info", disk)
        assert "close it there, or, if nothing writes to it, use -U" in said
        _, _, said = call(capsys, "create", disk, "1M", "--force")
        assert said.endswith("close it there\n")
        assert "lock=" not in said
        held.close()

    def test_speak_of_options(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        _, _, said = call(capsys, "create", tmp_path / "x", "1M", "--block-size", "3M")
        assert said.startswith("pyvhdx: error: --block-size is 3145728, and must be")

    def test_name_the_file_that_is_full(
        self, raw: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("pyvhdx.storage.local._pwrite", full)
        target = raw.with_name("new.vhdx")
        for command in (["create", target, "1M"], ["convert", raw, target]):
            status, _, said = call(capsys, *command)
            assert (status, said) == (1, f"pyvhdx: error: {target}: No space left on device\n")

    def test_name_the_file_that_is_bad(self, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """And not the target, which is written meanwhile."""

        def bad(*_: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr("pyvhdx.storage.local._preadv", bad)
        with pytest.raises(OSError, match=r"disk\.raw") as caught:
            pyvhdx.convert(raw, raw.with_name("new.vhdx"), source_format="raw")
        assert caught.value.filename == str(raw)

    def test_name_a_target_as_it_was_named(
        self, raw: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(raw.parent)
        os.symlink("disk.raw", "link.vhdx")
        for command in (["create", "link.vhdx", "1M"], ["convert", "disk.raw", "link.vhdx"]):
            _, _, said = call(capsys, *command)
            assert said.endswith(("link.vhdx exists; --force replaces it\n", "and is not replaced\n"))
        assert call(capsys, "create", "disk.raw", "1M")[2].startswith("pyvhdx: error: disk.raw exists")

    @pytest.mark.skipif(os.name == "nt", reason="no pipes with names there")
    def test_say_how_pipes_are_written_and_read(
        self, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        os.mkfifo(tmp_path / "pipe")
        for target in (tmp_path / "pipe", os.devnull):
            status, _, said = call(capsys, "convert", raw, target, "-O", "raw")
            assert status == 2
            assert "- is standard output" in said
        status, _, said = call(capsys, "convert", tmp_path / "pipe", tmp_path / "x.vhdx")
        assert status == 2
        assert "- is standard input" in said

    @pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="no such name here")
    def test_say_how_standard_output_is_written_also_where_it_is_a_pipe(self, raw: Path) -> None:
        command = [sys.executable, "-m", "pyvhdx", "convert", str(raw), "/dev/stdout", "-O", "raw"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("pyvhdx: error: /dev/stdout is no regular file")
        assert "- is standard output" in done.stderr
        command = [sys.executable, "-m", "pyvhdx", "convert", "-", "-", "-O", "vhdx"]
        done = subprocess.run(command, input="x", capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert "give its path" in done.stderr


class TestRead:
    def test_replaces_a_file_when_it_is_told(
        self, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        target = tmp_path / "part.bin"
        target.write_bytes(b"old")
        status, _, said = call(capsys, "read", disk, 0, 5, "-o", target)
        assert (status, said) == (1, f"pyvhdx: error: {target} exists; --force replaces it\n")
        assert call(capsys, "read", disk, 0, 5, "-o", target, "--force") == (0, "", "")
        assert target.read_bytes() == b"begin"

    @pytest.mark.parametrize("share", [[], ["-U"]])
    def test_replaces_no_file_of_its_chain(
        self, share: list[str], disk: Path, child: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = disk.read_bytes()
        assert call(capsys, "read", child, "-o", disk, "--force", *share)[0] == 2
        assert disk.read_bytes() == before

    def test_knows_standard_output(self, disk: Path, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "pyvhdx", "read", str(disk), "0", "5", "-o", "-"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (0, b"begin")
        assert not (tmp_path / "-").exists()

    def test_writes_no_json_where_it_was_not_asked_to(
        self, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, said, _ = call(capsys, "read", disk, "-o", tmp_path / "x", "--output", "json")
        assert (status, said) == (2, "")
        assert not (tmp_path / "x").exists()


class TestInfo:
    def told(self, capsys: pytest.CaptureFixture[str], path: Path) -> tuple[str, dict[str, Any]]:
        said = call(capsys, "info", path)[1]
        data = json.loads(call(capsys, "info", "--output", "json", path)[1])["format-specific"]["data"]
        return said, {key: value for key, value in data.items() if key in ("parent-error", "parent-missing")}

    def test_says_whether_a_parent_is_missing_or_wrong(
        self, child: Path, disk: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.told(capsys, child)[1] == {}
        disk.unlink()
        said, data = self.told(capsys, child)
        assert "\nparent missing: " in said
        assert set(data) == {"parent-error", "parent-missing"}
        pyvhdx.create(disk, 4 * MIB).close()
        said, data = self.told(capsys, child)
        assert "\nparent wrong: " in said
        assert "parent missing" not in said
        assert set(data) == {"parent-error"}

    def test_says_that_parents_go_in_a_circle(
        self, child: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pyvhdx.chain.MAX_CHAIN_DEPTH", 0)
        said, data = self.told(capsys, child)
        assert "\nparent cycle: " in said
        assert set(data) == {"parent-error"}


def test_create_takes_no_other_kind_for_a_child(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("dynamic", "fixed"):
        status, _, said = call(capsys, "create", "-b", disk, tmp_path / "kid.vhdx", "--kind", kind)
        assert status == 2
        assert f"--kind says {kind}" in said
    for number, kind_options in enumerate(([], ["--kind", "differencing"])):
        assert call(capsys, "create", "-q", "-b", disk, tmp_path / f"{number}.vhdx", *kind_options)[0] == 0


def test_metadata_shows_what_is_in_it(disk: Path) -> None:
    with pyvhdx.open(disk) as image:
        assert f"{FILE_PARAMETERS!r}: <8 bytes>" in repr(image.metadata)
    assert isinstance(FILE_PARAMETERS, uuid.UUID)


def test_a_name_that_appears_meanwhile_is_told_as_it_was_typed(tmp_path: Path) -> None:
    from pyvhdx.storage import new_file  # noqa: PLC0415

    with pytest.raises(FileExistsError) as caught, new_file(tmp_path / "new") as file:
        assert isinstance(file, LocalFile)
        (tmp_path / "new").write_bytes(b"theirs")
    assert caught.value.filename == str(tmp_path / "new")
