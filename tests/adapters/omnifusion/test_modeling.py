"""The model against the published pipeline."""

from __future__ import annotations

import pytest
import torch
from chats import QUESTION, prepare
from mm_lens_adapters.omnifusion import (
    MARKERS,
    OmniFusionConfig,
    OmniFusionForConditionalGeneration,
    OmniFusionProcessor,
)
from tiny import VOCAB_SIZE, random_image
from tiny_omnifusion import tiny_omnifusion
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)
from upstream import upstream_embeddings, upstream_logits


@torch.no_grad()
def test_logits_equal_the_published_pipeline(model, model_parts, one, published):
    assert torch.equal(one["pixel_values"], published[0])
    assert torch.equal(model(**one).logits, upstream_logits(model_parts, *published))


def test_gradients_equal_the_published_pipeline(model, model_parts, one, published):
    """Not the same kernels as without gradients: torch has a fast path for the encoder layer."""
    pixels = one["pixel_values"].clone().requires_grad_()
    model(**{**one, "pixel_values": pixels}).logits[0, -1, 7].backward()
    theirs = published[0].clone().requires_grad_()
    embeddings = upstream_embeddings(model_parts, theirs, *published[1:])
    model_parts.language(inputs_embeds=embeddings).logits[0, -1, 7].backward()
    assert torch.equal(pixels.grad, theirs.grad)


@torch.no_grad()
def test_text_alone_is_the_language_model(model, model_parts, processor):
    inputs = prepare(processor, [QUESTION], [[]])
    assert "pixel_values" not in inputs
    table, tokens = model_parts.language.get_input_embeddings(), inputs["input_ids"][0]
    rows = [
        model_parts.special[MARKERS[t - VOCAB_SIZE].strip("<>")] if t >= VOCAB_SIZE else table(t)
        for t in tokens
    ]
    want = model_parts.language(inputs_embeds=torch.stack(rows)[None]).logits
    assert torch.equal(model(**inputs).logits, want)
    assert tokens[-1] == VOCAB_SIZE + MARKERS.index("<BOT>")


@torch.no_grad()
def test_each_of_several_images_is_projected_alone(model, model_parts, processor):
    images = [random_image(40, 22, 1), random_image(8, 90, 2)]
    inputs = prepare(processor, [QUESTION], [images])
    seen = torch.cat(
        [
            model_parts.linear(
                model_parts.layer(
                    model_parts.vision(x[None], output_hidden_states=True).hidden_states[-2][:, 1:]
                )
            )[0]
            for x in inputs["pixel_values"]
        ]
    )
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    at = inputs["input_ids"] == model.config.image_token_id
    assert not embeddings[at].any()
    embeddings[at] = seen
    want = model_parts.language(inputs_embeds=embeddings).logits
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


def test_round_trip(model, processor, one, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval().to(model.device)
    assert type(again) is type(model)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), OmniFusionConfig)
    assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "OmniFusionModel"
    # As load does it: with torchvision, transformers takes another resizing.
    loaded = AutoProcessor.from_pretrained(tmp_path, use_fast=False)
    assert isinstance(loaded, OmniFusionProcessor)
    inputs = prepare(loaded, [QUESTION], [[random_image(31, 57)]])
    assert all(torch.equal(inputs[key], one[key]) for key in one)
    assert torch.equal(again(**inputs).logits, model(**one).logits)
