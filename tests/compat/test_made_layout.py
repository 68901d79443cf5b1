"""Every kind of new file in every block and sector size keeps the rules of `tests.compat.judge`."""

from __future__ import annotations

import io
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest

import pyvhdx
from tests.compat.judge import MIB, judge

BLOCKS_MIB = [1 << n for n in range(9)]
NO_LINKAGE = "{00000000-0000-0000-0000-000000000000}"


class Pipe(io.RawIOBase):
    """A source that cannot seek, so that its size is known only at its end."""

    def __init__(self, content: bytes) -> None:
        self.inner = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self.inner.read(size)


@pytest.mark.parametrize("kind", ["dynamic", "fixed", "differencing"])
@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("block_mib", BLOCKS_MIB)
class TestCreate:
    @pytest.mark.parametrize("blocks", [1, 3])
    def test_a_size_that_is_no_multiple_of_the_block(
        self, blocks: int, block_mib: int, sector: int, kind: str, tmp_path: Path
    ) -> None:
        size = (blocks - 1) * block_mib * MIB + 3 * sector
        how: dict[str, Any] = {"kind": kind, "block_size": block_mib * MIB}
        if kind == "differencing":
            pyvhdx.create(tmp_path / "base.vhdx", size, logical_sector_size=sector).close()
            how["parent"] = tmp_path / "base.vhdx"
        else:
            how["logical_sector_size"] = sector
        pyvhdx.create(tmp_path / "disk.vhdx", size, **how).close()
        said = judge(tmp_path / "disk.vhdx")
        assert (said.size, said.block_size, said.sector, said.kind) == (size, block_mib * MIB, sector, kind)
        assert len(said.entries) == blocks
        if kind == "fixed":
            assert [entry >> 20 for entry in said.entries] == [
                4 + block_mib * number for number in range(blocks)
            ]
        else:
            assert not any(said.entries)

    def test_a_disk_of_three_chunks(self, block_mib: int, sector: int, kind: str, tmp_path: Path) -> None:
        """The bitmap slots among the entries stay empty, and a block behind one is found."""
        chunk = (1 << 23) * sector
        size = 2 * chunk + sector
        how: dict[str, Any] = {"kind": kind, "block_size": block_mib * MIB}
        if kind == "differencing":
            pyvhdx.create(tmp_path / "base.vhdx", size, logical_sector_size=sector).close()
            how["parent"] = tmp_path / "base.vhdx"
        else:
            how["logical_sector_size"] = sector
        pyvhdx.create(tmp_path / "disk.vhdx", size, **how).close()
        said = judge(tmp_path / "disk.vhdx")
        assert len(said.entries) == 2 * chunk // (block_mib * MIB) + 1
        if kind == "fixed":
            # A sector put where the last block lies by its entry is the disk's last one.
            with (tmp_path / "disk.vhdx").open("r+b") as file:
                file.seek(said.entries[-1] >> 20 << 20)
                file.write(b"z" * sector)
            with pyvhdx.open(tmp_path / "disk.vhdx") as image:
                assert image.pread(sector + 1, size - sector) == b"z" * sector


@pytest.mark.parametrize("through", ["file", "pipe"])
@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("block_mib", [1, 2, 32])
def test_convert(block_mib: int, sector: int, kind: str, through: str, tmp_path: Path) -> None:
    content = bytearray(5 * MIB + 3 * sector)
    for at in (0, 2 * MIB - 1, 5 * MIB + 2 * sector):
        content[at : at + 100] = random.Random(at).randbytes(100)
    (tmp_path / "disk.raw").write_bytes(content)
    pyvhdx.convert(
        tmp_path / "disk.raw" if through == "file" else Pipe(bytes(content)),
        tmp_path / "disk.vhdx",
        kind=kind,
        block_size=block_mib * MIB,
        logical_sector_size=sector,
    )
    said = judge(tmp_path / "disk.vhdx")
    assert (said.size, said.kind) == (len(content), kind)
    data = (tmp_path / "disk.vhdx").read_bytes()
    for number, entry in enumerate(said.entries):
        expected = content[number * said.block_size : (number + 1) * said.block_size]
        place = entry >> 20 << 20
        assert (data[place : place + len(expected)] if entry else bytes(len(expected))) == expected
        assert not any(data[place + len(expected) : place + said.block_size] if entry else b"")
    if kind == "dynamic":
        assert all(
            bool(entry) == any(content[number * said.block_size : (number + 1) * said.block_size])
            for number, entry in enumerate(said.entries)
        )
        # With a size that is known the BAT comes first, as Windows has it; else last.
        assert (said.bat[0] < said.first_block) == (through == "file")


@pytest.mark.parametrize("log_mib", [1, 5])
def test_a_longer_log_moves_what_follows(log_mib: int, tmp_path: Path) -> None:
    pyvhdx.create(tmp_path / "disk.vhdx", 9 * MIB, log_size=log_mib * MIB, kind="fixed").close()
    said = judge(tmp_path / "disk.vhdx")
    assert said.bat[0] == (2 + log_mib) * MIB
    with (tmp_path / "disk.vhdx").open("rb") as file:
        status = os.fstat(file.fileno())
    assert status.st_blocks * 512 >= log_mib * MIB, "a log of real zeros, so that no commit finds a full disk"


class TestLocator:
    @pytest.mark.parametrize(
        ("base", "child", "relative"),
        [
            ("base.vhdx", "child.vhdx", ".\\base.vhdx"),
            ("one/base.vhdx", "two/child.vhdx", "..\\one\\base.vhdx"),
            ("base.vhdx", "a/b/c/child.vhdx", "..\\..\\..\\base.vhdx"),
            ("a/b/base.vhdx", "child.vhdx", ".\\a\\b\\base.vhdx"),
            ("..base.vhdx", "child.vhdx", ".\\..base.vhdx"),
            ("Ünïcödé 猫 🐈.vhdx", "child.vhdx", ".\\Ünïcödé 猫 🐈.vhdx"),
        ],
    )
    def test_says_where_the_parent_is(self, base: str, child: str, relative: str, tmp_path: Path) -> None:
        for name in (base, child):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with pyvhdx.create(tmp_path / base, 8 * MIB) as parent:
            linkage = parent.data_write_guid
        pyvhdx.create(tmp_path / child, parent=tmp_path / base).close()
        locator = judge(tmp_path / child).locator
        assert locator is not None
        assert list(locator) == ["parent_linkage", "relative_path", "parent_linkage2"]
        assert locator["parent_linkage"] == f"{{{linkage}}}"
        assert locator["parent_linkage"] == locator["parent_linkage"].lower()
        assert locator["parent_linkage2"] == NO_LINKAGE
        assert locator["relative_path"] == relative
        with (tmp_path / base).open("rb") as file:
            file.seek(0x10000 + 32)
            assert file.read(16) == linkage.bytes_le
        with pyvhdx.open(tmp_path / child) as image:
            assert len(image.chain) == 2

    def test_is_written_as_from_where_links_lead(self, tmp_path: Path) -> None:
        (tmp_path / "real" / "deep").mkdir(parents=True)
        (tmp_path / "short").symlink_to(tmp_path / "real" / "deep")
        pyvhdx.create(tmp_path / "base.vhdx", 8 * MIB).close()
        (tmp_path / "alias.vhdx").symlink_to(tmp_path / "base.vhdx")
        pyvhdx.create(tmp_path / "short" / "child.vhdx", parent=tmp_path / "alias.vhdx").close()
        locator = judge(tmp_path / "real" / "deep" / "child.vhdx").locator or {}
        assert locator["relative_path"] == "..\\..\\base.vhdx"
        for way in ("short", "real/deep"):
            with pyvhdx.open(tmp_path / way / "child.vhdx") as image:
                assert image.parent is not None


def test_the_judge_can_say_no(tmp_path: Path) -> None:
    pyvhdx.create(tmp_path / "disk.vhdx", 9 * MIB, kind="fixed").close()
    good = (tmp_path / "disk.vhdx").read_bytes()
    judge(tmp_path / "disk.vhdx")
    wrongs = [
        (0, b"VHDX"),
        (0x10008, b"\x07"),
        (0x30030, b"\0"),
        (3 * MIB, struct.pack("<Q", 5 * MIB | 6)),
        (3 * MIB, struct.pack("<Q", 4 * MIB | 6 | 8)),
        (3 * MIB + 8 * 4096, b"\6"),
        (3 * MIB + 8 * 9, b"\6"),
        (0x60000, b"x"),
        (MIB, b"loge"),
    ]
    for offset, data in wrongs:
        (tmp_path / "disk.vhdx").write_bytes(good[:offset] + data + good[offset + len(data) :])
        with pytest.raises((AssertionError, KeyError)):
            judge(tmp_path / "disk.vhdx")
    (tmp_path / "disk.vhdx").write_bytes(good[:-512])
    with pytest.raises(AssertionError):
        judge(tmp_path / "disk.vhdx")
