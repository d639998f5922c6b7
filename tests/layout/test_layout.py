"""The token layout against the native model: its packed features, its pixels, its token counts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from mm_lens_adapters.llava_next_layout import image_geometry, layout
from processed_layouts import Inputs, check_features, processed
from tiny import IMAGE_TOKEN, random_image, tiny_llava_next
from torch import Tensor

from mm_lens.errors import InputError
from mm_lens.layout.layout import PAD, TEXT, VISUAL, TokenLayout, check_group

# --- batches ------------------------------------------------------------------------------------

PROMPTS = [
    f"Left {IMAGE_TOKEN} right {IMAGE_TOKEN}{IMAGE_TOKEN} end",
    "no image at all",
    f"{IMAGE_TOKEN}",
    f"Much longer text before {IMAGE_TOKEN}\nand after?",
]
IMAGES = [[(37, 91), (40, 13), (12, 12)], [], [(7, 200)], [(64, 64)]]


@pytest.fixture(params=["left", "right"])
def batch(request: pytest.FixtureRequest) -> tuple[Any, Any, Inputs, TokenLayout]:
    model, processor = tiny_llava_next()
    processor.tokenizer.padding_side = request.param
    images = [random_image(*size) for sizes in IMAGES for size in sizes]
    inputs = processed(processor, PROMPTS, images)
    return model, processor, inputs, layout(inputs, model, processor)


def test_ragged_batch_holds_the_native_features(batch: Any) -> None:
    model, _, inputs, tokens = batch
    assert tokens.image_sizes == tuple(map(tuple, IMAGES))
    check_features(model, inputs, tokens)


def test_ragged_batch_segments(batch: Any) -> None:
    """Against a walk through each row, one token after the other."""
    model, processor, inputs, tokens = batch
    special = {0, 1, 2, 3}  # <unk>, <s>, </s>, <pad> of the tiny tokenizer
    for i, sizes in enumerate(IMAGES):
        lengths = [len(image_geometry(model, processor, size)) for size in sizes]
        image, used = -1, 0
        for p, token in enumerate(inputs["input_ids"][i].tolist()):
            if token == processor.image_token_id:
                if image < 0 or used == lengths[image]:
                    image, used = image + 1, 0
                used += 1
                segment, modality = f"image {image}", VISUAL
            elif not inputs["attention_mask"][i, p]:
                segment, modality = "pad", PAD
            elif token in special:
                segment, modality = "special", TEXT
            else:
                modality = TEXT
                if not sizes:
                    segment = "text only"
                elif image < 0:
                    segment = "text before"
                elif image == len(sizes) - 1:
                    segment = "text after"
                else:
                    segment = f"text between {image} and {image + 1}"
            assert tokens.segment_names[tokens.segment[i, p]] == segment
            assert tokens.modality[i, p] == modality
            assert tokens.image[i, p] == (image if modality == VISUAL else -1)
    assert "text between 0 and 1" in tokens.groups
    assert "text between 1 and 2" not in tokens.groups  # images 1 and 2 follow each other
    assert not tokens.mask("text between 1 and 2").any()


def test_positions_valid_and_counts_against_a_loop(batch: Any) -> None:
    *_, tokens = batch
    assert len(tokens.groups) > 15
    for group in (*tokens.groups, "image 9", "tile 9", "text between 8 and 9"):
        mask, positions = tokens.mask(group), tokens.positions(group)
        valid = tokens.valid(group)
        assert valid.shape == positions.shape
        for i in range(tokens.shape[0]):
            expected = [p for p in range(tokens.shape[1]) if mask[i, p]]
            assert positions[i][valid[i]].tolist() == expected
            assert tokens.counts(group)[i] == len(expected)
            assert valid[i].tolist() == sorted(valid[i].tolist(), reverse=True)
            assert (positions[i][~valid[i]] == 0).all()


def test_groups_divide_the_batch(batch: Any) -> None:
    *_, tokens = batch

    def total(*groups: str) -> Tensor:
        return torch.stack([tokens.mask(group) for group in groups]).sum(dim=0)

    assert (total("visual", "text", "pad") == 1).all()
    assert (total("all", "pad") == 1).all()
    assert (total(*tokens.segment_names) == 1).all()
    assert (total("base", "tiles", "newline") == total("visual")).all()
    assert (total("image 0", "image 1", "image 2") == total("visual")).all()
    assert (total("tile 0") == total("base")).all()
    n = int(tokens.tile.max())
    assert (total(*(f"tile {k}" for k in range(1, n + 1))) == total("tiles")).all()


def test_row_of_is_the_layout_of_the_row_alone(batch: Any) -> None:
    model, processor, inputs, tokens = batch
    images = 0
    for i, sizes in enumerate(IMAGES):
        alone = {name: inputs[name][i : i + 1] for name in ("input_ids", "attention_mask")}
        if sizes:
            alone["image_sizes"] = inputs["image_sizes"][images : images + len(sizes)]
        images += len(sizes)
        expected, row = layout(alone, model, processor), tokens.row_of(i)
        assert row.image_sizes == expected.image_sizes
        for field in dataclasses.fields(TokenLayout):
            value, other = getattr(row, field.name), getattr(expected, field.name)
            if isinstance(value, Tensor) and field.name != "segment":
                torch.testing.assert_close(value, other, equal_nan=True)
        names = [
            [some.segment_names[s] for s in some.segment[0].tolist()] for some in (row, expected)
        ]
        assert names[0] == names[1]
    assert tokens.row_of(-1).image_sizes == (tuple(IMAGES[-1]),)
    with pytest.raises(IndexError):
        tokens.row_of(4)


def test_to_moves_every_tensor(batch: Any) -> None:
    *_, tokens = batch
    moved = tokens.to("meta")
    assert moved.device.type == "meta"
    tensors = [v for v in vars(moved).values() if isinstance(v, Tensor)]
    assert len(tensors) == 10
    assert all(tensor.is_meta for tensor in tensors)


def test_describe_counts_what_each_row_holds(batch: Any) -> None:
    _, processor, inputs, tokens = batch
    lines = tokens.describe().splitlines()
    assert len(lines) == 4
    n = int((inputs["input_ids"][2] == processor.image_token_id).sum())
    n_pad = int((inputs["attention_mask"][2] == 0).sum())
    assert f"{n} visual, 1 text, {n_pad} pad" in lines[2]
    assert "image 0 of 200×7 px = 9 overview + " in lines[2]
    assert "image" not in lines[1]


def test_a_hidden_placeholder_stays_visual() -> None:
    """The model writes the image feature there whatever the attention mask says."""
    model, processor = tiny_llava_next()
    inputs = processed(processor, f"a {IMAGE_TOKEN} b", [random_image(20, 20)])
    before = layout(inputs, model, processor)
    placeholder = inputs["input_ids"] == processor.image_token_id
    inputs["attention_mask"] = inputs["attention_mask"].masked_fill(placeholder, 0)
    after = layout(inputs, model, processor)
    assert (after.modality == before.modality).all()
    check_features(model, inputs, after)


def test_tokens_at_gives_one_token_of_the_overview_and_one_tile(batch: Any) -> None:
    *_, tokens = batch
    found = tokens.tokens_at(0, x=90, y=18, row=0)
    assert tokens.tile[0, found].sign().tolist() == [0, 1]
    for x0, y0, x1, y1 in tokens.box[0, found].tolist():
        assert x0 <= 90.5 < x1
        assert y0 <= 18.5 < y1
    assert (tokens.image[0, found] == 0).all()
    with pytest.raises(InputError, match="91 pixels wide and 37 high"):
        tokens.tokens_at(0, x=91, y=0, row=0)
    with pytest.raises(InputError, match="Row 1 has 0 image"):
        tokens.tokens_at(0, x=0, y=0, row=1)


# --- what cannot be laid out ----------------------------------------------------------------------


def test_unknown_groups_are_refused() -> None:
    tokens = TokenLayout.build(torch.tensor([[1, 2]]), image_token_id=9)
    for name in ("vision", "image", "tile -1", "text between 0 and 2", "images 1", ""):
        with pytest.raises(InputError, match="visual, text, all"):
            tokens.mask(name)
        with pytest.raises(InputError, match="visual, text, all"):
            check_group(name)


def test_text_alone_needs_no_image() -> None:
    model, processor = tiny_llava_next()
    tokens = layout(processed(processor, "hi there", []), model, processor)
    assert tokens.positions("visual").shape == (1, 0)
    assert tokens.groups == ("text", "all", "special", "text only")
    assert tokens.box.isnan().all()
    assert tokens.image_sizes == ((),)
