"""What follows from a declaration: rows of a batch, refusals, inputs of a native model."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from conftest import load_tiny
from keyword_inputs import keywords
from tiny import random_image
from tiny_families import CONFIGURATIONS, build
from transformers import MllamaConfig, MllamaForConditionalGeneration

import mm_lens
from mm_lens import InputError, MMLensError, MMLensWarning
from mm_lens.drawing.on_image import find_token_boxes
from mm_lens.layout.groups import Box, group_mask
from mm_lens.layout.matching import match_positions
from mm_lens.layout.regions import Grid, find_regions
from mm_lens.model.families import Undeclared

TEXTS = ["What is it?", "No picture.", "Are these two alike?"]
PICTURES = [random_image(31, 57), None, [random_image(20, 60, 1), random_image(40, 22, 2)]]


@cache
def loaded(name):
    """One bridge for all tests, which leave it as it was."""
    native, processor = build(name)
    return mm_lens.load(hf_model=native, processor=processor, check=False)


@pytest.mark.parametrize("name", [n for n in CONFIGURATIONS if n != "paligemma"])
def test_rows_taken_out_are_those_of_the_processor_alone(name):
    """Images, tiles, patches, rows of a batch: a row that is taken out has its own pixels."""
    model = loaded(name)
    inputs = model.prepare(TEXTS, PICTURES)
    n_images = [*map(len, inputs.layout.image_sizes)]
    assert n_images == [1, 0, 2]
    for row in (0, 2):
        alone = model.prepare([TEXTS[row]], [PICTURES[row]])
        taken = model.family.take(inputs, [row], n_images)
        for key in ("pixel_values", "image_sizes", "image_grid_thw", "original_sizes"):
            if key not in alone:
                continue
            ours, theirs = taken[key], alone[key]
            if ours.shape[:1] != theirs.shape[:1]:
                pytest.fail(f"{key}: {ours.shape}, alone {theirs.shape}")
            shape = [slice(None), *(slice(0, n) for n in theirs.shape[1:])]
            assert torch.equal(ours[tuple(shape)], theirs), key
        twice = model.family.take(inputs, [row, row], n_images)
        assert len(twice["pixel_values"]) == 2 * len(taken["pixel_values"])


@pytest.mark.parametrize("name", ["qwen2.5-vl", "gemma3", "paligemma"])
def test_bound_tokens_may_go_on_behind_the_bound_ones(name):
    """What says of each token whether it is of an image follows the tokens."""
    model = loaded(name)
    inputs = model.prepare("What is it?", random_image(31, 57))
    written = torch.cat([inputs.input_ids, torch.tensor([[10, 11, 12]])], 1)
    with model.bound(inputs), torch.no_grad():
        longer = model(written)
        whole = model(inputs.input_ids)
    if name != "paligemma":  # whose prompt sees all of itself
        torch.testing.assert_close(longer[:, : whole.shape[1]], whole)
    assert longer.shape[1] == written.shape[1]


def test_a_family_that_pads_on_one_side_refuses_the_other():
    model = loaded("minimax-m3")
    assert model.prepare(TEXTS, PICTURES).attention_mask[:, 0].all()
    with pytest.raises(InputError, match="must be padded on the right"):
        model.prepare(TEXTS, PICTURES, padding_side="left")
    model.prepare(TEXTS[0], PICTURES[0], padding_side="left")  # nothing is padded


def test_a_family_whose_prompts_need_an_image_refuses_one_without():
    with pytest.raises(InputError, match="Prompt 1 has no image"):
        loaded("paligemma").prepare(TEXTS, PICTURES)


def test_a_prompt_of_paligemma_is_the_published_one():
    """Images, <bos>, the text, a newline: nothing stands between image and <bos>."""
    model, processor, image = loaded("paligemma"), build("paligemma")[1], random_image(20, 30)
    for given in ("caption en", "<image>caption en"):  # the processor finds the image's place, too
        native = processor(images=image, text=given, return_tensors="pt")
        ours = model.prepare("caption en", image, chat_template=False)
        assert torch.equal(ours.input_ids, native["input_ids"])
    native = processor(images=[[image, image]], text=["<image><image>same?"], return_tensors="pt")
    assert torch.equal(model.prepare("same?", [image, image]).input_ids, native["input_ids"])


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_picture_of_the_check_is_the_same_each_time(name):
    """By what becomes of it a run knows itself again, to be resumed."""
    wrapped, processor = build(name)
    family = mm_lens.families.family_for(type(wrapped).__name__)(wrapped, processor)
    one, two = (family.probe_image() for _ in range(2))
    assert one.size == two.size
    assert one.tobytes() == two.tobytes()


def test_the_native_model_gets_nothing_of_ours():
    model = loaded("qwen2.5-vl")
    inputs = model.prepare("What is it?", random_image(31, 57))
    assert inputs.original_sizes.tolist() == [[31, 57]]
    assert set(inputs) - set(inputs.native) == {"original_sizes"}
    seen = []
    handle = model.original_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True
    )
    model(inputs)
    handle.remove()
    assert "original_sizes" not in seen[0]


def test_without_the_pictures_sizes_boxes_are_of_what_is_shown_or_refused():
    inputs = (model := loaded("qwen2.5-vl")).prepare("What is it?", random_image(31, 57))
    with pytest.warns(MMLensWarning, match="pixels of the resized picture"):
        shown = model.family.layout(inputs.native)
    rows, cols = inputs.image_grid_thw[0, 1:].tolist()
    assert shown.image_sizes == (((rows * 4, cols * 4),),)
    assert torch.equal(shown.row, inputs.layout.row)
    inputs = (model := loaded("internvl")).prepare("What is it?", random_image(31, 57))
    with pytest.raises(InputError, match="original_sizes is missing"):
        model.family.layout(inputs.native)
    model(inputs.native)  # which needs none of it


@pytest.mark.parametrize("name", ["qwen2.5-vl", "gemma3", "idefics3", "llava-1.5"])
def test_an_undeclared_family_knows_what_is_visual_and_not_where(name):
    native, processor = build(name)
    declared = loaded(name)
    inputs = declared.prepare(TEXTS, [PICTURES[0], None, PICTURES[0]])
    family = Undeclared(native, processor)
    layout = family.layout(inputs)
    assert torch.equal(layout.modality, inputs.layout.modality)
    assert torch.equal(layout.image, inputs.layout.image)
    assert layout.image_sizes == inputs.layout.image_sizes
    assert layout.box.isnan().all()
    assert not layout.mask("base").any()
    assert family.has_places is False


def test_what_needs_places_raises_without_them():
    native, processor = build("qwen2.5-vl")
    inputs = loaded("qwen2.5-vl").prepare("What is it?", random_image(31, 57))
    other = loaded("qwen2.5-vl").prepare("What is it?", random_image(57, 31))
    family = Undeclared(native, processor)
    layout, turned = family.layout(inputs), family.layout(other)
    assert "image 0" in find_regions(layout, "segment").labels
    for what in ("base", "tiles", "newline", "tile 0", Box(2, 2, 30, 30), torch.ones(31, 57)):
        with pytest.raises(InputError, match="which is unknown: the model was opened with"):
            group_mask(layout, what)
    for axis in ("tile", "row band", "cell", "patch", Grid(2, 2), {"a": Box(2, 2, 30, 30)}):
        with pytest.raises(InputError, match="which is unknown: the model was opened with"):
            find_regions(layout, axis)
    with pytest.raises(InputError, match="which is unknown"):
        layout.tokens_at(0, 3, 3)
    with pytest.raises(InputError, match="which is unknown"):
        find_token_boxes(layout, 0, 0)
    assert torch.equal(match_positions(layout, layout)[0], torch.arange(layout.shape[1]))
    assert turned.shape == layout.shape  # as many tokens, in a grid of another shape
    with pytest.raises(InputError, match="Matching pictures of different sizes"):
        match_positions(layout, turned)


def test_an_undeclared_family_guesses_no_rows():
    native, processor = build("internvl")
    inputs = loaded("internvl").prepare(TEXTS, PICTURES)
    with pytest.raises(InputError, match="Which rows of pixel_values"):
        Undeclared(native, processor).take(inputs, [0], [1, 0, 2])


def test_broken_up_images_of_an_undeclared_family_are_one_for_each_row():
    native, processor = build("idefics3")
    inputs = loaded("idefics3").prepare(TEXTS, PICTURES)
    with pytest.raises(InputError, match="which token is of which image is unknown"):
        Undeclared(native, processor).layout(inputs)


def test_a_model_that_looks_at_pictures_from_outside_is_refused():
    text = {"num_hidden_layers": 2, "cross_attention_layers": [1], "hidden_size": 32}
    model = MllamaForConditionalGeneration(
        MllamaConfig(
            text_config={
                **text,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "intermediate_size": 32,
                "vocab_size": 120,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
            vision_config={
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_global_layers": 1,
                "image_size": 28,
                "attention_heads": 2,
                "intermediate_size": 16,
                "vision_output_dim": 32,
                "intermediate_layers_indices": [0],
            },
            image_token_index=119,
        )
    )
    with pytest.raises(MMLensError, match=r"has no image tokens.*cross_attention_layers"):
        mm_lens.load(hf_model=model, processor=build("llava-1.5")[1], geometry=False)
    with pytest.raises(MMLensError, match="No family is installed for Mllama"):
        mm_lens.load(hf_model=model, processor=build("llava-1.5")[1])


@pytest.mark.filterwarnings("error::mm_lens.MMLensWarning")
@pytest.mark.parametrize("name", ["llava-1.5", "qwen2-vl", "qwen2.5-vl", "gemma3", "glm-4v"])
def test_the_check_at_load_is_clean(name):
    native, processor = build(name)
    model = mm_lens.load(hf_model=native, processor=processor)
    assert not [f for f in model.report.findings if f.level != "note"], model.report
    assert MMLensWarning  # which would have been raised


@pytest.mark.parametrize("name", ["llava-next", "internvl", "qwen2-vl"])
def test_pixels_of_another_picture(name):
    """Tokens and sizes of one, tiles of another: torch would fail somewhere inside the model."""
    bridge = load_tiny() if name == "llava-next" else loaded(name)
    token = bridge.processor.image_token
    small, large = (
        bridge.prepare(f"{token} what?", random_image(*size), chat_template=False)
        for size in ((12, 12), (12, 60))
    )
    for one, other in ((large, small), (small, large)):
        mixed = keywords(one) | {"pixel_values": other["pixel_values"]}
        with pytest.raises(InputError, match="is of other pictures"):
            bridge(one.input_ids, **mixed)
