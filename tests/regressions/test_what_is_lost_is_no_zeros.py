"""Found by an adversary: bytes that can no longer be read, or were never taken, in the guise of success."""

from __future__ import annotations

import errno
import gzip
import io
import os
import random
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

import pyvhdx
from pyvhdx.ops.dump import dump_bat
from pyvhdx.storage import open_local
from tests.corpus.handmade import BAT_AT, FULL, METADATA_AT, MIB, Block, Image, guid
from tests.corpus.handmade_logs import GUID, Entry


@pytest.fixture
def dirty(tmp_path: Path) -> Path:
    """Block 0 is there by the log only, and full of text."""
    bat = (4 * MIB | FULL).to_bytes(8, "little").ljust(4096, b"\0")
    image = Image(8 * MIB, log=Entry(7, 0, [(BAT_AT, bat)]).build(), log_guid=GUID)
    image.patches.append((4 * MIB, b"DATA" * (MIB // 4)))
    image.write(tmp_path / "dirty.vhdx")
    return tmp_path / "dirty.vhdx"


class TestAFileThatShrinks:
    def test_under_a_replayed_log_is_an_error(self, dirty: Path) -> None:
        with pyvhdx.open(dirty) as image:
            assert image.pread(4, 500_000) == b"DATA"
            os.truncate(dirty, 4 * MIB + 4096)
            assert image.pread(4, 0) == b"DATA"
            with pytest.raises(pyvhdx.CorruptImageError) as caught:
                image.pread(4, 500_000)
            assert caught.value.code == "FILE-CUT"

    def test_is_no_source_of_zeros(self, tmp_path: Path) -> None:
        path = tmp_path / "disk.vhdx"
        Image(8 * MIB, blocks={0: Block(FULL), 1: Block(FULL)}).write(path)
        with pyvhdx.open(path) as image:
            os.truncate(path, 4 * MIB + 4096)
            with pytest.raises((OSError, pyvhdx.CorruptImageError), match=r"longer"):
                pyvhdx.convert(image, tmp_path / "disk.raw")
        assert not (tmp_path / "disk.raw").exists()

    def test_as_raw_source_neither(self, tmp_path: Path) -> None:
        path = tmp_path / "disk.raw"
        with path.open("wb") as file:
            file.write(b"x" * MIB)
            file.seek(7 * MIB)
            file.write(b"x" * MIB)

        def cut(done: int, _: int) -> None:
            if done:
                os.truncate(path, MIB)

        with pytest.raises(OSError, match="longer at first"):
            pyvhdx.convert(path, tmp_path / "disk.vhdx", progress=cut)
        assert not (tmp_path / "disk.vhdx").exists()


class TestTheSourceIsNeverTheTarget:
    def test_in_memory(self) -> None:
        file = io.BytesIO()
        pyvhdx.create(file, 8 * MIB).close()
        before = file.getvalue()
        with pyvhdx.open(file) as image, pytest.raises(pyvhdx.RequestError, match="not replaced"):
            pyvhdx.convert(image, file, format="vhdx", overwrite=True)
        assert file.getvalue() == before

    def test_through_a_wrapper_of_a_file(self, tmp_path: Path) -> None:
        with tempfile.NamedTemporaryFile(dir=tmp_path) as file:
            pyvhdx.create(file, 8 * MIB, exist_ok=True).close()
            before = Path(file.name).read_bytes()
            with pytest.raises(pyvhdx.RequestError, match="not replaced"):
                pyvhdx.convert(file, file.name, format="raw", overwrite=True)
            with open(file.name, "r+b") as target, pytest.raises(pyvhdx.RequestError, match="not replaced"):
                pyvhdx.convert(file, target, format="raw", overwrite=True)
            assert Path(file.name).read_bytes() == before

    def test_behind_a_compressed_file(self, tmp_path: Path) -> None:
        path = tmp_path / "disk.gz"
        path.write_bytes(gzip.compress(b"x" * MIB))
        before = path.read_bytes()
        with gzip.open(path) as source, pytest.raises(pyvhdx.RequestError, match="not replaced"):
            pyvhdx.convert(source, path, format="raw", overwrite=True)
        assert path.read_bytes() == before


def test_two_images_on_one_file_object_share_its_lock() -> None:
    image = Image(8 * MIB, blocks={n: Block(FULL) for n in range(8)})
    file = io.BytesIO()
    image.write_to(file)
    wrong: list[int] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with pyvhdx.open(file) as one, pyvhdx.open(file) as other:

            def read(opened: pyvhdx.VHDXImage, seed: int) -> None:
                draw = random.Random(seed)
                for _ in range(4000):
                    at = draw.randrange(8) * MIB
                    if opened.pread(512, at) != image.expected(at, 512):
                        wrong.append(at)

            threads = [
                threading.Thread(target=read, args=(opened, n)) for n, opened in enumerate((one, other) * 2)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


class _Flaky(io.BytesIO):
    """Fails once."""

    fails = False

    def read(self, size: int | None = -1, /) -> bytes:
        if self.fails:
            self.fails = False
            raise OSError(errno.EIO, "bad sector")
        return super().read(size)


def test_a_read_that_failed_has_taken_nothing() -> None:
    file = _Flaky()
    image = Image(8 * MIB, blocks={n: Block(FULL) for n in range(8)})
    image.write_to(file)
    with io.BufferedReader(pyvhdx.open(file)) as buffered:
        buffered.seek(8192)
        file.fails = True
        with pytest.raises(OSError, match="bad sector"):
            buffered.read(512)
        assert buffered.read(512) == image.expected(8192, 512)
    with pyvhdx.open(file) as opened:
        opened.seek(MIB)
        for call in (lambda: opened.read(512), lambda: opened.readinto(bytearray(512))):
            file.fails = True
            with pytest.raises(OSError, match="bad sector"):
                call()
            assert opened.tell() == MIB


class _Stream:
    """Takes nothing."""

    answer: int | None = None

    def seekable(self) -> bool:
        return False

    def write(self, _: Any) -> int | None:
        return self.answer

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("answer", [None, 0])
def test_a_stream_that_takes_nothing_is_an_error(answer: int | None, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(b"x" * MIB)
    target = _Stream()
    target.answer = answer
    with pytest.raises(BlockingIOError):
        pyvhdx.convert(tmp_path / "disk.raw", target, format="raw")


def test_a_second_separator_makes_no_absolute_path(tmp_path: Path) -> None:
    """The dot is taken off, and what is left must not begin at the root."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here").mkdir()
    parent = Image(8 * MIB)
    parent.write(tmp_path / "elsewhere" / "base.vhdx")
    for dots in (".\\", ".\\\\", "./", ".//"):
        path = dots + str(tmp_path / "elsewhere" / "base.vhdx").replace("/", "\\")
        child = Image(8 * MIB, kind="differencing", tag=2, parent=parent, relative_path=path)
        child.write(tmp_path / "here" / "child.vhdx")
        with pytest.raises(pyvhdx.ParentNotFoundError):
            pyvhdx.open(tmp_path / "here" / "child.vhdx")


def test_regions_that_overlap_are_found_behind_an_unused_log(tmp_path: Path) -> None:
    """BAT at 2 to 5 MiB, the empty log at 3, metadata at 4."""
    path = tmp_path / "disk.vhdx"
    Image(
        8 * MIB,
        regions=((guid(77), BAT_AT - MIB, 4 * MIB, 0),),
        headers=({"log_offset": METADATA_AT}, {"log_offset": METADATA_AT}),
    ).write(path)
    with pytest.raises(pyvhdx.CorruptImageError) as caught:
        pyvhdx.open(path)
    assert caught.value.code == "REGION-OVERLAP"


def test_a_dump_of_an_empty_table_looks_at_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk asked for a run up to the disk's end."""
    from pyvhdx._core.bat import BlockAllocationTable  # noqa: PLC0415

    pyvhdx.create(tmp_path / "disk.vhdx", 1 << 40, block_size=MIB).close()
    pages: list[int] = []
    look = BlockAllocationTable._page

    def counted(self: BlockAllocationTable, number: int) -> Any:
        pages.append(number)
        return look(self, number)

    monkeypatch.setattr(BlockAllocationTable, "_page", counted)
    storage = open_local(tmp_path / "disk.vhdx")
    try:
        assert list(dump_bat(storage)) == []
    finally:
        storage.close()
    assert len(pages) < 3 * (1 << 20) // 512


@pytest.mark.skipif(sys.platform != "linux", reason="the locks are Linux's")
def test_closing_one_image_of_a_file_object_keeps_the_locks_of_another(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    pyvhdx.create(path, 8 * MIB).close()
    with path.open("rb") as file, pyvhdx.open(file):
        pyvhdx.open(file).close()
        with pytest.raises(pyvhdx.LockedError):
            pyvhdx.open(path, "r+")
