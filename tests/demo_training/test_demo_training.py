"""The shipped models answer questions by looking, and were trained on what their cards say."""

import random
from pathlib import Path
from typing import Any

import easy_vqa
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageColor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from demo_training import canvases, evaluate, parts, train
from demo_training.batches import Questions, prefix, tail
from demo_training.fusion import Fusion
from demo_training.fusions import FUSIONS
from demo_training.learning import losses
from demo_training.packing import pack
from demo_training.prompts import prompt
from mm_lens import demo
from mm_lens.data import datasets
from mm_lens.errors import InputError
from mm_lens.model.families import families

NAMES = ("llava-next", "omnifusion")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    families()
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str) -> Path:
    return demo.path(f"demo/{name}")


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def built(name: str) -> Fusion:
    return FUSIONS[name](train.tokenizer())


def picture(size: tuple[int, int] = (64, 64), seed: int = 0) -> Image.Image:
    """Noise of (height, width) `size`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_unknown_name_lists_what_there_is() -> None:
    assert demo.available() == [f"demo/{name}" for name in NAMES]
    for name in ("demo/none", "llava-next", "demo/", "demo/../demo/llava-next"):
        with pytest.raises(InputError, match="Available: demo/llava-next, demo/omnifusion"):
            demo.path(name)


def test_ships_small_and_complete(folder: Path) -> None:
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert sum(files.values()) <= 10e6
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(files)


def test_shape_of_the_model(model: Any) -> None:
    text = model.config.get_text_config()
    assert text.num_hidden_layers >= 8
    assert text.hidden_size != text.vocab_size
    assert text.num_key_value_heads < text.num_attention_heads
    assert model.get_input_embeddings().weight.shape == (text.vocab_size, text.hidden_size)


def test_only_the_fusion_differs() -> None:
    """Same language model but for the row of an added token, same tower."""
    one, two = (AutoConfig.from_pretrained(demo.path(f"demo/{name}")) for name in NAMES)
    tower = [config.vision_config.to_dict() for config in (one, two)]
    text = [config.text_config.to_dict() for config in (one, two)]
    assert {key for key in tower[0] if tower[0][key] != tower[1][key]} <= {"dtype"}
    different = {key for key in text[0] if text[0][key] != text[1][key]}
    assert different - {"dtype"} == {"vocab_size"}
    assert text[0]["vocab_size"] == text[1]["vocab_size"] + 1


def test_answers_are_single_tokens(processor: Any) -> None:
    encode = processor.tokenizer
    ends = {" circle": encode(" circle</s>", add_special_tokens=False).input_ids[-1]}
    assert ends == {" circle": encode.eos_token_id}
    first = set()
    for answer in easy_vqa.get_answers():
        (token, end) = encode(f" {answer}</s>", add_special_tokens=False).input_ids
        assert end == encode.eos_token_id
        assert encode.decode(token) == f" {answer}"
        first.add(token)
    assert len(first) == 13


@pytest.mark.parametrize("text", ["Où est l'été?", "日本語\n\ttabs", "{x} <b> 🎈", "plain words"])
def test_tokenizer_takes_any_text(processor: Any, text: str) -> None:
    ids = processor.tokenizer(text, add_special_tokens=False).input_ids
    assert processor.tokenizer.unk_token_id not in ids
    assert processor.tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", ["llava-next"], indirect=True)
def test_chat_template(processor: Any) -> None:
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


@pytest.mark.parametrize("name", ["llava-next"], indirect=True)
def test_one_leading_bos(processor: Any) -> None:
    ids = processor(text=prompt(processor, "why?"), images=picture()).input_ids[0]
    assert ids[0] == processor.tokenizer.bos_token_id
    assert ids.count(processor.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", ["llava-next"], indirect=True)
def test_every_grid_is_trained_on(processor: Any) -> None:
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
        sheet, (x0, y0, x1, y1) = canvases.canvas(red, size, random.Random(seed))
        inside = np.asarray(sheet)[y0:y1, x0:x1]
        assert (inside == (255, 0, 0)).all()
        assert (sheet.height, sheet.width) == size
        if sheet.getpixel((0, 0)) == sheet.getpixel((sheet.width - 1, sheet.height - 1)):
            continue  # the background is taken from the image itself
        area = (np.asarray(sheet) == (255, 0, 0)).all(-1).sum()
        assert 0.75**2 <= area / 64**2 <= 1.5**2


def test_stored_tiles_are_what_the_processor_gives(built: Fusion) -> None:
    buckets = canvases.pool(built, copies=2, limit=6, seed=1)
    views = sum(len(bucket.owner) for bucket in buckets)
    cropped = not built.sees((64, 192), (128, 0, 192, 64))
    assert 6 * 2 < views < 6 * 4 if cropped else views == 6 * 4
    square = next(bucket for bucket in buckets if bucket.size == (64, 64))
    got = built.native(canvases.normalise(square.pixels[:1], built.processor))
    first = Image.open(easy_vqa.get_train_image_paths()[0]).convert("RGB")
    expected = built.processor.image_processor(first, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["omnifusion"], indirect=True)
@pytest.mark.parametrize("size", [(64, 192), (192, 64), (80, 112), (96, 96)])
def test_what_is_cropped_away_is_not_asked_about(built: Fusion, size: tuple[int, int]) -> None:
    """A black box on white: seen whole, or not counted as seen."""
    rng = random.Random(0)
    for _ in range(20):
        side = rng.randint(20, 50)
        x, y = rng.randint(0, size[1] - side), rng.randint(0, size[0] - side)
        sheet = Image.new("RGB", (size[1], size[0]), "white")
        sheet.paste((0, 0, 0), (x, y, x + side, y + side))
        dark = (built.tiles(sheet).float().mean((0, 1)) < 128).sum().item()
        whole = (side * 48 / min(size)) ** 2
        if built.sees(size, (x, y, x + side, y + side)):
            assert abs(dark - whole) < 0.2 * whole
        else:
            assert dark < whole


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


def run_training(options: str) -> None:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train", "--threads", "1", "--device", "cpu", *options.split()])
        train.main()
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_training(tmp_path: Path) -> None:
    """Two steps of each stage on three images: both fusions start from the same parts."""
    sizes = "--images 3 --batch 2 --questions 2"
    stages = "--see 2 --read 2 --negate 2 --connect 2 --answer 0"
    run_training(f"--out {tmp_path} {sizes} {stages}")
    started = torch.load(tmp_path / train.PARTS_FILE, weights_only=True)["parts"]
    connected = {}
    for name in NAMES:
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / name)
        assert model.num_parameters() < 2e6
        AutoProcessor.from_pretrained(tmp_path / name)
        connected[name] = model
        language = model.model.language_model.layers.state_dict()
        for key, value in language.items():  # kept as it was while tower and connectors learn
            assert torch.equal(value, started[f"language.model.layers.{key}"])
        moved = [
            not torch.equal(value, started[f"tower.{key}"])
            for key, value in model.model.vision_tower.state_dict().items()
            if "position_ids" not in key
        ]
        assert any(moved)
    run_training(f"--out {tmp_path} {sizes} --only {' '.join(NAMES)} --again --answer 2")
    for name in NAMES:
        before = connected[name].state_dict()
        after = AutoModelForImageTextToText.from_pretrained(tmp_path / name).state_dict()
        still = {key for key in before if torch.equal(before[key], after[key])}
        # Layer -2 is read, so the last vision layer and what follows it never get a gradient.
        assert still == {
            key
            for key in before
            if "tower.encoder.layers.3." in key or "post_layernorm" in key or "position_ids" in key
        }


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


@pytest.mark.slow
def test_accuracy_with_and_without_the_image(model: Any, processor: Any) -> None:
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


def test_the_fusions_are_the_shipped_ones(folder: Path, built: Fusion) -> None:
    shipped = AutoConfig.from_pretrained(folder)
    for part in ("vision_config", "text_config"):
        a, b = getattr(shipped, part).to_dict(), getattr(built.model.config, part).to_dict()
        assert {k for k in b if k != "dtype" and a.get(k) != b[k]} == set()
    assert shipped.vision_config.image_size == parts.TILE
    loaded = AutoProcessor.from_pretrained(folder)
    assert loaded.tokenizer.get_vocab() == built.processor.tokenizer.get_vocab()
    assert loaded.chat_template == built.processor.chat_template
