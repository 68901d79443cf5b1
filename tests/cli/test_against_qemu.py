"""`info` and `map` say in JSON what `qemu-img` says, in its words."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pyvhdx
from pyvhdx.cli import main

pytestmark = pytest.mark.peer("qemu-img")

MIB = 1 << 20


def qemu(*arguments: object) -> Any:
    done = subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout) if "json" in arguments else done.stdout


def ours(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert main([str(argument) for argument in arguments]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return json.loads(said.out)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Data in the first, the sixth and the last MiB of twenty."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        for at in (0, 5 * MIB, 19 * MIB):
            file.seek(at)
            file.write(random.Random(at).randbytes(MIB))
    return path


class TestInfo:
    KEYS = ("virtual-size", "filename", "cluster-size", "format", "actual-size", "dirty-flag")

    @pytest.mark.parametrize(
        "options",
        ["subformat=dynamic", "subformat=fixed", "block_size=1M", "block_size=64M,log_size=4M"],
    )
    def test_of_its_own_images(
        self, options: str, raw: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        path = tmp_path / "disk.vhdx"
        qemu("convert", "-f", "raw", "-O", "vhdx", "-o", options, raw, path)
        os.sync()  # what a file takes on its medium may change until then
        theirs = qemu("info", "--output", "json", path)
        said = ours(capsys, "info", "--output", "json", path)
        for key in self.KEYS:
            assert said[key] == theirs[key], key
        assert set(theirs) - {"children"} <= set(said)

    @pytest.mark.parametrize("kind", ["dynamic", "fixed"])
    @pytest.mark.parametrize("block", ["1M", "32M"])
    def test_of_ours(
        self, kind: str, block: str, raw: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        path = tmp_path / "disk.vhdx"
        assert main(["convert", "-q", "--kind", kind, "--block-size", block, str(raw), str(path)]) == 0
        theirs = qemu("info", "--output", "json", path)
        said = ours(capsys, "info", "--output", "json", path)
        for key in self.KEYS:
            assert said[key] == theirs[key], key
            assert type(said[key]) is type(theirs[key])

    @pytest.mark.images
    def test_of_a_dirty_image_only_we_say_more(
        self, real_images: dict[str, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """QEMU refuses it without replaying."""
        path, said = real_images["iotest-dirtylog-10G-4M.vhdx"]
        info = ours(capsys, "info", "--output", "json", path)
        assert info["dirty-flag"] is True
        assert info["virtual-size"] == said["virtual_size"]
        refused = subprocess.run(["qemu-img", "info", "-f", "vhdx", path], capture_output=True, check=False)
        assert refused.returncode != 0

    def test_of_a_chain_uses_the_keys_that_it_uses_for_qcow2(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        qemu("create", "-q", "-f", "qcow2", tmp_path / "base.qcow2", "8M")
        qemu("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", tmp_path / "child.qcow2")
        theirs = qemu("info", "--backing-chain", "--output", "json", tmp_path / "child.qcow2")
        pyvhdx.create(tmp_path / "base.vhdx", 8 * MIB).close()
        pyvhdx.create(tmp_path / "child.vhdx", parent=tmp_path / "base.vhdx").close()
        said = ours(capsys, "info", "--backing-chain", "--output", "json", tmp_path / "child.vhdx")
        assert len(said) == len(theirs) == 2
        for mine, their in zip(said, theirs, strict=True):
            names = {key for key in their if "backing" in key}
            assert names <= set(mine)
            for key in names - {"backing-filename", "full-backing-filename", "backing-filename-format"}:
                assert mine[key] == their[key]
        assert said[0]["backing-filename-format"] == "vhdx"
        assert Path(said[0]["full-backing-filename"]).samefile(tmp_path / "base.vhdx")


class TestMap:
    def flags(self, entries: list[dict[str, Any]], at: int) -> tuple[bool, bool, int]:
        [entry] = [e for e in entries if e["start"] <= at < e["start"] + e["length"]]
        return entry["data"], entry["zero"], entry["depth"]

    def test_says_of_a_vhdx_what_qemu_says_of_the_same_qcow2(
        self, raw: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """It knows no block states of VHDX itself, so the same disk in its own format is compared."""
        qcow, path = tmp_path / "disk.qcow2", tmp_path / "disk.vhdx"
        qemu("convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=1M", raw, qcow)
        pyvhdx.convert(raw, path, block_size=MIB)
        theirs = qemu("map", "--output", "json", qcow)
        said = ours(capsys, "map", "--output", "json", path)
        for at in range(0, 20 * MIB, MIB // 2):
            assert self.flags(said, at) == self.flags(theirs, at)
        # The same keys, with the same types; `kind` is ours, and newer versions have more.
        shared = set(theirs[0]) & {"start", "length", "depth", "present", "zero", "data", "offset"}
        assert shared <= set(said[0])
        for key in shared:
            assert type(said[0][key]) is type(theirs[0][key])
        for entry in said:
            if entry["data"]:
                with path.open("rb") as file, raw.open("rb") as source:
                    file.seek(entry["offset"])
                    source.seek(entry["start"])
                    assert file.read(entry["length"]) == source.read(entry["length"])

    def test_counts_depth_as_qemu_does(
        self, raw: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        qcow = tmp_path / "base.qcow2"
        qemu("convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=1M", raw, qcow)
        qemu("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", qcow, tmp_path / "child.qcow2")
        theirs = qemu("map", "--output", "json", tmp_path / "child.qcow2")
        pyvhdx.convert(raw, tmp_path / "base.vhdx", block_size=MIB)
        pyvhdx.create(tmp_path / "child.vhdx", parent=tmp_path / "base.vhdx").close()
        said = ours(capsys, "map", "--output", "json", tmp_path / "child.vhdx")
        for at in range(0, 20 * MIB, MIB // 2):
            assert self.flags(said, at)[:2] == self.flags(theirs, at)[:2]
            if self.flags(said, at)[0]:
                assert self.flags(said, at)[2] == self.flags(theirs, at)[2] == 1

    def test_takes_its_options(self, raw: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        qcow, path = tmp_path / "disk.qcow2", tmp_path / "disk.vhdx"
        qemu("convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=1M", raw, qcow)
        pyvhdx.convert(raw, path, block_size=MIB)
        for options in (
            ("--start-offset=3M", "--max-length=4M"),
            ("-s", "5M", "-l", "1M"),
            ("-s", "19M"),
            ("-l", "65536"),
        ):
            theirs = qemu("map", "--output", "json", *options, qcow)
            said = ours(capsys, "map", "--output", "json", *options, path)
            spans = [[(e["start"], e["length"], e["data"]) for e in entries] for entries in (theirs, said)]
            assert spans[0] == spans[1]


@pytest.mark.parametrize("text", ["1", "512", "1k", "1K", "3M", "1.5G", "2T", "0x1000"])
def test_a_size_means_what_it_means_to_qemu_img(text: str, tmp_path: Path) -> None:
    qemu("create", "-q", "-f", "raw", tmp_path / "disk.raw", text)
    virtual = qemu("info", "--output", "json", "-f", "raw", tmp_path / "disk.raw")["virtual-size"]
    done = subprocess.run(
        [sys.executable, "-m", "pyvhdx", "create", "--output", "json", tmp_path / "disk.vhdx", text],
        capture_output=True,
        text=True,
        check=False,
    )
    if int(virtual) % 512 or text == "1":  # qemu rounds, we refuse
        assert done.returncode == 2
    else:
        assert json.loads(done.stdout)["virtual-size"] == virtual
