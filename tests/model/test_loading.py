"""`load`: arguments, the check at load, and what it does when something is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import load_tiny
from tiny import random_image, tiny_llava_next

import mm_lens
from mm_lens import InputError, MMLensError
from mm_lens.model.families import family_for


def test_from_a_directory(tmp_path):
    native, processor = tiny_llava_next()
    native.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model = mm_lens.load(str(tmp_path), dtype=torch.bfloat16)
    assert model.cfg.dtype == torch.bfloat16
    assert model.report.max_logit_difference < 1e-2
    inputs = model.prepare("What is it?", random_image(9, 40))
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("z", "visual"))
    assert cache["z", 0, "visual"].dtype == torch.bfloat16
    other = mm_lens.load(str(tmp_path), attention="eager", dtype=torch.float32, check=False)
    native.set_attn_implementation("eager")
    inputs = other.prepare("What is it?", random_image(9, 40))
    assert torch.equal(other(inputs), native(**inputs).logits)


def test_device_map(tmp_path):
    native, processor = tiny_llava_next()
    native.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model = mm_lens.load(str(tmp_path), device_map={"": "cpu"})
    assert model.report.max_logit_difference == 0.0


def test_arguments_that_do_not_go_together():
    native, _ = tiny_llava_next()
    for options, message in (
        ({}, "either name_or_path or hf_model"),
        ({"name_or_path": "x", "hf_model": native}, "either name_or_path or hf_model"),
        ({"hf_model": native, "dtype": torch.float16}, "keeps its dtype"),
        ({"name_or_path": "x", "device": "cpu", "device_map": "auto"}, "not both"),
        ({"hf_model": native}, r"pass processor="),
        ({"name_or_path": "demo/nonsense"}, "demo/nonsense"),
    ):
        with pytest.raises(InputError, match=message):
            mm_lens.load(**options)


def test_unknown_family():
    with pytest.raises(MMLensError, match=r"No family is installed for GPT2LMHeadModel.*LlavaNext"):
        family_for("GPT2LMHeadModel")


def test_prepare_checks_its_arguments(tmp_path):
    model = load_tiny(check=False)
    image = random_image(9, 9)
    for text, images, message in (
        ([], None, "no prompt"),
        (["a", "b"], [image], "2 prompts, but images for 1"),
        (["a", "b"], image, "2 prompts, but images for 1"),
        ("<image> and <image>", image, r"2 image placeholder\(s\).*1 image\(s\)"),
        ("a", 3, "An image cannot be used: a picture is"),
        ("a", tmp_path / "missing.png", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            model.prepare(text, images)
    broken = tmp_path / "broken.png"
    image.save(broken)
    broken.write_bytes(broken.read_bytes()[:150])
    with pytest.raises(InputError, match="cannot be read"):
        model.prepare("a", broken)


def test_prepare_forms():
    model = load_tiny(check=False)
    image = random_image(20, 33)
    chat = model.prepare("What?", image)
    assert chat.text == ("[INST] <image>\nWhat? [/INST]",)
    raw = model.prepare("[INST] <image>\nWhat? [/INST]", image)
    assert torch.equal(raw.input_ids, chat.input_ids)
    plain = model.prepare("What?", image, chat_template=False)
    assert plain.text == ("<image>\nWhat?",)
    two = model.prepare("What?", [image, image])
    assert two.text[0].count("<image>") == 2
    grey = model.prepare("What?", image.convert("L"))
    assert grey.images[0][0].mode == "RGB"

    array = model.prepare("What?", np.asarray(image))
    assert torch.equal(array.pixel_values, chat.pixel_values)
    right = model.prepare(["a", "abcdef"], padding_side="right")
    assert right.attention_mask[0, -1] == 0
    assert isinstance(right.images, tuple)
    with pytest.raises(AttributeError, match="pixel_values"):
        _ = right.pixel_values
