"""Bottom-k sampling."""

from __future__ import annotations

import torch

from mm_lens.profiling.collecting.bottom_k import BottomK


def test_bottom_k_is_the_start_of_the_sorted_whole():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randperm(500, generator=generator) - 250
    sample, bottom, buffer = keys * 3, BottomK(64), torch.zeros(64, dtype=torch.int64)
    start = 0
    for size in (10, 1, 0, 200, 64, 225):
        part = slice(start, start + size)
        taken, slots = bottom.offer(keys[part], sample[part], keys[part] + 7, keys[part] + 9)
        buffer[slots] = keys[part][taken]
        start += size
    expected = keys.sort().values[:64]
    assert torch.equal(buffer[bottom.order], expected)
    assert torch.equal(bottom.key[bottom.order], expected)
    assert torch.equal(bottom.sample[bottom.order], expected * 3)
    assert torch.equal(bottom.position[bottom.order], expected + 7)
    assert torch.equal(bottom.token_id[bottom.order], expected + 9)
    assert (bottom.size, bottom.seen) == (64, 500)
