"""
One field at a value at which arithmetic goes wrong: an answer or an error of ours, and no harm.

`PYVHDX_MUTATIONS` says how many are tried in the process of 1 GiB; `tests/property/mutations.py` tells more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.corpus.specimens import specimens
from tests.fuzz.oracle import limited
from tests.property.mutations import Mutation, try_mutation, values_of

COUNT = int(os.environ.get("PYVHDX_MUTATIONS", "400"))


@given(st.data())
def test_a_mutated_image_is_an_answer_or_an_error_of_ours(data: st.DataObject) -> None:
    specimen = data.draw(st.sampled_from(specimens()))
    where = data.draw(st.sampled_from(specimen.fields))
    edge = st.sampled_from(values_of(specimen, where))
    value = data.draw(edge | st.integers(0, 256**where.width - 1))
    with limited():
        try_mutation(Mutation(specimen, where, value), alone=data.draw(st.booleans()))


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
@pytest.mark.slow
def test_many_mutations_in_a_process_of_one_gibibyte() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.property.mutations", str(COUNT)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads(done.stdout)
    print(done.stdout)
    assert summary["opened"] + summary["refused"] == COUNT
    assert summary["opened"] > COUNT // 4, "most fields do not keep a file from being opened"
    assert summary["refused"] > COUNT // 20
