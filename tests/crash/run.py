"""
Opens what power cuts leave, by the ten thousand, from fresh seeds::

    python -m tests.crash.run --images 30000 [--each 50] [--seed N] [--processes N]

Goes on from the seed that is named, or from one drawn from the clock, so that every run looks at others.
Counts distinct contents of files; a failure names its seed, and ``--seed N --images 1`` repeats it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.crash.outcome import try_program


def _try(arguments: tuple[int, int, int]) -> tuple[int, dict[str, int], str]:
    seed, images, qemu_each = arguments
    try:
        return seed, try_program(seed, images, qemu_each=qemu_each), ""
    except BaseException:  # noqa: BLE001 - shown, with its seed
        return seed, {}, traceback.format_exc()


def main() -> int:
    """Run programs until enough images were opened; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--each", type=int, default=50, help="images of each program")
    parser.add_argument("--seed", type=int, default=int(time.time()) * 1000)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument(
        "--qemu-each", type=int, default=50, help="one of so many is replayed by QEMU too; 0: none"
    )
    parsed = parser.parse_args()
    programs = -(-parsed.images // parsed.each)
    print(f"{programs} programs from seed {parsed.seed}, {parsed.each} images each", flush=True)
    began, counts, failures = time.monotonic(), Counter[str](), 0
    work = [(seed, parsed.each, parsed.qemu_each) for seed in range(parsed.seed, parsed.seed + programs)]
    with multiprocessing.Pool(parsed.processes) as pool:
        for done, (seed, found, trace) in enumerate(pool.imap_unordered(_try, work), 1):
            counts.update(found)
            if trace:
                failures += 1
                print(f"seed {seed} failed:\n{trace}", flush=True)
            if done % 50 == 0:
                print(f"{done} programs, {dict(counts)}, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{programs} programs, {dict(counts)}, {failures} failures, {time.monotonic() - began:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
