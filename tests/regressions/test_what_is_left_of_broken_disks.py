"""Found by a newcomer with broken disks: what took more away, or said less than it knew."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import pyvhdx
from pyvhdx import cli
from pyvhdx.storage import LocalFile, Rehearsal
from tests.corpus.broken import child, disk, parent
from tests.corpus.handmade import BAT_AT, FULL, MIB, Block


@pytest.fixture
def without_bat(tmp_path: Path) -> Path:
    """A disk whose BAT is zeros: everything it held belongs to nothing."""
    path = disk(blocks={0: Block(FULL), 2: Block(FULL)}).write(tmp_path / "disk.vhdx").path
    with path.open("r+b") as file:
        file.seek(BAT_AT)
        file.write(bytes(64))
    return path


class TestALostBat:
    def test_a_session_cuts_nothing_off_that_may_be_what_was_lost(self, without_bat: Path) -> None:
        lost = without_bat.read_bytes()[5 * MIB : 6 * MIB]
        with pyvhdx.open(without_bat, "r+") as image:
            image.pwrite(b"x", 7 * MIB)
        assert without_bat.read_bytes()[5 * MIB : 6 * MIB] == lost

    @pytest.mark.parametrize("is_hole", [True, False])
    def test_zeros_behind_the_end_are_still_cut_off(self, is_hole: bool, tmp_path: Path) -> None:
        path = disk().write(tmp_path / "disk.vhdx").path
        size = path.stat().st_size
        os.truncate(path, size + 32 * MIB)
        if not is_hole:
            with path.open("r+b") as file:
                file.seek(size)
                file.write(bytes(32 * MIB))
        with pyvhdx.open(path, "r+") as image:
            image.pwrite(b"x" * MIB, 0)
            image.trim(0, MIB)
        assert path.stat().st_size == size

    def test_the_file_is_cut_up_to_the_last_data(self, tmp_path: Path) -> None:
        path = disk().write(tmp_path / "disk.vhdx").path
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(size + 32 * MIB)
            file.seek(size + 3 * MIB + 5)
            file.write(b"?")
        with pyvhdx.open(path, "r+") as image:
            image.trim(0, MIB)
        assert path.stat().st_size == size + 4 * MIB

    @pytest.mark.parametrize("method", ["read_at", "next_data"])
    def test_a_place_that_cannot_be_read_is_not_cut_off(
        self, method: str, without_bat: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        size = without_bat.stat().st_size
        image = pyvhdx.open(without_bat, "r+")
        image.pwrite(b"x", 7 * MIB)
        right = getattr(LocalFile, method)

        def bad(self: LocalFile, *arguments: int) -> object:
            if arguments[-1] >= 5 * MIB:  # the offset
                raise OSError(errno.EIO, "bad")
            return right(self, *arguments)

        monkeypatch.setattr(LocalFile, method, bad)
        image.close()
        assert without_bat.stat().st_size == size

    def test_check_and_salvage_warn_of_it(
        self, without_bat: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report = pyvhdx.check(without_bat)
        assert "SPACE-DATA" in report.counts
        assert report.reclaimable == 0
        assert "SPACE-DATA" in [one.code for one in pyvhdx.salvage(without_bat, None, dry_run=True).warnings]
        assert cli.main(["salvage", "--dry-run", "-q", str(without_bat)]) == 0
        assert "the BAT may have been lost" in capsys.readouterr().err


class TestTheSalvageCommand:
    def test_writes_a_raw_disk_to_standard_output(self, tmp_path: Path) -> None:
        image = disk(headers=({"crc": 0}, {"crc": 0}))
        path = image.write(tmp_path / "disk.vhdx").path
        command = [sys.executable, "-m", "pyvhdx", "salvage", str(path), "-"]
        done = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
        assert done.stdout == image.expected(0, image.size)
        assert b"HEADER-NONE" in done.stderr
        assert os.listdir(tmp_path) == ["disk.vhdx"]

    def test_takes_its_target_behind_an_option(self, tmp_path: Path) -> None:
        path = disk().write(tmp_path / "disk.vhdx").path
        target = tmp_path / "x.raw"
        assert cli.main(["salvage", str(path), "--force", "-q", str(target)]) == 0
        assert target.stat().st_size == 8 * MIB

    def test_says_why_a_parent_without_headers_is_not_taken(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        base = parent()
        base.headers = ({"crc": 0}, {"crc": 0})
        base.write(tmp_path / "parent.vhdx")
        image = child()
        path = str(image.write(tmp_path / "child.vhdx").path)
        assert cli.main(["salvage", "--dry-run", path]) == 1
        out = capsys.readouterr().out
        assert "has lost its headers" in out
        assert "was opened without it" not in out
        with pyvhdx.open(path, salvage=True) as opened, pytest.raises(pyvhdx.CorruptImageError) as caught:
            opened.pread(512, 0)
        assert caught.value.code == "PARENT-MISSING"
        assert cli.main(["salvage", "--no-verify-parent", path, str(tmp_path / "x.raw")]) == 0
        assert f"corrupt: headers of {tmp_path / 'parent.vhdx'} at 0x10000: " in capsys.readouterr().out
        assert (tmp_path / "x.raw").read_bytes() == image.expected(0, image.size)


class TestConvert:
    def test_takes_no_destroyed_image_for_a_raw_disk(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = disk().write(tmp_path / "disk.vhdx").path
        with path.open("r+b") as file:
            file.write(bytes(MIB))
        target = str(tmp_path / "x.raw")
        assert cli.main(["convert", str(path), target]) == 1
        assert "pyvhdx salvage" in capsys.readouterr().err
        assert not os.path.exists(target)
        assert cli.main(["convert", "-f", "raw", str(path), target]) == 0
        assert Path(target).read_bytes() == path.read_bytes()


class TestRepair:
    def test_that_ends_half_way_says_what_to_do(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = str(disk(headers=({}, {"crc": 0})).write(tmp_path / "disk.vhdx").path)

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "full")

        with monkeypatch.context() as patched:
            patched.setattr(Rehearsal, "carry_out", full)
            assert cli.main(["repair", path]) == 1
        assert f"what it held is in {path}.undo: repair it again" in capsys.readouterr().err
        assert cli.main(["repair", path]) == 0
        assert cli.main(["repair", path, "--undo"]) == 0

    def test_a_choice_for_a_code_leaves_what_does_not_have_it(self, tmp_path: Path) -> None:
        """The file ends inside block 2, and before block 3."""
        path = disk(blocks={n: Block(FULL) for n in range(4)}).write(tmp_path / "disk.vhdx").path
        os.truncate(path, path.stat().st_size - MIB - 4096)
        report = pyvhdx.repair(path, undo=False, choices={"BAT-RANGE": "extend"})
        left = {one.finding.offset - BAT_AT: one.choices for one in report.left if one.choices}
        assert left == {24: ("zero", "absent")}
        with pytest.raises(pyvhdx.RequestError, match="no choice for the BAT-RANGE at"):
            pyvhdx.repair(path, undo=False, choices={("BAT-RANGE", BAT_AT + 24): "extend"})
        choices = {"BAT-RANGE": "zero", ("BAT-RANGE", BAT_AT + 16): "extend"}
        assert pyvhdx.repair(path, undo=False, choices=choices).left == []
        assert struct.unpack_from("<4Q", path.read_bytes(), BAT_AT)[3] == 2

    def test_says_what_keeps_it_from_the_rest(self, tmp_path: Path) -> None:
        image = disk(headers=({"crc": 0}, {"crc": 0}), bat={5: 5 * MIB | 2})
        (first, *others) = pyvhdx.repair(image.write(tmp_path / "disk.vhdx").path, undo=False).left
        assert first.finding.code == "HEADER-NONE"
        assert {one.reason for one in others} == {
            "left as long as HEADER-NONE at 0x10000 is there, for which there is no choice"
        }
