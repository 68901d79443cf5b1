"""The fuzz targets go on working: each runs over its seeds, without a fuzzer, and over seeds cut and joined."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.targets import TARGETS, run_once


def _inputs(name: str) -> list[bytes]:
    """Return some of a target's seeds, and some that were cut, changed in a byte and joined."""
    seeds = list(TARGETS[name].seeds())
    draw = random.Random(name)
    chosen = draw.sample(seeds, min(40, len(seeds)))
    for _ in range(20):
        one, other = bytearray(draw.choice(seeds)), draw.choice(seeds)
        if one:
            one[draw.randrange(len(one))] = draw.randrange(256)
        chosen.append((bytes(one)[: draw.randrange(len(one) + 1)] + other)[: TARGETS[name].longest])
    return chosen


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_finds_nothing_in_its_seeds(name: str) -> None:
    outcomes = {run_once(name, data) for data in _inputs(name)}
    assert len(outcomes) > 3, "the seeds do not come far"


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_an_input(name: str) -> None:
    draw = random.Random(name)
    for data in (b"", b"\0", b"\xff" * 64, draw.randbytes(64), draw.randbytes(TARGETS[name].longest)):
        assert run_once(name, data)
