"""
Bugs of ordering and reuse, seeded one at a time, and which test sees each::

    python -m tests.crash.mutants [NAME ...] [--programs 150] [--processes N] [--list]

A mutant changes the source of one function in a process of its own.  There the ordering tests run, the
atomicity tests, and then the random programs of the outcome tests, until one fails: all of them where
no test has seen it yet, and a tenth of them otherwise.  What no test can see stands in `NOT_HERE`, with
the argument.  Returns 1 if a mutant survives.
"""

from __future__ import annotations

import argparse
import inspect
import multiprocessing
import os
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from pyvhdx._core import trim
from pyvhdx._core.blocks import BlockMap
from pyvhdx._core.log_writer import LogWriter
from pyvhdx._core.space import Space
from pyvhdx.session import Session
from pyvhdx.writing import ImageWriter
from tests.crash.outcome import try_program

FIRST_SEED = 77_000
ORDERING = Path(__file__).parents[1] / "writing" / "test_ordering.py"
ATOMICITY = Path(__file__).with_name("test_atomicity.py")

MUTANTS: dict[str, Callable[[], None]] = {}

NOT_HERE = {
    "a freed sector bitmap block taken again at once": (
        "no code frees one: a BAT entry of a sector bitmap is only ever written by BlockMap.add_bitmap"
    ),
    "pages of a freed sector bitmap block still in the log": "the same: none is freed while a log lives",
    "logged space reused within the log": (
        "the log's targets are region tables, BAT, metadata and sector bitmap blocks; "
        "Space.free_later is only told of payload blocks, which no entry ever targets"
    ),
    "freed space released before the commit that freed it is durable, and not before the commit begins": (
        "nothing takes space inside a commit, and after one that fails the image takes no more changes; "
        "freed_space_taken_before_the_commit releases it earlier"
    ),
    "a hole punched before the freeing is durable": (
        "nothing punches holes; freed_space_is_cleared_at_once does what an early hole would"
    ),
}


def mutant(change: Callable[[], None]) -> Callable[[], None]:
    """Enter a bug under the function's name."""
    MUTANTS[change.__name__] = change
    return change


def changed_source(owner: Any, name: str, changes: tuple[tuple[str, str], ...]) -> str:
    """Return the source of a function with text replaced that stands there once."""
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    for old, new in changes:
        found = source.count(old)
        assert found == 1, f"{name} has {found} times {old!r}: the mutant is out of date"
        source = source.replace(old, new)
    return source


def edit(owner: Any, name: str, *changes: tuple[str, str]) -> None:
    """Replace text in the source of a function, and the function by what results."""
    source = changed_source(owner, name, changes)
    made: dict[str, Any] = {}
    code = compile("from __future__ import annotations\n" + source, f"<mutant of {name}>", "exec")
    exec(code, getattr(owner, name).__globals__, made)  # noqa: S102 - that is what a mutant is
    setattr(owner, name, made[name])


# -- barriers left out, one for each place where there is one ----------------------------------


@mutant
def no_barrier_between_payload_and_entry() -> None:
    edit(LogWriter, "commit", ("if self._medium.payload_pending:", "if False:"))


@mutant
def no_barrier_after_an_entry() -> None:
    edit(
        LogWriter,
        "commit",
        (
            "self._append(pages, last_file_offset)\n        self._medium.barrier()",
            "self._append(pages, last_file_offset)",
        ),
    )


@mutant
def no_barrier_between_a_first_entry_and_its_header() -> None:
    edit(LogWriter, "_begin_log", ("self._medium.barrier()  # payload and entry", ""))


@mutant
def no_barrier_after_the_header_that_names_a_log() -> None:
    # Its twin's update would make up for it.
    edit(
        LogWriter,
        "_begin_log",
        ("self._medium.barrier()  # the commit point", ""),
        ("self._write_twin()", ""),
    )


@mutant
def no_barrier_between_pages_and_the_end_of_their_log() -> None:
    edit(LogWriter, "_end_log", ("self._medium.barrier()  # everything applied", ""))


@mutant
def no_barrier_between_the_end_of_a_log_and_the_next() -> None:
    edit(
        LogWriter,
        "_end_log",
        ("log_guid=ZERO_GUID))\n    self._medium.barrier()", "log_guid=ZERO_GUID))"),
    )


@mutant
def no_barrier_after_the_first_header_of_a_session() -> None:
    edit(LogWriter, "begin", ("    self._medium.barrier()\n", ""))


@mutant
def no_barrier_after_the_first_header_of_a_replay() -> None:
    edit(
        LogWriter,
        "replay",
        ("file_write_guid=uuid4()))\n    self._medium.barrier()", "file_write_guid=uuid4()))"),
    )


@mutant
def no_barrier_at_the_end_of_a_replay() -> None:
    edit(LogWriter, "replay", ("self._write_twin()\n    self._medium.barrier()", "self._write_twin()"))


@mutant
def no_barrier_at_close() -> None:
    edit(
        LogWriter,
        "close",
        ("    if size is not None:\n        self._medium.cut(size)\n    self._medium.barrier()", ""),
    )


@mutant
def no_barrier_at_a_flush_of_writes_in_place() -> None:
    edit(Session, "flush", ("self.medium.barrier()", "pass"))


@mutant
def no_barrier_between_two_headers() -> None:
    edit(LogWriter, "_update_header", ("if self._header_epoch == self._medium.epoch:", "if False:"))


@mutant
def no_barrier_between_zeros_and_the_header_of_a_new_log() -> None:
    edit(LogWriter, "place_log", ("    self._medium.barrier()\n    self._update", "    self._update"))


# -- one thing before another ------------------------------------------------------------------


@mutant
def pages_in_place_before_the_entry_is_durable() -> None:
    edit(
        LogWriter,
        "commit",
        (
            "self._append(pages, last_file_offset)\n",
            (
                "self._append(pages, last_file_offset)\n"
                "        for at, page in pages.items():\n"
                "            self._medium.write_metadata(page, at)\n"
            ),
        ),
    )


@mutant
def pages_in_place_before_the_header_names_their_log() -> None:
    edit(
        LogWriter,
        "_begin_log",
        (
            "    self._medium.barrier()  # the commit point",
            (
                "    for at, page in pages.items():\n"
                "        self._medium.write_metadata(page, at)\n"
                "    self._medium.barrier()"
            ),
        ),
    )


@mutant
def header_before_the_first_entry() -> None:
    edit(
        LogWriter,
        "_begin_log",
        (
            "self._append(pages, last_file_offset)\n    self._medium.barrier()  # payload and entry\n    self._update_header(self.header)",
            "self._update_header(self.header)\n    self._medium.barrier()\n    self._append(pages, last_file_offset)",
        ),
    )


@mutant
def file_cut_before_the_log_ends() -> None:
    edit(
        LogWriter,
        "close",
        (
            "    if self._log_is_named:",
            "    if size is not None:\n        self._medium.cut(size)\n    if self._log_is_named:",
        ),
    )


@mutant
def data_write_guid_late() -> None:
    edit(LogWriter, "begin", ("header = replace(header, data_write_guid=uuid4())", "self._late = True"))
    edit(
        LogWriter,
        "commit",
        (
            "    size = log_entry.size_of(len(pages))\n",
            (
                "    size = log_entry.size_of(len(pages))\n"
                "    if getattr(self, '_late', False):\n"
                "        self._late = False\n"
                "        self._update_header(replace(self.header, data_write_guid=uuid4()))\n"
                "        self._medium.barrier()\n"
            ),
        ),
    )


@mutant
def data_write_guid_changed_by_every_session() -> None:
    edit(LogWriter, "begin", ("if visible and not self.is_visible", "if not self.is_visible"))


@mutant
def file_write_guid_kept() -> None:
    edit(LogWriter, "begin", ("header = replace(header, file_write_guid=uuid4())", "pass"))


@mutant
def file_write_guid_late_in_a_replay() -> None:
    edit(
        LogWriter,
        "replay",
        (
            "self._update_header(replace(self.header, file_write_guid=uuid4()))\n    self._medium.barrier()",
            "",
        ),
        (
            "    self._end_log()",
            "    self.header = replace(self.header, file_write_guid=uuid4())\n    self._end_log()",
        ),
    )


@mutant
def commit_inside_one_blocks_change() -> None:
    """Its bits are cleared in one entry, and it gets its new state in the next."""
    edit(
        Session,
        "change_entries",
        (
            "        blocks.set_entry(first, new)",
            (
                "        if old & 7 == 7:\n"
                "            blocks._put_bits(first, bytes(self.file.geometry.bitmap_bytes_per_block))\n"
                "            blocks.version += 1\n"
                "            self.commit()\n"
                "        blocks.set_entry(first, new)"
            ),
        ),
    )


# -- the log -----------------------------------------------------------------------------------


@mutant
def tail_names_the_entry_itself() -> None:
    """And its pages are applied in any order with those of the entries before."""
    edit(LogWriter, "_append", ("tail=0", "tail=self._position"))


@mutant
def log_filled_to_its_last_sector() -> None:
    edit(LogWriter, "commit", ("self.header.log_length - LOG_SECTOR_SIZE", "self.header.log_length"))


@mutant
def log_wraps() -> None:
    edit(LogWriter, "commit", ("        self._end_log()", "        self._position = 0"))


@mutant
def log_keeps_its_name_and_numbers() -> None:
    edit(
        LogWriter,
        "_begin_log",
        ("log_guid=uuid4()", "log_guid=self.header.file_write_guid"),
        ("secrets.randbits(62) + 1", "1"),
    )


@mutant
def same_header_slot_twice() -> None:
    edit(
        LogWriter,
        "_update_header",
        ("second if self._header_offset == first else first", "self._header_offset"),
    )


@mutant
def no_twin_at_close() -> None:
    edit(LogWriter, "close", ("self._write_twin()", "pass"))


@mutant
def flushed_file_offset_is_what_the_file_could_become() -> None:
    edit(
        LogWriter,
        "_append",
        ("min(self._medium.durable_size, self._medium.size) & -ALIGNMENT", "last_file_offset"),
    )


@mutant
def flushed_file_offset_is_the_length_now() -> None:
    edit(
        LogWriter,
        "_append",
        ("min(self._medium.durable_size, self._medium.size) & -ALIGNMENT", "self._medium.size & -ALIGNMENT"),
    )


@mutant
def last_file_offset_too_small() -> None:
    edit(
        LogWriter,
        "_append",
        ("last_file_offset=last_file_offset", "last_file_offset=last_file_offset - ALIGNMENT"),
    )


@mutant
def replay_does_not_make_the_file_longer() -> None:
    edit(LogWriter, "replay", ("if replay.size > size:", "if False:"))


# -- space -------------------------------------------------------------------------------------


@mutant
def freed_space_taken_before_the_commit() -> None:
    edit(Space, "free_later", ("self._pending.append((place, length))", "self.give_back(place, length)"))


@mutant
def freed_space_is_cleared_at_once() -> None:
    edit(
        Session,
        "change_entries",
        (
            "            space.free_later(old & OFFSET_MASK, size)",
            (
                "            space.free_later(old & OFFSET_MASK, size)\n"
                "            self.medium.write_payload(bytes(size), old & OFFSET_MASK)"
            ),
        ),
    )


@mutant
def another_blocks_anchor_taken_before_its_clearing_is_durable() -> None:
    edit(Session, "_clear_anchors", ("    self.commit()", "    self.space.release()"))


@mutant
def failed_write_frees_the_place_of_its_block() -> None:
    edit(
        ImageWriter,
        "_write_block",
        (
            "        for at, length in taken:",
            "        for at, length in [*taken, *([(plan.place, geometry.block_size)] if plan.place else [])]:",
        ),
    )


@mutant
def failed_write_keeps_what_it_took() -> None:
    edit(
        ImageWriter,
        "_write_block",
        ("            self.session.space.give_back(at, length)", "            pass"),
    )


@mutant
def used_space_taken_for_zeros() -> None:
    edit(
        Space,
        "take",
        ("is_zero = found >= max(len(self._map), self._stale_units)", "is_zero = found >= self._stale_units"),
    )


@mutant
def slack_of_the_file_taken_for_zeros() -> None:
    edit(
        Space,
        "take",
        ("is_zero = found >= max(len(self._map), self._stale_units)", "is_zero = found >= len(self._map)"),
    )


@mutant
def rest_of_a_block_not_zeroed() -> None:
    edit(ImageWriter, "_write_zeros", ("range(start, end, len(_ZEROS))", "()"))


@mutant
def new_sector_bitmap_block_not_zeroed() -> None:
    edit(
        ImageWriter,
        "_write_block",
        ("self._medium.write_payload(_ZEROS[:SECTOR_BITMAP_SIZE], bitmap_place)", "pass"),
    )


# -- blocks ------------------------------------------------------------------------------------


@mutant
def stale_bits_kept() -> None:
    edit(BlockMap, "set_entry", ("if self._differencing and", "if False and"))
    edit(BlockMap, "adopt", ("if plan.exact else", "if False else"))


@mutant
def parent_shows_beside_a_write_over_zeros() -> None:
    edit(BlockMap, "plan_write", ("state == _NOT_PRESENT and not whole", "not whole"))


@mutant
def zero_keeps_its_place() -> None:
    edit(trim, "trimmed", ("    return _ZERO\n", "    return place | _ZERO\n"))


@mutant
def sectors_not_completed() -> None:
    edit(ImageWriter, "_whole_sectors", ("self._read(buffer[:sector], at)", "pass"))


# -- failure -----------------------------------------------------------------------------------


@mutant
def image_goes_on_after_a_failed_commit() -> None:
    edit(Session, "fail", ("if self._failure is None:", "if False:"))


@mutant
def close_after_a_failure_commits() -> None:
    edit(Session, "close", ("if self._has_failed:", "if False:"))


class Verdict(NamedTuple):
    """What saw a mutant: the first test of each kind, and what a program said; empty for nothing."""

    name: str
    ordering: str
    atomicity: str
    outcome: str
    seconds: float


def judge(arguments: tuple[str, int]) -> Verdict:
    """Seed a bug in this process, which must not be used for anything else, and see who notices."""
    name, programs = arguments
    began = time.monotonic()
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    MUTANTS[name]()
    ordering, atomicity = _first(ORDERING), _first(ATOMICITY)
    outcome = _outcome(programs // 10 if ordering or atomicity else programs)
    return Verdict(name, ordering, atomicity, outcome, time.monotonic() - began)


class _Failures:
    def __init__(self) -> None:
        self.first = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.first:
            self.first = report.nodeid.split("::", 1)[1]


def _first(tests: Path) -> str:
    failures = _Failures()
    # A test that fails leaves images open, and what is said of them then is of no interest.
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:unraisableexception"]
    pytest.main([*options, str(tests)], plugins=[failures])
    return failures.first


def _outcome(programs: int) -> str:
    for seed in range(FIRST_SEED, FIRST_SEED + programs):
        try:
            try_program(seed, 20)
        except Exception as error:  # noqa: BLE001 - whatever it is, it was noticed
            return f"program {seed - FIRST_SEED + 1}: {type(error).__name__}: {_said(error)}"
    return ""


def _said(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:90]


def main() -> int:
    """Judge the mutants that are named, or all; return 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--programs", type=int, default=150)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--list", action="store_true", help="only name them")
    parsed = parser.parse_args()
    if parsed.list:
        print("\n".join(MUTANTS))
        return 0
    unknown = [name for name in parsed.names if name not in MUTANTS]
    if unknown:
        parser.error(f"no such mutant: {', '.join(unknown)}; --list names them")
    survivors = []
    work = [(name, parsed.programs) for name in parsed.names or MUTANTS]
    with multiprocessing.get_context("spawn").Pool(parsed.processes, maxtasksperchild=1) as pool:
        for verdict in pool.imap(judge, work, chunksize=1):
            print(f"{verdict.name} ({verdict.seconds:.0f} s)")
            print(f"    ordering: {verdict.ordering or '-'}")
            print(f"    atomicity: {verdict.atomicity or '-'}")
            print(f"    outcome: {verdict.outcome or '-'}", flush=True)
            if not (verdict.ordering or verdict.atomicity or verdict.outcome):
                survivors.append(verdict.name)
    for bug, argument in NOT_HERE.items():
        print(f"{bug}\n    cannot be: {argument}")
    print(f"{len(work)} mutants, {len(survivors)} survived: {', '.join(survivors) or 'none'}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
