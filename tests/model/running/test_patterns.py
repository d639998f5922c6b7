"""Patterns of some queries, read beside sdpa."""

from __future__ import annotations

import torch
from native_attention import prepare

from mm_lens.looking.attention import attention_map
from mm_lens.model.running import patterns


def test_only_rows_of_the_queries_are_computed(model, monkeypatch):
    """A few at a time; where another hook is at a pattern, what that leaves is read."""
    inputs, sizes = prepare(model, "left"), []
    compute = patterns.compute_pattern
    monkeypatch.setattr(
        patterns, "compute_pattern", lambda x: (sizes.append(x.shape[2]), compute(x))[1]
    )
    attention_map(model, inputs)
    assert sizes == [1, 1, 1]
    sizes.clear()
    monkeypatch.setattr(patterns, "AT_ONCE", 2 * 3 * 4 * inputs.layout.shape[1])
    whole = attention_map(model, inputs, query="visual", key="all")
    assert max(sizes) == 2
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", lambda x, hook: x.roll(1, -1))]):
        rolled = attention_map(model, inputs, query="visual", key="all")
    there = ~whole[1].isnan()
    torch.testing.assert_close(rolled[1][there], whole[1].nan_to_num(0).roll(1, -1)[there])
    assert not torch.equal(rolled[2, :, 0], whole[2, :, 0])
