"""docs/minimax_m3.md tells dense blocks from sparse ones, and short contexts from long ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny_families import build

import mm_lens

PAGE = Path(__file__).parents[2] / "docs" / "minimax_m3.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("minimax_page", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keep(native, blocks):
    for block in native.model.language_model.layers[1:]:
        block.self_attn.indexer.topk_blocks = blocks
    return native


def test_keys_seen_are_those_that_native_attention_weighs(script):
    """A short prompt is below what a sparse block keeps, a long one is not."""
    (wrapped, processor), (native, _) = build("minimax-m3"), build("minimax-m3")
    model = mm_lens.load(hf_model=keep(wrapped, script.KEPT), processor=processor, check=False)
    keep(native, script.KEPT).set_attn_implementation("eager")
    for context, n_characters in script.CONTEXTS.items():
        (sample,) = script.make_samples(n_characters, count=1)
        inputs = model.prepare(sample.text, sample.image, chat_template=False)
        with torch.no_grad():
            weights = native(**inputs.native, output_attentions=True).attentions
        seen = script.share_of_keys(model, [sample])
        for layer, weight in enumerate(weights):
            assert seen[layer] == pytest.approx((weight[0, :, -1] > 0).float().mean().item())
            sparse = layer > 0 and context == "long"
            assert (seen[layer] < 0.5) == sparse, (context, layer)
