"""A sample of tokens, in the memory of the sample."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from made_data import make_data
from made_states import states_of

from mm_lens.profiling.collecting.token_sample import TokenSample


def test_memory_is_that_of_the_sample_however_large_the_data(model):
    shapes = []
    for n in (4, 12):
        states = states_of(model, make_data(n), k=30, streams=("residual",))
        (part,) = states.tokens.parts
        stores = [reservoir.store.slots for reservoir in part.reservoirs.values()]
        shapes.append([[slots.shape for slots in store.values()] for store in stores])
        assert all(
            slots.untyped_storage().nbytes() == 30 * 24 * 4 for s in stores for slots in s.values()
        )
    assert shapes[0] == shapes[1] == [[(30, 24)] * 4] * 2


@pytest.mark.slow
def test_the_peak_of_a_process_does_not_grow_with_the_data():
    """What benchmarks/profile_memory.py prints for all of easy-VQA, for less of it."""
    script = Path(__file__).parents[2] / "benchmarks" / "profile_memory.py"
    call = [sys.executable, str(script), "--peaks", "--samples", "100", "1500"]
    shown = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    ratios = [float(ratio) for ratio in re.findall(r"ratio ([\d.]+)", shown)]
    assert len(ratios) == 2
    assert max(ratios) <= 1.05, shown


def test_unused_reservoirs_are_not_built(model):
    assert set(TokenSample(5, ("visual",), 0).reservoirs) == {"visual"}
    assert set(TokenSample(5, ("all",), 0).reservoirs) == {"visual", "text"}
