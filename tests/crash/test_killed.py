"""Processes that are killed, that end with an image open, and that go on for long."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import pyvhdx
from pyvhdx import TrimMode
from tests.crash.programs import MIB, UNIT, patterns


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_nothing_acknowledged_is_lost_with_a_process_that_is_killed() -> None:
    """``python -m tests.crash.killed`` does more rounds, and from other seeds."""
    rounds = os.environ.get("PYVHDX_KILL_ROUNDS", "20")
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.killed", "--rounds", rounds, "--seed", "1"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)


def test_an_interpreter_that_ends_with_an_image_open_commits_nothing(tmp_path: Path) -> None:
    """It says so, and what was flushed is there."""
    path = tmp_path / "disk.vhdx"
    pyvhdx.create(path, 8 * MIB, block_size=MIB).close()
    program = (
        "import pyvhdx, sys\n"
        "image = pyvhdx.open(sys.argv[1], 'r+')\n"
        "image.pwrite(b'flushed', 0)\n"
        "image.flush()\n"
        "image.pwrite(b'not', 5 << 20)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "always", "-c", program, path], capture_output=True, text=True, check=True
    )
    assert "ResourceWarning: unclosed image" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    with pyvhdx.open(path, "r+") as image:
        assert [finding.code for finding in image.warnings] == ["LOG-PENDING"]
        assert image.pread(7, 0) == b"flushed"
        assert image.pread(3, 5 * MIB) == bytes(3)


class _Load:
    """Four threads with blocks of their own, and one that closes and opens the image under them."""

    SIZE = 32 * MIB

    def __init__(self, path: Path, content: bytes, seconds: float) -> None:
        self.path = path
        self.until = time.monotonic() + seconds
        self.model = bytearray(content)
        self.image = pyvhdx.open(path, "r+")
        self.wrong: list[BaseException] = []
        self.counts = {"operations": 0, "opens": 0}
        self._free = threading.Condition()
        self._users = 0
        self._is_closing = False

    def work(self, number: int) -> None:
        draw = random.Random(number)
        written = number
        while time.monotonic() < self.until and not self.wrong:
            with self._free:
                self._free.wait_for(lambda: not self._is_closing)
                self._users += 1
            try:
                written += 4
                self._one(draw, number, written)
            finally:
                with self._free:
                    self._users -= 1
                    self._free.notify_all()

    def _one(self, draw: random.Random, number: int, written: int) -> None:
        block = (draw.randrange(self.SIZE // MIB // 4) * 4 + number) * MIB
        count = draw.choice((1, 8, 100, MIB // UNIT))
        start = block + draw.randrange(MIB // UNIT - count + 1) * UNIT
        choice = draw.random()
        if choice < 0.45:
            end = start + count * UNIT
            assert self.image.pread(count * UNIT, start) == self.model[start:end], f"{start:#x} is wrong"
        elif choice < 0.85:
            self.image.pwrite(patterns(written, start // UNIT, count), start)
            self.model[start : start + count * UNIT] = patterns(written, start // UNIT, count)
        elif choice < 0.90:
            self.image.trim(block, MIB, TrimMode.ZERO)
            self.model[block : block + MIB] = bytes(MIB)
        elif choice < 0.95:
            self.image.write_zeroes(start, count * UNIT)
            self.model[start : start + count * UNIT] = bytes(count * UNIT)
        else:
            self.image.flush()
        with self._free:
            self.counts["operations"] += 1

    def reopen(self) -> None:
        """Close, or be killed after a flush; then look at every byte."""
        draw = random.Random(99)
        while time.monotonic() < self.until and not self.wrong:
            time.sleep(draw.uniform(0.01, 0.4))
            with self._free:
                self._is_closing = True
                self._free.wait_for(lambda: not self._users)
            try:
                if draw.random() < 0.4:
                    self.image.flush()
                    self.image._writer = None
                self.image.close()
                self.image = pyvhdx.open(self.path, "r+")
                assert self.image.pread(self.SIZE, 0) == self.model, "the file holds other bytes"
                self.counts["opens"] += 1
            finally:
                with self._free:
                    self._is_closing = False
                    self._free.notify_all()

    def run(self) -> None:
        def watched(work: object, *arguments: int) -> None:
            try:
                work(*arguments)  # type: ignore[operator]  # one of the two above
            except BaseException as error:  # noqa: BLE001 - shown at the end
                self.wrong.append(error)

        threads = [threading.Thread(target=watched, args=(self.work, number)) for number in range(4)]
        threads.append(threading.Thread(target=watched, args=(self.reopen,)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.image.close()
        assert not self.wrong


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dynamic", "differencing"])
def test_four_threads_on_an_image_that_is_opened_again_and_again(kind: str, tmp_path: Path) -> None:
    """PYVHDX_TEST_SECONDS says for how long."""
    seconds = float(os.environ.get("PYVHDX_TEST_SECONDS", "4"))
    path, content = tmp_path / "disk.vhdx", bytes(_Load.SIZE)
    pyvhdx.create(path, _Load.SIZE, block_size=MIB, sync=False).close()
    if kind == "differencing":
        content = patterns(0xFFFF, 0, _Load.SIZE // UNIT)
        with pyvhdx.open(path, "r+", sync=False) as image:
            image.write(content)
        path = tmp_path / "child.vhdx"
        pyvhdx.create(path, parent=tmp_path / "disk.vhdx", sync=False).close()
    load = _Load(path, content, seconds)
    load.run()
    with pyvhdx.open(path) as image:
        assert image.read() == load.model
    assert load.counts["operations"] > 100
    assert load.counts["opens"] > 3
    print(kind, load.counts)
