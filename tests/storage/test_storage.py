"""The same promises for every kind of storage, the fast ways and the slow ones."""

from __future__ import annotations

import gzip
import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvhdx.errors import RequestError
from pyvhdx.storage import (
    FileObject,
    LocalFile,
    MemoryStorage,
    Overlay,
    Storage,
    open_file_object,
    open_local,
)
from pyvhdx.testing import FailingStorage, RecordingStorage

CONTENT = bytes(range(256)) * 64


def _local(path: Path) -> Storage:
    return LocalFile(os.open(path, os.O_RDWR), str(path))


def _bytes_io(path: Path) -> Storage:
    return FileObject(io.BytesIO(path.read_bytes()))


def _file_object(path: Path) -> Storage:
    return FileObject(path.open("r+b"))


def _memory(path: Path) -> Storage:
    return MemoryStorage(path.read_bytes())


def _recording(path: Path) -> Storage:
    return RecordingStorage(FailingStorage(_memory(path), None))


@pytest.fixture(
    params=[_local, _bytes_io, _file_object, _memory, _recording],
    ids=["descriptor", "BytesIO", "file object", "memory", "wrapped"],
)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    make: Callable[[Path], Storage] = request.param
    storage = make(path)
    yield storage
    if isinstance(storage, FileObject):
        storage.file.close()
    storage.close()


class TestEveryStorage:
    def test_reads_by_position(self, storage: Storage) -> None:
        assert storage.read_at(10, 300) == CONTENT[300:310]
        buffer = bytearray(20)
        assert storage.read_into(memoryview(buffer), 5) == 20
        assert buffer == CONTENT[5:25]

    def test_reads_short_only_at_the_end(self, storage: Storage) -> None:
        assert storage.read_at(100, len(CONTENT) - 3) == CONTENT[-3:]
        assert storage.read_at(100, len(CONTENT) + 5) == b""
        buffer = bytearray(20)
        assert storage.read_into(memoryview(buffer), len(CONTENT) - 4) == 4
        assert buffer == CONTENT[-4:] + bytes(16)

    def test_reserves_space_and_keeps_what_stands_there(self, storage: Storage) -> None:
        storage.reserve(100, 5000)
        assert storage.size() == len(CONTENT)
        assert storage.read_at(len(CONTENT), 0) == CONTENT

    def test_cuts_and_extends_with_zeros(self, storage: Storage) -> None:
        storage.truncate(5000)
        storage.truncate(9000)
        assert storage.read_at(9000, 0) == CONTENT[:5000] + bytes(4000)

    def test_writes_and_fills_gaps_with_zeros(self, storage: Storage) -> None:
        storage.write_at(b"abc", 1)
        storage.write_at(memoryview(b"end"), len(CONTENT) + 100)
        storage.flush()
        assert storage.read_at(5, 0) == CONTENT[:1] + b"abc" + CONTENT[4:5]
        assert storage.read_at(200, len(CONTENT)) == bytes(100) + b"end"
        assert storage.size() == len(CONTENT) + 103

    def test_is_cut_and_extended(self, storage: Storage) -> None:
        storage.truncate(10)
        assert storage.size() == 10
        storage.truncate(50_000)
        assert storage.read_at(60_000, 0) == CONTENT[:10] + bytes(49_990)

    def test_knows_where_data_may_be(self, storage: Storage) -> None:
        start, end = storage.next_data(3) or (0, 0)
        assert start <= 3
        assert end == storage.size()
        assert storage.next_data(storage.size()) is None

    def test_raises_value_error_when_closed(self, storage: Storage) -> None:
        storage.close()
        storage.close()
        for call in (
            lambda: storage.read_at(1, 0),
            lambda: storage.read_into(memoryview(bytearray(1)), 0),
            storage.size,
        ):
            with pytest.raises(ValueError, match="closed"):
                call()


@pytest.mark.usefixtures("no_fast_paths")
class TestWithoutPositionalCalls(TestEveryStorage):
    """Windows has no pread; there it is seek and read under a lock."""


def test_holes_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(10 << 20)
        file.seek(4 << 20)
        file.write(b"x" * 4096)
    storage = open_local(path)
    assert storage.next_data(0) == (4 << 20, (4 << 20) + 4096)
    assert storage.next_data(5 << 20) is None
    assert storage.allocated() < 1 << 20
    storage.close()


def test_close_waits_for_a_read_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The descriptor is not taken from under a read; the last one out closes it."""
    from pyvhdx.storage import local  # noqa: PLC0415

    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    storage = open_local(path)
    fd = storage._fd
    entered, leave = threading.Event(), threading.Event()
    real = local._pread

    def slow(*arguments: int) -> bytes:
        entered.set()
        leave.wait(10)
        data: bytes = real(*arguments)
        return data

    monkeypatch.setattr(local, "_pread", slow)
    answer: list[bytes] = []
    thread = threading.Thread(target=lambda: answer.append(storage.read_at(4, 0)))
    thread.start()
    assert entered.wait(10)
    storage.close()
    os.fstat(fd)
    leave.set()
    thread.join()
    assert answer == [CONTENT[:4]]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


class TestFileObjects:
    def test_plain_files_are_read_by_descriptor(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(CONTENT)
        with path.open("rb") as buffered, path.open("rb", buffering=0) as raw, path.open("r+b") as both:
            for file in (buffered, raw, both):
                file.seek(17)
                storage = open_file_object(file)
                assert isinstance(storage, LocalFile)
                assert storage.next_data(0) is not None
                assert file.tell() == 17
                storage.close()
                assert file.read(3) == CONTENT[17:20]

    def test_what_was_written_through_a_buffer_is_seen(self, tmp_path: Path) -> None:
        with (tmp_path / "file").open("w+b") as file:
            file.write(b"buffered")
            storage = open_file_object(file)
            assert storage.read_at(8, 0) == b"buffered"
            storage.close()

    def test_a_decompressor_is_read_through_itself(self, tmp_path: Path) -> None:
        """Gzip objects answer fileno() with the compressed file's."""
        path = tmp_path / "file.gz"
        path.write_bytes(gzip.compress(CONTENT))
        with gzip.open(path) as file:
            storage = open_file_object(file)
            assert isinstance(storage, FileObject)
            assert storage.read_at(4, 1000) == CONTENT[1000:1004]

    def test_a_subclass_is_read_through_itself(self, tmp_path: Path) -> None:
        class Shifted(io.FileIO):
            def read(self, size: int | None = -1, /) -> bytes:
                return bytes(byte ^ 255 for byte in super().read(size) or b"")

        path = tmp_path / "file"
        path.write_bytes(CONTENT)
        with Shifted(path) as file:
            assert open_file_object(file).read_at(1, 1) == b"\xfe"

    @pytest.mark.parametrize("thing", [io.StringIO("text"), 7, None, b"path"])
    def test_what_is_no_binary_file_is_refused(self, thing: object) -> None:
        with pytest.raises(RequestError, match="binary file object"):
            open_file_object(thing)

    def test_the_wrappers_of_tempfile_are_files_too(self) -> None:
        with tempfile.SpooledTemporaryFile() as spooled, tempfile.NamedTemporaryFile() as named:
            for file in (spooled, named):
                file.write(b"content")
                storage = open_file_object(file)
                assert storage.read_at(4, 3) == b"tent"
                storage.close()
        with tempfile.NamedTemporaryFile("w+") as text, pytest.raises(RequestError, match="binary"):
            open_file_object(text)

    def test_a_pipe_is_refused(self) -> None:
        reader, writer = os.pipe()
        with open(reader, "rb") as file, open(writer, "wb"), pytest.raises(RequestError, match="cannot seek"):
            open_file_object(file)


def test_only_files_and_block_devices_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, wrong in (
        (tmp_path / "pipe", OSError),
        (tmp_path, IsADirectoryError),
        (Path(os.devnull), OSError),
    ):
        with pytest.raises(wrong):
            open_local(path)


class TestOverlay:
    def _overlay(self, tmp_path: Path) -> Overlay:
        path = tmp_path / "file"
        path.write_bytes(CONTENT)
        pages = {0x1000: b"p" * 16, 0x2FF0: b"q" * 16, 0x5000: b"r" * 16}
        return Overlay(
            open_local(path), pages, ([0x1010, 0x2FE0, 0x5000], [0x1020, 0x3010, 0x5010]), 0x6000, 16
        )

    def _expected(self) -> bytes:
        image = bytearray(CONTENT.ljust(0x6000, b"\0"))
        image[0x1010:0x1020] = bytes(16)
        image[0x2FE0:0x3010] = bytes(0x30)
        for at, letter in ((0x1000, b"p"), (0x2FF0, b"q"), (0x5000, b"r")):
            image[at : at + 16] = letter * 16
        return bytes(image)

    def test_shows_pages_over_zeros_over_the_file_over_its_end(self, tmp_path: Path) -> None:
        overlay, expected = self._overlay(tmp_path), self._expected()
        assert overlay.size() == 0x6000
        assert overlay.read_at(0x10000, 0) == expected
        for start in (
            0,
            0xFF8,
            0x1008,
            0x1018,
            0x2FD8,
            0x2FE8,
            0x2FF8,
            0x3008,
            0x3FF8,
            0x4FF8,
            0x5FF8,
            0x7000,
        ):
            for size in (0, 1, 8, 16, 24, 64, 5000):
                assert overlay.read_at(size, start) == expected[start : start + size]
        overlay.close()

    def test_is_never_written_to(self, tmp_path: Path) -> None:
        overlay = self._overlay(tmp_path)
        with pytest.raises(io.UnsupportedOperation):
            overlay.write_at(b"x", 0)
        with pytest.raises(io.UnsupportedOperation):
            overlay.flush()
        with pytest.raises(io.UnsupportedOperation):
            overlay.truncate(0)
        overlay.close()
