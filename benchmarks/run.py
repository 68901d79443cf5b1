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
import os
import platform
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _peers
import contenders
from _images import MIB
from _timing import OURS, Case, Result, measure
from contenders import Sizes

import pyvhdx

if TYPE_CHECKING:
    from collections.abc import Callable

BENCHMARKS: dict[str, Callable[[Path, Sizes], Case]] = {
    "random": contenders.random_reads,
    "sequential": contenders.sequential_reads,
    "chain": contenders.chain_reads,
    "open-small": contenders.open_small,
    "open-large": contenders.open_large,
    "info-small": contenders.info_small,
    "info-large": contenders.info_large,
}


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="Time pyvhdx side by side with others.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all without one"
    )
    parser.add_argument("--quick", action="store_true", help="small and few: does it run at all?")
    parser.add_argument(
        "--folder", help="where the images are made; the system's temporary folder without it"
    )
    parser.add_argument("--output", choices=("human", "json"), default="human")
    parsed = parser.parse_args()
    unknown = set(parsed.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    sizes = contenders.QUICK if parsed.quick else contenders.FULL
    human = parsed.output == "human"
    surroundings = _surroundings()
    if human:
        _print_surroundings(surroundings, quick=parsed.quick)
    found = []
    with tempfile.TemporaryDirectory(dir=parsed.folder) as folder:
        for name in parsed.names or BENCHMARKS:
            case, results = _run(BENCHMARKS[name], Path(folder), sizes)
            found.append(_plain(name, case, results))
            if human:
                _print(name, case, results)
    if not human:
        print(json.dumps({"surroundings": surroundings, "benchmarks": found}, indent=4))


def _run(benchmark: Callable[[Path, Sizes], Case], folder: Path, sizes: Sizes) -> tuple[Case, list[Result]]:
    case = benchmark(folder, sizes)
    try:
        return case, measure(case, sizes.rounds)
    finally:
        case.close()


def _surroundings() -> dict[str, Any]:
    return {
        "pyvhdx": pyvhdx.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()}",
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "peers": {peer: _peers.version(peer) for peer in (_peers.LIBVHDI, _peers.DISSECT, _peers.QEMU)},
    }


def _plain(name: str, case: Case, results: list[Result]) -> dict[str, Any]:
    """Return a benchmark as JSON can hold it; times in seconds, memory in bytes."""
    return {
        "name": name,
        "what": case.what,
        "results": [
            {
                "contender": result.contender,
                "median": result.median,
                "fastest": result.fastest,
                "slowest": result.slowest,
                "ratio": result.ratio,
                "goal": result.goal and result.goal._asdict(),
                "met": result.met,
                "peak": result.peak,
            }
            for result in results
        ],
        "peak_goal": case.peak_goal,
        "notes": case.notes,
    }


# -- for people -------------------------------------------------------------------------------


def _print_surroundings(surroundings: dict[str, Any], *, quick: bool) -> None:
    ours = ", ".join(f"{key} {value}" for key, value in surroundings.items() if key != "peers")
    peers = ", ".join(f"{peer} {version}" for peer, version in surroundings["peers"].items())
    print(f"{ours}\n{peers}")
    if quick:
        print("a smoke run: too short for its figures to mean anything")
    print()


def _print(name: str, case: Case, results: list[Result]) -> None:
    print(f"{name}: {case.what}")
    for result in results:
        spread = f"{_time(result.fastest)} .. {_time(result.slowest)}"
        words = [f"  {result.contender:<16}{_time(result.median):>9}   {spread:<20}"]
        if result.peak is not None:
            words.append(f"{result.peak / MIB:4.0f} MiB")
        if result.ratio is not None:
            words.append(f"pyvhdx takes {result.ratio:.2f} of it{_verdict(result)}")
        elif case.peak_goal is not None and result.peak is not None and result.contender == OURS:
            met = "met" if result.peak < case.peak_goal else "missed"
            words.append(f"(goal: under {case.peak_goal // MIB} MiB: {met})")
        print("  ".join(words).rstrip())
    for note in case.notes:
        print(f"  {note}")
    print(flush=True)


def _verdict(result: Result) -> str:
    if result.goal is None:
        return ""
    kind = "later goal" if result.goal.later else "goal"
    return f" ({kind} {result.goal.ratio}: {'met' if result.met else 'missed'})"


def _time(seconds: float) -> str:
    """Write a time with a fitting unit."""
    for unit, step in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= step:
            return f"{seconds / step:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


if __name__ == "__main__":
    main()
