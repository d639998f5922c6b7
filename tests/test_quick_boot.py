"""The quicker look for hook points finds what TransformerLens's own finds."""

from __future__ import annotations

import pytest
import quick_boot
from tiny_families import build
from transformer_lens.model_bridge.transformer_bridge import TransformerBridge

import mm_lens


@pytest.mark.parametrize("name", ["llava-1.5", "omnifusion", "qwen3.5", "minimax-m3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_same_hook_points_have_the_same_names_in_the_same_order(name, attention, monkeypatch):
    found = []
    for scan in (quick_boot.scan, quick_boot.thorough):
        monkeypatch.setattr(TransformerBridge, "_scan_existing_hooks", scan)
        model, processor = build(name)
        bridge = mm_lens.load(hf_model=model, processor=processor, attention=attention, check=False)
        found.append([(key, point.name) for key, point in bridge._hook_registry.items()])
    assert len(found[0]) > 100
    assert found[0] == found[1]
