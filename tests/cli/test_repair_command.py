"""The command ``pyvhdx repair``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import pyvhdx
from pyvhdx import cli
from pyvhdx.testing import FailingStorage, MemoryStorage
from tests.corpus.broken import child, disk, parent
from tests.corpus.handmade import BAT_AT, FULL, MIB, ZERO


def broken(folder: Path) -> str:
    """Write a disk with a bad header and two blocks at one place."""
    image = disk(headers=({}, {"crc": 0}), bat={3: 5 * MIB | FULL})
    return str(image.write(folder / "disk.vhdx").path)


def test_a_dry_run_lists_the_plan_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = broken(tmp_path)
    before = Path(path).read_bytes()
    assert cli.main(["repair", "--dry-run", path]) == 1
    out = capsys.readouterr().out
    assert "would be mended: header at 0x20000" in out
    assert "--choose BAT-OVERLAP@0x300018=copy|first|second|zero" in out
    assert out.endswith("1 would be mended, 1 left\n")
    assert Path(path).read_bytes() == before
    assert os.listdir(tmp_path) == ["disk.vhdx"]


def test_what_is_left_decides_the_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = broken(tmp_path)
    before = Path(path).read_bytes()
    assert cli.main(["repair", path]) == 1
    assert f"1 mended, 1 left; what was overwritten is in {path}.undo\n" in capsys.readouterr().out
    assert cli.main(["repair", path, "--choose", "BAT-OVERLAP=copy"]) == 1
    assert "it exists, and is not overwritten" in capsys.readouterr().err
    other = str(tmp_path / "second.undo")
    assert cli.main(["repair", path, "--choose", "BAT-OVERLAP@0x300018=copy", "--undo-file", other]) == 0
    assert cli.main(["check", path]) == 0
    assert cli.main(["repair", path, "--undo", "--undo-file", other]) == 0
    assert cli.main(["repair", path, "--undo"]) == 0
    assert Path(path).read_bytes() == before
    assert os.listdir(tmp_path) == ["disk.vhdx"]


def test_a_parent_that_is_corrupt_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = disk(tag=9, bat={3: 5 * MIB | FULL}).write(tmp_path / "parent.vhdx").path
    path = str(child().write(tmp_path / "child.vhdx").path)
    assert cli.main(["repair", path]) == 0
    out = capsys.readouterr().out
    assert (
        f"its parent {base} is corrupt, and wants a repair of its own\nnothing is wrong with this file\n"
        in out
    )


def test_what_is_lost_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = broken(tmp_path)
    assert cli.main(["repair", path, "--no-undo", "--choose", f"BAT-OVERLAP@{BAT_AT + 24}=first"]) == 0
    assert "lost: bytes 0x300000 to 0x400000 of the disk: it reads as zeros now\n" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["disk.vhdx"]


def test_json_describes_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = broken(tmp_path)
    assert cli.main(["repair", path, "--output", "json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["image"], report["undo"], report["dry-run"]) == (path, f"{path}.undo", False)
    assert [one["code"] for one in report["done"]] == ["HEADER-COPY"]
    assert report["left"][0]["choices"] == ["copy", "first", "second", "zero"]
    assert (report["done-counts"], report["left-counts"]) == ({"HEADER-COPY": 1}, {"BAT-OVERLAP": 1})
    assert (report["lost"], report["is-clean"]) == ([], False)
    assert cli.main(["repair", path, "--undo", "--output", "json"]) == 0
    undone = json.loads(capsys.readouterr().out)
    assert undone["size"] == 6 * MIB
    assert undone["restored"] > 0


def test_warnings_that_are_left_are_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = disk(patches=[(0x60000, b"x")], bat={3: 9 * MIB | ZERO})
    path = str(image.write(tmp_path / "disk.vhdx").path)
    assert cli.main(["repair", path]) == 0
    assert "left: warning: file at 0x50000" in capsys.readouterr().out


def test_quiet_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["repair", "-q", broken(tmp_path)]) == 1
    assert capsys.readouterr() == ("", "")


def test_the_parent_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    base = str(parent().write(tmp_path / "there" / "base.vhdx").path)
    path = str(child().write(tmp_path / "disk.vhdx").path)
    assert cli.main(["repair", path]) == 1
    assert cli.main(["repair", path, "--parent", base]) == 0
    with pyvhdx.open(path) as image:
        assert image.parent is not None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--choose", "BAT-OVERLAP"], "is no choice; write BAT-OVERLAP=copy"),
        (["--choose", "BAT-OVERLAP@x=copy"], "is no choice; write"),
        (["--choose", "BAT-OVERLAP=keep"], "there are 'copy', 'first', 'second', 'zero'"),
        (["--choose", "NOTHING=copy"], "NOTHING is no code"),
        (["--choose", "PARENT-MISMATCH=relink"], "the parent must be named"),
        (["--undo", "--dry-run"], "--undo goes with --undo-file only"),
        (["--no-undo", "--undo-file", "x"], "not allowed with"),
        (["-U"], "--force-share goes with --dry-run only"),
        (["-U", "--undo"], "--force-share goes with --dry-run only"),
    ],
)
def test_wrong_use_says_what_is_right(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = broken(tmp_path)
    before = Path(path).read_bytes()
    try:
        status = cli.main(["repair", path, *arguments])
    except SystemExit as end:
        status = end.code  # type: ignore[assignment]  # a number, from argparse
    assert status == 2
    assert sentence in capsys.readouterr().err
    assert Path(path).read_bytes() == before


def test_a_dry_run_may_share_the_image(tmp_path: Path) -> None:
    path = str(disk(headers=({}, {"crc": 0})).write(tmp_path / "disk.vhdx").path)
    with pyvhdx.open(path, "r+"):
        assert cli.main(["repair", "--dry-run", "-U", path]) == 0


def test_a_dry_run_says_that_an_undo_file_is_in_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(disk(headers=({}, {"crc": 0})).write(tmp_path / "disk.vhdx").path)
    assert cli.main(["repair", "--dry-run", path]) == 0
    Path(f"{path}.undo").write_bytes(b"mine")
    capsys.readouterr()
    assert cli.main(["repair", "--dry-run", path]) == cli.main(["repair", path]) == 1
    err = capsys.readouterr().err
    assert f"{path}.undo exists, and is not overwritten: the repair itself would fail" in err
    assert cli.main(["repair", "--dry-run", "--no-undo", path]) == 0
    assert cli.main(["repair", "--dry-run", "--undo-file", f"{path}.other", path]) == 0
    pyvhdx.repair(path, undo=False)
    assert cli.main(["repair", "--dry-run", path]) == cli.main(["repair", path]) == 0


def test_a_refused_undo_file_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(disk(headers=({}, {"crc": 0})).write(tmp_path / "disk.vhdx").path)
    assert cli.main(["repair", path]) == 0
    undo = Path(f"{path}.undo")
    with pyvhdx.open(path, "r+") as image:
        image.pwrite(b"new", 0)
    assert cli.main(["repair", "--undo", path]) == 2
    assert "name its own undo file (undo=, --undo-file), or keep the image and remove this one" in (
        capsys.readouterr().err
    )
    undo.write_bytes(b"no undo file")
    assert cli.main(["repair", "--undo", path]) == 2
    assert "name the right one (undo=, --undo-file)" in capsys.readouterr().err


def test_an_undo_file_of_another_image_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(disk(headers=({}, {"crc": 0})).write(tmp_path / "disk.vhdx").path)
    assert cli.main(["repair", path]) == 0
    copy = tmp_path / "copy.vhdx"
    copy.write_bytes(Path(path).read_bytes())
    assert cli.main(["repair", "--undo", "--undo-file", f"{path}.undo", str(copy)]) == 0
    assert f"{path}.undo stays: it was made for another file\n" in capsys.readouterr().out
    assert cli.main(["repair", "--undo", path, "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] is True


def test_an_unfinished_repair_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(disk(headers=({}, {"crc": 0}), bat={3: 9 * MIB | ZERO}).write(tmp_path / "disk.vhdx").path)
    image, undo = MemoryStorage(Path(path).read_bytes()), MemoryStorage()
    with pytest.raises(OSError, match="Input/output"):
        pyvhdx.repair(FailingStorage(image, 9), undo=undo)
    Path(path).write_bytes(image.read_at(image.size(), 0))
    Path(f"{path}.undo").write_bytes(undo.read_at(undo.size(), 0))
    assert cli.main(["repair", "--dry-run", path]) == 0
    assert "a repair that had been cut short would be undone first\n" in capsys.readouterr().out
    assert cli.main(["repair", path, "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["undone-first"] is True


def test_failures_have_their_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = broken(tmp_path)
    assert cli.main(["repair", "--undo", path]) == 1
    assert f"{path}.undo: No such file" in capsys.readouterr().err
    with pyvhdx.open(path):
        assert cli.main(["repair", path]) == 4
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(2 * MIB))
    assert cli.main(["repair", str(raw)]) == 1
