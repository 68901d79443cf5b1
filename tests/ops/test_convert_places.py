"""Where disks come from and go to: devices, full file systems, files with holes, files in use."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import random
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyvhdx
from tests.conftest import STRICT

MIB = 1 << 20

Loop = Callable[[Path], str]


@pytest.fixture
def loop() -> Iterator[Loop]:
    """Give a function that makes a read-only block device of a file."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("a loop device needs root and a kernel that has them")
    devices: list[str] = []

    def attach(path: Path) -> str:
        made = subprocess.run(
            ["losetup", "-f", "--show", "-r", path], capture_output=True, text=True, check=False
        )
        if made.returncode:
            (pytest.fail if STRICT else pytest.skip)(f"no loop device: {made.stderr}")
        devices.append(made.stdout.strip())
        return devices[-1]

    yield attach
    for device in devices:
        subprocess.run(["losetup", "-d", device], check=True)


class TestABlockDevice:
    @pytest.mark.parametrize("kind", ["dynamic", "fixed"])
    def test_is_copied_there_and_back(self, kind: str, loop: Loop, tmp_path: Path) -> None:
        content = bytearray(9 * MIB + 512)
        for at in (0, 4 * MIB - 7, 9 * MIB):
            content[at : at + 512] = random.Random(at).randbytes(512)
        (tmp_path / "disk.bin").write_bytes(content)
        device = loop(tmp_path / "disk.bin")
        report = pyvhdx.convert(device, tmp_path / "disk.vhdx", kind=kind)
        assert (report.source, report.source_format, report.virtual_size) == (device, "raw", len(content))
        pyvhdx.convert(tmp_path / "disk.vhdx", tmp_path / "back.raw")
        assert (tmp_path / "back.raw").read_bytes() == content

    def test_is_copied_as_an_open_file_too(self, loop: Loop, tmp_path: Path) -> None:
        content = random.Random(2).randbytes(3 * MIB)
        (tmp_path / "disk.bin").write_bytes(content)
        with open(loop(tmp_path / "disk.bin"), "rb") as file:
            file.seek(1000)
            pyvhdx.convert(file, tmp_path / "disk.vhdx")
            assert file.tell() == 1000
        with pyvhdx.open(tmp_path / "disk.vhdx") as image:
            assert image.read() == content

    def test_is_raw_whatever_it_holds_unless_told_otherwise(self, loop: Loop, tmp_path: Path) -> None:
        inner = tmp_path / "inner.vhdx"
        (tmp_path / "disk.bin").write_bytes(b"inside".ljust(4096, b"."))
        pyvhdx.convert(tmp_path / "disk.bin", inner, source_format="raw")
        device = loop(inner)
        report = pyvhdx.convert(device, tmp_path / "outer.vhdx")
        assert (report.source_format, report.virtual_size) == ("raw", inner.stat().st_size)
        with pyvhdx.open(tmp_path / "outer.vhdx") as outer:
            assert outer.read() == inner.read_bytes()
        assert pyvhdx.convert(device, tmp_path / "b.raw", source_format="vhdx").virtual_size == 4096
        assert (tmp_path / "b.raw").read_bytes().startswith(b"inside...")
        with pyvhdx.open(device) as image:
            assert image.read(6) == b"inside"

    def test_is_never_replaced(self, loop: Loop, tmp_path: Path) -> None:
        (tmp_path / "disk.bin").write_bytes(bytes(MIB))
        device = loop(tmp_path / "disk.bin")
        calls: tuple[Callable[[], Any], ...] = (
            lambda: pyvhdx.create(device, MIB, exist_ok=True),
            lambda: pyvhdx.convert(tmp_path / "disk.bin", device, format="raw", overwrite=True),
        )
        for call in calls:
            with pytest.raises(pyvhdx.RequestError, match="no regular file"):
                call()
        assert (tmp_path / "disk.bin").read_bytes() == bytes(MIB)


class TestAFullDisk:
    @pytest.fixture
    def small(self, tmp_path: Path) -> Iterator[Path]:
        """A file system of 8 MiB."""
        folder = tmp_path / "small"
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip(f"no file system can be mounted: {mounted.stderr.decode()}")
        yield folder
        subprocess.run(["umount", folder], check=True)

    @pytest.mark.parametrize("name", ["disk.vhdx", "disk.raw"])
    def test_leaves_nothing_of_a_conversion(self, name: str, small: Path, tmp_path: Path) -> None:
        (tmp_path / "disk.bin").write_bytes(random.Random(1).randbytes(9 * MIB))
        free = os.statvfs(small).f_bfree
        with pytest.raises(OSError, match="No space left"):
            pyvhdx.convert(tmp_path / "disk.bin", small / name)
        assert os.listdir(small) == []
        assert os.statvfs(small).f_bfree == free

    def test_leaves_the_older_file(self, small: Path, tmp_path: Path) -> None:
        (tmp_path / "disk.bin").write_bytes(random.Random(1).randbytes(9 * MIB))
        pyvhdx.create(small / "disk.vhdx", MIB).close()
        before = (small / "disk.vhdx").read_bytes()
        with pytest.raises(OSError, match="No space left"):
            pyvhdx.convert(tmp_path / "disk.bin", small / "disk.vhdx", overwrite=True)
        assert os.listdir(small) == ["disk.vhdx"]
        assert (small / "disk.vhdx").read_bytes() == before

    def test_leaves_nothing_of_a_new_image(self, small: Path) -> None:
        """The log is of real zeros, so that its want of space is found now and not at a commit."""
        with pytest.raises(OSError, match="No space left"):
            pyvhdx.create(small / "disk.vhdx", MIB, log_size=16 * MIB)
        assert os.listdir(small) == []

    def test_is_no_matter_for_zeros(self, small: Path, tmp_path: Path) -> None:
        with (tmp_path / "disk.bin").open("wb") as file:
            file.truncate(1 << 40)
        pyvhdx.convert(tmp_path / "disk.bin", small / "disk.vhdx", kind="fixed")
        with pyvhdx.open(small / "disk.vhdx") as image:
            assert image.size == 1 << 40


def data_runs(path: Path) -> list[tuple[int, int]]:
    """Return where a file has data, as its file system says."""
    runs, at = [], 0
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # none up to the end
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            runs.append((start, at))
    return runs


class TestHoles:
    RUNS = ((0, 65536), (5 * MIB, 5 * MIB + 131072), (8 * MIB, 11 * MIB), (39 * MIB, 40 * MIB))

    @pytest.fixture
    def raw(self, tmp_path: Path) -> Path:
        raw = tmp_path / "disk.raw"
        with raw.open("wb") as file:
            for start, end in self.RUNS:
                file.seek(start)
                file.write(random.Random(start).randbytes(end - start))
            file.truncate(64 * MIB)
        if data_runs(raw) != [*self.RUNS]:
            pytest.skip("this file system keeps no holes")
        return raw

    @pytest.mark.parametrize("kind", ["dynamic", "fixed"])
    @pytest.mark.parametrize("block", [1, 32])
    def test_stay_where_they_were(self, block: int, kind: str, raw: Path, tmp_path: Path) -> None:
        path, back = tmp_path / "disk.vhdx", tmp_path / "back.raw"
        pyvhdx.convert(raw, path, kind=kind, block_size=block * MIB)
        pyvhdx.convert(path, back)
        assert back.read_bytes() == raw.read_bytes()
        assert data_runs(back) == [*self.RUNS]
        # And between: each run of data lies in the VHDX file once, with holes around it.
        assert path.stat().st_blocks * 512 <= raw.stat().st_blocks * 512 + 3 * MIB

    def test_come_out_of_zeros_that_were_stored(self, raw: Path, tmp_path: Path) -> None:
        dense = tmp_path / "dense.raw"
        dense.write_bytes(raw.read_bytes())
        assert data_runs(dense) == [(0, 64 * MIB)]
        for suffix in ("vhdx", "raw"):
            pyvhdx.convert(dense, tmp_path / f"new.{suffix}")
        assert data_runs(tmp_path / "new.raw") == [*self.RUNS]
        assert (tmp_path / "new.vhdx").stat().st_blocks * 512 <= raw.stat().st_blocks * 512 + 3 * MIB

    def test_stay_on_the_way_through_a_chain(self, raw: Path, tmp_path: Path) -> None:
        pyvhdx.convert(raw, tmp_path / "base.vhdx", block_size=32 * MIB)
        pyvhdx.create(tmp_path / "child.vhdx", parent=tmp_path / "base.vhdx").close()
        pyvhdx.convert(tmp_path / "child.vhdx", tmp_path / "back.raw")
        assert data_runs(tmp_path / "back.raw") == [*self.RUNS]


class TestAFileInUse:
    """Held by another program, which knows nothing of this package's code."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "disk.vhdx"
        pyvhdx.create(path, 8 * MIB).close()
        (tmp_path / "disk.raw").write_bytes(b"x" * 512)
        return path

    def refused(self, path: Path) -> None:
        before = hashlib.sha256(path.read_bytes()).digest()
        calls: tuple[Callable[[], Any], ...] = (
            lambda: pyvhdx.create(path, MIB, exist_ok=True),
            lambda: pyvhdx.convert(path.with_name("disk.raw"), path, overwrite=True),
        )
        for call in calls:
            with pytest.raises(pyvhdx.LockedError, match="disk"):
                call()
        assert sorted(os.listdir(path.parent)) == ["disk.raw", "disk.vhdx"]
        assert hashlib.sha256(path.read_bytes()).digest() == before

    @pytest.mark.peer("qemu-io")
    @pytest.mark.parametrize("mode", ["-r", "-n"])
    def test_by_qemu_is_not_replaced(self, mode: str, path: Path) -> None:
        command = ["qemu-io", *(["-r"] if mode == "-r" else []), "-f", "vhdx", str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as holder:
            assert holder.stdout
            assert holder.stdout.read(7) == b"qemu-io"
            self.refused(path)
            if mode == "-r":  # readers share
                pyvhdx.open(path).close()
            holder.communicate(b"quit\n")
        pyvhdx.create(path, MIB, exist_ok=True).close()

    @pytest.mark.skipif(not hasattr(fcntl, "F_OFD_SETLK"), reason="no locks of open files here")
    @pytest.mark.parametrize("byte", [200 + 1, 200 + 3, 100])
    def test_by_one_of_qemus_bytes_is_not_replaced(self, byte: int, path: Path) -> None:
        """Not sharing WRITE or RESIZE, or reading at all, excludes its replacement."""
        with path.open("rb") as file:
            lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
            if byte == 100:
                # Reading alone excludes nobody who shares: qemu-nbd -r --force-share.
                pyvhdx.create(path, 8 * MIB, exist_ok=True, seed="s").close()
                return
            self.refused(path)
        pyvhdx.create(path, MIB, exist_ok=True).close()


class TestATargetThatFails:
    """A file object whose write fails at the n-th call, having written half: what is left is no image."""

    class Failing(io.BytesIO):
        left = -1

        def write(self, data: Any, /) -> int:
            self.left -= 1
            if self.left == -1:
                # Of the identifier not even the signature: with it the file is complete.
                data = bytes(data)
                super().write(data[:7] if data.startswith(b"vhdxfile") else data[: len(data) // 2])
                raise OSError(28, "No space left on device")
            return super().write(data)

    @pytest.mark.parametrize("over", ["nothing", "an older image"])
    @pytest.mark.parametrize("make", ["create", "fixed", "child", "convert", "convert a stream"])
    @pytest.mark.filterwarnings("ignore:the folder of the new child")
    def test_at_any_write_holds_no_image(self, make: str, over: str, tmp_path: Path) -> None:
        raw = bytes(MIB) + random.Random(1).randbytes(2 * MIB)
        pyvhdx.create(tmp_path / "base.vhdx", 8 * MIB).close()
        calls: dict[str, Callable[[Any], Any]] = {
            "create": lambda file: pyvhdx.create(file, 8 * MIB, exist_ok=True),
            "fixed": lambda file: pyvhdx.create(file, 8 * MIB, kind="fixed", exist_ok=True),
            "child": lambda file: pyvhdx.create(file, parent=tmp_path / "base.vhdx", exist_ok=True),
            "convert": lambda file: pyvhdx.convert(io.BytesIO(raw), file, format="vhdx", overwrite=True),
            "convert a stream": lambda file: pyvhdx.convert(NoSeek(raw), file, format="vhdx", overwrite=True),
        }
        older = (tmp_path / "base.vhdx").read_bytes() if over == "an older image" else b""
        for number in range(200):
            file = self.Failing(older)
            file.left = number
            try:
                made = calls[make](file)
            except OSError as error:
                assert error.errno == 28
                with pytest.raises(pyvhdx.ImageError):
                    pyvhdx.open(io.BytesIO(file.getvalue()), parent=False)
            else:
                if isinstance(made, pyvhdx.VHDXImage):
                    made.close()
                pyvhdx.open(io.BytesIO(file.getvalue()), parent=False).close()
                break
        assert 8 < number < 199


class NoSeek(io.RawIOBase):
    def __init__(self, content: bytes) -> None:
        self.inner = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self.inner.read(size)
