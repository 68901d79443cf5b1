"""
What reaches the medium before what, and how many barriers that costs.

Each test reads like a sentence about one program.  All sessions run under the `Checker`, which knows
the rules; here stand the exact traces.  Equal neighbours in a trace are written once.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

import pyvhdx
from pyvhdx import TrimMode
from pyvhdx.testing import FailingStorage, MemoryStorage, RecordingStorage
from tests.corpus.broken import entry, logged
from tests.corpus.handmade import sealed
from tests.writing.checker import SLOTS, Content, content_of, current_header
from tests.writing.watching import Watched, made

MIB = 1 << 20
BEGIN = ["header", "flush"]
FIRST_COMMIT = ["log", "flush", "header", "flush", "header"]
ITEM = uuid.UUID(int=0x17E4)


def with_data(
    *blocks: int, size: int = 64 << 20, block_size: int = MIB, kind: str = "dynamic"
) -> MemoryStorage:
    """Return an image whose *blocks* hold data; it was closed."""
    storage = made(size, block_size=block_size, kind=kind)
    with pyvhdx.open(storage, "r+") as image:
        for block in blocks:
            image.pwrite(bytes([block + 1]) * block_size, block * block_size)
    return storage


def child_with_data(folder: Path, *sectors: int) -> tuple[MemoryStorage, str]:
    """Return the child of an image full of ones, with data in some *sectors* of block 0; and its parent."""
    parent, child = str(folder / "parent.vhdx"), str(folder / "child.vhdx")
    with pyvhdx.create(parent, 8 * MIB, block_size=MIB, lock=False, sync=False) as image:
        image.pwrite(b"\1" * 8 * MIB, 0)
    with pyvhdx.create(child, parent=parent, lock=False, sync=False) as image:
        for sector in sectors:
            image.pwrite(b"\2" * 512, 512 * sector)
    return MemoryStorage(Path(child).read_bytes()), parent


class TestFirstChange:
    """The headers are updated before any other part of the file. (MS-VHDX 2.2.2.1)"""

    def test_one_barrier_lies_between_the_header_and_everything_else(self) -> None:
        with Watched(made()) as watched:
            watched.image.pwrite(b"a" * 4096, 0)
            assert watched.operations() == [*BEGIN, "grow", "payload"]

    def test_it_has_new_guids(self) -> None:
        with Watched(with_data(0)) as watched:
            before = watched.image.file_write_guid, watched.image.data_write_guid
            watched.image.pwrite(b"a", 0)
            _, header = current_header(watched.checker.now)
            assert watched.image.file_write_guid not in before
            assert watched.image.data_write_guid not in before
            watched.follow()
            _, header = current_header(watched.checker.durable)
            assert header.data_write_guid == watched.image.data_write_guid.bytes_le

    def test_an_invisible_one_keeps_the_data_write_guid(self) -> None:
        storage = with_data(0, 1)
        with pyvhdx.open(storage, "r+") as image:
            image.trim(0, MIB, TrimMode.FILE_SPACE)
        with Watched(storage) as watched:
            files, data = watched.image.file_write_guid, watched.image.data_write_guid
            watched.image.trim(0, 64 * MIB, TrimMode.REMOVE_SOFT_ANCHORS)
            assert watched.operations() == BEGIN
            assert watched.image.file_write_guid != files
            assert watched.image.data_write_guid == data
            watched.close(is_visible=False)

    def test_a_visible_one_after_an_invisible_one_is_announced(self) -> None:
        storage = with_data(0, 1)
        with pyvhdx.open(storage, "r+") as image:
            image.trim(0, MIB, TrimMode.FILE_SPACE)
        with Watched(storage) as watched:
            data = watched.image.data_write_guid
            watched.image.trim(0, 64 * MIB, TrimMode.REMOVE_SOFT_ANCHORS)
            watched.image.flush()
            assert watched.operations() == [*BEGIN, *FIRST_COMMIT, "bat"]
            watched.image.pwrite(b"a", MIB)
            # The twin of the last header was not durable yet.
            assert watched.operations() == ["flush", "header", "flush", "payload"]
            assert watched.image.data_write_guid != data

    def test_no_change_leaves_the_file_alone(self) -> None:
        storage = with_data(0)
        before = content_of(storage.read_at, storage.size())
        with Watched(storage) as watched:
            watched.image.pwrite(b"", 0)
            watched.image.write_zeroes(5 * MIB, MIB)
            watched.image.trim(0, 512, TrimMode.ZERO)
            watched.image.trim(0, 64 * MIB, TrimMode.REMOVE_SOFT_ANCHORS)
            watched.image.trim(2 * MIB, MIB, TrimMode.MAKE_TRANSPARENT)
            watched.image.flush()
        assert watched.storage.events == []
        assert content_of(storage.read_at, storage.size()) == before


class TestFirstCommit:
    """The first entry is durable before a header names its log, and that header is the commit point."""

    def test_a_write_into_a_new_block(self) -> None:
        with Watched(made()) as watched:
            watched.image.pwrite(b"a" * 4096, 0)
            watched.operations()
            watched.image.flush()
            assert watched.operations() == [*FIRST_COMMIT, "bat"]

    def test_it_costs_two_barriers(self) -> None:
        with Watched(made()) as watched:
            watched.image.pwrite(b"a" * 4096, 0)
            assert watched.barriers() == 1
            watched.image.flush()
            assert watched.barriers() == 2

    def test_so_do_a_thousand_writes_into_a_thousand_blocks(self) -> None:
        with Watched(made(2048 * MIB, block_size=MIB)) as watched:
            watched.image.pwrite(b"a" * 4096, 0)
            watched.barriers()
            for block in range(1, 1000):
                watched.image.pwrite(b"a" * 4096, block * MIB)
            watched.image.flush()
            assert watched.barriers() == 2
            assert watched.image.pread(4097, 999 * MIB) == b"a" * 4096 + b"\0"

    def test_one_without_payload_costs_two_as_well(self) -> None:
        with Watched(with_data(0)) as watched:
            watched.image.trim(0, MIB)
            assert watched.operations() == BEGIN
            watched.image.flush()
            assert watched.operations() == [*FIRST_COMMIT, "bat"]


class TestLaterCommit:
    """Payload, barrier, entry, barrier: the commit point. Pages are put in place at any time after it."""

    def test_a_write_into_a_new_block(self) -> None:
        with Watched(with_data(0)) as watched:
            watched.image.trim(0, MIB)
            watched.image.flush()
            watched.operations()
            watched.image.pwrite(b"a" * 4096, 5 * MIB)
            watched.image.flush()
            assert watched.operations() == ["payload", "flush", "log", "flush", "bat"]

    def test_it_costs_two_barriers(self) -> None:
        with Watched(made()) as watched:
            for number in range(4):
                watched.image.pwrite(b"a" * 4096, number * 4 * MIB)
                watched.image.flush()
                assert watched.barriers() == (3 if number == 0 else 2)

    def test_so_do_a_thousand_writes_into_a_thousand_blocks(self) -> None:
        with Watched(made(2048 * MIB, block_size=MIB)) as watched:
            watched.image.pwrite(b"a" * 4096, 1900 * MIB)
            watched.image.flush()
            watched.barriers()
            for block in range(1000):
                watched.image.pwrite(b"a" * 4096, block * MIB)
            watched.image.flush()
            assert watched.barriers() == 2

    def test_one_that_only_grew_the_file_and_filled_it_is_in_that_order(self) -> None:
        with Watched(with_data(0)) as watched:
            watched.image.pwrite(b"a", 0)
            watched.image.flush()
            watched.operations()
            watched.image.pwrite(b"a" * MIB, 5 * MIB)
            watched.image.flush()
            assert watched.operations() == ["grow", "payload", *FIRST_COMMIT, "bat"]

    def test_a_trim_costs_one_barrier(self) -> None:
        with Watched(with_data(0, 1)) as watched:
            watched.image.pwrite(b"a", 5 * MIB)
            watched.image.flush()
            watched.operations()
            watched.image.trim(0, MIB)
            watched.image.flush()
            assert watched.operations() == ["log", "flush", "bat"]

    def test_a_user_item_costs_one_barrier(self) -> None:
        with Watched(with_data(0, 1)) as watched:
            watched.image.pwrite(b"a", 5 * MIB)
            watched.image.flush()
            watched.operations()
            watched.image.user_metadata[ITEM] = b"an item"
            watched.image.flush()
            assert watched.operations() == ["log", "flush", "metadata"]

    def test_zeroes_over_a_whole_block_write_no_payload(self) -> None:
        with Watched(with_data(0, 1)) as watched:
            watched.image.write_zeroes(0, MIB)
            watched.image.flush()
            assert watched.operations() == [*BEGIN, *FIRST_COMMIT, "bat"]


class TestWritesInPlace:
    """A block that is there is written where it lies, without the log."""

    def test_a_flush_costs_one_barrier(self) -> None:
        with Watched(with_data(0)) as watched:
            watched.image.pwrite(b"a", 100)
            assert watched.operations() == [*BEGIN, "payload"]
            watched.image.flush()
            assert watched.operations() == ["flush"]

    def test_a_flush_with_nothing_to_do_costs_none(self) -> None:
        with Watched(with_data(0)) as watched:
            watched.image.flush()
            watched.image.pwrite(b"a", 100)
            watched.image.flush()
            watched.operations()
            watched.image.flush()
            watched.image.flush()
            assert watched.operations() == []

    def test_a_fixed_disk_needs_no_log(self) -> None:
        with Watched(made(8 * MIB, kind="fixed", block_size=MIB)) as watched:
            watched.image.pwrite(b"a" * 3 * MIB, 100)
            watched.image.write_zeroes(MIB, 2 * MIB)
            watched.image.flush()
            assert watched.operations() == [*BEGIN, "payload", "flush"]


class TestFreedSpace:
    """A range that a change freed is used again only when that change is durable in the log."""

    def test_it_is_not_free_before_the_commit(self) -> None:
        with Watched(with_data(0, 1)) as watched:
            watched.image.trim(0, MIB)
            watched.image.pwrite(b"a" * MIB, 5 * MIB)
            assert watched.operations() == [*BEGIN, "grow", "payload"]

    def test_it_is_free_after_the_commit(self) -> None:
        with Watched(with_data(0, 1)) as watched:
            watched.image.trim(0, MIB)
            watched.image.flush()
            watched.operations()
            watched.image.pwrite(b"a" * 512, 5 * MIB)
            watched.image.flush()
            assert watched.operations() == ["payload", "flush", "log", "flush", "bat"]
            assert watched.image.pread(MIB, 5 * MIB) == b"a" * 512 + bytes(MIB - 512)

    def test_a_block_takes_its_own_anchor_back_at_once(self) -> None:
        with Watched(with_data(0, 1)) as watched:
            watched.image.trim(0, MIB, TrimMode.FILE_SPACE)
            watched.image.pwrite(b"a" * 512, 512)
            watched.image.flush()
            assert watched.operations() == [*BEGIN, "payload", *FIRST_COMMIT, "bat"]
            assert watched.image.pread(MIB, 0) == bytes(512) + b"a" * 512 + bytes(MIB - 1024)

    def test_another_block_takes_an_anchor_when_its_clearing_is_durable(self) -> None:
        storage = with_data(0, 1)
        with pyvhdx.open(storage, "r+") as image:
            image.trim(0, MIB, TrimMode.FILE_SPACE)
        with Watched(storage) as watched:
            watched.image.pwrite(b"a" * 512, 5 * MIB)
            watched.image.flush()
            assert watched.operations() == [
                *[*BEGIN, *FIRST_COMMIT, "bat"],
                *["payload", "flush", "log", "flush", "bat"],
            ]

    def test_what_lies_behind_the_last_block_is_not_taken_for_zeros(self) -> None:
        storage = with_data(0)
        storage.write_at(b"x" * 4 * MIB, storage.size())
        with Watched(storage) as watched:
            watched.image.pwrite(b"a" * 512, 5 * MIB + 512)
            assert watched.operations() == [*BEGIN, "payload"]
            assert watched.image.pread(MIB, 5 * MIB) == bytes(512) + b"a" * 512 + bytes(MIB - 1024)

    def test_what_the_file_gained_in_this_session_is(self) -> None:
        with Watched(with_data(0)) as watched:
            watched.image.pwrite(b"a" * 512, 5 * MIB + 512)
            payload = [event for event in watched.storage.events if event.kind == "write"][1:]
            assert [event.length for event in payload] == [512]


class TestDifferencing:
    """The bits of a block go with its entry, behind its payload."""

    def test_a_first_sector(self, tmp_path: Path) -> None:
        storage, parent = child_with_data(tmp_path)
        with Watched(storage, parent=parent) as watched:
            watched.image.pwrite(b"a" * 512, 512)
            watched.image.flush()
            operations = watched.operations()
            # The entries of block and bitmap and the bits are pages of one entry, put in place in any order.
            assert operations[:9] == [*BEGIN, "grow", "payload", *FIRST_COMMIT]
            assert set(operations[9:]) == {"bat", "bitmap"}
            assert watched.image.pread(1536, 0) == b"\1" * 512 + b"a" * 512 + b"\1" * 512

    def test_another_sector_of_a_block(self, tmp_path: Path) -> None:
        storage, parent = child_with_data(tmp_path, 5)
        with Watched(storage, parent=parent) as watched:
            watched.image.pwrite(b"a" * 512, 0)
            watched.image.flush()
            assert watched.operations() == [*BEGIN, "payload", *FIRST_COMMIT, "bitmap"]

    def test_a_part_of_a_sector_is_completed_from_the_parent(self, tmp_path: Path) -> None:
        storage, parent = child_with_data(tmp_path, 5)
        with Watched(storage, parent=parent) as watched:
            watched.image.pwrite(b"a", 100)
            payload = [event for event in watched.storage.events if event.kind == "write"][-1]
            assert payload.data == b"\1" * 100 + b"a" + b"\1" * 411
            watched.image.flush()
            assert watched.operations() == [*BEGIN, "payload", *FIRST_COMMIT, "bitmap"]

    def test_a_sector_that_is_there_changes_no_page(self, tmp_path: Path) -> None:
        storage, parent = child_with_data(tmp_path, 5)
        with Watched(storage, parent=parent) as watched:
            watched.image.pwrite(b"a", 512 * 5 + 100)
            watched.image.flush()
            assert watched.operations() == [*BEGIN, "payload", "flush"]

    def test_the_whole_block_clears_its_bits(self, tmp_path: Path) -> None:
        storage, parent = child_with_data(tmp_path, 5)
        with Watched(storage, parent=parent) as watched:
            watched.image.pwrite(b"a" * MIB, 0)
            watched.image.flush()
            operations = watched.operations()
            assert operations[:-2] == [*BEGIN, "payload", *FIRST_COMMIT]
            assert sorted(operations[-2:]) == ["bat", "bitmap"]


class TestFullLog:
    """A log never wraps: it is ended, and a new one begins."""

    def test_the_commit_that_restarts_it_costs_four_barriers(self) -> None:
        with Watched(made(1024 * MIB, block_size=MIB)) as watched:
            costs = []
            for block in range(200):
                watched.image.pwrite(b"a" * 512, block * MIB)
                watched.image.flush()
                costs.append(watched.barriers())
            assert costs[0] == 3  # and the session's first header
            assert set(costs[1:]) == {2, 4}
            # 255 of 256 sectors, two for each entry.
            assert costs.index(4) == 127

    def test_everything_is_in_place_before_it_ends(self) -> None:
        with Watched(made(1024 * MIB, block_size=MIB)) as watched:
            for block in range(127):
                watched.image.pwrite(b"a" * 512, block * MIB)
                watched.image.flush()
            watched.image.pwrite(b"a" * 512, 500 * MIB)
            watched.operations()
            watched.image.flush()
            assert watched.operations() == ["flush", "header", "flush", *FIRST_COMMIT, "bat"]


class TestClose:
    """A closed file has two equal headers and no log."""

    def test_after_a_log_it_costs_three_barriers(self) -> None:
        watched = Watched(with_data(0))
        watched.image.pwrite(b"a", 5 * MIB)
        watched.image.flush()
        watched.operations()
        watched.close()
        assert watched.operations() == ["flush", "header", "flush", "header", "cut", "flush"]

    def test_without_a_log_it_costs_two_at_most(self) -> None:
        watched = Watched(with_data(0))
        watched.image.pwrite(b"a", 0)
        watched.operations()
        watched.close()
        assert watched.operations() in (["header", "flush"], ["flush", "header", "flush"])

    def test_it_commits_what_waits(self) -> None:
        watched = Watched(with_data(0))
        watched.image.pwrite(b"a", 5 * MIB)
        watched.operations()
        watched.close()
        assert watched.operations() == [
            *FIRST_COMMIT,
            "bat",
            "flush",
            "header",
            "flush",
            "header",
            "cut",
            "flush",
        ]

    def test_headers_alternate_to_the_end(self) -> None:
        storage = with_data(0)
        with Watched(storage) as watched:
            for block in range(3, 6):
                watched.image.pwrite(b"a", block * MIB)
                watched.image.flush()
        places = [event.offset for event in watched.storage.events if event.offset in SLOTS]
        assert all(one != other for one, other in zip(places, places[1:], strict=False))


class TestReplay:
    """A log that a dead program left is replayed into the file before anything else. (MS-VHDX 2.3.3)"""

    def left_by_a_dead_program(self) -> MemoryStorage:
        storage = with_data(0, 1)
        watched = Watched(storage)
        watched.image.pwrite(b"a" * 512, 5 * MIB)
        watched.image.flush()
        watched.image.trim(0, MIB)
        watched.image.flush()
        durable = watched.checker.durable
        watched.die()
        left = MemoryStorage(durable.read(0, durable.size))
        assert current_header(durable)[1].log_guid != bytes(16)
        return left

    def test_headers_stand_around_the_pages(self) -> None:
        watched = Watched(self.left_by_a_dead_program())
        data = watched.image.data_write_guid
        assert watched.operations() == [*BEGIN, "bat", "flush", "header", "flush", "header", "flush"]
        assert watched.image.pread(MIB, 5 * MIB) == b"a" * 512 + bytes(MIB - 512)
        assert watched.image.pread(MIB, 0) == bytes(MIB)
        watched.close()
        assert watched.operations() == []
        assert watched.image.data_write_guid == data

    def test_a_session_follows(self) -> None:
        with Watched(self.left_by_a_dead_program()) as watched:
            watched.operations()
            watched.image.pwrite(b"b" * 512, 7 * MIB)
            watched.image.flush()
            assert watched.operations() == [*BEGIN, "payload", *FIRST_COMMIT, "bat"]

    def test_nothing_is_replayed_for_reading(self) -> None:
        storage = RecordingStorage(self.left_by_a_dead_program())
        with pyvhdx.open(storage) as image:
            assert image.pread(512, 5 * MIB) == b"a" * 512
        assert storage.events == []


class TestWithoutBarriers:
    """``sync=False`` leaves out the barriers, and keeps the order of the writes."""

    def test_the_same_writes(self) -> None:
        traces = []
        for sync in (True, False):
            storage = RecordingStorage(with_data(0))
            with pyvhdx.open(storage, "r+", sync=sync) as image:
                image.pwrite(b"a", 5 * MIB)
                image.flush()
                image.trim(0, MIB)
            traces.append([event[:3] for event in storage.events if event.kind not in ("flush", "reserve")])
        assert traces[0] == traces[1]
        assert storage.count("flush") == 0


@pytest.mark.parametrize("page", [0, 1, 5])
def test_content_is_what_was_written(page: int) -> None:
    """The checker's own file is a file."""
    at = page * 4096 + 7
    content, plain = Content(b"x" * 10000), bytearray(b"x" * 10000).ljust(max(10000, at + 9000), b"\0")
    content.write(at, b"abc" * 3000)
    plain[at : at + 9000] = b"abc" * 3000
    assert content.read(0, content.size) == plain
    content.truncate(5000)
    content.truncate(9000)
    assert content.read(0, 9000) == plain[:5000] + bytes(4000)


def test_a_new_log_is_in_the_file_before_a_header_says_where_it_is() -> None:
    """A file that came without one gets it behind its other parts."""
    storage = made()
    for at in SLOTS:
        header = bytearray(storage.read_at(4096, at))
        header[68:80] = bytes(12)
        storage.write_at(sealed(bytes(header)), at)
    recording = RecordingStorage(storage)
    with pyvhdx.open(recording, "r+") as image:
        image.pwrite(b"x", 0)
    named = next(
        number
        for number, event in enumerate(recording.events)
        if event.offset in SLOTS and event.length == 4096 and any(event.data[68:80])
    )
    place = int.from_bytes(recording.events[named].data[72:80], "little")
    zeros = next(number for number, event in enumerate(recording.events) if event.offset == place)
    assert recording.events[zeros].data == bytes(MIB)
    assert "flush" in [event.kind for event in recording.events[zeros:named]]
    assert recording.events[named + 1].kind == "flush"


def test_a_replay_makes_the_file_as_long_as_its_last_entry_says(tmp_path: Path) -> None:
    """Before the log ends.  In logs of others a page may lie there, or nothing at all."""
    path = logged(entry(last=9 * MIB)).write(tmp_path / "disk.vhdx").path
    recording = RecordingStorage(MemoryStorage(path.read_bytes()))
    pyvhdx.open(recording, "r+").close()
    kinds = [event.kind for event in recording.events]
    assert recording.size() == 9 * MIB
    grown = kinds.index("truncate")
    assert kinds[:grown] == ["write", "flush"]
    assert kinds[grown + 1 :].count("flush") == 3  # everything applied, the log's end, its twin


class TestFailure:
    def places(self, image: pyvhdx.VHDXImage, block: int) -> int | None:
        return next(image.extents(block * MIB, MIB)).file_offset

    def fail(self, storage: FailingStorage, image: pyvhdx.VHDXImage, block: int) -> int:
        """Let each call of a write fail in turn, until it is through; return how often it failed."""
        for number in range(20):
            storage.at = (
                storage.calls + number % 2 if number < 8 else None
            )  # what came through needs no second time
            try:
                image.pwrite(b"x" * 4096, block * MIB)
            except OSError:
                continue
            storage.at = None
            return number
        raise AssertionError("it never came through")

    def test_what_a_failed_write_took_goes_back(self) -> None:
        with pyvhdx.open(with_data(0, 1), "r+") as image:
            image.pwrite(b"x" * 4096, 5 * MIB)
            expected = self.places(image, 5)
        storage = FailingStorage(with_data(0, 1), None)
        with pyvhdx.open(storage, "r+") as image:
            image.pwrite(b"y", 0)
            assert self.fail(storage, image, 5) > 0
            assert self.places(image, 5) == expected

    def test_the_place_of_a_block_stays_its_own_when_a_write_into_it_fails(self) -> None:
        storage = FailingStorage(with_data(0, 1), None)
        with pyvhdx.open(storage, "r+") as image:
            place = self.places(image, 0)
            image.pwrite(b"y", 2 * MIB)  # the file has free space now: no anchor is taken over for want of it
            image.trim(0, MIB, TrimMode.FILE_SPACE)
            image.flush()
            storage.at = storage.calls
            with pytest.raises(OSError, match="Input/output"):
                image.pwrite(b"x" * 4096, 0)
            storage.at = None
            image.pwrite(b"z", 3 * MIB)
            assert self.places(image, 3) != place
            image.pwrite(b"x" * 4096, 0)
            assert self.places(image, 0) == place

    def test_nothing_is_written_after_a_commit_that_failed(self) -> None:
        recording = RecordingStorage(made())
        storage = FailingStorage(recording, None)
        image = pyvhdx.open(storage, "r+")
        image.pwrite(b"x", 0)
        storage.at = storage.calls  # the log entry
        with pytest.raises(OSError, match="Input/output"):
            image.flush()
        events = len(recording.events)
        for change in (lambda: image.pwrite(b"y", 0), image.flush, lambda: image.trim(0, MIB), image.close):
            with pytest.raises(pyvhdx.ImageFailedError):
                change()
        assert len(recording.events) == events
