"""Questions in rooms, against transformers on one plain sequence for each."""

from __future__ import annotations

import torch
from transformers import MistralConfig, MistralForCausalLM

from demo_training.scenes import packing


def test_rooms_are_as_separate_sequences() -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        sliding_window=None,
    )
    model = MistralForCausalLM(config).eval()
    prefixes = [[1, 5, 6, 7], [1, 8]]
    turns = [[([9, 10, 11], [12, 2]), ([13], [14, 2])], [([3, 4], [5, 2]), ([6, 7, 8], [9, 2])]]
    packed = packing.pack(prefixes, turns, pad_id=0)
    model.set_attn_implementation(packing.NAME)
    with torch.no_grad():
        together = model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            attention_mask=packed.attention_mask,
            use_cache=False,
        ).logits
    model.set_attn_implementation("eager")
    for b, (prefix, row) in enumerate(zip(prefixes, turns, strict=True)):
        where = (packed.labels[b] != -100).nonzero()[:, 0].split(2)
        for (question, answer), at in zip(row, where, strict=True):
            with torch.no_grad():
                alone = model(torch.tensor([[*prefix, *question, *answer]])).logits[0, -3:-1]
            assert packed.labels[b, at].tolist() == answer
            torch.testing.assert_close(together[b, at], alone, rtol=1e-4, atol=1e-5)
