"""Where image tokens lie, and which segments a prompt has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chats import chat, prepare
from mm_lens_adapters.omnifusion import OmniFusionFamily
from PIL import Image
from tiny import random_image
from tiny_omnifusion import SIDE, tiny_omnifusion
from upstream import PROMPT


@pytest.mark.parametrize(
    "size", [(20, 20), (64, 64), (31, 57), (57, 31), (8, 90), (90, 8), (333, 500), (61, 20)]
)
def test_boxes_are_where_the_processor_looks(family, processor, size):
    check_boxes(family, processor, size, lambda length: SIDE * length / min(size))


@pytest.mark.parametrize("size", [(64, 64), (31, 57), (333, 500)])
def test_boxes_are_where_a_processor_looks_that_squeezes(size):
    """It has no crop: the whole picture becomes the square."""
    model, processor = tiny_omnifusion()
    images = processor.image_processor
    images.do_center_crop, images.size = False, {"height": SIDE, "width": SIDE}
    family = OmniFusionFamily(model, processor)
    family.require_fit()
    check_boxes(family, processor, size, lambda _: SIDE)
    box = family.geometry(size).box
    assert (box[:, 2:] - box[:, :2]).prod(1).sum().item() == pytest.approx(size[0] * size[1])


def check_boxes(family, processor, size, resized):
    """Brightness is a ramp in x, then in y: each patch shows the mean of its box."""
    height, width = size
    geometry = family.geometry(size)
    n = SIDE // 4
    for axis, length in ((1, width), (0, height)):
        ramp = np.broadcast_to(
            np.expand_dims((np.arange(length) + 0.5) / length * 255, 1 - axis), size
        )
        image = Image.fromarray(np.repeat(ramp[..., None], 3, axis=2).round().astype(np.uint8))
        seen = processor.image_processor(image, do_normalize=False, return_tensors="np")
        patches = seen["pixel_values"][0, 0].reshape(n, 4, n, 4).mean((1, 3)).ravel()
        start, stop = geometry.box[:, 1 - axis].numpy(), geometry.box[:, 3 - axis].numpy()
        middle = (start + stop) / 2 / length
        # Resizing looks beyond the edges of a patch: half a pixel of the small image, at the most.
        tolerance = max(0.75 / 255, 0.6 / resized(length))
        inner = (start > 0) & (stop < length)
        assert np.abs(patches - middle)[inner].max(initial=0) < tolerance
        assert np.abs(patches - middle).max() < 3 * tolerance
    assert (geometry.box[:, 2:] > geometry.box[:, :2]).all()


def test_segments(family, processor):
    rows = [[random_image(31, 57)], [], [random_image(8, 90, 1), random_image(40, 22, 2)]]
    inputs = prepare(processor, ["one", "none", "two"], rows, padding_side="right")
    layout = family.layout(inputs)
    tokenizer, per_image = processor.tokenizer, (SIDE // 4) ** 2

    def text_of(group, row):
        return tokenizer.decode(inputs["input_ids"][row][layout.mask(group)[row]])

    for row, question in enumerate(["one", "none", "two"]):
        assert text_of("prompt", row) == PROMPT
        assert text_of("question", row).strip() == question
        for marker, count in {
            "SOI": len(rows[row]),
            "EOI": len(rows[row]),
            "USER": 1,
            "BOT": 1,
        }.items():
            assert text_of(marker, row).replace(" ", "") == f"<{marker}>" * count
    assert layout.counts("image").tolist() == [per_image, 0, 2 * per_image]
    assert layout.counts("image 1").tolist() == [0, 0, per_image]
    assert torch.equal(layout.mask("image"), layout.mask("visual"))
    assert torch.equal(layout.mask("pad"), inputs["attention_mask"] == 0)
    covered = sum(layout.mask(name).int() for name in layout.segment_names)
    assert (covered == 1).all()
    assert set(layout.groups) >= {"prompt", "SOI", "image", "EOI", "USER", "question", "BOT"}


def test_segments_of_a_dialogue_and_of_decoding(family, processor):
    dialogue = [*chat("why?"), {"role": "assistant", "content": "so"}]
    text = processor.apply_chat_template(dialogue)
    inputs = processor(text=[text], images=[random_image(9, 9)], return_tensors="pt")
    layout = family.layout(inputs)
    answer = inputs["input_ids"][layout.mask("answer")]
    assert processor.tokenizer.decode(answer).strip() == "so"
    assert layout.counts("special").item() == 1  # the end of the answer
    step = {
        "input_ids": torch.tensor([[5]]),
        "attention_mask": torch.ones(1, inputs["input_ids"].shape[1] + 1).long(),
    }
    assert family.layout(step).groups == ("text", "all", "answer")
