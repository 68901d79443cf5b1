"""
Run one fuzz target with coverage guidance, or repeat one input.

    python -m tests.fuzz.run open --seconds 600
    python -m tests.fuzz.run open --input crash-...

Needs the extra `fuzz` (atheris, on Linux with Python 3.11 or newer); ``--input`` needs nothing.  What a
run finds interesting stays in its corpus (``--corpus``) for the next one.  The last line of a run is its
summary as JSON.  The exit status is 1 where there was a finding, whose input is then in a file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

_CHILD = "PYVHDX_FUZZ_CHILD"
# libFuzzer's own limits, beyond those that every input is judged by.
_HANG_SECONDS, _RSS_MIB = 20, 2048


def _fuzz(name: str, arguments: list[str]) -> None:
    """Hand over to libFuzzer, which does not return."""
    import atheris  # noqa: PLC0415 - only here is it needed

    with atheris.instrument_imports(include=["pyvhdx"]):
        import pyvhdx.cli  # noqa: PLC0415 - instrumented as they are imported
        import pyvhdx.testing  # noqa: F401, PLC0415
    from tests.fuzz.targets import run_once  # noqa: PLC0415 - behind the instrumentation

    def one_input(data: bytes) -> None:
        run_once(name, data)

    atheris.Setup([sys.argv[0], *arguments], one_input)
    atheris.Fuzz()


def _start(name: str, parsed: argparse.Namespace, folders: list[Path], worker: int) -> subprocess.Popen[str]:
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415 - the child must not import it yet

    findings = parsed.findings.resolve()
    findings.mkdir(parents=True, exist_ok=True)
    arguments = [
        *map(str, folders),
        f"-max_total_time={parsed.seconds}",
        f"-max_len={TARGETS[name].longest}",
        f"-artifact_prefix={findings}/{name}-",
        f"-timeout={_HANG_SECONDS}",
        f"-rss_limit_mb={_RSS_MIB}",
        "-print_final_stats=1",
        "-use_value_profile=1",
        *([f"-seed={parsed.seed + worker}"] if parsed.seed else []),
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz.run", name, *arguments],
        cwd=Path(__file__).parents[2],
        env={**os.environ, _CHILD: name},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def _number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def _report(name: str, parsed: argparse.Namespace, errors: list[str], seconds: float) -> int:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    inputs = sorted({path for text in errors for path in re.findall(r"Test unit written to (\S+)", text)})
    traces = [
        text[text.find("Uncaught Python exception") :] for text in errors if "Test unit written" in text
    ]
    for trace in traces:
        print(trace)
    summary = {
        "target": name,
        "seconds": round(seconds),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime),
        "executions": sum(_number(r"stat::number_of_executed_units:\s*(\d+)", t) for t in errors),
        "edges": max(_number(r"cov: (\d+)", text) for text in errors),
        "features": max(_number(r"ft: (\d+)", text) for text in errors),
        "corpus": len(list(parsed.corpus.iterdir())),
        "findings": inputs,
    }
    print(json.dumps(summary), flush=True)
    return 1 if inputs else 0


def main() -> int:
    """Run a target; return 1 where it found something."""
    from tests.fuzz.targets import TARGETS, run_once  # noqa: PLC0415 - the child must not import it yet

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--workers", type=int, default=1, help="processes that share the corpus")
    parser.add_argument("--corpus", type=Path, help="where inputs are kept; .fuzz/TARGET without it")
    parser.add_argument("--seed-corpus", type=Path, help="a folder of more inputs, which is not written to")
    parser.add_argument("--findings", type=Path, default=Path(".fuzz/findings"), help="where findings go")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices; 0: of the time")
    parser.add_argument("--input", type=Path, help="run this input once, and show what comes of it")
    parsed = parser.parse_args()
    name = parsed.target
    if parsed.input is not None:
        print(run_once(name, parsed.input.read_bytes()))
        return 0
    parsed.corpus = (parsed.corpus or Path(".fuzz") / name).resolve()
    parsed.corpus.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        for data in TARGETS[name].seeds():
            Path(made, hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
        folders = [parsed.corpus, Path(made)]
        if parsed.seed_corpus is not None:
            folders.append(parsed.seed_corpus.resolve())
        children = [_start(name, parsed, folders, worker) for worker in range(parsed.workers)]
        errors = [child.communicate()[0] for child in children]
    for child, text in zip(children, errors, strict=True):
        if "stat::number_of_executed_units" not in text:
            print(text, file=sys.stderr)
            print(f"the fuzzer ended with status {child.returncode} and said nothing more", file=sys.stderr)
            return 2
    return _report(name, parsed, errors, time.monotonic() - began)


if __name__ == "__main__":
    if _CHILD in os.environ:
        _fuzz(os.environ[_CHILD], sys.argv[2:])
    sys.exit(main())
