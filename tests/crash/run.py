"""
Opens what power cuts leave, by the ten thousand, from fresh seeds::

    python -m tests.crash.run --images 30000 [--each 50] [--seed N] [--processes N]

Goes on from the seed that is named, or from one drawn from the clock, so that every run looks at others,
until it has opened that many: distinct in program, cut and content.  A failure names its seed, and
``--seed N --images 1`` repeats it.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.crash.outcome import try_program


def _try(arguments: tuple[int, int, int]) -> tuple[int, Counter[str], str]:
    seed, images, qemu_each = arguments
    try:
        return seed, try_program(seed, images, qemu_each=qemu_each), ""
    except BaseException:  # noqa: BLE001 - shown, with its seed
        return seed, Counter(), traceback.format_exc()


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
    print(f"programs from seed {parsed.seed} on, {parsed.each} cuts each", flush=True)
    began, counts, failures, last = time.monotonic(), Counter[str](), 0, parsed.seed
    seeds = itertools.count(parsed.seed)
    with multiprocessing.Pool(parsed.processes) as pool:
        while counts["images"] < parsed.images and failures < 10:
            left = -(-(parsed.images - counts["images"]) // parsed.each)
            work = [(next(seeds), parsed.each, parsed.qemu_each) for _ in range(min(50, left))]
            for seed, found, trace in pool.imap_unordered(_try, work):
                counts.update(found)
                counts["programs"] += 1
                last = max(last, seed)
                if trace:
                    failures += 1
                    print(f"seed {seed} failed:\n{trace}", flush=True)
            print(f"{dict(counts)}, {time.monotonic() - began:.0f} s", flush=True)
    print(f"seeds {parsed.seed} to {last}: {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
