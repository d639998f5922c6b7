"""Methods against what vlmprobe gave on the same weights."""

from __future__ import annotations

import before_transformers
import pytest
from outside_methods import difference
from vlmprobe_methods import BOUND, CASES, SMALL, THEIRS, Pair


@pytest.fixture(scope="module", params=CASES)
def pair(request, no_float32_in_module):
    if request.param == "qwen2.5-vl" and not before_transformers.AVAILABLE:
        pytest.skip("its processor needs torchvision")
    return request.param, Pair(request.param)


@pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")
@pytest.mark.parametrize("key", THEIRS, ids=[name for name, _ in THEIRS])
def test_a_method_gives_vlmprobes_numbers(pair, key, record_property):
    family, both = pair
    found = difference(*THEIRS[key](both))
    record_property(" | ".join(key), (family, found))
    assert found < SMALL.get(key[0], BOUND)
