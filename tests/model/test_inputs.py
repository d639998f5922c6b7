"""`prepare`: pictures and prompts in every form, and what is refused."""

from __future__ import annotations

import base64
import io
import warnings

import numpy as np
import pytest
import torch
from conftest import FAMILIES, load_tiny
from PIL import Image
from tiny import random_image

from mm_lens import InputError, MMLensWarning
from mm_lens.drawing import draw_values, explore


@pytest.fixture(scope="module", params=FAMILIES)
def each(request):
    """A tiny model of every family."""
    return load_tiny(request.param, check=False)


@pytest.mark.parametrize(
    "size", [(1, 145), (3, 145), (145, 1), (145, 3), (3, 3), (1, 1), (1, 3), (3, 7), (4, 30)]
)
def test_an_image_of_few_rows_is_not_taken_for_channels(each, size):
    """Against Pillow's own resizing of the picture, which knows no channels first."""
    image = random_image(*size)
    inputs = each.prepare("What?", image)
    assert inputs.image_sizes.tolist() == [list(size)]
    assert inputs.layout.image_sizes[0] == (size,)
    config = each.processor.image_processor
    side = config.crop_size.height
    if "image_grid_pinpoints" in vars(config):
        shown, seen = (
            image.resize((side, side), Image.Resampling.BICUBIC),
            inputs.pixel_values[0, 0],
        )
    else:
        short = min(size)
        width, height = (side * edge // short for edge in (size[1], size[0]))
        large = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        shown, seen = large.crop((left, top, left + side, top + side)), inputs.pixel_values[0]
    want = (np.asarray(shown) / 255 - config.image_mean) / config.image_std
    np.testing.assert_allclose(seen.permute(1, 2, 0), want, atol=1e-5)


def test_every_form_of_a_picture_gives_the_same_inputs(each, tmp_path):
    image = random_image(20, 33)
    path = tmp_path / "a.png"
    image.save(path)
    array = np.asarray(image)
    want = each.prepare("What?", image)
    forms = [
        path,
        str(path),
        path.read_bytes(),
        io.BytesIO(path.read_bytes()),
        array,
        array.astype(np.uint16) * 257,
        array / 255,
        torch.from_numpy(array.copy()),
        torch.from_numpy(array.transpose(2, 0, 1).copy()) / 255,
    ]
    for form in forms:
        for given in (form, [form]):
            assert torch.equal(each.prepare("What?", given).pixel_values, want.pixel_values)
    batch = each.prepare(["What?"] * len(forms), forms)
    assert len(batch.images) == len(forms)
    assert all(np.array_equal(row[0], array) for row in batch.images)


def test_a_photo_is_drawn_as_it_was_prepared(each):
    """Overlays take the file itself, and turn it as `prepare` does."""
    image = random_image(20, 44)
    exif = image.getexif()
    exif[274] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    inputs = each.prepare("What?", file)
    assert inputs.image_sizes.tolist() == [[44, 20]]
    values = torch.arange(inputs.layout.shape[1]).float()
    for picture in (file, Image.open(file), inputs.images[0][0]):
        draw_values(picture, inputs.layout, values)
        explore(picture, inputs.layout, values)


def test_messages_name_the_picture(each):
    with pytest.raises(InputError, match="Image 1 of row 1 cannot be used: its values are"):
        each.prepare(["a", "b"], [None, [random_image(9, 9), np.full((4, 4), 7.0)]])


# ---- prompts ----

PICTURE = random_image(20, 33)
PART = {"type": "image"}


def said(text):
    return {"type": "text", "text": text}


def asked(*parts):
    return [{"role": "user", "content": list(parts)}]


def same(found, want):
    assert found.text == want.text
    assert torch.equal(found.input_ids, want.input_ids)
    assert torch.equal(found.attention_mask, want.attention_mask)
    if "pixel_values" in want:
        assert torch.equal(found.pixel_values, want.pixel_values)
    assert found.templated == want.templated


def test_messages_are_rendered_as_the_processor_renders_them(each):
    """Against the processor's own way from messages to tensors."""
    messages = asked(PART, said("What is it?"))
    native = each.processor.apply_chat_template(
        asked({"type": "image", "image": PICTURE}, said("What is it?")),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    for given in (messages, [messages]):
        inputs = each.prepare(given, PICTURE if given is messages else [PICTURE])
        assert torch.equal(inputs.input_ids, native["input_ids"])
        assert torch.equal(inputs.pixel_values, native["pixel_values"])
        assert inputs.templated == (True,)
    same(inputs, each.prepare("What is it?", PICTURE))


def test_messages_may_hold_their_images(each, tmp_path):
    path = tmp_path / "a.png"
    PICTURE.save(path)
    text = base64.b64encode(path.read_bytes()).decode()
    want = each.prepare("What?", PICTURE)
    for own in ({"image": PICTURE}, {"path": str(path)}, {"url": str(path)}, {"base64": text}):
        same(each.prepare(asked({**PART, **own}, said("What?"))), want)
    other = random_image(9, 9)
    mixed = asked({**PART, "image": other}, PART, said("Alike?"))
    assert [np.asarray(i).shape for i in each.prepare(mixed, PICTURE).images[0]] == [
        (9, 9, 3),
        (20, 33, 3),
    ]


def test_a_batch_may_mix_texts_and_conversations(each):
    chat = [
        {"role": "user", "content": [PART, said("What?")]},
        {"role": "assistant", "content": "A square."},
        {"role": "user", "content": "And its colour?"},
    ]
    inputs = each.prepare(["What?", chat, asked(said("Hello"))], [PICTURE, PICTURE, None])
    native = each.processor.apply_chat_template(
        [
            {
                **turn,
                "content": turn["content"]
                if not isinstance(turn["content"], str)
                else [said(turn["content"])],
            }
            for turn in chat
        ],
        add_generation_prompt=True,
    )
    assert inputs.text[1] == native
    assert "A square." in inputs.text[1]
    ended = each.prepare([chat[:2]], [PICTURE]).text[0]
    assert ended == each.processor.apply_chat_template(
        [chat[0], {"role": "assistant", "content": [said("A square.")]}]
    )


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (3, "A prompt is a text, or chat messages.*not int 3"),
        (None, "not NoneType"),
        (b"What?", "not bytes"),
        ({"role": "user", "content": "What?"}, "not dict"),
        (["What?", 3], r"not int 3 \(prompt 1\)"),
        (["What?", float("nan")], "not float nan"),
        ([("What?", "A square")], "not str 'What\\?'"),
        ([[]], "not list"),
        ([[{"content": "What?"}]], "not dict"),
        ([{"role": "user"}], "The content of a message is"),
        ([{"role": "user", "content": 3}], "not int 3"),
        (asked("What?"), "A part of a message is"),
        (asked({"type": "video"}), "A part of a message is"),
        (asked({"type": "text"}), "A part of a message is"),
        ([], "There is no prompt"),
        (torch.tensor([[1, 2]]), "not Tensor"),
    ],
)
def test_what_is_neither_text_nor_messages(each, prompt, message):
    with pytest.raises(InputError, match=message):
        each.prepare(prompt)


def test_images_and_messages_must_match(each):
    with pytest.raises(InputError, match=r"hold 0 image part.*1 image"):
        each.prepare(asked(said("What?")), PICTURE)
    with pytest.raises(InputError, match=r"hold 1 image part.*0 image"):
        each.prepare(asked(PART, said("What?")))
    with pytest.raises(InputError, match=r"hold 2 image placeholder.*there are 1"):
        each.prepare(asked(PART, said("What is <image>?")), PICTURE)
    with pytest.raises(InputError, match="base64"):
        each.prepare(asked({**PART, "base64": "?"}, said("What?")))
    with pytest.raises(InputError, match="chat_template=False forbids"):
        each.prepare(asked(said("What?")), chat_template=False)


def test_a_template_that_is_left_out_is_said(each):
    """LLaVA's own data format."""
    each.context._told.clear()
    with pytest.warns(MMLensWarning, match="chat template is not applied"):
        inputs = each.prepare(["<image>\nWhat?", "Hello"], [PICTURE, None])
    assert inputs.templated == (False, True)
    assert inputs.text[0].endswith("<image>\nWhat?")
    templated = each.prepare("<image>\nWhat?", PICTURE, chat_template=True)
    same(templated, each.prepare("What?", PICTURE))
    after = each.prepare("What?\n<image>", PICTURE, chat_template=True).text[0]
    assert after == each.processor.apply_chat_template(
        asked(said("What?"), PART), add_generation_prompt=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert each.prepare("<image>\nWhat?", PICTURE, chat_template=False).templated == (False,)


def test_a_prompt_in_the_format_of_the_template_is_no_matter(each):
    whole = each.prepare("What?", PICTURE).text[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs = each.prepare(whole, PICTURE)
    assert inputs.text == (whole,)
    text = each.prepare("Hello").text[0]
    each.context._told.clear()
    with pytest.warns(MMLensWarning, match="applied once more"):
        each.prepare(text)


def test_a_template_that_drops_something_is_refused():
    model = load_tiny(check=False)
    whole = model.processor.chat_template
    for broken, message in (
        ("[INST] <image>\n[/INST]", "drops the text str 'What\\?'"),
        (whole.replace("<image>", ""), "hold 0 image placeholder"),
        (whole.replace("<image>", "<image><image>"), "hold 2 image placeholder"),
        ("{{ raise_exception('no') }}", "cannot render these messages: TemplateError: no"),
        ("{{ messages[7].role }}", "cannot render these messages"),
    ):
        model.processor.chat_template = broken
        with pytest.raises(InputError, match=message):
            model.prepare("What?", PICTURE)
    model.processor.chat_template = None
    with pytest.raises(InputError, match="there is none"):
        model.prepare(asked(said("What?")))
    with pytest.raises(InputError, match="has no chat template"):
        model.prepare("What?", chat_template=True)
    assert model.prepare("What?", PICTURE).templated == (False,)


def test_wrong_arguments_name_the_right_one(each):
    with pytest.raises(InputError, match="takes no image=: it is called images="):
        each.prepare("What?", image=PICTURE)
    with pytest.raises(InputError, match="takes no messages=: it is called text="):
        each.prepare("What?", messages=[])
    with pytest.raises(InputError, match="takes no colour=: there is no such argument"):
        each.prepare("What?", colour=1)


@pytest.mark.parametrize(
    "prompt",
    [
        "half \ud83d",
        ["fine", "half \ud83d"],
        [{"role": "user", "content": "half \ud83d"}],
    ],
)
def test_half_of_a_character_is_refused(model, prompt):
    with pytest.raises(InputError, match=r"half of a character \('\\ud83d'\), which no tokenizer"):
        model.prepare(prompt, None)
