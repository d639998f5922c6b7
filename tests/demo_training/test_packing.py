"""Questions packed into one row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from built_demos import CPU, picture

from demo_training.batches import Questions, prefix, tail
from demo_training.fusion import Fusion
from demo_training.packing import pack
from demo_training.prompts import prompt


@pytest.mark.parametrize("size", [(64, 64), (64, 192), (80, 112)])
def test_packed_questions_equal_separate_ones(
    model: Any, processor: Any, built: Fusion, size: tuple[int, int]
) -> None:
    """Logits and labels of one packed row against one plain sequence per question."""
    asked = [("what color is the shape?", "teal"), ("is no blue shape present?", "yes")]
    asked += [("what shape is present?", "circle")]
    image = picture(size)
    asking = Questions(processor.tokenizer, tail(built), 0, CPU)
    # A shorter second row, so that there is padding.
    rows = [[asking.turns[pair] for pair in asked], [asking.turns[asked[1]]]]
    packed = pack([prefix(built, size)] * 2, rows, processor.tokenizer.pad_token_id)
    seen = processor.image_processor([image, picture(size, seed=1)], return_tensors="pt")
    with torch.no_grad():
        together = model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            attention_mask=packed.attention_mask,
            **seen,
        ).logits
    where = (packed.labels[0] != -100).nonzero()[:, 0].split(2)
    assert len(where) == len(asked)
    for (question, answer), at in zip(asked, where, strict=True):
        text = f"{prompt(processor, question)} {answer}</s>"
        inputs = processor(text=[text], images=[image], return_tensors="pt")
        with torch.no_grad():
            alone = model(**inputs).logits[0, -3:-1]
        assert packed.labels[0, at].tolist() == inputs.input_ids[0, -2:].tolist()
        torch.testing.assert_close(together[0, at], alone, rtol=1e-4, atol=1e-4)
