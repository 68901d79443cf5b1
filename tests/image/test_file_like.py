"""An image is a binary file, as far as reading goes."""

from __future__ import annotations

import array
import gc
import io
import mmap
import os
import pickle
import random
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pyvhdx

SIZE = (5 << 20) + 1536


@pytest.fixture
def content() -> bytes:
    data = bytearray(SIZE)
    data[: 1 << 20] = random.Random(1).randbytes(1 << 20)
    data[3 << 20 :] = random.Random(2).randbytes(SIZE - (3 << 20))
    return bytes(data)


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(content)
    pyvhdx.convert(raw, tmp_path / "disk.vhdx", block_size=1 << 20)
    return tmp_path / "disk.vhdx"


@pytest.fixture
def image(path: Path) -> Iterator[pyvhdx.VHDXImage]:
    with pyvhdx.open(path) as image:
        yield image


class TestReading:
    def test_from_the_position_on(self, image: pyvhdx.VHDXImage, content: bytes) -> None:
        assert image.read(100) == content[:100]
        assert image.tell() == 100
        assert image.seek(-5, os.SEEK_END) == SIZE - 5
        assert image.read(100) == content[-5:]
        assert image.read(100) == b""
        assert image.seek(10) == 10
        assert image.seek(5, os.SEEK_CUR) == 15
        assert image.read() == content[15:]
        image.seek(1 << 20)
        assert image.readall() == content[1 << 20 :]
        assert image.seek(SIZE + 1000) == SIZE + 1000
        assert image.read(1) == b""

    def test_into_any_contiguous_buffer(self, image: pyvhdx.VHDXImage, content: bytes) -> None:
        numbers = array.array("Q", bytes(8 * 16))
        assert image.readinto(numbers) == 128
        assert numbers.tobytes() == content[:128]
        table = memoryview(bytearray(64)).cast("B", (8, 8))
        assert image.preadinto(table, 7) == 64
        assert table.tobytes() == content[7:71]
        with mmap.mmap(-1, 4096) as mapped:
            assert image.preadinto(mapped, 3 << 20) == 4096
            assert mapped[:] == content[3 << 20 : (3 << 20) + 4096]
        assert image.preadinto(b"", 0) == 0
        assert image.preadinto(bytearray(), SIZE + 5) == 0
        with pytest.raises((TypeError, BufferError)):
            image.preadinto(memoryview(bytearray(64))[::2], 0)

    def test_at_any_place_without_the_position(self, image: pyvhdx.VHDXImage, content: bytes) -> None:
        draw = random.Random(3)
        for _ in range(2000):
            offset, size = (
                draw.randrange(SIZE + 4096),
                draw.choice((0, 1, 512, 4096, draw.randrange(3 << 20))),
            )
            assert image.pread(size, offset) == content[offset : offset + size]
        assert image.tell() == 0

    def test_of_too_much_is_short(self, image: pyvhdx.VHDXImage, content: bytes) -> None:
        assert image.pread(1 << 60, SIZE - 10) == content[-10:]
        assert image.pread(10, 1 << 70) == b""
        assert image.read(1 << 60) == content

    def test_of_what_cannot_be_is_refused(self, image: pyvhdx.VHDXImage) -> None:
        for call in (
            lambda: image.pread(1, -1),
            lambda: image.pread(-1, 0),
            lambda: image.preadinto(bytearray(1), -1),
            lambda: image.seek(-1),
            lambda: image.seek(0, 9),
            lambda: image.extents(-1),
            lambda: image.extents(0, -1),
        ):
            with pytest.raises(pyvhdx.RequestError) as caught:
                call()
            assert isinstance(caught.value, ValueError)

    def test_by_what_is_no_number_moves_nothing(self, image: Any) -> None:
        with pytest.raises(TypeError):
            image.seek(1.5)
        with pytest.raises(TypeError):
            image.read(1.5)
        with pytest.raises(TypeError):
            image.pread("x", 0)
        with pytest.raises(TypeError):
            image.pread(1, None)
        assert image.tell() == 0

    def test_through_a_buffer(self, path: Path, content: bytes) -> None:
        """Every library that takes a binary file works."""
        with io.BufferedReader(pyvhdx.open(path), 1 << 16) as file:
            file.seek(1000)
            assert file.peek(4)[:4] == content[1000:1004]
            assert file.read(1 << 20) == content[1000 : 1000 + (1 << 20)]
            assert b"".join(file) == content[1000 + (1 << 20) :]
            raw = file.raw
        assert raw.closed

    @pytest.mark.usefixtures("no_fast_paths")
    def test_without_positional_calls_is_the_same(self, image: pyvhdx.VHDXImage, content: bytes) -> None:
        assert image.read() == content
        assert image.pread(5000, 3_000_000) == content[3_000_000:3_005_000]

    def test_from_a_file_object_is_the_same(self, path: Path, content: bytes) -> None:
        memory = io.BytesIO(path.read_bytes())
        with pyvhdx.open(memory) as image:
            assert image.read() == content
        assert not memory.closed
        with path.open("rb") as file:
            image = pyvhdx.open(file)
            file.close()
            assert image.read() == content
            image.close()


class TestExtents:
    def test_say_who_decides(self, image: pyvhdx.VHDXImage, content: bytes, path: Path) -> None:
        extents = list(image.extents())
        assert [(e.offset, e.length, e.kind, e.depth) for e in extents] == [
            (0, 1 << 20, "data", 0),
            (1 << 20, 2 << 20, "absent", 0),
            (3 << 20, SIZE - (3 << 20), "data", 0),
        ]
        with path.open("rb") as file:
            for extent in extents:
                if extent.file_offset is not None:
                    file.seek(extent.file_offset)
                    assert file.read(extent.length) == content[extent.offset : extent.offset + extent.length]

    def test_of_a_range_are_cut_to_it(self, image: pyvhdx.VHDXImage) -> None:
        [one, other] = image.extents(500_000, 1_000_000)
        assert (one.offset, one.length, one.kind) == (500_000, (1 << 20) - 500_000, "data")
        assert other.offset + other.length == 1_500_000
        assert (
            list(image.extents(SIZE)) == list(image.extents(SIZE + 5, 7)) == list(image.extents(0, 0)) == []
        )
        assert sum(e.length for e in image.extents(SIZE - 1, 1 << 70)) == 1

    def test_come_lazily(self, tmp_path: Path) -> None:
        with pyvhdx.create(tmp_path / "big.vhdx", 64 << 40, block_size=1 << 20) as image:
            pages = image._file.pages
            read, pages._read = pages._read, None  # type: ignore[assignment]  # nothing is read yet
            extents = image.extents()
            pages._read = read
            assert next(extents).length == 64 << 40


class TestReadOnly:
    def test_images_refuse_every_change(self, image: pyvhdx.VHDXImage) -> None:
        assert image.readable()
        assert image.seekable()
        assert not image.writable()
        assert not image.isatty()
        for call in (
            lambda: image.write(b"x"),
            lambda: image.pwrite(b"x", 0),
            lambda: image.write_zeroes(0, 512),
            lambda: image.trim(0, 512),
            lambda: image.truncate(0),
            lambda: image.user_metadata.set(uuid.uuid4(), b""),
            image.fileno,
        ):
            with pytest.raises(io.UnsupportedOperation):
                call()

    @pytest.mark.parametrize("mode", ["r+", "r+b", "rb+"])
    def test_modes_are_known(self, path: Path, mode: str) -> None:
        with pyvhdx.open(path, mode) as image:
            assert image.mode == "r+"
        with pyvhdx.open(path, "rb") as image:
            assert image.mode == "r"

    @pytest.mark.parametrize("how", [{"mode": "w"}, {"mode": ""}, {"log": "maybe"}, {"parent": "x.vhdx"}])
    def test_parameters_that_cannot_be_are_refused(self, path: Path, how: dict[str, str]) -> None:
        with pytest.raises(pyvhdx.RequestError):
            pyvhdx.open(path, **how)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.usefixtures("descriptors")
class TestClosing:
    def test_everything_then_raises_value_error(self, path: Path) -> None:
        image = pyvhdx.open(path)
        image.pread(512, 0)
        extents = image.extents()
        image.close()
        image.close()
        assert image.closed
        for call in (
            lambda: image.pread(512, 0),
            lambda: image.preadinto(bytearray(1), 0),
            lambda: image.read(1),
            lambda: image.readinto(bytearray(1)),
            image.readall,
            image.tell,
            lambda: image.seek(0),
            image.extents,
            lambda: next(extents),
            image.info,
            image.readable,
            image.seekable,
            image.writable,
            lambda: image.write(b""),
            image.__enter__,
        ):
            with pytest.raises(ValueError, match="closed"):
                call()

    def test_a_forgotten_image_warns_and_lets_go(self, path: Path) -> None:
        image = pyvhdx.open(path)
        with pytest.warns(ResourceWarning, match="disk.vhdx"):
            del image
            gc.collect()
        assert str(path) not in _open_files()

    def test_a_failed_open_leaves_nothing(self, path: Path) -> None:
        with path.open("r+b") as file:
            file.truncate((1 << 20) + 5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(pyvhdx.CorruptImageError) as caught:
                pyvhdx.open(path)
        assert caught.value.name == str(path)
        assert str(path) not in _open_files()


def _open_files() -> str:
    if not os.path.isdir("/proc/self/fd"):
        return ""
    return " ".join(os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))


class TestPickling:
    def test_an_image_opened_by_path_comes_back(
        self, path: Path, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pyvhdx.open("disk.vhdx", lock=False) as image:
            image.seek(700)
            data = pickle.dumps(image)
            monkeypatch.chdir("/")
            with pickle.loads(data) as other:
                assert other.read(100) == content[700:800]
                assert os.path.samefile(other.name, path)

    def test_a_child_comes_back_with_its_parents(self, path: Path, content: bytes, tmp_path: Path) -> None:
        pyvhdx.create(tmp_path / "child.vhdx", parent=path).close()
        with (
            pyvhdx.open(tmp_path / "child.vhdx") as child,
            pickle.loads(pickle.dumps(child)) as other,
        ):
            assert other.read() == content
            with pickle.loads(pickle.dumps(child.parent)) as parent:
                assert parent.read() == content

    def test_others_cannot_be_pickled(self, path: Path) -> None:
        with pyvhdx.open(io.BytesIO(path.read_bytes())) as image, pytest.raises(TypeError, match="by path"):
            pickle.dumps(image)
        with pytest.raises(TypeError):
            pickle.dumps(image)


class TestWhatItIs:
    def test_attributes(self, image: pyvhdx.VHDXImage, path: Path) -> None:
        assert image.size == SIZE
        assert image.kind == "dynamic"
        assert image.block_size == 1 << 20
        assert (image.logical_sector_size, image.physical_sector_size) == (512, 4096)
        assert image.creator.startswith("pyvhdx ")
        assert image.name == str(path)
        assert image.parent is None
        assert image.chain == (image,)
        assert image.warnings == ()
        assert not image.log_pending
        assert image.file_write_guid != image.data_write_guid != image.disk_id
        assert len(image.metadata) == 5
        assert dict(image.user_metadata) == {}
        assert repr(image) == f"<VHDXImage {str(path)!r} (dynamic, {SIZE} bytes)>"
        image.close()
        assert "closed" in repr(image)

    def test_metadata_is_read_only(self, image: pyvhdx.VHDXImage) -> None:
        with pytest.raises(TypeError):
            image.metadata[image.disk_id] = b""  # type: ignore[index]  # wrong on purpose

    def test_info_is_plain_values(self, image: pyvhdx.VHDXImage, path: Path) -> None:
        info = image.info()
        assert info.virtual_size == SIZE
        assert info.file_size == path.stat().st_size
        assert info.allocated_size == path.stat().st_blocks * 512
        plain = info.to_dict()
        assert plain["disk_id"] == str(image.disk_id)
        assert plain["parent_locator"] is None

    def test_is_vhdx_reads_the_signature_only(self, path: Path, tmp_path: Path) -> None:
        assert pyvhdx.is_vhdx(path)
        assert pyvhdx.is_vhdx(str(path))
        with path.open("rb") as file:
            file.seek(99)
            assert pyvhdx.is_vhdx(file)
            assert file.tell() == 99
        assert not pyvhdx.is_vhdx(io.BytesIO(b"vhd"))
        with pytest.raises(FileNotFoundError):
            pyvhdx.is_vhdx(tmp_path / "missing")
