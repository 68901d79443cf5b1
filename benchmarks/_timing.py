"""Contenders in turn, A B C A B C ..., and what their times say about one another."""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

OURS = "pyvhdx"

# The peak memory of a child begins with that of the process it was forked from, so a small one starts
# it.  A bare interpreter needs about 9 MiB, and nothing below that can be seen.
_LAUNCHER = """
import os, sys
nowhere = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[nowhere])
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


class Goal(NamedTuple):
    """The most that our time may be of a contender's; *later* ones are not promised yet."""

    ratio: float
    later: bool = False


@dataclass
class Case:
    """A benchmark: functions that each do *operations* once, and what must be said beside the figures."""

    what: str
    operations: int = 1
    contenders: dict[str, Callable[[], object]] = field(default_factory=dict)
    goals: dict[str, Goal] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    peak_goal: int | None = None
    notes: list[str] = field(default_factory=list)
    cleanup: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """Close what the contenders hold open."""
        self.cleanup.close()


class Result(NamedTuple):
    """One contender: seconds for each operation, and our time as a part of its."""

    contender: str
    median: float
    fastest: float
    slowest: float
    ratio: float | None
    goal: Goal | None
    peak: int | None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        return None if self.goal is None or self.ratio is None else self.ratio <= self.goal.ratio


def measure(case: Case, rounds: int) -> list[Result]:
    """Run all contenders in turn, and compare them round by round: noise that lasts hits both sides."""
    times: dict[str, list[float]] = {name: [] for name in case.contenders}
    for run in case.contenders.values():
        run()  # the first touch of memory costs seconds a GiB where a host must give it back
    for _ in range(rounds):
        for name, run in case.contenders.items():
            times[name].append(_time(run) / case.operations)
    return [_result(case, name, taken, times[OURS]) for name, taken in times.items()]


def _time(run: Callable[[], object]) -> float:
    gc.collect()
    gc.disable()  # a collection would hit whoever is on
    try:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    finally:
        gc.enable()


def _result(case: Case, name: str, taken: list[float], ours: list[float]) -> Result:
    ratio = None
    if name != OURS:
        ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, taken, strict=True))
    return Result(
        name,
        statistics.median(taken),
        min(taken),
        max(taken),
        ratio,
        case.goals.get(name),
        case.peaks.get(name),
    )


def as_installed(folder: Path) -> dict[str, str]:
    """
    Return an environment in which Python keeps compiled modules, below *folder*.

    An installed package has them; a checkout may not, and compiling it anew takes a fifth of the time
    of `info`.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return environment | {"PYTHONPYCACHEPREFIX": str(folder / "compiled")}


def whole_process(command: Sequence[str], environment: Mapping[str, str]) -> Callable[[], object]:
    """Return a function that runs a command to its end."""
    return lambda: subprocess.run(
        command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def peak_memory(command: Sequence[str], environment: Mapping[str, str]) -> int | None:
    """Return the most bytes that a command has in memory; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command]
    return int(subprocess.run(launcher, check=True, env=environment, capture_output=True).stdout)
