"""A rehearsal shows what would be, leaves the file alone, and then makes it so."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from pyvhdx.storage import Rehearsal
from pyvhdx.testing import MemoryStorage, RecordingStorage

PAGE = 4096
SIZE = 5 * PAGE + 100


@dataclass
class Model:
    """The plain bytes that a rehearsal is compared with."""

    data: bytearray = field(default_factory=lambda: bytearray(start()))

    def write(self, offset: int, data: bytes) -> None:
        self.truncate(max(len(self.data), offset + len(data)))
        self.data[offset : offset + len(data)] = data

    def truncate(self, size: int) -> None:
        self.data = self.data[:size] + bytearray(max(0, size - len(self.data)))


def start() -> bytes:
    return bytes(n % 251 + 1 for n in range(2 * PAGE)) + bytes(PAGE) + b"z" * (SIZE - 3 * PAGE)


steps = st.one_of(
    st.tuples(
        st.just("write"),
        st.integers(0, 2 * SIZE),
        st.tuples(st.sampled_from([1, 7, 512, PAGE, 3 * PAGE + 5]), st.integers(0, 255)),
    ),
    st.tuples(st.just("truncate"), st.integers(0, 3 * SIZE), st.none()),
    st.tuples(st.just("flush"), st.just(0), st.none()),
)


@given(st.lists(steps, max_size=12), st.lists(st.tuples(st.integers(0, 3 * SIZE), st.integers(0, SIZE))))
def test_it_shows_and_does_the_same_as_the_calls_themselves(
    plan: list[tuple[str, int, tuple[int, int] | None]], reads: list[tuple[int, int]]
) -> None:
    below = RecordingStorage(MemoryStorage(start()))
    rehearsal, model = Rehearsal(below), Model()
    for kind, at, what in plan:
        if what is not None:
            data = bytes([what[1]]) * what[0]
            rehearsal.write_at(data, at)
            model.write(at, data)
        elif kind == "truncate":
            rehearsal.truncate(at)
            model.truncate(at)
        else:
            rehearsal.flush()
    assert not below.events
    assert rehearsal.size() == len(model.data)
    assert rehearsal.read_at(len(model.data) + 5, 0) == model.data
    for offset, size in reads:
        assert rehearsal.read_at(size, offset) == model.data[offset : offset + size]
    covered = bytearray(len(model.data))
    at = 0
    while (run := rehearsal.next_data(at)) is not None:
        assert at <= run[0] < run[1] <= len(model.data)
        covered[run[0] : run[1]] = b"\1" * (run[1] - run[0])
        at = run[1]
    assert not any(byte for byte, is_data in zip(model.data, covered, strict=True) if not is_data)
    old, kept = start(), [False] * SIZE
    for first, end in rehearsal.overwritten():
        kept[first:end] = [True] * (end - first)
    smallest = min([SIZE, *(at for kind, at, _ in plan if kind == "truncate")])
    rehearsal.carry_out(below, sync=True)
    assert below.read_at(below.size(), 0) == model.data
    assert below.count("flush") == sum(kind == "flush" for kind, *_ in plan)
    for number, byte in enumerate(old[: min(smallest, len(model.data))]):
        assert kept[number] or model.data[number] == byte
    rehearsal.close()


def test_a_copy_is_read_only_when_it_is_carried_out() -> None:
    below = RecordingStorage(MemoryStorage(start()))
    rehearsal = Rehearsal(below)
    rehearsal.truncate(8 * PAGE)
    rehearsal.copied(0, 6 * PAGE, 2 * PAGE)
    rehearsal.write_at(b"new", 6 * PAGE + 10)
    expected = bytearray(start()[: 2 * PAGE])
    expected[10:13] = b"new"
    assert rehearsal.read_at(2 * PAGE, 6 * PAGE) == expected
    assert rehearsal.read_at(PAGE, 6 * PAGE + 100) == expected[100 : 100 + PAGE]
    assert rehearsal.overwritten() == []
    rehearsal.carry_out(below, sync=False)
    assert below.count("flush") == 0
    assert below.read_at(2 * PAGE, 6 * PAGE) == expected
    rehearsal.close()
