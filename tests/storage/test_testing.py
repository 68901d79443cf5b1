"""`pyvhdx.testing`: storages for users' tests."""

from __future__ import annotations

import errno

import pytest

import pyvhdx
from pyvhdx import testing
from pyvhdx.testing import Event, FailingStorage, MemoryStorage, RecordingStorage

MIB = 1 << 20


def test_a_recording_shows_what_happened_in_order() -> None:
    storage = RecordingStorage(MemoryStorage())
    storage.write_at(b"abc", 5)
    storage.flush()
    storage.truncate(100)
    storage.reserve(0, 10)
    assert storage.events == [
        Event("write", 5, 3, b"abc"),
        Event("flush"),
        Event("truncate", 0, 100),
        Event("reserve", 0, 10),
    ]
    assert storage.count("flush") == 1


def test_a_failing_storage_fails_once_or_for_good() -> None:
    once = FailingStorage(MemoryStorage(), 1)
    once.write_at(b"a", 0)
    with pytest.raises(OSError, match="Input/output") as caught:
        once.write_at(b"b", 0)
    assert caught.value.errno == errno.EIO
    once.write_at(b"c", 1)
    assert (once.read_at(9, 0), once.calls) == (b"ac", 3)
    dead = FailingStorage(MemoryStorage(), 0, KeyboardInterrupt, for_good=True)
    with pytest.raises(KeyboardInterrupt):
        dead.write_at(b"a", 0)
    with pytest.raises(KeyboardInterrupt):
        dead.flush()
    assert dead.size() == 0


def test_memory_takes_room_for_what_was_written_only() -> None:
    storage = MemoryStorage(name="a disk")
    with pyvhdx.create(storage, 64 << 40, block_size=MIB, sync=False) as image:
        image.pwrite(b"x", (64 << 40) - 1)
        assert image.name == "a disk"
    assert storage.size() > 500 * MIB
    assert storage.allocated() < 8 * MIB
    assert storage.next_data(storage.size()) is None
    with pyvhdx.open(storage) as image:
        assert image.pread(1, (64 << 40) - 1) == b"x"


def test_all_of_it_is_public() -> None:
    assert sorted(testing.__all__) == [
        "Event",
        "FailingStorage",
        "MemoryStorage",
        "RecordingStorage",
        "Storage",
    ]
