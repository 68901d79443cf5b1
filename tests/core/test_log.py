"""
Which entries of a log count, and what a replay shows. (MS-VHDX 2.3)

The logs are laid out by hand.  Pages of the BAT are logged, so that what was replayed shows as data.
"""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path
from typing import Any

import pytest

import pyvhdx
from pyvhdx._core.log_reader import Ring, read_log
from tests.corpus.handmade import BAT_AT, FULL, LOG_AT, METADATA_AT, MIB, Block, Image
from tests.corpus.handmade_logs import GUID, SECTOR, Entry, follow, page, ring

LENGTH = MIB
TARGET = 16 * MIB  # of pages whose content is looked at in the replayed file
FILE = 32 * MIB


def replay(log: bytes, file_size: int = FILE) -> dict[int, bytes]:
    """Return the pages that a replay of this log writes."""
    found = read_log(Ring(lambda size, at: log[at : at + size], 0, len(log)), GUID, file_size)
    return found.pages


def mark(number: int, at: int = 0) -> tuple[int, bytes]:
    return TARGET + SECTOR * at, page(number)


def write(tmp_path: Path, log: bytes, name: str = "disk.vhdx", **how: Any) -> Path:
    """Write an image of 20 blocks whose log is pending."""
    image = Image(
        20 * MIB, blocks={0: Block(FULL)}, log=log, log_guid=GUID, log_length=max(MIB, len(log)), **how
    )
    image.patches.append((FILE - 1, b"\0"))
    image.write(tmp_path / name)
    return tmp_path / name


def refused(log: bytes, file_size: int = FILE) -> pyvhdx.CorruptImageError:
    with pytest.raises(pyvhdx.CorruptImageError) as caught:
        replay(log, file_size)
    assert caught.value.section.startswith("2.3")
    return caught.value


class TestTheActiveSequence:
    """The log sequence is valid if it is complete, and the one with the greatest number is active. (2.3.3)"""

    def test_a_page_comes_back_whole(self) -> None:
        assert replay(ring(LENGTH, [(0, Entry(1, 0, [mark(7)]))])) == {TARGET: page(7)}

    def test_later_entries_come_over_earlier_ones(self) -> None:
        entries = [Entry(n, 0, [mark(n), mark(n, n)]) for n in (5, 6, 7)]
        assert replay(ring(LENGTH, follow(entries))) == dict([mark(7), mark(5, 5), mark(6, 6), mark(7, 7)])

    @pytest.mark.parametrize("start", range(LENGTH - 18 * SECTOR, LENGTH, SECTOR))
    def test_a_sequence_wraps_around_the_end_at_every_sector(self, start: int) -> None:
        """Position 0 lies in the middle of it; an entry itself may wrap too."""
        entries = [Entry(n, start, [mark(n), *(mark(n, 10 * n + k) for k in range(4))]) for n in (5, 6, 7)]
        expected = dict([mark(7), *(mark(n, 10 * n + k) for n in (5, 6, 7) for k in range(4))])
        assert replay(ring(LENGTH, follow(entries, start))) == expected

    def test_what_is_older_than_the_tail_is_not_replayed(self) -> None:
        """Space that older entries target may have been freed and reused since."""
        entries = [
            Entry(5, 0, [mark(5, 5)]),
            Entry(6, 2 * SECTOR, [mark(6, 6)]),
            Entry(7, 2 * SECTOR, [mark(7, 7)]),
        ]
        assert replay(ring(LENGTH, follow(entries))) == dict([mark(6, 6), mark(7, 7)])

    def test_older_sequences_before_and_behind_lose(self) -> None:
        old = follow([Entry(10, 0, [mark(1, 1)]), Entry(11, 0, [mark(2, 2)])])
        new = follow([Entry(50, 0x8000, [mark(3, 3)]), Entry(51, 0x8000, [mark(4, 4)])], 0x8000)
        behind = follow([Entry(30, 0x10000, [mark(5, 5)])], 0x10000)
        assert replay(ring(LENGTH, [*old, *behind, *new])) == dict([mark(3, 3), mark(4, 4)])

    def test_stale_entries_right_behind_the_newest_one_are_not_replayed(self) -> None:
        """QEMU does, and the BAT goes back in time."""
        new = Entry(90, 0, [mark(9)])
        stale = Entry(40, new.length, [mark(4), mark(4, 4)])
        assert replay(ring(LENGTH, follow([new, stale]))) == dict([mark(9)])

    def test_a_gap_in_the_numbers_ends_a_sequence(self) -> None:
        entries = [Entry(5, 0, [mark(5, 5)]), Entry(7, 0, [mark(7, 7)])]
        assert replay(ring(LENGTH, follow(entries))) == dict([mark(5, 5)])

    def test_entries_of_another_log_do_not_count(self) -> None:
        other = Entry(99, 0, [mark(9, 9)], guid=Image(1).data_write_guid)
        assert replay(ring(LENGTH, [(0, Entry(1, 0, [mark(1, 1)])), (2 * SECTOR, other)])) == dict(
            [mark(1, 1)]
        )

    @pytest.mark.parametrize("count", [126, 127, 201, 254, 255])
    def test_an_entry_may_have_many_descriptors(self, count: int) -> None:
        """QEMU refuses more than 126."""
        writes = [mark(n % 200, n) for n in range(count // 2)] + [
            (TARGET + MIB + n * SECTOR, SECTOR) for n in range(count - count // 2)
        ]
        log = ring(2 * MIB, [(0, Entry(3, 0, [*writes]))])
        assert replay(log) == dict(writes[: count // 2])

    def test_numbers_use_all_64_bits(self) -> None:
        top = 2**64 - 1
        entries = [Entry(top - 1, 0, [mark(1, 1)]), Entry(top, 0, [mark(2, 2)])]
        assert len(replay(ring(LENGTH, follow(entries)))) == 2
        entries = [Entry(top, 0, [mark(1, 1)]), Entry(0, 0, [mark(2, 2)])]
        assert replay(ring(LENGTH, follow(entries))) == dict([mark(1, 1)])


class TestTornEntries:
    """A torn entry never happened; the entries before it count."""

    def entries(self) -> list[Entry]:
        return [
            Entry(5, 0, [mark(5, 5)]),
            Entry(6, 0, [mark(6, 6), mark(6, 7), (TARGET + MIB, 3 * SECTOR), mark(6, 8)]),
        ]

    @pytest.mark.parametrize(
        "garbage", [bytes(512), b"\xff" * 512, b"loge" + GUID.bytes_le * 31], ids=["zeros", "ones", "noise"]
    )
    def test_at_every_512_bytes(self, garbage: bytes) -> None:
        entries = self.entries()
        whole = ring(LENGTH, follow(entries))
        start, end = entries[0].length, entries[0].length + entries[1].length
        for at in range(start, end, 512):
            torn = whole[:at] + garbage[:512] + whole[at + 512 :]
            if torn != whole:
                assert replay(torn) == dict([mark(5, 5)]), at

    def test_cut_at_every_sector(self) -> None:
        entries = self.entries()
        whole = ring(LENGTH, follow(entries))
        for at in range(entries[0].length, entries[0].length + entries[1].length, SECTOR):
            assert replay(whole[:at] + bytes(LENGTH - at)) == dict([mark(5, 5)])

    def test_a_log_of_one_torn_entry_is_no_empty_log(self) -> None:
        """Something was logged under this LogGuid, and may have been applied: that is damage."""
        whole = ring(LENGTH, [(0, Entry(1, 0, [mark(1)]))])
        assert refused(whole[:SECTOR] + bytes(LENGTH - SECTOR)).code == "LOG-NO-SEQUENCE"

    def test_a_log_without_any_entry_of_its_guid_is_empty(self) -> None:
        """QEMU names the log before it writes the first entry, and leaves such files when killed."""
        for log in (
            bytes(LENGTH),
            ring(LENGTH, [(0, Entry(1, 0, [mark(1)], guid=Image(1).data_write_guid))]),
        ):
            found = read_log(Ring(lambda size, at, log=log: log[at : at + size], 0, LENGTH), GUID, FILE)  # type: ignore[misc]  # a default
            assert not found.entries
            assert [finding.code for finding in found.findings] == ["LOG-EMPTY"]


WRONG_FIELDS = {
    "tail in the middle of an entry": {"tail": SECTOR},
    "tail outside the run": {"tail": 0x80000},
    "tail outside the log": {"tail": LENGTH},
    "tail unaligned": {"tail": 512},
    "sequence number 0": {"sequence": 0, "descriptor_sequence": 0, "data_sequence": 0},
    "length 0": {"length": 0},
    "length unaligned": {"length": 3 * SECTOR + 8},
    "length of the whole log": {"length": LENGTH},
    "length beyond": {"length": 0xFFFFF000},
    "length too short": {"length": 2 * SECTOR},
    "length too long": {"length": 4 * SECTOR},
    "too many descriptors": {"count": 0xFFFFFFFF},
    "fewer descriptors than data": {"count": 1},
    "more descriptors than there are": {"count": 3},
    "descriptors of another entry": {"descriptor_sequence": 9},
    "data of another entry": {"data_sequence": 9},
    "data of another entry, high half": {"data_sequence": (1 << 32) + 6},
    "wrong checksum": {"crc": 0},
}


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_an_entry_with_a_wrong_field_ends_the_sequence(name: str) -> None:
    good = Entry(5, 0, [mark(5, 5)])
    bad = Entry(6, 0, [mark(6, 6), mark(6, 7)], changes=WRONG_FIELDS[name])
    found = ring(LENGTH, follow([good, bad]))
    if name in ("tail in the middle of an entry", "tail outside the run"):
        # The entry itself is whole, and so the run ends with it: no tail, no sequence.
        assert refused(found).code == "LOG-NO-SEQUENCE"
    else:
        assert replay(found) == dict([mark(5, 5)])
    alone = ring(LENGTH, [(0, Entry(6, 0, [mark(6, 6), mark(6, 7)], changes=WRONG_FIELDS[name]))])
    assert refused(alone).code == "LOG-NO-SEQUENCE"


class TestLimits:
    """What a log may ask for is limited before anything is executed."""

    @pytest.mark.parametrize(
        ("offset", "length"),
        [
            (0, SECTOR),
            (0x10000, SECTOR),
            (0x2F000, SECTOR),
            (0x2F000, 2 * SECTOR),
            (FILE, SECTOR),
            (FILE - SECTOR, 2 * SECTOR),
            (0, 1 << 60),
            (MIB, 2**64 - SECTOR),
            (2**64 - SECTOR, SECTOR),
            (2**64 - SECTOR, 2**64 - SECTOR),
            (0x100000 - SECTOR, 2 * SECTOR),
            (0x1FF000, SECTOR),
        ],
    )
    def test_a_target_that_no_log_may_touch_is_refused(self, offset: int, length: int) -> None:
        log = ring(LENGTH, [(0, Entry(5, 0, [mark(1, 1)])), (2 * SECTOR, Entry(6, 0, [(offset, length)]))])
        with pytest.raises(pyvhdx.CorruptImageError) as caught:
            read_log(Ring(lambda size, at: log[at - LOG_AT : at - LOG_AT + size], LOG_AT, LENGTH), GUID, FILE)
        assert (caught.value.code, caught.value.offset) == ("LOG-TARGET", LOG_AT + 2 * SECTOR)
        if length == SECTOR and offset < 2**63:
            log = ring(LENGTH, [(0, Entry(6, 0, [(offset, page(1))]))])
            with pytest.raises(pyvhdx.CorruptImageError):
                read_log(
                    Ring(lambda size, at: log[at - LOG_AT : at - LOG_AT + size], LOG_AT, LENGTH), GUID, FILE
                )

    def test_the_lowest_and_the_highest_target_are_allowed(self) -> None:
        log = ring(LENGTH, [(0, Entry(5, 0, [(0x30000, page(1)), (FILE - SECTOR, page(2))]))])
        found = read_log(
            Ring(lambda size, at: log[at - LOG_AT : at - LOG_AT + size], LOG_AT, LENGTH), GUID, FILE - 100
        )
        assert set(found.pages) == {0x30000, FILE - SECTOR}
        assert found.size == FILE

    def test_the_file_may_grow_to_the_last_file_offset(self) -> None:
        far = 100 * MIB
        entries = [
            Entry(5, 0, [(far - SECTOR, page(1)), (far - MIB, MIB - SECTOR)], last=4 * MIB),
            Entry(6, 0, last=far),
        ]
        found = read_log(
            Ring(lambda size, at: ring(LENGTH, follow(entries))[at : at + size], 0, LENGTH), GUID, FILE
        )
        assert found.size == far

    @pytest.mark.parametrize("last", [2**43 * 64, 2**60, 2**64 - MIB])
    def test_a_last_file_offset_of_no_sane_file_is_refused(self, last: int) -> None:
        assert refused(ring(LENGTH, [(0, Entry(5, 0, [], last=last))])).code == "LOG-TARGET"

    def test_a_file_shorter_than_it_was_is_refused(self) -> None:
        log = ring(LENGTH, [(0, Entry(5, 0, [mark(1)], flushed=FILE))])
        assert replay(log)
        assert refused(log, FILE - 512).code == "LOG-FILE-TRUNCATED"

    def test_only_the_heads_flushed_file_offset_counts(self) -> None:
        """QEMU looks at every entry's."""
        entries = [Entry(5, 0, [mark(1, 1)], flushed=FILE + MIB), Entry(6, 0, [mark(2, 2)], flushed=FILE)]
        assert len(replay(ring(LENGTH, follow(entries)))) == 2

    def test_odd_file_offsets_are_tolerated(self) -> None:
        log = ring(LENGTH, [(0, Entry(5, 0, [mark(1)], flushed=100, last=FILE + 512))])
        found = read_log(Ring(lambda size, at: log[at : at + size], 0, LENGTH), GUID, FILE)
        assert [finding.code for finding in found.findings] == ["LOG-PENDING", "LOG-FILE-OFFSETS"]
        assert found.size == FILE + 512


class Counting(io.BytesIO):
    """Counts what is read of it."""

    reads = 0
    read_bytes = 0

    def at(self, size: int, offset: int) -> bytes:
        self.seek(offset)
        self.reads += 1
        self.read_bytes += size
        return self.read(size)


@pytest.mark.parametrize("mib", [1, 4, 16, 64, pytest.param(256, marks=pytest.mark.slow)])
def test_the_cost_grows_with_the_log_and_not_with_its_square(mib: int) -> None:
    """Good entries in a row whose last tail leads nowhere cost the specification's algorithm a square."""
    length, count = mib * MIB, mib * 31  # 8,000 entries in the largest log
    step = length // (count + 1) // SECTOR * SECTOR
    pages = step // SECTOR - 1
    entries = [
        Entry(n + 1, length // SECTOR // 2 * SECTOR + SECTOR, [mark(1, k) for k in range(pages)])
        for n in range(count)
    ]
    log = Counting(b"")
    for number, entry in enumerate(entries):
        log.seek(number * step)
        log.write(entry.build())
    log.truncate(length)
    log.seek(length - 1)
    log.write(b"\0")
    with pytest.raises(pyvhdx.CorruptImageError, match=f"of {count};"):
        read_log(Ring(log.at, 0, length), GUID, FILE)
    assert log.read_bytes <= 2 * length
    assert log.reads <= mib + 4 * count


@pytest.mark.slow
def test_8000_small_entries_that_lead_nowhere_are_read_once() -> None:
    length = 64 * MIB
    log = Counting(
        ring(length, follow([Entry(n + 1, length - SECTOR, [mark(1)]) for n in range(8000)], 0, length))
    )
    with pytest.raises(pyvhdx.CorruptImageError, match="of 8000;"):
        read_log(Ring(log.at, 0, length), GUID, FILE)
    assert log.read_bytes <= 2 * length
    assert log.reads <= 64 + 4 * 8000


class TestOpening:
    """A read-only open replays in memory, for every structure, and changes no byte."""

    def bat_page(self, blocks: dict[int, int]) -> bytes:
        data = bytearray(SECTOR)
        for block, place in blocks.items():
            data[8 * block : 8 * block + 8] = (place | FULL).to_bytes(8, "little")
        return bytes(data)

    def test_the_bat_is_read_through_the_log(self, tmp_path: Path) -> None:
        log = ring(LENGTH, [(0, Entry(5, 0, [(BAT_AT, self.bat_page({3: 20 * MIB}))]))])
        path = write(tmp_path, log)
        with path.open("r+b") as file:
            file.seek(20 * MIB)
            file.write(b"behind the log")
        before = hashlib.sha256(path.read_bytes()).digest()
        with pyvhdx.open(path) as image:
            assert image.log_pending
            assert [finding.code for finding in image.warnings] == ["LOG-PENDING"]
            assert image.pread(14, 3 * MIB) == b"behind the log"
            assert not any(image.pread(MIB, 0)), "block 0 is no longer there"
            assert [(e.offset, e.kind) for e in image.extents()][:2] == [(0, "absent"), (3 * MIB, "data")]
        assert hashlib.sha256(path.read_bytes()).digest() == before
        with pytest.raises(pyvhdx.LogPendingError):
            pyvhdx.open(path, log="refuse")

    def test_region_table_and_metadata_are_read_through_the_log(self, tmp_path: Path) -> None:
        """The log moves the metadata region, and makes the disk smaller."""
        moved = Image(6 * MIB)
        table = moved.region_table()
        import tests.corpus.handmade as hand  # noqa: PLC0415

        table = hand.sealed(
            table.replace(METADATA_AT.to_bytes(8, "little"), (24 * MIB).to_bytes(8, "little"), 1)
        )
        writes: list[tuple[int, bytes | int]] = [(at, table[:SECTOR]) for at in (0x30000, 0x40000)]
        metadata = moved.metadata().ljust(17 * SECTOR, b"\0")
        writes += [(24 * MIB + at, metadata[at : at + SECTOR]) for at in range(0, 17 * SECTOR, SECTOR)]
        writes.append((METADATA_AT, SECTOR))
        path = write(tmp_path, ring(LENGTH, [(0, Entry(5, 0, writes))]))
        with pyvhdx.open(path) as image:
            assert image.size == 6 * MIB

    def test_zero_descriptors_and_pages_come_in_their_order(self, tmp_path: Path) -> None:
        entries = [
            Entry(5, 0, [(BAT_AT, self.bat_page({0: 8 * MIB, 1: 9 * MIB}))]),
            Entry(6, 0, [(BAT_AT, 2 * SECTOR)]),
            Entry(7, 0, [(BAT_AT, self.bat_page({2: 10 * MIB}))]),
        ]
        for count, present in ((1, {0, 1}), (2, set()), (3, {2})):
            path = write(tmp_path, ring(LENGTH, follow(entries[:count])))
            with pyvhdx.open(path) as image:
                assert {
                    e.offset // MIB + n
                    for e in image.extents()
                    if e.kind == "data"
                    for n in range(e.length // MIB)
                } == present

    def test_the_file_grows_in_memory_only(self, tmp_path: Path) -> None:
        """A block behind the end of the file, which the log extends, reads as zeros."""
        log = ring(
            LENGTH,
            [(0, Entry(5, 0, [(BAT_AT, self.bat_page({3: 100 * MIB}))], flushed=4 * MIB, last=101 * MIB))],
        )
        path = write(tmp_path, log)
        with pyvhdx.open(path) as image:
            assert image.pread(MIB, 3 * MIB) == bytes(MIB)
            assert [e.kind for e in image.extents(3 * MIB, MIB)] == ["data"]
        assert path.stat().st_size == FILE

    def test_an_empty_log_is_opened_and_named_in_the_warnings(self, tmp_path: Path) -> None:
        path = write(tmp_path, bytes(LENGTH))
        with pyvhdx.open(path, log="refuse") as image:
            assert not image.log_pending
            assert [finding.code for finding in image.warnings] == ["LOG-EMPTY"]

    def test_an_entry_without_descriptors_is_pending_and_changes_nothing(self, tmp_path: Path) -> None:
        path = write(tmp_path, ring(LENGTH, [(0, Entry(5, 0))]))
        with pyvhdx.open(path) as image:
            assert image.log_pending
            assert image.pread(4, 0) != bytes(4)

    def test_a_log_may_lie_anywhere(self, tmp_path: Path) -> None:
        log = ring(2 * MIB, [(0, Entry(5, 0, [(BAT_AT, self.bat_page({3: 20 * MIB}))]))])
        image = Image(20 * MIB, log_guid=GUID, headers=({"log_offset": 25 * MIB, "log_length": 2 * MIB},) * 2)
        image.headers = tuple({**changes, "sequence": n} for n, changes in enumerate(image.headers))
        image.patches += [(25 * MIB, log), (FILE - 1, b"\0")]
        image.write(tmp_path / "disk.vhdx")
        with pyvhdx.open(tmp_path / "disk.vhdx") as opened:
            assert next(e for e in opened.extents() if e.kind == "data").offset == 3 * MIB

    @pytest.mark.parametrize("dirty", ["base", "middle", "top"])
    def test_every_member_of_a_chain_is_replayed(self, tmp_path: Path, dirty: str) -> None:
        parent: Image | None = None
        for number, name in enumerate(("base", "middle", "top")):
            kind = "differencing" if parent else "dynamic"
            image = Image(20 * MIB, kind=kind, parent=parent, tag=number + 1)
            image.relative_path = f".\\{parent.path.name}" if parent else ""
            if name == dirty:
                image.log_guid = GUID
                image.log = ring(LENGTH, [(0, Entry(5, 0, [(BAT_AT, self.bat_page({3: 20 * MIB}))]))])
                image.patches = [(20 * MIB, name.encode()), (FILE, b"\0")]
            parent = image.write(tmp_path / f"{name}.vhdx")
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        with pyvhdx.open(tmp_path / "top.vhdx") as opened:
            assert opened.pread(len(dirty), 3 * MIB) == dirty.encode()
            assert [member.log_pending for member in opened.chain] == [
                n == dirty for n in ("top", "middle", "base")
            ]
        with pytest.raises(pyvhdx.LogPendingError) as caught:
            pyvhdx.open(tmp_path / "top.vhdx", log="refuse")
        assert f"{dirty}.vhdx" in str(caught.value)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_random_logs_open_or_are_refused(self, tmp_path: Path) -> None:
        """Any single wrong byte in the log gives the new state, the old one, or an error of ours."""
        entries = [
            Entry(5, 0, [(BAT_AT, self.bat_page({3: 20 * MIB}))]),
            Entry(6, 0, [(BAT_AT, self.bat_page({4: 21 * MIB}))]),
        ]
        path = write(tmp_path, ring(LENGTH, follow(entries)))
        memory = bytearray(path.read_bytes()[:FILE])
        draw = random.Random(5)
        outcomes: set[int | str] = set()
        for _ in range(300):
            at = LOG_AT + draw.choice((draw.randrange(128), draw.randrange(4 * SECTOR)))
            old, memory[at] = memory[at], draw.randrange(256)
            try:
                with pyvhdx.open(io.BytesIO(memory)) as image:
                    outcomes.add(next(e.offset for e in image.extents() if e.kind == "data") // MIB)
            except pyvhdx.CorruptImageError as error:
                outcomes.add(error.code)
            memory[at] = old
        assert outcomes <= {3, 4, "LOG-NO-SEQUENCE"}
        assert {3, 4} <= outcomes
