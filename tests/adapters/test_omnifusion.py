"""OmniFusion against its published pipeline, put together by hand from plain parts (`upstream`)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mm_lens_adapters.omnifusion import (
    MARKERS,
    OmniFusionConfig,
    OmniFusionForConditionalGeneration,
    OmniFusionProcessor,
    add_markers,
)
from PIL import Image
from tiny import VOCAB_SIZE, random_image, tiny_tokenizer
from tiny_omnifusion import SIDE, tiny_omnifusion
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    MistralConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from upstream import PROMPT, parts_of, upstream_embeddings, upstream_generate, upstream_logits

QUESTION = "What is it?"


@pytest.fixture(scope="module")
def pair():
    return tiny_omnifusion()


@pytest.fixture(scope="module")
def model(pair):
    return pair[0]


@pytest.fixture(scope="module")
def processor(pair):
    return pair[1]


@pytest.fixture(scope="module")
def parts(model):
    return parts_of(model)


def chat(question=QUESTION, images=1):
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def prepare(processor, questions, images, **options):
    counts = [len(row) for row in images]
    prompts = [
        processor.apply_chat_template(chat(q, n), add_generation_prompt=True)
        for q, n in zip(questions, counts, strict=True)
    ]
    flat = [image for row in images for image in row]
    return processor(
        images=flat or None, text=prompts, return_tensors="pt", padding=True, **options
    )


@pytest.fixture(scope="module")
def one(processor):
    return prepare(processor, [QUESTION], [[random_image(31, 57)]])


@pytest.fixture(scope="module")
def published(one):
    """The arguments of the published pipeline for the same question."""
    tokenizer = tiny_tokenizer(image_token=None)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    return (
        images(random_image(31, 57), return_tensors="pt")["pixel_values"],
        tokenizer.encode(PROMPT, add_special_tokens=False),
        tokenizer.encode(QUESTION, add_special_tokens=False),
    )


# ---- the published pipeline ----


@torch.no_grad()
def test_logits_equal_the_published_pipeline(model, parts, one, published):
    assert torch.equal(one["pixel_values"], published[0])
    assert torch.equal(model(**one).logits, upstream_logits(parts, *published))


def test_gradients_equal_the_published_pipeline(model, parts, one, published):
    """Not the same kernels as without gradients: torch has a fast path for the encoder layer."""
    pixels = one["pixel_values"].clone().requires_grad_()
    model(**{**one, "pixel_values": pixels}).logits[0, -1, 7].backward()
    theirs = published[0].clone().requires_grad_()
    embeddings = upstream_embeddings(parts, theirs, *published[1:])
    parts.language(inputs_embeds=embeddings).logits[0, -1, 7].backward()
    assert torch.equal(pixels.grad, theirs.grad)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": False, "num_beams": 3, "no_repeat_ngram_size": 2, "early_stopping": True},
        {"do_sample": True, "temperature": 0.7, "top_k": 0},
        {"do_sample": False, "use_cache": False},
    ],
)
def test_generation_equals_the_published_pipeline(model, parts, one, published, options):
    options = {"max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 2, **options}
    torch.manual_seed(0)
    got = model.generate(**one, **options)[0, one["input_ids"].shape[1] :].tolist()
    torch.manual_seed(0)
    want = upstream_generate(parts, *published, **options)
    assert got == want
    assert len(got) == 8


@torch.no_grad()
def test_text_alone_is_the_language_model(model, parts, processor):
    inputs = prepare(processor, [QUESTION], [[]])
    assert "pixel_values" not in inputs
    table, tokens = parts.language.get_input_embeddings(), inputs["input_ids"][0]
    rows = [
        parts.special[MARKERS[t - VOCAB_SIZE].strip("<>")] if t >= VOCAB_SIZE else table(t)
        for t in tokens
    ]
    want = parts.language(inputs_embeds=torch.stack(rows)[None]).logits
    assert torch.equal(model(**inputs).logits, want)
    assert tokens[-1] == VOCAB_SIZE + MARKERS.index("<BOT>")


@torch.no_grad()
def test_each_of_several_images_is_projected_alone(model, parts, processor):
    images = [random_image(40, 22, 1), random_image(8, 90, 2)]
    inputs = prepare(processor, [QUESTION], [images])
    seen = torch.cat(
        [
            parts.linear(
                parts.layer(
                    parts.vision(x[None], output_hidden_states=True).hidden_states[-2][:, 1:]
                )
            )[0]
            for x in inputs["pixel_values"]
        ]
    )
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    at = inputs["input_ids"] == model.config.image_token_id
    assert not embeddings[at].any()
    embeddings[at] = seen
    want = parts.language(inputs_embeds=embeddings).logits
    torch.testing.assert_close(model(**inputs).logits, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_nothing(model, processor, side):
    rows = [[random_image(31, 57)], [], [random_image(8, 90, 1), random_image(40, 22, 2)]]
    questions = [QUESTION, "No picture.", "Alike, the two of them?"]
    batch = prepare(processor, questions, rows, padding_side=side)
    assert not batch["attention_mask"].all()
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    together = model(**batch, position_ids=positions).logits
    for i, (question, images) in enumerate(zip(questions, rows, strict=True)):
        alone = model(**prepare(processor, [question], [images])).logits[0]
        got = together[i][batch["attention_mask"][i].bool()]
        torch.testing.assert_close(got, alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_batched_generation_is_that_of_each_row(model, processor, beams):
    """Beams repeat rows: with several images to a row they must go along with theirs."""
    rows = [[random_image(8, 90, 1), random_image(40, 22, 2)], [random_image(31, 57)]]
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    batch = prepare(processor, [QUESTION, "Alike?"], rows, padding_side="left")
    together = model.generate(**batch, **options)[:, -6:]
    for i, (question, images) in enumerate(zip([QUESTION, "Alike?"], rows, strict=True)):
        alone = model.generate(**prepare(processor, [question], [images]), **options)[:, -6:]
        assert torch.equal(together[i : i + 1], alone)


# ---- labels and ids ----


def test_labels(model, one):
    logits = model(**one).logits[0, :-1]
    labels = one["input_ids"].clone()
    labels[:, :5] = -100
    targets = labels[0, 1:].masked_fill(labels[0, 1:] >= VOCAB_SIZE, -100)
    want = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(model(**one, labels=labels).loss, want)


def test_markers_are_read_but_cannot_be_predicted(model):
    assert model.get_output_embeddings().weight.shape[0] == VOCAB_SIZE
    table = model.get_input_embeddings()
    special = table(torch.arange(VOCAB_SIZE, VOCAB_SIZE + 5))
    assert torch.equal(special[:4], table.special)
    assert not special[4].any()
    with pytest.raises(IndexError, match=f"id {VOCAB_SIZE + 5} was given"):
        table(torch.tensor([VOCAB_SIZE + 5]))
    with pytest.raises(ValueError, match="cannot be resized"):
        model.resize_token_embeddings(200)


def test_gradients_reach_markers_projector_and_tower():
    model, processor = tiny_omnifusion()
    inputs = prepare(processor, [QUESTION], [[random_image(31, 57)]])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # Hidden state -2 is read: the tower's last layer and what follows it take no part.
    assert {
        n for n in silent if "encoder.layers.3." not in n and "post_layernorm" not in n
    } == set()


def test_new_models_have_random_markers(model):
    fresh = OmniFusionForConditionalGeneration(model.config)
    spread = fresh.get_input_embeddings().special.std().item()
    assert 0.5 < spread / model.config.text_config.initializer_range < 2


# ---- configuration, processor, saving ----


def test_round_trip(model, processor, one, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), OmniFusionConfig)
    assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "OmniFusionModel"
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, OmniFusionProcessor)
    inputs = prepare(loaded, [QUESTION], [[random_image(31, 57)]])
    assert all(torch.equal(inputs[key], one[key]) for key in one)
    assert torch.equal(again(**inputs).logits, model(**one).logits)


def test_defaults_are_the_published_sizes():
    config = OmniFusionConfig()
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size) == (1024, 24, 336)
    assert (text.model_type, text.hidden_size, text.vocab_size) == ("mistral", 4096, 32000)
    assert (config.projector_num_heads, config.projector_intermediate_size) == (4, 2048)
    assert config.image_seq_length == (vision.image_size // vision.patch_size) ** 2 == 576
    assert config.image_token_id == 32004


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"image_token_index": 7}, "leave it out"),
        ({"vision_feature_layer": [-2, -5]}, "two-encoder"),
        ({"vision_feature_select_strategy": "full"}, "class token"),
    ],
)
def test_configurations_that_are_not_omnifusion(entries, message):
    with pytest.raises(ValueError, match=message):
        OmniFusionConfig(text_config=MistralConfig(vocab_size=50), **entries)


def test_prompts(processor):
    def render(*messages, **options):
        return processor.apply_chat_template([*messages], **options)

    user = chat("why?", 2)[0]
    reply = {"role": "assistant", "content": [{"type": "text", "text": "so"}]}
    system = {"role": "system", "content": "Be brief. "}
    image = "<SOI><image><EOI>"
    assert render(user) == f"{PROMPT}{image}{image}<USER>why?"
    assert render(chat("why?", 0)[0], add_generation_prompt=True) == f"{PROMPT}<USER>why?<BOT>"
    assert render(user, reply, {"role": "user", "content": "and?"}, add_generation_prompt=True) == (
        f"{PROMPT}{image}{image}<USER>why?<BOT>so</s><USER>and?<BOT>"
    )
    assert render(system, chat("why?", 0)[0]) == "Be brief. <USER>why?"
    with pytest.raises(Exception, match="Only user, system and assistant"):
        render({"role": "judge", "content": "why?"})


def test_texts_between_markers_are_tokenised_one_by_one(processor):
    ids = processor(text=["a b<USER>a b<BOT>"]).input_ids[0]
    tokenizer = tiny_tokenizer(image_token=None)
    piece = tokenizer.encode("a b", add_special_tokens=False)
    marks = [VOCAB_SIZE + MARKERS.index(m) for m in ("<USER>", "<BOT>")]
    assert ids == [*piece, marks[0], *piece, marks[1]]
    assert processor.tokenizer.decode(ids).replace(" ", "") == "ab<USER>ab<BOT>"


def test_bad_calls_of_the_processor(processor):
    with pytest.raises(ValueError, match="total number of <image>"):
        processor(text=["<image>"], images=[random_image(9, 9), random_image(9, 9)])
    with pytest.raises(ValueError, match="no images were passed"):
        processor(text=["<image>"])
    with pytest.raises(ValueError, match="Truncation"):
        processor(text=["long"], truncation=True, max_length=2)


def test_markers_follow_the_vocabulary_of_the_model():
    tokenizer = tiny_tokenizer(image_token=None)
    assert len(tokenizer) < VOCAB_SIZE  # the gap is filled
    add_markers(tokenizer, VOCAB_SIZE)
    assert tokenizer.convert_tokens_to_ids([*MARKERS, "<image>"]) == list(
        range(VOCAB_SIZE, VOCAB_SIZE + 5)
    )
    with pytest.raises(ValueError, match="do not belong together"):
        add_markers(tiny_tokenizer(image_token=None), 20)
    with pytest.raises(ValueError, match="already"):
        add_markers(tiny_tokenizer(), VOCAB_SIZE)


# ---- where image tokens lie ----


@pytest.fixture(scope="module")
def family(pair):
    from mm_lens_adapters.omnifusion import OmniFusionFamily

    return OmniFusionFamily(*pair)


@pytest.mark.parametrize(
    "size", [(20, 20), (64, 64), (31, 57), (57, 31), (8, 90), (90, 8), (333, 500), (61, 20)]
)
def test_boxes_are_where_the_processor_looks(family, processor, size):
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
        tolerance = max(0.75 / 255, 0.6 / (SIDE * length / min(size)))
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
