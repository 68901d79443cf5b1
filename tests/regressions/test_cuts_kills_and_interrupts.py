"""What an adversary found who cut the power, killed processes and pressed Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import struct
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

import pyvhdx
from pyvhdx.testing import FailingStorage, MemoryStorage, PowerCut, RecordingStorage
from tests.corpus.handmade import BAT, sealed

MIB = 1 << 20
BLOCK = 256 * MIB


def test_a_bat_page_that_the_end_of_the_file_cuts_is_logged_whole() -> None:
    """The BAT lies at the end of a file of more than 4 GiB, and the file ends behind its last entry."""
    storage = MemoryStorage()
    pyvhdx.create(storage, 18 * BLOCK, block_size=BLOCK).close()
    bat = 4 * MIB + 17 * BLOCK
    for at in (0x30000, 0x40000):
        table = bytearray(storage.read_at(65536, at))
        struct.pack_into("<Q", table, table.find(BAT.bytes_le) + 16, bat)
        storage.write_at(sealed(bytes(table)), at)
    for block in range(17):
        entry = 4 * MIB + block * BLOCK | 6
        storage.write_at(struct.pack("<Q", entry), bat + 8 * (block + block // 16))
        storage.write_at(b"block %2d" % block, 4 * MIB + block * BLOCK)
    storage.truncate(bat + 8 * 19)
    before, recording = storage.copy(), RecordingStorage(storage)
    with pyvhdx.open(recording, "r+") as image:
        image.pwrite(b"acknowledged", 17 * BLOCK)
        image.flush()
        flushed = len(recording.events)
    cuts = PowerCut(before, recording.events)
    for seed in range(8):
        with pyvhdx.open(cuts.after(flushed, random.Random(seed)), "r+") as image:
            assert image.pread(12, 17 * BLOCK) == b"acknowledged"
            assert image.pread(8, 16 * BLOCK) == b"block 16"


def test_headers_with_reserved_bytes_are_never_both_on_their_way() -> None:
    """A process is killed behind its first header, the next one writes the other: one of them stays whole."""
    storage = MemoryStorage()
    pyvhdx.create(storage, 8 * MIB, block_size=MIB).close()
    for at in (0x10000, 0x20000):
        header = storage.read_at(80, at) + b"\xa5" * 4016
        storage.write_at(sealed(header), at)
    before, recording = storage.copy(), RecordingStorage(storage)
    image = pyvhdx.open(FailingStorage(recording, 3, for_good=True), "r+")
    with pytest.raises(OSError, match="Input/output"):
        image.pwrite(b"x", 0)
    with pytest.raises(pyvhdx.ImageFailedError):
        image.close()
    assert [event.kind for event in recording.events] == ["reserve", "flush", "write"]
    with pyvhdx.open(recording, "r+") as image:
        image.pwrite(b"y", 0)
    cuts = PowerCut(before, recording.events)
    for cut in range(len(recording.events) + 1):
        for seed in range(30):
            pyvhdx.open(cuts.after(cut, random.Random(seed))).close()


class _NoLonger(RecordingStorage):
    """A medium on which the file can get longer up to a limit."""

    limit = 0

    def truncate(self, size: int) -> None:
        if size > self.limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().truncate(size)


def test_a_write_in_place_needs_no_longer_file() -> None:
    """Also where the file ends inside its last MiB, as QEMU leaves fixed images."""
    storage = MemoryStorage()
    pyvhdx.create(storage, 2 * MIB + MIB // 2, block_size=MIB, kind="fixed").close()
    storage.truncate(storage.size() - MIB // 2)
    full = _NoLonger(storage)
    full.limit = storage.size()
    with pyvhdx.open(full, "r+") as image:
        image.pwrite(b"in place", 2 * MIB)
    with pyvhdx.open(storage) as image:
        assert image.pread(8, 2 * MIB) == b"in place"


def test_a_log_is_placed_where_there_is_room_for_it_and_no_more() -> None:
    storage = MemoryStorage()
    pyvhdx.create(storage, 4 * MIB, block_size=MIB, kind="fixed").close()
    for at in (0x10000, 0x20000):
        header = bytearray(storage.read_at(4096, at))
        header[68:80] = bytes(12)  # no log
        storage.write_at(sealed(bytes(header)), at)
    with pyvhdx.open(storage, "r+") as image:
        image.write_zeroes(0, 512)
    full = _NoLonger(storage)
    full.limit = storage.size() + MIB
    with pyvhdx.open(full, "r+") as image:
        image.user_metadata[uuid.uuid4()] = b"goes through the log"


_INTERRUPTED = """
import io, random, signal, sys, threading, pyvhdx
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
source = io.BytesIO() if sys.argv[1] == "object" else sys.argv[2]
with pyvhdx.create(source, 8 << 20, block_size=1 << 20) as image:
    image.pwrite(b"x" * (1 << 20), 0)
image = pyvhdx.open(source, "r+", sync=False)
image.pwrite(b"y", 0)
image.flush()
work = {
    "object": lambda: image.pread(4096, 0),
    "flush": image.flush,
    "pwrite": lambda: image.pwrite(b"z", 0),
    "holes": lambda: image._file.raw.next_data(0),
}[sys.argv[1]]
draw = random.Random(1)
for _ in range(150):
    try:
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-5, 4e-4))
        while True:
            work()
    except KeyboardInterrupt:
        pass
    except pyvhdx.ImageFailedError:  # one that came into a change
        break
signal.setitimer(signal.ITIMER_REAL, 0)
def end():
    image.pread(16, 0)
    try:
        image.flush()
    except pyvhdx.ImageFailedError:
        pass
thread = threading.Thread(target=end, daemon=True)
thread.start()
thread.join(20)
print("hangs" if thread.is_alive() else "goes on")
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
@pytest.mark.parametrize("work", ["object", "flush", "pwrite", "holes"])
def test_an_interrupt_leaves_no_lock_behind(work: str, tmp_path: Path) -> None:
    """Wherever it comes: 150 times within less than half a millisecond."""
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, work, tmp_path / "disk.vhdx"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        # A tool that measures coverage there has locks of its own, which an interrupt leaves behind.
        env={name: value for name, value in os.environ.items() if not name.startswith("COV")},
    )
    assert done.stdout == "goes on\n", done.stderr


def test_a_change_whose_end_was_interrupted_fails_the_image(tmp_path: Path) -> None:
    """Nobody knows whether it ended, so the image takes no more, and the file has what was flushed."""
    with pyvhdx.create(tmp_path / "disk.vhdx", 8 * MIB, block_size=MIB) as image:
        image.pwrite(b"flushed", 0)
        image.flush()
        session = image._writer.session  # type: ignore[union-attr]  # it is open for writing
        session.changing().__enter__()  # and the interrupt comes before its end
        with pytest.raises(pyvhdx.ImageFailedError, match="interrupted"):
            image.pwrite(b"more", 0)
        with contextlib.suppress(pyvhdx.ImageFailedError):
            image.close()
    with pyvhdx.open(tmp_path / "disk.vhdx") as image:
        assert image.pread(7, 0) == b"flushed"
