"""
Images in which one field has a value at which arithmetic goes wrong, and the checksums are right.

    python -m tests.property.mutations 10000

runs so many, spread over all fields, in a process limited to 1 GiB, and prints what came of them.  Each
is opened and read, checked, and opened ``"r+"`` and written to, as `tests.fuzz.oracle` says.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import pyvhdx
from tests.corpus.specimens import Field, Specimen, edges, read_field, specimens, with_field, write_out
from tests.fuzz.images import examine_check
from tests.fuzz.oracle import SECONDS, examine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvhdx.testing import MemoryStorage

_ADDRESS_SPACE = 1 << 30
_PLACES = [3 << 20, 0, (1 << 20) + 700, (5 << 20) - 700, 2 << 20, (1 << 64) - 700]
_ON_DISK_EACH = 50


class Mutation(NamedTuple):
    """A specimen in which a field has another value."""

    specimen: Specimen
    where: Field
    value: int

    def __str__(self) -> str:
        return f"{self.specimen.name}: {self.where.part} at {self.where.offset:#x}, {self.where.width} bytes = {self.value:#x}"


def values_of(specimen: Specimen, where: Field) -> list[int]:
    """Return the values that a field of a specimen is given."""
    return edges(read_field(specimen.storage, where), where.width, specimen.storage.size())


def mutations(draw: random.Random) -> Iterator[Mutation]:
    """Yield mutations without end: every field in turn, each time with another of its values."""
    fields = [(specimen, where) for specimen in specimens() for where in specimen.fields]
    values = [values_of(specimen, where) for specimen, where in fields]
    for several in values:
        draw.shuffle(several)
    number = 0
    while True:
        for (specimen, where), several in zip(fields, values, strict=True):
            yield Mutation(specimen, where, several[number % len(several)])
        number += 1


def try_mutation(mutation: Mutation, *, alone: bool) -> tuple[str, str]:
    """Read, check and write a mutated image; return what came of reading and of writing."""
    parent = mutation.specimen.parent
    how = {"parent": False} if alone else {} if parent is None else {"parent": lambda _: parent}
    storage = with_field(mutation.specimen, mutation.where, mutation.value)
    read = examine(storage.copy(), _PLACES, **how)
    examine_check(storage.copy(), deep=True, **how)
    return read, examine(storage, _PLACES, write=True, **how)


def _stays_on_disk(storage: MemoryStorage, path: Path) -> None:
    """Read a real file; not a byte of it changes, nor when it was changed."""
    write_out(storage, path)
    before = path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest()
    with contextlib.suppress(pyvhdx.VHDXError), pyvhdx.open(path, parent=False) as image:
        image.info()
        image.pread(4096, 0)
    with contextlib.suppress(pyvhdx.VHDXError):
        pyvhdx.check(path, parent=False)
    assert before == (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest())


def main() -> int:
    """Try mutations; return 1 if one broke a promise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    draw = random.Random(parsed.seed)
    counts, longest, slowest, failures = Counter[str](), 0.0, "", []
    with tempfile.TemporaryDirectory() as folder:
        for number, mutation in zip(range(parsed.count), mutations(draw), strict=False):
            began = time.process_time()
            try:
                read, written = try_mutation(mutation, alone=number % 2 == 1)
                if number % _ON_DISK_EACH == 0:
                    storage = with_field(mutation.specimen, mutation.where, mutation.value)
                    _stays_on_disk(storage, Path(folder, "disk.vhdx"))
            except Exception as error:  # noqa: BLE001 - shown with its mutation
                failures.append(f"{mutation}: {type(error).__name__}: {error}")
                continue
            took = time.process_time() - began
            if took > longest:
                longest, slowest = took, str(mutation)
            if took > SECONDS:
                failures.append(f"{mutation}: {took:.1f} s")
            counts["opened" if read == "read" else "refused"] += 1
            counts["written" if written == "written" else "not written"] += 1
    print(
        json.dumps(
            {
                "mutations": parsed.count,
                **counts,
                "longest_seconds": round(longest, 3),
                "slowest": slowest,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
                "failures": failures,
            },
            indent=2,
        )
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
