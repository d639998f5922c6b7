"""Writes in place are seen, also where torch counts no versions."""

from __future__ import annotations

import pytest
import torch

from mm_lens.model.parts.snapshots import Snapshot


@pytest.mark.parametrize("inference", [False, True])
def test_writes_in_place_are_seen(inference):
    with torch.inference_mode(inference):
        x = torch.zeros(3)
        before = Snapshot(x)
        assert not before.changed()
        _ = x + 1
        assert not before.changed()
        x[1:].add_(1)
        assert before.changed()
