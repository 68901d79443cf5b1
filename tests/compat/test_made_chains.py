"""Children with content and disks of many chunks, read by other implementations as by us."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import pyvhdx

MIB = 1 << 20
WINDOW = 64 << 10


class Made(NamedTuple):
    """A child, its parent, and a sparse raw file that says what the child reads as."""

    child: Path
    parent: Path
    expected: Path
    size: int
    block_size: int


def windows(size: int, block_size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) at the start and the end of each block: where there is anything to see."""
    for start in range(0, size, block_size):
        end = min(start + block_size, size)
        yield start, min(WINDOW, end - start)
        if end - start > WINDOW:
            yield end - WINDOW, WINDOW


def fill(child: Path, expected: Path, blocks: dict[int, bool], seed: int) -> None:
    """
    Put payload into an empty child as `create` made it, and what it then reads as into *expected*.

    *blocks* says of each block whether it is partial.  All with plain `struct`, from the file's own tables.
    """
    draw = random.Random(seed)
    with child.open("r+b") as file, expected.open("r+b") as model:

        def number(at: int, form: str) -> int:
            file.seek(at)
            value: int = struct.unpack(form, file.read(struct.calcsize(form)))[0]
            return value

        bat, metadata = number(0x30010 + 16, "<Q"), number(0x30010 + 48, "<Q")
        block_size, size = number(metadata + 0x10000, "<I"), number(metadata + 0x10008, "<Q")
        sector = number(metadata + 0x10010, "<I")
        ratio = (1 << 23) * sector // block_size
        end = file.seek(0, 2)
        bitmaps: dict[int, int] = {}
        for chunk in range(-(-size // block_size // ratio)):  # libvhdi needs one for every chunk
            bitmaps[chunk] = end
            file.seek(bat + 8 * (chunk * (ratio + 1) + ratio))
            file.write(struct.pack("<Q", end | 6))
            end += MIB
        for block, partial in blocks.items():
            file.seek(bat + 8 * (block + block // ratio))
            file.write(struct.pack("<Q", end | (7 if partial else 6)))
            start, length = block * block_size, min(block_size, size - block * block_size)
            if not partial:  # what is not written below reads as zeros, whatever the parent holds
                for at, count in windows(size, block_size):
                    if start <= at < start + length:
                        model.seek(at)
                        model.write(bytes(count))
            bits = bytearray(block_size // sector // 8)
            for at, count in windows(size, block_size):
                if not start <= at < start + length:
                    continue
                for within in range(at - start, at - start + count, sector):
                    if partial and draw.random() < 0.5:
                        continue
                    payload = draw.randbytes(sector)
                    bits[within // sector // 8] |= 1 << within // sector % 8
                    file.seek(end + within)
                    file.write(payload)
                    model.seek(start + within)
                    model.write(payload)
            if partial:
                file.seek(bitmaps[block // ratio] + block % ratio * len(bits))
                file.write(bits)
            end += block_size
        file.truncate(end)


def make(folder: Path, block_size: int, sector: int) -> Made:
    """A parent with something in every block, and a child with a full, a partial and an absent one."""
    size = 3 * block_size + 8 * sector + MIB  # dissect reads too few bits behind an odd sector
    raw, base, child = folder / "expected.raw", folder / "base.vhdx", folder / "child.vhdx"
    draw = random.Random(block_size + sector)
    with raw.open("wb") as file:
        for offset, length in windows(size, block_size):
            file.seek(offset)
            file.write(draw.randbytes(length))
        file.truncate(size)
    pyvhdx.convert(raw, base, logical_sector_size=sector)
    pyvhdx.create(child, parent=base, block_size=block_size).close()
    fill(child, raw, {0: False, 1: True, 3: True}, seed=1)
    return Made(child, base, raw, size, block_size)


def expected(made: Made) -> Iterator[tuple[int, bytes]]:
    with made.expected.open("rb") as file:
        for offset, length in windows(made.size, made.block_size):
            file.seek(offset)
            yield offset, file.read(length)


SIZES = [(1 << n, sector) for n in range(9) for sector in (512, 4096)]


@pytest.fixture(params=SIZES, ids=[f"{block}M-{sector}" for block, sector in SIZES])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    block, sector = request.param
    return make(tmp_path, block * MIB, sector)


class TestAChildOfEveryBlockSize:
    def test_is_read_right_here(self, made: Made) -> None:
        with pyvhdx.open(made.child) as image:
            assert image.size == made.size
            for offset, data in expected(made):
                assert image.pread(len(data), offset) == data

    @pytest.mark.peer("libvhdi")
    def test_is_accepted_and_read_alike_by_libvhdi(self, made: Made) -> None:
        import pyvhdi  # noqa: PLC0415

        child, parent = pyvhdi.file(), pyvhdi.file()
        child.open(str(made.child))
        parent.open(str(made.parent))
        child.set_parent(parent)  # refused where the linkage does not match
        for offset, data in expected(made):
            assert child.read_buffer_at_offset(len(data), offset) == data
        child.close()
        parent.close()

    @pytest.mark.peer("dissect")
    def test_finds_its_parent_and_is_read_alike_in_dissect(self, made: Made) -> None:
        from dissect.hypervisor.disk.vhdx import VHDX  # noqa: PLC0415

        disk = VHDX(made.child)
        assert disk.parent is not None
        for offset, data in expected(made):
            disk.seek(offset)
            assert disk.read(len(data)) == data
        for file in (disk.fh, disk.parent.fh):
            file.close()  # nobody else does


@pytest.mark.peer("7zz")
@pytest.mark.parametrize(("block", "sector"), [(1, 512), (2, 512), (8, 512), (1, 4096), (4, 4096)])
def test_7zip_extracts_a_child_through_its_parent(block: int, sector: int, tmp_path: Path) -> None:
    made = make(tmp_path, block * MIB, sector)
    assert made.size // sector % 2 == 0  # it refuses an odd number of sectors
    subprocess.run(
        ["7zz", "x", "-y", "-oout", made.child.name], check=True, capture_output=True, cwd=tmp_path
    )
    [extracted] = (tmp_path / "out").iterdir()
    assert extracted.read_bytes() == made.expected.read_bytes()


@pytest.mark.parametrize("peer", ["libvhdi", "7zz"])
def test_a_parent_that_changed_is_refused_by_peers_too(peer: str, tmp_path: Path) -> None:
    """The linkage that create wrote is the one that they compare."""
    from tests.conftest import need  # noqa: PLC0415

    need(peer)
    made = make(tmp_path, MIB, 512)
    pyvhdx.convert(made.expected, made.parent, overwrite=True)
    if peer == "libvhdi":
        import pyvhdi  # noqa: PLC0415

        child, parent = pyvhdi.file(), pyvhdi.file()
        child.open(str(made.child))
        parent.open(str(made.parent))
        with pytest.raises(OSError, match="parent"):
            child.set_parent(parent)
    else:
        listed = subprocess.run(
            ["7zz", "x", "-y", "-oout", made.child.name], capture_output=True, check=False, cwd=tmp_path
        )
        assert listed.returncode != 0


@pytest.mark.peer("qemu-img", "qemu-io")
class TestQemuReads:
    def patterns(self, size: int, block_size: int, sector: int = 512) -> dict[int, int]:
        """Places about every chunk's start and end, and a byte that stands there."""
        chunk = (1 << 23) * sector
        places = [0, size - 65536]
        for edge in range(chunk, size, chunk):
            places += [edge - 65536, edge, edge + block_size]
        return {at: 1 + number for number, at in enumerate(sorted({p for p in places if p <= size - 65536}))}

    @pytest.mark.parametrize("kind", ["dynamic", "fixed"])
    @pytest.mark.parametrize("block", [1, 16, 32, 64, 256])
    def test_a_disk_of_three_chunks(self, block: int, kind: str, tmp_path: Path) -> None:
        raw, path = tmp_path / "disk.raw", tmp_path / "disk.vhdx"
        size = (9 << 30) + 512 * 7
        patterns = self.patterns(size - 512 * 7, block * MIB)
        with raw.open("wb") as file:
            for at, byte in patterns.items():
                file.seek(at)
                file.write(bytes([byte]) * 65536)
            file.truncate(size)
        pyvhdx.convert(raw, path, kind=kind, block_size=block * MIB)
        checked = subprocess.run(["qemu-img", "check", path], check=True, capture_output=True, text=True)
        assert "No errors" in checked.stdout
        reads = [f"read -P {byte} {at} 65536" for at, byte in patterns.items()]
        behind = [at + 65536 for at in patterns if at + 65536 not in patterns and at + 131072 <= size]
        reads += [f"read -P 0 {at} 65536" for at in behind]
        arguments = [part for read in reads for part in ("-c", read)]
        done = subprocess.run(
            ["qemu-io", "-r", "-f", "vhdx", *arguments, path], capture_output=True, text=True, check=False
        )
        assert done.stdout.count("ops;") == len(reads)
        assert "failed" not in done.stdout + done.stderr

    @pytest.mark.parametrize("kind", ["dynamic", "fixed"])
    @pytest.mark.parametrize("block", [4, 8, 16, 64, 128])
    def test_what_convert_wrote_in_the_other_block_sizes(self, block: int, kind: str, tmp_path: Path) -> None:
        raw, path = tmp_path / "disk.raw", tmp_path / "disk.vhdx"
        size = block * MIB + 5 * 512
        with raw.open("wb") as file:
            for offset, length in windows(size, MIB):
                file.seek(offset)
                file.write(random.Random(offset).randbytes(length))
            file.truncate(size)
        pyvhdx.convert(raw, path, kind=kind, block_size=block * MIB)
        subprocess.run(["qemu-img", "check", "-q", path], check=True, capture_output=True)
        compared = subprocess.run(
            ["qemu-img", "compare", "-f", "raw", "-F", "vhdx", raw, path],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert compared.returncode == 0, compared.stdout

    def test_a_disk_that_it_wrote_into_is_read_here_as_there(self, tmp_path: Path) -> None:
        """It allocates blocks behind ours, through its log."""
        path, back = tmp_path / "disk.vhdx", tmp_path / "back.raw"
        pyvhdx.create(path, 70 * MIB + 512, block_size=MIB).close()
        draw = random.Random(5)
        writes: list[str] = []
        for number in range(20):
            at, length = 512 * draw.randrange(70 * 2048 - 4096), 512 * draw.randrange(1, 4096)
            writes += ["-c", f"write -P {number + 1} {at} {length}"]
        subprocess.run(["qemu-io", "-f", "vhdx", *writes, path], check=True, capture_output=True)
        subprocess.run(["qemu-img", "convert", "-f", "vhdx", "-O", "raw", path, back], check=True)
        with pyvhdx.open(path) as image:
            assert image.read() == back.read_bytes()
        shutil.copy(path, tmp_path / "copy.vhdx")
        pyvhdx.convert(tmp_path / "copy.vhdx", tmp_path / "ours.raw")
        assert (tmp_path / "ours.raw").read_bytes() == back.read_bytes()


@pytest.mark.peer("dissect")
@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_dissect_reads_behind_a_chunk_of_4k_sectors(kind: str, tmp_path: Path) -> None:
    from dissect.hypervisor.disk.vhdx import VHDX  # noqa: PLC0415

    how: dict[str, Any] = {"kind": kind, "block_size": 256 * MIB, "logical_sector_size": 4096}
    chunk = 1 << 35
    places = {0: b"a", chunk - 4096: b"b", chunk: b"c", chunk + 256 * MIB: b"d"}
    with (tmp_path / "disk.raw").open("wb") as file:
        for at, byte in places.items():
            file.seek(at)
            file.write(byte * 4096)
        file.truncate(chunk + 257 * MIB)
    pyvhdx.convert(tmp_path / "disk.raw", tmp_path / "disk.vhdx", **how)
    disk = VHDX(tmp_path / "disk.vhdx")
    for at, byte in places.items():
        disk.seek(at)
        assert disk.read(4096) == byte * 4096
    disk.fh.close()
