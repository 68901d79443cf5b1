"""What create and convert make, judged by other implementations, each where it is right."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

import pyvhdx
from tests.corpus.simple import put_blocks, three_levels

MIB = 1 << 20


def make_raw(path: Path, size: int, seed: int = 1) -> bytes:
    """Data, zeros and holes, with something in the last sector."""
    draw = random.Random(seed)
    content = bytearray(size)
    for _ in range(12):
        at, length = draw.randrange(size), draw.choice((1, 5000, 300_000))
        piece = draw.randbytes(min(length, size - at))
        content[at : at + len(piece)] = piece
    content[-512:] = draw.randbytes(512)
    path.write_bytes(content)
    return bytes(content)


def qemu(*arguments: Any) -> str:
    return subprocess.run(
        ["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.peer("qemu-img")
class TestQemu:
    @pytest.mark.parametrize("kind", ["dynamic", "fixed"])
    @pytest.mark.parametrize("block_mib", [1, 2, 32, 256])
    @pytest.mark.parametrize("size", [7 * MIB + 512, 32 * MIB])
    def test_reads_what_convert_wrote(self, kind: str, block_mib: int, size: int, tmp_path: Path) -> None:
        raw, path, back = tmp_path / "disk.raw", tmp_path / "disk.vhdx", tmp_path / "back.raw"
        content = make_raw(raw, size)
        pyvhdx.convert(raw, path, kind=kind, block_size=block_mib * MIB)
        assert "No errors" in qemu("check", path)
        qemu("convert", "-f", "vhdx", "-O", "raw", path, back)
        assert back.read_bytes() == content

    def test_reads_an_image_whose_size_was_known_only_at_its_end(self, tmp_path: Path) -> None:
        """Its BAT lies behind its blocks."""
        content = make_raw(tmp_path / "disk.raw", 9 * MIB)
        with open(tmp_path / "disk.raw", "rb") as file:
            read, write = os.pipe()
            with subprocess.Popen(["cat"], stdin=file, stdout=write), open(read, "rb") as pipe:
                os.close(write)
                pyvhdx.convert(pipe, tmp_path / "disk.vhdx")
        assert "No errors" in qemu("check", tmp_path / "disk.vhdx")
        qemu("convert", "-f", "vhdx", "-O", "raw", tmp_path / "disk.vhdx", tmp_path / "back.raw")
        assert (tmp_path / "back.raw").read_bytes() == content

    def test_reads_its_own_image_as_we_do(self, tmp_path: Path) -> None:
        content = make_raw(tmp_path / "disk.raw", 20 * MIB)
        for number, options in enumerate(
            (
                "subformat=dynamic",
                "subformat=fixed",
                "subformat=fixed,block_state_zero=off",
                "block_size=1M,log_size=2M",
            )
        ):
            path = tmp_path / f"{number}.vhdx"
            qemu("convert", "-f", "raw", "-O", "vhdx", "-o", options, tmp_path / "disk.raw", path)
            with pyvhdx.open(path) as image:
                assert image.read() == content
                assert image.creator.startswith("QEMU")

    @pytest.mark.parametrize("kind", ["dynamic", "fixed"])
    def test_finds_an_empty_image_clean_and_writes_into_it(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "disk.vhdx"
        pyvhdx.create(path, 100 * MIB, kind=kind).close()
        assert "No errors" in qemu("check", path)
        subprocess.run(
            ["qemu-io", "-f", "vhdx", "-c", "write -P 7 99M 4k", path], check=True, capture_output=True
        )
        with pyvhdx.open(path) as image:
            assert image.pread(4096, 99 * MIB) == b"\7" * 4096
            assert not any(image.pread(99 * MIB, 0))


@pytest.mark.peer("7zz")
class Test7Zip:
    """Its test for a whole number of sectors is wrong, so the sizes here are even."""

    def extract(self, path: Path, folder: Path) -> bytes:
        folder.mkdir()
        subprocess.run(
            ["7zz", "x", "-y", f"-o{folder}", path.name], check=True, capture_output=True, cwd=path.parent
        )
        return next(folder.iterdir()).read_bytes()

    @pytest.mark.parametrize(
        "how", [{}, {"kind": "fixed"}, {"logical_sector_size": 4096}, {"block_size": 32 * MIB}]
    )
    def test_extracts_what_convert_wrote(self, how: dict[str, Any], tmp_path: Path) -> None:
        content = make_raw(tmp_path / "disk.raw", 9 * MIB)
        pyvhdx.convert(tmp_path / "disk.raw", tmp_path / "disk.vhdx", **how)
        assert self.extract(tmp_path / "disk.vhdx", tmp_path / "out") == content

    @pytest.mark.parametrize("child", ["child.vhdx", "child.avhdx"])
    def test_extracts_a_child_through_its_parent(self, child: str, tmp_path: Path) -> None:
        content = bytearray(make_raw(tmp_path / "disk.raw", 8 * MIB))
        pyvhdx.convert(tmp_path / "disk.raw", tmp_path / "base.vhdx", block_size=MIB)
        pyvhdx.create(tmp_path / child, parent=tmp_path / "base.vhdx").close()
        payload = random.Random(5).randbytes(MIB)
        put_blocks(tmp_path / child, {3: (payload, None)})
        content[3 * MIB : 4 * MIB] = payload
        assert self.extract(tmp_path / child, tmp_path / "out") == content


def libvhdi_read(paths: list[Path], offset: int, size: int) -> bytes:
    """Read through a chain as its users do: each file opened, its parent set by hand."""
    import pyvhdi  # noqa: PLC0415

    files = []
    for path in paths:
        file = pyvhdi.file()
        file.open(str(path))
        files.append(file)
    for child, parent in reversed([*zip(files, files[1:], strict=False)]):  # from the base upwards
        child.set_parent(parent)
    data: bytes = files[0].read_buffer_at_offset(size, offset)
    for file in files:
        file.close()
    return data


def dissect_read(path: Path, size: int) -> bytes:
    """Aligned reads only: others are wrong in it."""
    from dissect.hypervisor.disk.vhdx import VHDX  # noqa: PLC0415

    disk = VHDX(path)
    pieces = []
    for offset in range(0, size, MIB):
        disk.seek(offset)
        pieces.append(disk.read(min(MIB, size - offset)))
    while disk is not None:
        disk.fh.close()  # nobody else does
        disk = disk.parent
    return b"".join(pieces)


@pytest.mark.peer("libvhdi", "dissect", "7zz")
class TestReadersOfChains:
    def test_libvhdi_reads_a_chain_of_three_and_dissect_one_of_two(self, tmp_path: Path) -> None:
        """The latter reads too few bits of a partial block below a partial block, and returns too little."""
        top, content = three_levels(tmp_path, 12)
        chain = [top, tmp_path / "middle.vhdx", tmp_path / "base.vhdx"]
        assert libvhdi_read(chain, 0, len(content)) == content
        with pyvhdx.open(top) as image:
            assert image.read() == content
            assert image.parent is not None
            assert dissect_read(chain[1], len(content)) == image.parent.pread(len(content), 0)

    @pytest.mark.parametrize(
        "where",
        [
            ("base.vhdx", "child.vhdx"),
            ("base/base.vhdx", "work/child.vhdx"),
            ("base.vhdx", "a/b/child.vhdx"),
            ("a/b/base.vhdx", "child.vhdx"),
        ],
    )
    def test_both_accept_a_locator_wherever_the_parent_lies(
        self, where: tuple[str, str], tmp_path: Path
    ) -> None:
        base, child = (tmp_path / name for name in where)
        for path in (base, child):
            path.parent.mkdir(parents=True, exist_ok=True)
        content = make_raw(tmp_path / "disk.raw", 8 * MIB)
        pyvhdx.convert(tmp_path / "disk.raw", base)
        pyvhdx.create(child, parent=base).close()
        assert dissect_read(child, len(content)) == content
        assert libvhdi_read([child, base], 0, len(content)) == content  # it compares the linkage
        relative = os.path.relpath(base, child.parent).replace("/", "\\")
        named = relative if relative.startswith("..") else ".\\" + relative
        listed = subprocess.run(
            ["7zz", "l", "-slt", child.name], cwd=child.parent, capture_output=True, text=True, check=False
        )
        assert f"relative_path: {named}" in listed.stdout
        # It opens no parent outside the child's folder, whatever the locator says.
        assert (listed.returncode == 0) == (base.parent == child.parent)

    @pytest.mark.parametrize("kind", ["dynamic", "fixed"])
    @pytest.mark.parametrize("physical", [512, 4096])
    def test_both_read_4k_sectors(self, kind: str, physical: int, tmp_path: Path) -> None:
        content = make_raw(tmp_path / "disk.raw", 9 * MIB + 4096)
        pyvhdx.convert(
            tmp_path / "disk.raw",
            tmp_path / "disk.vhdx",
            kind=kind,
            logical_sector_size=4096,
            physical_sector_size=physical,
        )
        assert libvhdi_read([tmp_path / "disk.vhdx"], 0, len(content)) == content
        assert dissect_read(tmp_path / "disk.vhdx", len(content)) == content


class TestTheBytesOfANewFile:
    """The rules that keep every reader content, looked at with plain struct."""

    @pytest.fixture(params=["dynamic", "fixed", "differencing"])
    def made(self, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, bytes, pyvhdx.VHDXImage]:
        parent = None
        if request.param == "differencing":
            parent = tmp_path / "base.vhdx"
            pyvhdx.create(parent, 9 * MIB + 512).close()
        with pyvhdx.create(tmp_path / "disk.vhdx", 9 * MIB + 512, parent=parent, kind=request.param) as image:
            return request.param, (tmp_path / "disk.vhdx").read_bytes(), image

    def test_headers(self, made: tuple[str, bytes, pyvhdx.VHDXImage]) -> None:
        """Both valid, equal but for their numbers n and n + 1, no log pending."""
        _, data, _ = made
        one, other = data[0x10000:0x11000], data[0x20000:0x21000]
        for header in (one, other):
            assert header[:4] == b"head"
            assert struct.unpack("<I", header[4:8])[0] == crc32c(header[:4] + bytes(4) + header[8:])
        assert one[16:] == other[16:]
        assert struct.unpack("<Q", other[8:16])[0] == struct.unpack("<Q", one[8:16])[0] + 1
        assert one[16:32] != bytes(16) != one[32:48]
        assert one[48:64] == bytes(16)
        assert struct.unpack("<HHIQ", one[64:80]) == (0, 1, MIB, MIB)
        assert not any(data[MIB : 2 * MIB])
        assert len(data) % MIB == 0

    def test_region_tables(self, made: tuple[str, bytes, pyvhdx.VHDXImage]) -> None:
        _, data, _ = made
        table = data[0x30000:0x40000]
        assert table == data[0x40000:0x50000]
        assert not any(data[0x50000:0x100000])
        assert struct.unpack("<II", table[8:16]) == (2, 0)
        assert struct.unpack("<QII", table[32:48]) == (3 * MIB, MIB, 1)
        assert struct.unpack("<QII", table[64:80]) == (2 * MIB, MIB, 1)

    def test_items_in_windows_order(self, made: tuple[str, bytes, pyvhdx.VHDXImage]) -> None:
        kind, data, _ = made
        table = data[2 * MIB : 2 * MIB + 65536]
        count = struct.unpack("<H", table[10:12])[0]
        entries = [struct.unpack("<IIII", table[48 + 32 * n : 64 + 32 * n]) for n in range(count)]
        expected = [
            (0x10000, 8, 4, 0),
            (0x10008, 8, 6, 0),
            (0x10010, 4, 6, 0),
            (0x10014, 4, 6, 0),
            (0x10018, 16, 6, 0),
        ]
        assert entries[:5] == expected
        assert struct.unpack("<II", data[2 * MIB + 0x10000 :][:8]) == (
            2 * MIB,
            {"fixed": 1, "dynamic": 0, "differencing": 2}[kind],
        )
        if kind == "differencing":
            assert entries[5][0] == 0x10028
            text = data[2 * MIB + 0x10028 :][: entries[5][1]].decode("utf-16-le", "replace")
            assert "parent_linkage2{00000000-0000-0000-0000-000000000000}" in text
            assert "relative_path.\\base.vhdx" in text

    def test_bat(self, made: tuple[str, bytes, pyvhdx.VHDXImage]) -> None:
        """A fixed disk has all blocks, the last one whole; every other slot is zero."""
        kind, data, _ = made
        entries = struct.unpack("<131072Q", data[3 * MIB : 4 * MIB])
        if kind == "fixed":
            assert entries[:5] == tuple((4 + 2 * n) * MIB | 6 for n in range(5))
            assert len(data) == 14 * MIB
            assert not any(entries[5:])
        else:
            assert not any(entries)
            assert len(data) == 4 * MIB
