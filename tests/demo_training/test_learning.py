"""Losses."""

from __future__ import annotations

from typing import Any

import torch
from built_demos import CPU, picture

from demo_training.batches import Questions, prefix, tail
from demo_training.fusion import Fusion
from demo_training.learning import losses
from demo_training.packing import pack
from demo_training.prompts import prompt


def test_loss_is_that_of_transformers(model: Any, processor: Any, built: Fusion) -> None:
    """One question, so that packing changes nothing and transformers can take the labels."""
    size, pair = (64, 64), ("what shape is present?", "circle")
    asking = Questions(processor.tokenizer, tail(built), 0, CPU)
    packed = pack([prefix(built, size)], [[asking.turns[pair]]], processor.tokenizer.pad_token_id)
    inputs = processor(
        text=[f"{prompt(processor, pair[0])} {pair[1]}</s>"],
        images=[picture()],
        return_tensors="pt",
    )
    assert torch.equal(packed.input_ids, inputs["input_ids"])
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    with torch.no_grad():
        expected = model(**inputs, labels=labels).loss
        hidden = model.model(**inputs).last_hidden_state
        got = losses(model.lm_head, processor.tokenizer.eos_token_id, hidden, packed)
    torch.testing.assert_close(got.answers, expected, rtol=1e-5, atol=1e-6)
