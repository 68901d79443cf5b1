"""`pyvhdx.testing`: storages for users' tests."""

from __future__ import annotations

import errno
import random

import pytest

import pyvhdx
from pyvhdx import testing
from pyvhdx.testing import Event, FailingStorage, MemoryStorage, PowerCut, RecordingStorage

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


def test_a_short_write_leaves_its_first_half_in_whole_units() -> None:
    memory = MemoryStorage(bytes(2048))
    storage = FailingStorage(memory, 0, short=True)
    with pytest.raises(OSError, match="Input/output"):
        storage.write_at(b"x" * 1024, 512)
    assert memory.read_at(2048, 0) == bytes(512) + b"x" * 512 + bytes(1024)
    storage.at = storage.calls
    with pytest.raises(OSError, match="Input/output"):
        storage.write_at(b"y" * 512, 1024)
    assert memory.read_at(512, 1024) == bytes(512)


class TestPowerCut:
    EVENTS = (
        Event("write", 0, 2048, b"a" * 2048),
        Event("flush"),
        Event("write", 512, 1024, b"b" * 1024),
        Event("truncate", 0, 8192),
        Event("write", 1024, 1024, b"c" * 1024),
        Event("flush"),
    )

    def left(self, cut: int) -> set[bytes]:
        cuts = PowerCut(MemoryStorage(), self.EVENTS)
        draw = random.Random(1)
        return {(left := cuts.after(cut, draw)).read_at(left.size(), 0) for _ in range(500)}

    def test_keeps_what_a_flush_covered(self) -> None:
        assert self.left(2) == {b"a" * 2048}
        assert self.left(6) == {b"a" * 512 + b"b" * 512 + b"c" * 1024 + bytes(6144)}

    def test_leaves_each_unit_old_or_new(self) -> None:
        contents = self.left(3)
        assert {content[:512] for content in contents} == {b"a" * 512}
        assert {content[512:1536] for content in contents} == {
            one * 512 + other * 512 for one in (b"a", b"b") for other in (b"a", b"b")
        }

    def test_leaves_any_version_of_a_unit_that_was_written_twice(self) -> None:
        contents = self.left(5)
        assert {content[1024:1536] for content in contents} == {b"a" * 512, b"b" * 512, b"c" * 512}
        assert {2048, 8192} < {len(content) for content in contents}

    def test_may_lose_everything_before_the_first_flush(self) -> None:
        assert b"" in self.left(1)
        assert b"a" * 2048 in self.left(1)

    def test_a_part_of_a_unit_takes_along_what_was_written_beside_it(self) -> None:
        events = [Event("write", 0, 100, b"a" * 100), Event("write", 100, 100, b"b" * 100)]
        cuts = PowerCut(MemoryStorage(bytes(512)), events)
        draw = random.Random(1)
        left = {cuts.after(2, draw).read_at(200, 0) for _ in range(200)}
        assert left == {bytes(200), b"a" * 100 + bytes(100), b"a" * 100 + b"b" * 100}

    def test_knows_no_moments_outside_the_recording(self) -> None:
        cuts = PowerCut(MemoryStorage(), [Event("flush")])
        for cut in (-1, 2):
            with pytest.raises(ValueError, match="1 events"):
                cuts.after(cut, random.Random(0))

    def test_goes_back(self) -> None:
        cuts = PowerCut(MemoryStorage(), self.EVENTS)
        assert [len(cuts.pending(cut)) for cut in (6, 5, 2, 0, 1)] == [0, 3, 0, 0, 1]


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
        "PowerCut",
        "RecordingStorage",
        "Storage",
    ]
