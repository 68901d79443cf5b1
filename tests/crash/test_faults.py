"""
An I/O error in each call of a fixed program, on a real file: nothing acknowledged is lost.

The program opens an image with a pending log, writes, trims, sets items, flushes, restarts its log,
closes and opens again.  Each of its calls to the file fails, in five ways; each fifth call in one of
them outside the long profile (``PYVHDX_TEST_PROFILE=long``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyvhdx
from pyvhdx import TrimMode
from pyvhdx.storage.local import LocalFile
from pyvhdx.testing import MemoryStorage
from tests.crash.outcome import examine
from tests.crash.programs import ITEM, MIB, UNIT, Model, patterns

SIZE = 12 * MIB
CALLS = ("write_at", "truncate", "reserve", "flush")
# Error number, for good or once, and whether a write that fails has written its first half.
WAYS = (
    (errno.EIO, False, False),
    (errno.EIO, True, False),
    (errno.EIO, False, True),
    (errno.ENOSPC, False, False),
    (errno.ENOSPC, True, True),
)


class Faults:
    """Lets the call number `at` of one file fail, and counts calls."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = str(path)
        self.at: int | None = None
        self.number = errno.EIO
        self.for_good = self.short = False
        self.calls = self.injected = 0
        for name in CALLS:
            monkeypatch.setattr(LocalFile, name, self._failing(name, getattr(LocalFile, name)))

    def _failing(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: LocalFile, *arguments: Any) -> Any:
            if file.name == self.path:
                number, self.calls = self.calls, self.calls + 1
                if self.at is not None and (number == self.at or (self.for_good and number > self.at)):
                    self.injected += 1
                    if self.short and name == "write_at":
                        data, offset = arguments
                        half = (offset + len(data) // 2) // UNIT * UNIT - offset
                        original(file, memoryview(data).cast("B")[: max(0, half)], offset)
                    raise OSError(self.number, os.strerror(self.number), self.path)
            return original(file, *arguments)

        return call

    @contextlib.contextmanager
    def in_call(self, at: int, number: int, *, for_good: bool, short: bool) -> Iterator[None]:
        self.at, self.number, self.for_good, self.short = at, number, for_good, short
        self.calls = self.injected = 0
        try:
            yield
        finally:
            self.at = None


class FixedProgram:
    """Two sessions on one file; the model is told what is about to be written, and what was flushed."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        self.model = Model(bytearray(content))
        self.image: pyvhdx.VHDXImage | None = None
        self.number = 0

    def run(self) -> None:
        for session in range(2):
            self.image = pyvhdx.open(self.path, "r+")
            for step in range(4):
                self._write(step * MIB + 8192, 8192)
                self._write((step + 4) * MIB, MIB)
                self._write(step * 2 * MIB + MIB - 1024, 2048)
                self._zero((step + 3) * MIB)
                # Three of the large ones fill the log, and it begins anew.
                self._item(bytes([self.number]) * (300_000 if session and step < 3 else 100))
                self._flush()
            self._close()

    def _write(self, offset: int, length: int) -> None:
        assert self.image is not None
        self.number += 1
        data = patterns(self.number, offset // UNIT, length // UNIT)
        self.model.write(data, offset, 0)
        self.image.pwrite(data, offset)

    def _zero(self, offset: int) -> None:
        assert self.image is not None
        self.model.write(bytes(MIB), offset, 0)
        if self.image.kind == "fixed":
            self.image.write_zeroes(offset, MIB)
        else:
            self.image.trim(offset, MIB, TrimMode.ZERO)

    def _item(self, data: bytes) -> None:
        assert self.image is not None
        self.model.write_item(data, 0)
        self.image.user_metadata[ITEM] = data

    def _flush(self) -> None:
        assert self.image is not None
        turn = self.model.begin_flush()
        self.image.flush()
        self.model.acknowledge(turn, 0)

    def _close(self) -> None:
        assert self.image is not None
        turn = self.model.begin_flush()
        self.image.close()
        self.model.acknowledge(turn, 0)


def made(folder: Path, kind: str) -> tuple[bytes, bytes]:
    """Return a file with a pending log, and what its disk reads as."""
    path = folder / "disk.vhdx"
    if kind == "differencing":
        with pyvhdx.create(folder / "parent.vhdx", SIZE, block_size=MIB, sync=False) as image:
            image.write(patterns(0xFFFF, 0, SIZE // UNIT))
        image = pyvhdx.create(path, parent=folder / "parent.vhdx", sync=False)
    else:
        image = pyvhdx.create(path, SIZE, kind=kind, block_size=MIB, sync=False)
    image.pwrite(patterns(1, 0, 64), 0)
    image.pwrite(patterns(2, 5 * MIB // UNIT, 2048), 5 * MIB)
    image.flush()
    content = image.pread(SIZE, 0)
    image._writer = None  # a process that died
    image.close()
    data = path.read_bytes()
    path.unlink()
    return data, content


@pytest.mark.slow
@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("kind", ["dynamic", "differencing", "fixed"])
def test_in_every_call_of_a_fixed_program(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, content = made(tmp_path, kind)
    is_long = os.environ.get("PYVHDX_TEST_PROFILE") == "long"
    if kind == "fixed" and not is_long:
        pytest.skip("its calls are among those of the others; PYVHDX_TEST_PROFILE=long runs it")
    path = tmp_path / "disk.vhdx"
    faults = Faults(path, monkeypatch)
    path.write_bytes(data)
    FixedProgram(path, content).run()
    calls = faults.calls
    counts = Counter[str]()
    for way, (number, for_good, short) in enumerate(WAYS):
        for at in range(calls) if is_long else range(5 * way, calls, 5 * len(WAYS)):
            path.write_bytes(data)
            program = FixedProgram(path, content)
            with faults.in_call(at, number, for_good=for_good, short=short):
                _run_into_the_fault(program)
            assert program.image is None or program.image.closed
            counts[f"{os.strerror(number)}, {'for good' if for_good else 'once'}"] += 1
            assert faults.injected > 0
            _judge(program)
    print(f"{kind}: {calls} calls, {sum(counts.values())} faults, {dict(counts)}")


def _run_into_the_fault(program: FixedProgram) -> None:
    """Run, and close what is open, as a program does; only the fault itself may come up, and once at close."""
    try:
        program.run()
    except OSError as error:
        assert not isinstance(error, pyvhdx.VHDXError), "a fault has a cause of its own"
    image = program.image
    if image is None or image.closed:
        return
    with contextlib.suppress(OSError, pyvhdx.ImageFailedError):
        image.close()
    image.close()  # once is enough


def _judge(program: FixedProgram) -> None:
    """The file opens, also for writing, shows what was acknowledged, and takes new writes."""
    before = program.path.read_bytes()
    examine(MemoryStorage(before), is_closed=False)
    with pyvhdx.open(program.path) as image:
        seen = image.pread(SIZE, 0)
    assert program.path.read_bytes() == before
    with pyvhdx.open(program.path, "r+") as image:  # the lock is free
        assert image.pread(SIZE, 0) == seen
        program.model.look(image, 0, is_new=True)
        image.pwrite(b"goes on", random.Random(program.number).randrange(SIZE - 7))
    with pyvhdx.open(program.path) as image:
        assert not image.warnings
