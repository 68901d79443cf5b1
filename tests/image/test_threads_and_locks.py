"""Many readers at once: threads of one process, and other processes."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyvhdx
from pyvhdx.storage import locks


class TestLocks:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "disk.vhdx"
        pyvhdx.create(path, 4 << 20).close()
        return path

    @pytest.mark.peer("qemu-io")
    def test_readers_share_and_keep_writers_out(self, path: Path) -> None:
        read = ["qemu-io", "-r", "-f", "vhdx", "-c", "read 0 512", str(path)]
        write = ["qemu-io", "-f", "vhdx", "-c", "write 0 512", str(path)]
        with pyvhdx.open(path), pyvhdx.open(path):
            assert subprocess.run(read, capture_output=True, check=False).returncode == 0
            refused = subprocess.run(write, capture_output=True, check=False)
            assert refused.returncode != 0
            assert b"lock" in refused.stderr
        with pyvhdx.open(path, lock=False):
            assert subprocess.run(write, capture_output=True, check=False).returncode == 0

    @pytest.mark.peer("qemu-io")
    def test_a_writer_keeps_readers_out(self, path: Path) -> None:
        child = path.with_name("child.vhdx")
        pyvhdx.create(child, parent=path).close()
        with subprocess.Popen(
            ["qemu-io", "-f", "vhdx", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        ) as writer:
            assert writer.stdin
            assert writer.stdout
            assert writer.stdout.read(7) == b"qemu-io"
            for held in (path, child):
                with pytest.raises(pyvhdx.LockedError, match="lock=False") as caught:
                    pyvhdx.open(held)
                assert isinstance(caught.value, BlockingIOError)
            pyvhdx.open(child, lock=False).close()
            writer.communicate(b"quit\n")
        pyvhdx.open(child).close()

    def test_a_file_system_without_locks_gives_a_warning(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> bool:
            raise OSError(37, "No locks available")

        monkeypatch.setattr(locks, "_take", refuse)
        with pytest.warns(RuntimeWarning, match="No locks available"), pyvhdx.open(path) as image:
            assert image.pread(1, 0) == b"\0"

    def test_a_forked_child_keeps_its_parents_locks(self, path: Path) -> None:
        with pyvhdx.open(path) as image:
            child = os.fork()
            if child == 0:
                image.close()
                os._exit(0)
            os.waitpid(child, 0)
            fd = os.open(path, os.O_RDONLY)
            with pytest.raises(pyvhdx.LockedError):
                locks.lock(fd, "disk", locks.WRITER)
            os.close(fd)


class TestThreads:
    @pytest.fixture
    def chain(self, tmp_path: Path) -> Iterator[tuple[pyvhdx.VHDXImage, bytes]]:
        """Three levels whose blocks alternate: base, middle and top each hold some."""
        from tests.corpus.simple import three_levels  # noqa: PLC0415

        path, content = three_levels(tmp_path)
        with pyvhdx.open(path) as image:
            assert len(image.chain) == 3
            yield image, content

    @pytest.mark.slow
    def test_eight_threads_read_every_byte_right(self, chain: tuple[pyvhdx.VHDXImage, bytes]) -> None:
        image, content = chain
        until = time.monotonic() + float(os.environ.get("PYVHDX_TEST_SECONDS", "3"))
        wrong: list[tuple[int, int]] = []
        counts: list[int] = []

        def read(seed: int) -> None:
            draw = random.Random(seed)
            count = 0
            while time.monotonic() < until and not wrong:
                size = draw.choice((1, 512, 4096, 65536, draw.randrange(3 << 20)))
                offset = draw.randrange(len(content))
                if draw.random() < 0.5:
                    data = image.pread(size, offset)
                else:
                    buffer = bytearray(size)
                    data = bytes(buffer[: image.preadinto(buffer, offset)])
                if data != content[offset : offset + size]:
                    wrong.append((offset, size))
                count += 1
            counts.append(count)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert len(counts) == 8
        assert min(counts) > 0
        print(f"{sum(counts)} reads by 8 threads")

    def test_threads_that_share_the_position_get_each_byte_once(
        self, chain: tuple[pyvhdx.VHDXImage, bytes]
    ) -> None:
        image, content = chain
        pieces: list[bytes] = []

        def read() -> None:
            while data := image.read(100_003):
                pieces.append(data)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(pieces) == sorted(content[at : at + 100_003] for at in range(0, len(content), 100_003))

    def test_closing_under_readers_gives_value_errors_and_no_wrong_byte(
        self, chain: tuple[pyvhdx.VHDXImage, bytes]
    ) -> None:
        image, content = chain
        errors: list[BaseException] = []

        def read(seed: int) -> None:
            draw = random.Random(seed)
            try:
                while True:
                    offset = draw.randrange(len(content))
                    assert image.pread(4096, offset) == content[offset : offset + 4096]
            except BaseException as error:  # noqa: BLE001 - looked at below
                errors.append(error)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        image.close()
        for thread in threads:
            thread.join()
        assert [type(error) for error in errors] == [ValueError] * 4
