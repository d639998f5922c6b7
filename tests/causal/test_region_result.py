"""What `mm_lens.patching` returns shows itself: tests/drawing/test_effects.py draws it."""

from __future__ import annotations

import pandas as pd
import torch

from mm_lens.causal import RegionPatching


def test_one_metric_of_several_keeps_what_it_is_of():
    table = pd.DataFrame({"layer": [0, 0, 1, 1], "region": ["a", "b"] * 2})
    values = torch.arange(8.0).reshape(2, 2, 2, 1)
    given = (["layer", "region"], table, ["m", "n"], False)
    both = RegionPatching(values, *given, baseline=torch.ones(2, 1), has_metric_axis=True)
    one = both["n"]
    assert isinstance(one, RegionPatching)
    assert one.values.flatten().tolist() == [4, 5, 6, 7]
    assert one.strongest(2) == [("layer 1, b", 6.0), ("layer 1, a", 5.0)]
    assert one["n"] is one
    assert "layer 1, b: +6" in repr(one)
