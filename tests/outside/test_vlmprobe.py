"""Methods against what vlmprobe gave on the same weights."""

from __future__ import annotations

import pytest
from outside_methods import difference
from vlmprobe_methods import BOUND, FAMILY, THEIRS, Pair


@pytest.fixture(scope="module")
def pair(no_float32_in_module):
    return Pair()


@pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")
@pytest.mark.parametrize("key", THEIRS, ids=[name for name, _ in THEIRS])
def test_a_method_gives_vlmprobes_numbers(pair, key, record_property):
    found = difference(*THEIRS[key](pair))
    record_property(" | ".join(key), (FAMILY, found))
    assert found < BOUND
