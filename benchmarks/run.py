"""
How fast pyvhdx is, side by side with others in one run.

    python benchmarks/run.py [--quick] [--folder DIR] [--output json] [NAME ...]

Each benchmark runs its contenders in turn, A B C A B C ..., several rounds, and prints for each the
median and the spread, and the ratio of pyvhdx to it as the median of the ratios round by round: the
machine may be noisy, the ratio drifts less.  No figure makes the exit status anything but 0.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import contenders
from contenders import Case, Sizes

import pyvhdx

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES: dict[str, Callable[[Path, Sizes], Case]] = {
    "random": contenders.random_reads,
    "sequential": contenders.sequential_reads,
    "chain": contenders.chain_reads,
    "open": contenders.opens,
    "info-large": contenders.info_of_the_largest,
    "info-small": contenders.info_of_a_small_one,
}


class Result(NamedTuple):
    """One contender of one benchmark; times in seconds for each operation."""

    benchmark: str
    contender: str
    median: float
    fastest: float
    slowest: float
    ratio: float
    goal: float | None


def measure(name: str, case: Case, rounds: int) -> list[Result]:
    """Run all contenders of a benchmark in turn."""
    times: dict[str, list[float]] = {contender: [] for contender in case.contenders}
    for run in case.contenders.values():
        run()  # warm up, and whatever it caches
    for _ in range(rounds):
        for contender, run in case.contenders.items():
            times[contender].append(run() / case.operations)
    results = []
    for contender, taken in times.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(times["pyvhdx"], taken, strict=True))
        goal = case.goals.get(contender)
        results.append(Result(name, contender, statistics.median(taken), min(taken), max(taken), ratio, goal))
    return results


def human(seconds: float) -> str:
    """Write a time with a fitting unit."""
    for unit, step in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= step:
            return f"{seconds / step:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="Time pyvhdx side by side with others.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all without one")
    parser.add_argument("--quick", action="store_true", help="small and few: does it run at all?")
    parser.add_argument("--folder", help="where the images are made; a temporary folder without it")
    parser.add_argument("--output", choices=("human", "json"), default="human")
    parsed = parser.parse_args()
    unknown = set(parsed.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    sizes = contenders.QUICK if parsed.quick else contenders.FULL
    results = []
    machine = (
        f"{platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    )
    if parsed.output == "human":
        print(f"pyvhdx {pyvhdx.__version__}; {machine}\n")
    with tempfile.TemporaryDirectory(dir=parsed.folder) as folder:
        for name in parsed.names or NAMES:
            case = NAMES[name](Path(folder), sizes)
            found = measure(name, case, sizes.rounds)
            case.close()
            results += found
            if parsed.output == "human":
                _print(name, case, found)
    if parsed.output == "json":
        json.dump(
            {"machine": machine, "results": [result._asdict() for result in results]}, sys.stdout, indent=4
        )
        print()


def _print(name: str, case: Case, results: list[Result]) -> None:
    print(f"{name}: {case.what}")
    for result in results:
        spread = f"{human(result.fastest)} .. {human(result.slowest)}"
        line = f"  {result.contender:<24}{human(result.median):>10}   {spread:<24}"
        if result.contender != "pyvhdx":
            line += f"pyvhdx takes {result.ratio:.2f} of it"
            if result.goal is not None:
                line += f" (goal {result.goal}: {'met' if result.ratio <= result.goal else 'missed'})"
        print(line)
    for note in case.notes:
        print(f"  {note}")
    print(flush=True)


if __name__ == "__main__":
    main()
