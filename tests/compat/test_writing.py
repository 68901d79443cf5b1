"""
Four directions with other implementations: read theirs, write ours, modify theirs, replay ours.

What is written into images of Windows and QEMU is read by QEMU; a log of ours that a dead program
left is replayed by QEMU, and one of QEMU's by us; chains of ours are read by libvhdi and dissect.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import pyvhdx
from pyvhdx.storage import open_local
from pyvhdx.testing import MemoryStorage, RecordingStorage
from tests.compat.test_real_images import NAMES, file_hash

MIB = 1 << 20
TMPFS = "/dev/shm"  # noqa: S108 - a tmpfs is what is wanted


def qemu(*arguments: object) -> str:
    done = subprocess.run(list(map(str, arguments)), check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def read_by_qemu(path: Path, size: int) -> bytes:
    raw = path.with_suffix(".by-qemu")
    qemu("qemu-img", "convert", "-f", "vhdx", "-O", "raw", path, raw)
    data = raw.read_bytes()
    raw.unlink()
    assert len(data) == size
    return data


class Model:
    """A disk as sparse pieces: what was there, and what was written over it."""

    GRAIN = 1 << 16

    def __init__(self, path: Path) -> None:
        self.image = pyvhdx.open(path)
        self.size = self.image.size
        self.grains: dict[int, bytearray] = {}

    def grain(self, number: int) -> bytearray:
        if number not in self.grains:
            self.grains[number] = bytearray(self.image.pread(self.GRAIN, number * self.GRAIN))
        return self.grains[number]

    def write(self, data: bytes, offset: int) -> None:
        done = 0
        while done < len(data):
            number, within = divmod(offset + done, self.GRAIN)
            grain = self.grain(number)
            piece = min(len(grain) - within, len(data) - done)
            grain[within : within + piece] = data[done : done + piece]
            done += piece

    def zero(self, start: int, end: int) -> None:
        for number in range(start // self.GRAIN, -(-end // self.GRAIN)):
            at = number * self.GRAIN
            if start <= at and at + self.GRAIN <= end:
                self.grains[number] = bytearray(min(self.GRAIN, self.size - at))
            else:
                self.write(bytes(min(end, at + self.GRAIN) - max(start, at)), max(start, at))

    def compare(self, read: Any) -> None:
        for number, grain in self.grains.items():
            assert read(len(grain), number * self.GRAIN) == grain, f"{number * self.GRAIN:#x}"


@pytest.mark.images
@pytest.mark.slow
@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("name", NAMES)
class TestRealImages:
    def test_an_open_for_writing_without_a_change(
        self, name: str, real_images: dict[str, Any], tmp_path: Path
    ) -> None:
        """Without a log they stay byte-identical; with one it is replayed, and QEMU is content."""
        original, said = real_images[name]
        path = tmp_path / name
        shutil.copy(original, path)
        before = file_hash(path)
        with pyvhdx.open(path, "r+") as image, pyvhdx.open(original) as other:
            replayed = any(finding.code == "LOG-PENDING" for finding in image.warnings)
            assert not image.log_pending
            assert image.pread(4096, 0) == other.pread(4096, 0)
        assert replayed == (name == "iotest-dirtylog-10G-4M.vhdx")
        assert (file_hash(path) == before) == (not replayed)
        assert "No errors" in qemu("qemu-img", "check", "-f", "vhdx", path)
        raw = tmp_path / "disk.raw"
        qemu("qemu-img", "convert", "-f", "vhdx", "-O", "raw", path, raw)
        digest = hashlib.sha256()
        with raw.open("rb") as file:
            while piece := file.read(4 << 20):
                digest.update(piece)
        assert digest.hexdigest() == said["sha256_of_virtual_disk"]

    def test_a_thousand_changes_and_reopens(
        self, name: str, real_images: dict[str, Any], tmp_path: Path
    ) -> None:
        original, _ = real_images[name]
        path = tmp_path / name
        shutil.copy(original, path)
        model = Model(original)
        draw = random.Random(name)
        image = pyvhdx.open(path, "r+")
        data = [extent for extent in image.extents() if extent.kind == "data"]
        for number in range(1000):
            offset = draw.randrange(image.size)
            if number % 3:
                extent = draw.choice(data)
                offset = max(0, extent.offset + draw.randrange(-1000, min(extent.length, 8 * MIB)))
            length = min(image.size - offset, draw.choice((1, 512, 5000, 70_000, draw.randrange(1, 2 * MIB))))
            choice = draw.randrange(10)
            if choice < 6:
                content = draw.randbytes(length)
                image.pwrite(content, offset)
                model.write(content, offset)
            elif choice < 8:
                image.write_zeroes(offset, length)
                model.zero(offset, offset + length)
            else:
                block = image.block_size
                start = offset // block * block
                stop = min(image.size, start + draw.randrange(1, 3) * block)
                assert image.trim(start, stop - start) >= 0
                model.zero(start, stop)
            if draw.randrange(20) == 0:
                image.flush()
            if draw.randrange(50) == 0:
                image.close()
                image = pyvhdx.open(path, "r+")
        model.compare(image.pread)
        image.close()
        assert "No errors" in qemu("qemu-img", "check", "-f", "vhdx", path)
        raw = tmp_path / "disk.raw"
        qemu("qemu-img", "convert", "-f", "vhdx", "-O", "raw", path, raw)
        with raw.open("rb") as file:
            model.compare(lambda size, offset: os.pread(file.fileno(), size, offset))
        model.image.close()


def scribble(image: pyvhdx.VHDXImage, model: bytearray, draw: random.Random, step: int = 1) -> None:
    """Write, zero, trim and flush, in multiples of *step* bytes; the last change is flushed."""
    for _ in range(60):
        offset = draw.randrange(0, image.size, step)
        length = min(image.size - offset, draw.choice((1, 512, 5000, 70_000, draw.randrange(1, 3 * MIB))))
        length = max(step, length - length % step)
        choice = draw.randrange(10)
        if choice < 6:
            content = draw.randbytes(length)
            image.pwrite(content, offset)
            model[offset : offset + length] = content
        elif choice < 8:
            image.write_zeroes(offset, length)
            model[offset : offset + length] = bytes(length)
        else:
            start = offset // image.block_size * image.block_size
            stop = min(image.size, start + image.block_size)
            image.trim(start, stop - start)
            if image.kind != "fixed":
                model[start:stop] = bytes(stop - start)
        if draw.randrange(8) == 0:
            image.flush()
    image.flush()


@pytest.mark.slow
@pytest.mark.peer("qemu-img", "qemu-io")
class TestQemu:
    @pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
    @pytest.mark.parametrize("block_mib", [1, 8])
    def test_goes_on_with_its_own_image_after_us(
        self, subformat: str, block_mib: int, tmp_path: Path
    ) -> None:
        """It writes, we write, it writes again, we read."""
        path = tmp_path / "disk.vhdx"
        size = 20 * MIB + 512
        options = f"subformat={subformat},block_size={block_mib}M"
        qemu("qemu-img", "create", "-f", "vhdx", "-o", options, path, str(size))
        model = bytearray(size)
        draw = random.Random(block_mib)
        for _ in range(3):
            for at in (draw.randrange(0, size - 2 * MIB, 512) & -512 for _ in range(4)):
                byte = draw.randrange(1, 256)
                qemu("qemu-io", "-f", "vhdx", "-c", f"write -P {byte} {at} 70144", path)
                model[at : at + 70144] = bytes([byte]) * 70144
            with pyvhdx.open(path, "r+") as image:
                assert image.pread(size, 0) == model
                scribble(image, model, draw)
            assert "No errors" in qemu("qemu-img", "check", path)
            assert read_by_qemu(path, size) == model

    @pytest.mark.parametrize("kind", ["dynamic", "fixed"])
    @pytest.mark.parametrize("log_mib", [1, 4])
    def test_replays_our_log(self, kind: str, log_mib: int, tmp_path: Path) -> None:
        """The process is gone; its BAT is wiped, so that only the log can tell."""
        path = tmp_path / "disk.vhdx"
        size = 24 * MIB
        model = bytearray(size)
        pyvhdx.create(path, size, kind=kind, block_size=MIB, log_size=log_mib * MIB).close()
        for seed in range(4):
            image = pyvhdx.open(path, "r+", lock=False)
            scribble(image, model, random.Random(seed))
            if kind == "dynamic":
                _wipe_first_page_of_bat(path, log_mib)
            left = tmp_path / "left.vhdx"
            shutil.copy(path, left)
            with pyvhdx.open(left) as opened:
                assert opened.log_pending == (kind == "dynamic")
                assert opened.pread(size, 0) == model
            qemu("qemu-img", "check", "-r", "all", left)
            assert read_by_qemu(left, size) == model
            with pyvhdx.open(left, "r+") as opened:
                assert opened.pread(size, 0) == model
            with pyvhdx.open(path, "r+", lock=False) as opened:  # our own replay
                assert opened.pread(size, 0) == model
            _forget(image)

    def test_replays_our_log_in_a_differencing_file(self, tmp_path: Path) -> None:
        """It replays, changes the DataWriteGuid, and only then says that it knows no such files."""
        base, path = tmp_path / "base.vhdx", tmp_path / "child.vhdx"
        size = 24 * MIB
        model = bytearray(size)
        with pyvhdx.create(base, size, block_size=MIB) as image:
            scribble(image, model, random.Random(1))
        pyvhdx.create(path, parent=base).close()
        for seed in range(4):
            image = pyvhdx.open(path, "r+", lock=False)
            scribble(image, model, random.Random(seed))
            left = tmp_path / "left.vhdx"
            shutil.copy(path, left)
            _wipe_first_page_of_bat(left, 1)
            with pyvhdx.open(left) as opened:
                assert opened.log_pending
                assert opened.pread(size, 0) == model
            done = subprocess.run(
                ["qemu-img", "check", "-r", "all", left], capture_output=True, text=True, check=False
            )
            assert "not supported" in done.stderr
            with pyvhdx.open(left) as opened:
                assert not opened.log_pending
                assert opened.pread(size, 0) == model
            image.close()

    def test_leaves_a_log_that_we_replay(self, tmp_path: Path) -> None:
        """Killed while it allocates one block after the other."""
        dirty = 0
        for attempt in range(12):
            path = tmp_path / f"{attempt}.vhdx"
            qemu("qemu-img", "create", "-f", "vhdx", "-o", "block_size=1M", path, "256M")
            commands = "".join(f"write -P {n % 255 + 1} {n}M 4k\nflush\n" for n in range(200))
            with subprocess.Popen(
                ["qemu-io", "-f", "vhdx", "-t", "writeback", path],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ) as process:
                assert process.stdin
                process.stdin.write(commands.encode())
                process.stdin.flush()
                time.sleep(0.03 + attempt * 0.01)
                process.send_signal(signal.SIGKILL)
            try:
                image = pyvhdx.open(path)
            except pyvhdx.CorruptImageError as error:
                # Killed between the sectors of an entry that its header names already: for a repair.
                assert error.code == "LOG-NO-SEQUENCE"
                continue
            with image:
                dirty += image.log_pending
                content = image.read()
            with pyvhdx.open(path, "r+") as image:
                assert image.pread(len(content), 0) == content
                image.pwrite(b"ours", 255 * MIB)
            assert read_by_qemu(path, 256 * MIB)[: 255 * MIB] == content[: 255 * MIB]
            assert "No errors" in qemu("qemu-img", "check", path)
            written = [n for n in range(200) if content[n * MIB]]
            assert all(content[n * MIB : n * MIB + 4096] == bytes([n % 255 + 1]) * 4096 for n in written)
            assert written == list(range(len(written)))
        assert dirty, "none of them was caught with its log pending"


def _wipe_first_page_of_bat(path: Path, log_mib: int) -> None:
    with path.open("r+b") as file:
        file.seek((2 + log_mib) * MIB)
        file.write(bytes(4096))


def _forget(image: pyvhdx.VHDXImage) -> None:
    """Let an image go as a process that dies does: nothing is committed."""
    with pytest.warns(ResourceWarning):
        image.__del__()


@pytest.mark.slow
@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("block_mib", [1, 2])
class TestChains:
    """A base, a child, a grandchild; written into, trimmed, zeroed; every bitmap state."""

    def make(self, folder: Path, sector: int, block_mib: int, step: int = 1) -> tuple[Path, bytes]:
        size = 20 * MIB + 8 * sector
        model = bytearray(size)
        draw = random.Random(sector + block_mib)
        parent = folder / "base.vhdx"
        with pyvhdx.create(parent, size, block_size=block_mib * MIB, logical_sector_size=sector) as image:
            scribble(image, model, draw, step)
        for name in ("middle.vhdx", "top.vhdx"):
            with pyvhdx.create(folder / name, parent=parent) as image:
                scribble(image, model, draw, step)
            parent = folder / name
        return parent, bytes(model)

    @pytest.mark.peer("libvhdi")
    def test_are_what_libvhdi_reads(self, tmp_path: Path, sector: int, block_mib: int) -> None:
        """But for ZERO blocks in a child, which it takes from the parent: those are left out."""
        import pyvhdi  # noqa: PLC0415

        top, model = self.make(tmp_path, sector, block_mib)
        files: list[Any] = []
        for name in ("top.vhdx", "middle.vhdx", "base.vhdx"):
            file = pyvhdi.file()
            file.open(str(tmp_path / name))
            if files:
                files[-1].set_parent(file)
            files.append(file)
        with pyvhdx.open(top) as image:
            assert image.read() == model
            compared = 0
            for extent in image.extents():
                if extent.kind == "zero" and extent.depth < 2:
                    continue
                files[0].seek(extent.offset)
                piece = files[0].read(extent.length)
                assert piece == model[extent.offset : extent.offset + extent.length], extent
                compared += extent.length
            assert compared > 4 * MIB
        for file in files:
            file.close()

    @pytest.mark.peer("dissect")
    def test_are_what_dissect_reads(self, tmp_path: Path, sector: int, block_mib: int) -> None:
        """Block by block, and with whole bytes of bits: across blocks and behind odd sectors it reads wrongly."""
        from dissect.hypervisor.disk.vhdx import VHDX  # noqa: PLC0415

        top, model = self.make(tmp_path, sector, block_mib, step=8 * sector)
        disk = VHDX(top)
        for at in range(0, len(model) - len(model) % MIB, MIB):
            disk.seek(at)
            assert disk.read(MIB) == model[at : at + MIB], hex(at)
        for file in (disk, disk.parent, disk.parent.parent):
            file.fh.close()  # nobody else does


@pytest.mark.slow
@pytest.mark.peer("qemu-io")
@pytest.mark.skipif(not os.path.isdir(TMPFS), reason="needs a file system that takes files of 64 TiB")
def test_the_last_byte_of_the_largest_disk() -> None:
    """A 64 TiB disk of 1 MiB blocks; the file stays under 16 MiB on its medium."""
    path = Path(TMPFS, f"pyvhdx-{os.getpid()}.vhdx")
    size = 64 << 40
    try:
        pyvhdx.create(path, size, block_size=MIB).close()
        with pyvhdx.open(path, "r+") as image:
            image.pwrite(b"\xa5", size - 1)
        with pyvhdx.open(path, "r+") as image:
            assert image.pread(1, size - 1) == b"\xa5"
        assert path.stat().st_blocks * 512 < 16 * MIB
        said = qemu("qemu-io", "-f", "vhdx", "-c", f"read -P 0xa5 {size - 1} 1", path)
        assert "verification failed" not in said
        assert "read 1/1 bytes" in said
        assert "No errors" in qemu("qemu-img", "check", path)
    finally:
        path.unlink()


def test_the_map_of_the_largest_image_takes_little_memory() -> None:
    """67 million blocks, in any order, in a file of 64 TiB; the map of the space under 300 MiB."""
    code = """
import resource, struct, sys
from array import array
import pyvhdx
from pyvhdx.testing import MemoryStorage
MIB = 1 << 20
class Big(MemoryStorage):
    # The BAT is made up as it is read: block n at a place that a permutation gives.
    blocks = 1 << 26
    def read_at(self, size, offset):
        if self.bat <= offset < self.bat + self.bat_size:
            out = array("Q")
            for index in range((offset - self.bat) // 8, (offset - self.bat + size) // 8):
                group, within = divmod(index, 4097)
                block = group * 4096 + within
                if within == 4096 or block >= self.blocks:
                    out.append(0)
                else:
                    out.append(self.first + ((block ^ 0x155) << 20) | 6)
            return out.tobytes()
        return super().read_at(size, offset)
    bat = bat_size = first = 0
    def next_data(self, offset):
        return offset, self.size()
storage = Big()
pyvhdx.create(storage, 64 << 40, block_size=MIB).close()
info = pyvhdx.open(storage)
region = info._file.regions.bat
info.close()
storage.bat, storage.bat_size = region.file_offset, region.length
storage.first = region.end
storage.truncate(region.end + (64 << 40))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with pyvhdx.open(storage, "r+") as image:
    image.pwrite(b"x", 0)
    assert image._writer.session.space.end == storage.size()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    if os.environ.get("PYVHDX_TEST_PROFILE") != "long":
        pytest.skip("takes minutes; PYVHDX_TEST_PROFILE=long runs it")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 300 * MIB


def test_storage_events_show_no_write_on_a_read(tmp_path: Path) -> None:
    pyvhdx.create(tmp_path / "disk.vhdx", 8 * MIB).close()
    storage = RecordingStorage(open_local(tmp_path / "disk.vhdx"))
    with pyvhdx.open(storage) as image:
        image.read()
    assert storage.events == []
    with pyvhdx.open(RecordingStorage(MemoryStorage((tmp_path / "disk.vhdx").read_bytes()))) as image:
        assert image.size == 8 * MIB
