"""The shipped model answers questions by looking, and was trained on what its card says."""

import random
from pathlib import Path
from typing import Any

import easy_vqa
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageColor
from transformers import (
    AutoProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
)

from mm_lens import datasets, demo
from mm_lens.demo import build, canvases, evaluate, train
from mm_lens.demo.batches import Data
from mm_lens.demo.learning import losses
from mm_lens.demo.packing import pack
from mm_lens.demo.prompts import prompt
from mm_lens.errors import InputError

FOLDER = demo.path("demo/llava-next")


@pytest.fixture(scope="module")
def processor() -> LlavaNextProcessor:
    loaded = AutoProcessor.from_pretrained(FOLDER)
    assert isinstance(loaded, LlavaNextProcessor)
    return loaded


@pytest.fixture(scope="module")
def model() -> LlavaNextForConditionalGeneration:
    loaded = LlavaNextForConditionalGeneration.from_pretrained(FOLDER)
    assert isinstance(loaded, LlavaNextForConditionalGeneration)
    loaded.eval()
    return loaded


def picture(size: tuple[int, int] = (64, 64), seed: int = 0) -> Image.Image:
    """Noise of (height, width) `size`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_unknown_name_lists_what_there_is() -> None:
    assert demo.available() == ["demo/llava-next"]
    for name in ("demo/none", "llava-next", "demo/", "demo/../demo/llava-next"):
        with pytest.raises(InputError, match="Available: demo/llava-next"):
            demo.path(name)


def test_ships_small_and_complete() -> None:
    files = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    assert sum(files.values()) <= 10e6
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(files)


def test_shape_of_the_model(model: LlavaNextForConditionalGeneration) -> None:
    text = model.config.get_text_config()
    assert text.num_hidden_layers >= 8
    assert text.hidden_size != text.vocab_size
    assert text.num_key_value_heads < text.num_attention_heads
    assert model.get_input_embeddings().weight.shape == (text.vocab_size, text.hidden_size)


def test_answers_are_single_tokens(processor: LlavaNextProcessor) -> None:
    encode = processor.tokenizer
    start = encode("[INST] Which? [/INST]").input_ids
    first = set()
    for answer in easy_vqa.get_answers():
        whole = encode(f"[INST] Which? [/INST] {answer}</s>").input_ids
        assert whole[: len(start)] == start
        assert len(whole) == len(start) + 2
        assert whole[-1] == encode.eos_token_id
        assert encode.decode(whole[-2]) == f" {answer}"
        first.add(whole[-2])
    assert len(first) == 13


@pytest.mark.parametrize("text", ["Où est l'été?", "日本語\n\ttabs", "{x} <b> 🎈", "plain words"])
def test_tokenizer_takes_any_text(processor: LlavaNextProcessor, text: str) -> None:
    ids = processor.tokenizer(text, add_special_tokens=False).input_ids
    assert processor.tokenizer.unk_token_id not in ids
    assert processor.tokenizer.decode(ids) == text


def test_chat_template(processor: LlavaNextProcessor) -> None:
    image, question = {"type": "image"}, {"type": "text", "text": "why?"}
    user = {"role": "user", "content": [image, question]}
    reply = {"role": "assistant", "content": [{"type": "text", "text": "so"}]}
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}

    def render(*messages: Any) -> str:
        return str(processor.apply_chat_template([*messages], add_generation_prompt=True))

    assert render(user) == "[INST] <image>\nwhy? [/INST]"
    assert render({"role": "user", "content": [question]}) == "[INST] why? [/INST]"
    assert render({"role": "user", "content": "why?"}) == "[INST] why? [/INST]"
    assert render({"role": "user", "content": [image, image, question]}) == (
        "[INST] <image>\n<image>\nwhy? [/INST]"
    )
    assert render(system, user, reply, user) == (
        "<<SYS>>\nBe brief.\n<</SYS>>\n\n[INST] <image>\nwhy? [/INST] so</s>"
        "[INST] <image>\nwhy? [/INST]"
    )
    with pytest.raises(Exception, match="Only user, system and assistant"):
        render({"role": "judge", "content": "why?"})


def test_one_leading_bos(processor: LlavaNextProcessor) -> None:
    ids = processor(text=prompt(processor, "why?"), images=picture()).input_ids[0]
    assert ids[0] == processor.tokenizer.bos_token_id
    assert ids.count(processor.tokenizer.bos_token_id) == 1


def test_every_grid_is_trained_on(processor: LlavaNextProcessor) -> None:
    seen = set()
    for size in canvases.SIZES:
        inputs = processor(text=prompt(processor, "?"), images=picture(size), return_tensors="pt")
        tiles = inputs["pixel_values"].shape[1] - 1
        tall, wide = size[0] > 1.5 * size[1], size[1] > 1.5 * size[0]
        seen.add((tiles, "tall" if tall else "wide" if wide else "square"))
    assert seen == {(4, "square"), (2, "tall"), (2, "wide"), (3, "tall"), (3, "wide")}


@pytest.mark.parametrize("size", canvases.SIZES)
def test_canvas_keeps_the_whole_image(size: tuple[int, int]) -> None:
    red = Image.new("RGB", (64, 64), (255, 0, 0))
    for seed in range(5):
        sheet = canvases.canvas(red, size, random.Random(seed))
        assert (sheet.height, sheet.width) == size
        if sheet.getpixel((0, 0)) == sheet.getpixel((sheet.width - 1, sheet.height - 1)):
            continue  # the background is taken from the image itself
        area = (np.asarray(sheet) == (255, 0, 0)).all(-1).sum()
        assert 0.75**2 <= area / 64**2 <= 1.5**2


def test_stored_tiles_are_what_the_processor_gives(processor: LlavaNextProcessor) -> None:
    buckets = canvases.pool(processor, copies=2, limit=6, seed=1)
    assert sum(len(bucket.owner) for bucket in buckets) == 6 * 4
    square = next(bucket for bucket in buckets if bucket.size == (64, 64))
    got = canvases.normalise(square.pixels[:1], processor)
    first = Image.open(easy_vqa.get_train_image_paths()[0]).convert("RGB")
    expected = processor.image_processor(first, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_colours_told_by_the_questions_are_in_the_pixels() -> None:
    kinds, paths = canvases.kinds(), easy_vqa.get_train_image_paths()
    assert len(kinds) > 3500
    for owner in random.Random(0).sample(sorted(kinds), 60):
        name = {"green": "lime"}.get(kinds[owner][1], kinds[owner][1])
        pixels = np.asarray(Image.open(paths[owner]).convert("RGB"))
        assert (pixels == ImageColor.getrgb(name)).all(-1).sum() >= 9, (owner, name)


def test_borrowed_questions_never_contradict_each_other() -> None:
    groups = canvases.questions()
    assert len(groups) == 4000
    for pairs in {
        id(g): [pair for group in g.values() for pair in group] for g in groups.values()
    }.values():
        truth: dict[str, str] = {}
        for question, answer in pairs:
            assert truth.setdefault(question, answer) == answer


def test_what_is_asked_for() -> None:
    """Against the 38,575 questions themselves: one word of truth per image and attribute."""
    kinds = canvases.kinds()
    for question, answer, owner in zip(*easy_vqa.get_train_questions(), strict=True):
        if owner not in kinds:
            continue
        asked = canvases.asked_for(question, answer)
        mentioned = set(question.rstrip("?").split()) & set(canvases.SHAPES + canvases.COLOURS)
        if asked in ("shape", "colour"):
            assert answer == kinds[owner][asked == "colour"]
        else:
            assert mentioned
            assert asked.startswith("present") == (mentioned <= set(kinds[owner]))
            assert asked.endswith("negated") == (" no " in question or " not " in question)


@pytest.mark.parametrize("size", [(64, 64), (64, 192), (80, 112)])
def test_packed_questions_equal_separate_ones(
    model: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor, size: tuple[int, int]
) -> None:
    """Logits and labels of one packed row against one plain sequence per question."""
    asked = [("what color is the shape?", "teal"), ("is no blue shape present?", "yes")]
    asked += [("what shape is present?", "circle")]
    image = picture(size)
    bucket = canvases.Bucket(size, torch.zeros(1, 1, 3, 1, 1, dtype=torch.uint8), torch.tensor([0]))
    data = Data(processor, [bucket], 0, torch.device("cpu"))
    # A shorter second row, so that there is padding.
    rows = [[data.turns[pair] for pair in asked], [data.turns[asked[1]]]]
    packed = pack([data.prefixes[size]] * 2, rows, processor.tokenizer.pad_token_id)
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
        inputs = processor(text=text, images=image, return_tensors="pt")
        with torch.no_grad():
            alone = model(**inputs).logits[0, -3:-1]
        assert packed.labels[0, at].tolist() == inputs.input_ids[0, -2:].tolist()
        torch.testing.assert_close(together[0, at], alone, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two steps of each stage leave, on three images."""
    out = tmp_path_factory.mktemp("trained")
    stages = "--see 2 --read 2 --negate 2 --connect 2 --steps 2"
    run_training(f"--out {out} --images 3 --batch 2 --questions 2 {stages}")
    return out


def run_training(options: str) -> None:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train", "--threads", "1", "--device", "cpu", *options.split()])
        train.main()
    torch.set_num_threads(threads)


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return state


def changed(before: Path, after: Path) -> set[str]:
    a, b = weights(before), weights(after)
    return {name for name in a if not torch.equal(a[name], b[name])}


@pytest.mark.slow
def test_each_stage_trains_its_part(trained: Path) -> None:
    see, read, negate, connect, everything = (trained / f"{name}.pt" for name in train.STAGES)
    for before, after in ((see, read), (read, negate)):
        parts = {name.removeprefix("model.").split(".")[0] for name in changed(before, after)}
        assert parts == {"language_model", "lm_head"}
    assert {name.split(".")[1] for name in changed(negate, connect)} == {"multi_modal_projector"}
    # Layer -2 is read, so the last vision layer and what follows it never get a gradient.
    assert set(weights(everything)) - changed(connect, everything) == {
        name for name in weights(everything) if "encoder.layers.3." in name or "post_lay" in name
    }


@pytest.mark.slow
def test_training_exports_a_model_and_repeats_from_a_stage(trained: Path) -> None:
    assert isinstance(AutoProcessor.from_pretrained(trained / "model"), LlavaNextProcessor)
    exported = LlavaNextForConditionalGeneration.from_pretrained(trained / "model")
    assert exported.num_parameters() < 2e6
    negate, connect = trained / "negate.pt", trained / "connect.pt"
    kept, first = weights(negate), weights(connect)
    options = "--images 3 --batch 2 --questions 2 --connect 4 --steps 1"
    run_training(f"--out {trained} {options} --start connect")
    assert all(torch.equal(kept[name], value) for name, value in weights(negate).items())
    repeated = weights(connect)
    moved = {name.split(".")[1] for name in first if not torch.equal(first[name], repeated[name])}
    assert moved == {"multi_modal_projector"}


def test_loss_is_that_of_transformers(
    model: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor
) -> None:
    """One question, so that packing changes nothing and transformers can take the labels."""
    size, pair = (64, 64), ("what shape is present?", "circle")
    bucket = canvases.Bucket(size, torch.zeros(1, 1, 3, 1, 1, dtype=torch.uint8), torch.tensor([0]))
    data = Data(processor, [bucket], 0, torch.device("cpu"))
    packed = pack([data.prefixes[size]], [[data.turns[pair]]], processor.tokenizer.pad_token_id)
    inputs = processor(
        text=f"{prompt(processor, pair[0])} {pair[1]}</s>", images=picture(), return_tensors="pt"
    )
    labels = inputs.input_ids.clone()
    labels[:, :-2] = -100
    with torch.no_grad():
        expected = model(**inputs, labels=labels).loss
        got = losses(model, model.model(**inputs).last_hidden_state, packed)
    torch.testing.assert_close(got.answers, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_accuracy_with_and_without_the_image(
    model: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor
) -> None:
    samples = datasets.load("easy-vqa", "test", limit=300, seed=1)
    seen = evaluate.evaluate(model, processor, samples)
    assert seen["all"].total == 300
    assert sum(seen[name].total for name in ("yes/no", "shape", "colour")) == 300
    assert seen["present"].total + seen["absent"].total == seen["yes/no"].total
    assert min(seen[name].accuracy for name in ("present", "absent")) > 0.9
    assert seen["all"].accuracy >= 0.95
    blank = evaluate.evaluate(model, processor, samples, blank=True)
    assert blank["all"].accuracy < 0.72
    assert blank["shape"].accuracy < 0.6
    assert blank["colour"].accuracy < 0.4


def test_best_blind_guess_is_the_most_frequent_answer() -> None:
    train = pd.DataFrame(
        dict(zip(["text", "answer", "image"], easy_vqa.get_train_questions(), strict=True))
    )
    best = train.groupby("text")["answer"].agg(lambda a: a.value_counts().index[0])
    samples = datasets.load("easy-vqa", "test", limit=400)
    expected = sum(best[sample.text] == sample.answer for sample in samples)
    got = evaluate.score(samples, evaluate.best_guesses(samples))["all"]
    assert (got.right, got.total) == (expected, 400)


def test_build_gives_the_shipped_configuration(processor: LlavaNextProcessor) -> None:
    shipped = LlavaNextConfig.from_pretrained(FOLDER)
    built = build.config(processor.tokenizer)
    for part in ("vision_config", "text_config"):
        a, b = getattr(shipped, part).to_dict(), getattr(built, part).to_dict()
        assert {k for k in b if k != "dtype" and a.get(k) != b[k]} == set()
