"""
A repair that is cut short at any moment leaves a pair of files that it can finish, or undo.

Image and undo file lie on one medium that orders nothing between two flushes of the same file, and the
events of both stand in one list.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

import pyvhdx
from pyvhdx.testing import Event, FailingStorage, MemoryStorage, PowerCut, RecordingStorage
from tests.corpus.handmade import BAT_AT, FULL, MIB, PARTIAL, Block, Image, sealed
from tests.corpus.handmade_logs import GUID as LOG_GUID
from tests.corpus.handmade_logs import Entry

_BLOCKS = {0: Block(FULL), 1: Block(FULL), 2: Block(FULL)}
_EACH = 3  # what one cut can leave, so often drawn
_PLACES = [4 * MIB, 5 * MIB, 6 * MIB]


@dataclass(frozen=True)
class Damage:
    """A damaged image, what is chosen, and what is left of it after the repair."""

    name: str
    image: Image
    choices: dict[Any, str] = field(default_factory=dict)
    left: frozenset[str] = frozenset()
    cut_by: int = 0

    def made(self) -> MemoryStorage:
        file = io.BytesIO()
        self.image.write_to(file)
        data = file.getvalue()
        return MemoryStorage(data[: len(data) - self.cut_by])


def _pending() -> Image:
    page = bytearray(4096)
    for block, place in enumerate(_PLACES):
        page[8 * block : 8 * block + 8] = (place | FULL).to_bytes(8, "little")
    log = Entry(7, 0, [(BAT_AT, bytes(page))], flushed=7 * MIB, last=8 * MIB).build()
    return Image(8 * MIB, blocks=_BLOCKS, log=log, log_guid=LOG_GUID, bat={0: 0, 1: 0}, physical=1024)


def _with_a_long_header() -> Image:
    """Return a disk whose only right header does not fit into what a disk writes whole."""
    image = Image(8 * MIB, blocks=_BLOCKS, headers=({"crc": 0}, {}))
    header = image.header(1)
    image.patches = [(0x20000, sealed(header[:3000] + b"x" + header[3001:]))]
    return image


DAMAGES = [
    Damage("header", Image(8 * MIB, blocks=_BLOCKS, headers=({}, {"crc": 0, "sequence": 1 << 63}))),
    Damage("reserved", _with_a_long_header()),
    Damage("sequence", Image(8 * MIB, blocks=_BLOCKS, headers=({"crc": 0}, {"sequence": (1 << 64) - 1}))),
    Damage("region", Image(8 * MIB, blocks=_BLOCKS, patches=[(0x30010, b"xxxx")])),
    Damage("log", _pending()),
    Damage(
        "copy",
        Image(8 * MIB, blocks=_BLOCKS, bat={1: _PLACES[0] | FULL, 3: _PLACES[2] | FULL}),
        {"BAT-OVERLAP": "copy"},
    ),
    Damage(
        "cut",
        Image(8 * MIB, blocks=_BLOCKS),
        {"BAT-RANGE": "zero"},
        cut_by=3 * MIB // 2,
    ),
    Damage(
        "copy and cut",
        Image(8 * MIB, blocks=_BLOCKS, bat={1: _PLACES[0] | FULL, 3: 7 * MIB | FULL}),
        {"BAT-OVERLAP": "copy", ("BAT-RANGE", BAT_AT + 16): "extend", "BAT-RANGE": "absent"},
        cut_by=MIB // 2,
    ),
    Damage(
        "badly placed log",
        Image(8 * MIB, blocks=_BLOCKS, headers=({"log_offset": 12345}, {"log_offset": 12345}), flags=0xF0),
    ),
    Damage(
        "signature",
        Image(8 * MIB, blocks=_BLOCKS, patches=[(0, b"VHDXFILE")], bat={5: 9 * MIB, 3: 9 * MIB | PARTIAL}),
        {"BAT-STATE": "zero"},
    ),
]
_IDS = [damage.name for damage in DAMAGES]


class Shared(RecordingStorage):
    """Enters its events into a list that it shares with another file."""

    def __init__(self, storage: MemoryStorage, which: str, order: list[str]) -> None:
        super().__init__(storage)
        self.events = _Tee(which, order)


class _Tee(list[Event]):
    def __init__(self, which: str, order: list[str]) -> None:
        super().__init__()
        self._which, self._order = which, order

    def append(self, event: Event) -> None:
        super().append(event)
        self._order.append(self._which)


@dataclass
class Pair:
    """Image and undo file."""

    image: MemoryStorage
    undo: MemoryStorage

    def copy(self) -> Pair:
        return Pair(self.image.copy(), self.undo.copy())


def content_of(storage: MemoryStorage) -> bytes:
    return storage.read_at(storage.size(), 0)


def recorded(pair: Pair, act: Any) -> Iterator[tuple[int, Pair]]:
    """Let *act* happen to a pair, and yield what cuts of the power leave of it: (moment, pair)."""
    order: list[str] = []
    image, undo = Shared(pair.image.copy(), "image", order), Shared(pair.undo.copy(), "undo", order)
    act(image, undo)
    cuts = PowerCut(pair.image, image.events), PowerCut(pair.undo, undo.events)
    draw = random.Random(len(order))
    for moment in range(len(order) + 1):
        done = order[:moment].count("image"), order[:moment].count("undo")
        for _ in range(_EACH):
            yield moment, Pair(cuts[0].after(done[0], draw), cuts[1].after(done[1], draw))


def is_whole(undo: MemoryStorage) -> bool:
    """Return whether the undo file says that it is whole: READY or FINISHED at byte 28 of its header."""
    return undo.read_at(4, 0) == b"undo" and undo.read_at(4, 28) in (b"\1\0\0\0", b"\2\0\0\0")


def assert_restorable(pair: Pair, before: bytes) -> None:
    """Undoing brings the first bytes back, or nothing was changed yet."""
    if is_whole(pair.undo):
        pyvhdx.undo_repair(pair.image, pair.undo)
    assert content_of(pair.image) == before


def repair_again(image: Any, damage: Damage, undo: Any) -> None:
    """Repair as before; a choice for one place is refused where that place is mended already."""
    try:
        pyvhdx.repair(image, undo=undo, choices=damage.choices)
    except pyvhdx.RequestError as error:
        assert "that leaves a choice" in str(error)
        choices = {key: choice for key, choice in damage.choices.items() if isinstance(key, str)}
        pyvhdx.repair(image, undo=undo, choices=choices)


def assert_finishable(pair: Pair, damage: Damage, before: bytes, content: bytes) -> None:
    """Repairing again leaves what a repair that nobody cut short leaves, and that can be undone."""
    repair_again(pair.image, damage, pair.undo)
    report = pyvhdx.check(pair.image)
    assert {f.code for f in report.findings if f.severity != "note"} == damage.left
    with pyvhdx.open(pair.image) as image:
        assert image.read() == content
    assert_restorable(pair, before)


def repaired(damage: Damage) -> tuple[Pair, bytes, bytes]:
    """Return the pair before, its image's bytes, and what the disk holds after an undisturbed repair."""
    pair = Pair(damage.made(), MemoryStorage())
    done = pair.copy()
    report = pyvhdx.repair(done.image, undo=done.undo, choices=damage.choices)
    assert report.done
    assert {remaining.finding.code for remaining in report.left} == damage.left
    with pyvhdx.open(done.image) as image:
        content = image.read()
    return pair, content_of(pair.image), content


@pytest.mark.parametrize("damage", DAMAGES, ids=_IDS)
def test_a_repair_that_is_cut_short_is_finished_or_undone(damage: Damage) -> None:
    pair, before, content = repaired(damage)

    def repair(image: Any, undo: Any) -> None:
        pyvhdx.repair(image, undo=undo, choices=damage.choices)

    states = set()
    for number, (moment, left) in enumerate(recorded(pair, repair)):
        states.add((is_whole(left.undo), content_of(left.image) == before))
        try:
            assert_restorable(left.copy(), before)
            if number % _EACH == 0:
                assert_finishable(left, damage, before, content)
        except BaseException as error:
            raise AssertionError(f"cut behind {moment} events") from error
    assert (False, True) in states  # nothing has happened yet
    assert (True, False) in states
    assert (False, False) not in states


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES[3:7], ids=_IDS[3:7])
def test_the_second_attempt_may_be_cut_short_as_well(damage: Damage) -> None:
    pair, before, content = repaired(damage)

    def repair(image: Any, undo: Any) -> None:
        pyvhdx.repair(image, undo=undo, choices=damage.choices)

    draw = random.Random(damage.name)
    halves = [left for _, left in recorded(pair, repair) if is_whole(left.undo)]
    for half in draw.sample(halves, 2):
        for moment, left in recorded(half, repair):
            try:
                assert_restorable(left.copy(), before)
                if moment % 5 == 0:
                    assert_finishable(left, damage, before, content)
            except BaseException as error:
                raise AssertionError(f"cut behind {moment} events") from error


@pytest.mark.parametrize("damage", DAMAGES, ids=_IDS)
def test_an_undo_that_is_cut_short_is_done_again_and_nobody_opens_the_image_meanwhile(damage: Damage) -> None:
    pair, before, content = repaired(damage)
    pyvhdx.repair(pair.image, undo=pair.undo, choices=damage.choices)
    after = content_of(pair.image)
    half_way = 0
    for _, left in recorded(pair, pyvhdx.undo_repair):
        now = content_of(left.image)
        if now not in (before, after):
            try:
                with pyvhdx.open(left.image) as image:
                    found = image.read()
                # The headers are torn or in place, and nothing else is missing.
                pyvhdx.undo_repair(left.image, left.undo)
                with pyvhdx.open(left.image) as image:
                    assert image.read() == found or found == content
            except pyvhdx.ImageError:
                half_way += 1
        assert_restorable(left, before)
    assert half_way or damage.name in ("header", "sequence", "reserved")


def _calls(damage: Damage) -> int:
    pair = Pair(damage.made(), MemoryStorage())
    counter = FailingStorage(pair.image, None)
    pyvhdx.repair(counter, undo=pair.undo, choices=damage.choices)
    return counter.calls


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError], ids=["interrupt", "error"])
@pytest.mark.parametrize("damage", DAMAGES, ids=_IDS)
def test_an_interrupt_at_any_call_is_like_a_cut(damage: Damage, error: type[BaseException]) -> None:
    pair, before, content = repaired(damage)
    for at in range(_calls(damage)):
        left = pair.copy()
        failing = FailingStorage(left.image, at, error, short=True)
        with pytest.raises(error):
            pyvhdx.repair(failing, undo=left.undo, choices=damage.choices)
        assert_restorable(left.copy(), before)
        if at % 4 == 0:
            assert_finishable(left, damage, before, content)


@pytest.mark.parametrize("damage", DAMAGES, ids=_IDS)
def test_an_undo_file_that_cannot_be_written_leaves_the_image_alone(damage: Damage) -> None:
    pair = Pair(damage.made(), MemoryStorage())
    before = content_of(pair.image)
    counter = FailingStorage(pair.undo.copy(), None)
    pyvhdx.repair(pair.image.copy(), undo=counter, choices=damage.choices)
    for at in range(counter.calls - 2):  # the last two say that the repair is finished
        recording = RecordingStorage(pair.image)
        with pytest.raises(OSError, match="Input/output error"):
            pyvhdx.repair(recording, undo=FailingStorage(MemoryStorage(), at), choices=damage.choices)
        assert not recording.events
        assert content_of(pair.image) == before


@pytest.mark.parametrize("damage", DAMAGES, ids=_IDS)
def test_without_an_undo_file_a_cut_leaves_what_another_repair_mends(damage: Damage) -> None:
    pair, _, content = repaired(damage)

    def repair(image: Any, _: Any) -> None:
        pyvhdx.repair(image, undo=False, choices=damage.choices)

    for number, (moment, left) in enumerate(recorded(pair, repair)):
        if number % _EACH:
            continue
        try:
            repair_again(left.image, damage, False)
            report = pyvhdx.check(left.image)
            assert {f.code for f in report.findings if f.severity != "note"} == damage.left
            with pyvhdx.open(left.image) as image:
                assert image.read() == content
        except BaseException as error:
            raise AssertionError(f"cut behind {moment} events") from error
