"""Conversion of OmniFusion's published files, in miniature, against the published pipeline."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from mm_lens_adapters.omnifusion import (
    MARKERS,
    OmniFusionConfig,
    OmniFusionForConditionalGeneration,
)
from mm_lens_adapters.omnifusion.convert import OmniFusionFormat, build_config, shapes
from mm_lens_adapters.omnifusion.projection import NAMES, Projection
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import VOCAB_SIZE, random_image, tiny_tokenizer
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    MistralConfig,
    MistralForCausalLM,
)
from upstream import (
    PROMPT,
    PUBLISHED,
    random_parts,
    upstream_generate,
    upstream_logits,
    write_projection,
    write_tower,
    write_upstream,
    write_weights,
)

import mm_lens
from mm_lens import InputError, MMLensError
from mm_lens.checkpoints import formats, shards
from mm_lens.checkpoints.conversion import cache_directory, loadable
from mm_lens.cli import commands as cli

QUESTION = "What is it?"
SHARD = 60_000  # bytes: three files


@pytest.fixture(scope="module")
def parts():
    return random_parts()


@pytest.fixture(scope="module")
def tower(parts, tmp_path_factory):
    return write_tower(tmp_path_factory.mktemp("clip") / "tower", parts)


@pytest.fixture
def source(parts, tmp_path):
    write_upstream(tmp_path / "source", parts)
    return tmp_path / "source"


@pytest.fixture(scope="module")
def converted(parts, tower, tmp_path_factory):
    """A conversion that tests only read."""
    path = tmp_path_factory.mktemp("converted")
    write_upstream(path / "source", parts)
    return convert(path / "source", path / "out", tower)


def convert(source, out, tower, **options):
    options = {"shard_bytes": SHARD, "progress": False, **options}
    return mm_lens.convert("omnifusion", source, out, vision_tower=str(tower), **options)


def loaded(path):
    """Model and processor, as anybody loads them with transformers."""
    model, info = AutoModelForImageTextToText.from_pretrained(
        path, output_loading_info=True, dtype="auto"
    )
    assert not any(info.values()), info
    assert isinstance(model, OmniFusionForConditionalGeneration)
    return model.eval(), AutoProcessor.from_pretrained(path, use_fast=False)


def asked(processor, question=QUESTION, seed=0):
    """Inputs of the model, and what the published pipeline gets."""
    text = f"{PROMPT}<SOI><image><EOI><USER>{question}<BOT>"
    inputs = processor(images=random_image(31, 57, seed), text=text, return_tensors="pt")
    plain = tiny_tokenizer(image_token=None)
    ids = [plain(part, add_special_tokens=False).input_ids for part in (PROMPT, question)]
    return inputs, (inputs["pixel_values"], *ids)


def contents(directory):
    """A digest of every file below a directory."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


# ---- what comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"binary": True, "index": False},
        {"binary": True, "shards": 1, "legacy": True},
    ],
    ids=lambda layout: "-".join(f"{k}={v}" for k, v in layout.items()) or "default",
)
def test_logits_are_those_of_the_published_pipeline(layout, parts, tower, tmp_path):
    root = write_upstream(tmp_path / "source", parts, **layout)
    source = root if layout.get("legacy") else root.parent  # both directories are taken
    model, processor = loaded(convert(source, tmp_path / "out", tower))
    inputs, published = asked(processor)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert torch.equal(logits, upstream_logits(parts, *published))


def test_the_directory_is_one_of_transformers(converted):
    names = {path.name for path in converted.iterdir()}
    weights = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    assert names == {
        *weights, "model.safetensors.index.json", "config.json", "generation_config.json",
        "processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "conversion.json",
    }  # fmt: skip
    index = json.loads((converted / "model.safetensors.index.json").read_text())
    held = {name: file for file in weights for name in load_file(converted / file)}
    assert index["weight_map"] == held
    sizes = [sum(t.nbytes for t in load_file(converted / file).values()) for file in weights]
    assert max(sizes) <= SHARD
    assert index["metadata"]["total_size"] == sum(sizes)
    record = json.loads((converted / "conversion.json").read_text())
    assert record["format"] == "omnifusion"
    assert record["files"]["projection.pt"] > 0
    config = OmniFusionConfig.from_pretrained(converted)
    assert config.dtype == torch.float32
    assert config.projector_num_heads == 5
    assert config.image_token_index == VOCAB_SIZE + 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_of_the_checkpoint_is_kept(dtype, tower, tmp_path):
    parts = random_parts().to(dtype)  # the tower's file stays in float32, as CLIP's is
    write_upstream(tmp_path / "source", parts)
    model, processor = loaded(convert(tmp_path / "source", tmp_path / "out", tower))
    assert {p.dtype for p in model.parameters()} == {dtype}
    inputs, (pixels, *ids) = asked(processor)
    expected = upstream_logits(parts, pixels.to(dtype), *ids)
    with torch.no_grad():
        assert torch.equal(model(**inputs.to(dtype)).logits, expected)


def test_mixed_dtypes_are_an_error_or_converted_when_asked(parts, tower, source, tmp_path):
    half = {k: v.bfloat16() for k, v in parts.special.items()}
    torch.save(half, source / "OmniMistral-v1_1" / "special_embeddings.pt")
    with pytest.raises(MMLensError, match=r"bfloat16 in special_embeddings.pt; float32 in model-0"):
        convert(source, tmp_path / "out", tower)
    assert not (tmp_path / "out").exists()
    out = convert(source, tmp_path / "out", tower, dtype=torch.float16)
    model, _ = loaded(out)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    special = model.get_input_embeddings().special
    for row, marker in zip(special, MARKERS, strict=True):
        assert torch.equal(row, half[marker.strip("<>")].half())


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generation_is_that_of_the_published_pipeline(options, converted, parts):
    model, processor = loaded(converted)
    model.generation_config = type(model.generation_config)(eos_token_id=2, pad_token_id=2)
    options = {"do_sample": False, "max_new_tokens": 12, **options}
    for seed in range(2):
        inputs, published = asked(processor, seed=seed)
        new = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        expected = upstream_generate(parts, *published, **options, eos_token_id=2, pad_token_id=2)
        assert new.tolist() == expected


@pytest.mark.filterwarnings("ignore:Passing `no_repeat_ngram_size`")
def test_generate_without_arguments_is_the_published_call(converted, parts):
    model, processor = loaded(converted)
    plain = tiny_tokenizer(image_token=None)
    bad = [*plain(["\n", "</s>", ":"], add_special_tokens=False).input_ids, [13]]
    inputs, published = asked(processor)
    new = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    assert new.tolist() == upstream_generate(parts, *published, **PUBLISHED, bad_words_ids=bad)
    # Repetition counts within the answer alone. The question holds all characters: were it counted,
    # no token could be generated.
    letters = plain.convert_ids_to_tokens(range(6, len(plain)))
    question = "".join(c for c in letters if len(c) == 1 and c not in "<>")
    inputs, published = asked(processor, question)
    options = {"no_repeat_ngram_size": 1, "num_beams": 1, "early_stopping": False}
    new = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :].tolist()
    published_options = {**PUBLISHED, **options, "bad_words_ids": bad}
    assert new == upstream_generate(parts, *published, **published_options)
    assert set(new) & set(published[2])


def test_the_prompt_is_tokenised_as_sentencepiece_does(parts, tower, source, tmp_path):
    """Upstream's tokenizer is a SentencePiece model; SentencePiece itself is the reference."""
    import io

    import sentencepiece

    generator, model = random.Random(0), io.BytesIO()
    words = ["what", "is", "the", "colour", "of", "this", "sky", "cat", "a", "dialog", "with"]
    lines = [" ".join(generator.choices(words, k=8)) for _ in range(200)]
    options = {
        "model_type": "bpe", "byte_fallback": True, "vocab_size": 320, "minloglevel": 2,
        "remove_extra_whitespaces": False, "hard_vocab_limit": False,
    }  # fmt: skip

    def trained(**more):
        model.seek(0)
        model.truncate()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, **{**options, **more}
        )
        return model.getvalue()

    directory = source / "OmniMistral-v1_1" / "tokenizer"
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(trained(normalization_rule_name="identity"))
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    with pytest.raises(MMLensError, match=r"tokenizer has 3.. tokens, the language model only 113"):
        convert(source, tmp_path / "out", tower)

    big = random_parts(vocab_size=331)
    shutil.rmtree(source)
    write_upstream(source, big)
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    _, processor = loaded(convert(source, tmp_path / "out", tower))
    for question in (QUESTION, "  What  colour?", "a\nb", "Что это? 猫🙂\t", " "):
        ids = processor(text=f"{PROMPT}<USER>{question}<BOT>")["input_ids"][0]
        user, bot = 331 + 2, 331 + 3
        assert ids == [*reference.encode(PROMPT), user, *reference.encode(question), bot]
    words = ["\n", ":"]
    bad = json.loads((tmp_path / "out" / "generation_config.json").read_text())["bad_words_ids"]
    assert bad == [reference.encode(words[0]), [2], reference.encode(words[1]), [13]]

    (directory / "tokenizer.model").write_bytes(trained(normalization_rule_name="nfkc_cf"))
    with pytest.raises(MMLensError, match=r"splits .* in another way"):
        convert(source, tmp_path / "other", tower)


def test_full_size_names_and_shapes():
    """Mistral-7B, CLIP-L/14-336 and 576 tokens, on the meta device: no weights."""
    text = {"model_type": "mistral", **MistralConfig().to_dict()}
    vision = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
    }  # fmt: skip
    with torch.device("meta"):
        published = {
            "tuned-model": MistralForCausalLM(MistralConfig()),
            "vision": CLIPVisionModel(CLIPVisionConfig(**vision)),
            "layer": nn.TransformerEncoderLayer(1024, 4, batch_first=True),
            "linear": nn.Linear(1024, 4096),
        }
    projection = {f"transformer_layer.{k}": v for k, v in published["layer"].state_dict().items()}
    projection |= {f"linear.{k}": v for k, v in published["linear"].state_dict().items()}
    assert set(projection) == set(NAMES)
    config = build_config(
        text, {"model_type": "clip", "vision_config": vision}, Projection(projection, 4, 576)
    )
    assert config == OmniFusionConfig(
        vision_config=config.vision_config,
        text_config=config.text_config,
        architectures=["OmniFusionForConditionalGeneration"],
    )
    expected = {f"model.multi_modal_projector.{k}": tuple(v.shape) for k, v in projection.items()}
    for name, tensor in published["tuned-model"].state_dict().items():
        new = name if name == "lm_head.weight" else f"model.language_model.{name[6:]}"
        expected[new] = tuple(tensor.shape)
    for name, tensor in published["vision"].state_dict().items():
        expected[f"model.vision_tower.{name}"] = tuple(tensor.shape)
    expected["model.language_model.embed_tokens.special"] = (4, 4096)
    assert shapes(config) == expected
    assert config.image_seq_length == 576
    assert expected["lm_head.weight"] == (32000, 4096)
    n = sum(torch.Size(shape).numel() for shape in expected.values())
    assert n == pytest.approx(7.56e9, rel=0.01)


def test_the_tower_may_be_saved_by_any_version(parts, source, converted, tmp_path):
    """CLIP whole or its vision half, in either file format, with or without prefix."""
    write_tower(tmp_path / "safetensors", parts, binary=False)
    half = tmp_path / "half"
    parts.vision.save_pretrained(half)
    shutil.copy(tmp_path / "safetensors" / "preprocessor_config.json", half)
    weights = {n: d for n, d in contents(converted).items() if n.endswith(".safetensors")}
    for tower in (tmp_path / "safetensors", half):
        found = contents(convert(source, tmp_path / f"{tower.name}-out", tower))
        assert {n: d for n, d in found.items() if n.endswith(".safetensors")} == weights


# ---- what is refused -----------------------------------------------------------------------------


def edit(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def evil(path, canary):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    torch.save({"SOI": Evil()}, path)


def quantised(root):
    shard = root / "tuned-model" / "model-00001-of-00003.safetensors"
    tensors = load_file(shard)
    save_file({name: t.to(torch.float8_e4m3fn) for name, t in tensors.items()}, shard)


def twice(root):
    first = root / "tuned-model" / "model-00001-of-00003.safetensors"
    second = root / "tuned-model" / "model-00002-of-00003.safetensors"
    save_file({**load_file(second), **load_file(first)}, second)


def extra(root):
    shard = root / "tuned-model" / "model-00003-of-00003.safetensors"
    save_file({**load_file(shard), "model.surprise": torch.zeros(2)}, shard)


def special(**vectors):
    def damage(root):
        path = root / "special_embeddings.pt"
        entries = {**torch.load(path), **vectors}
        torch.save({k: v for k, v in entries.items() if v is not None}, path)

    return damage


def index(**where):
    return lambda root: edit(
        root / "tuned-model" / "model.safetensors.index.json", weight_map=where
    )


def two_encoders(root):
    parts = random_parts()
    parts.layer = nn.ModuleList([nn.Linear(20, 24), nn.Linear(16, 24)])
    write_projection(root / "projection.pt", parts)


DAMAGE = {
    "truncated shard": (
        lambda root: cut(root / "tuned-model" / "model-00002-of-00003.safetensors"),
        "model-00002-of-00003.safetensors is truncated or damaged",
    ),
    "missing shard": (
        lambda root: (root / "tuned-model" / "model-00002-of-00003.safetensors").unlink(),
        "model-00002-of-00003.safetensors is missing",
    ),
    "truncated projection": (lambda root: cut(root / "projection.pt"), "projection.pt is trunc"),
    "missing projection": (
        lambda root: (root / "projection.pt").unlink(),
        "not a complete OmniFusion checkpoint: projection.pt missing",
    ),
    "missing special": (
        lambda root: (root / "special_embeddings.pt").unlink(),
        "special_embeddings.pt missing",
    ),
    "missing config": (
        lambda root: (root / "tuned-model" / "config.json").unlink(),
        "tuned-model/config.json missing",
    ),
    "missing tokenizer": (lambda root: shutil.rmtree(root / "tokenizer"), "neither tokenizer.json"),
    "damaged tokenizer": (
        lambda root: cut(root / "tokenizer" / "tokenizer.json"),
        "the tokenizer cannot be read",
    ),
    "damaged config": (lambda root: cut(root / "tuned-model" / "config.json"), "no JSON file"),
    "another model": (
        lambda root: edit(root / "tuned-model" / "config.json", model_type="llama"),
        "of type 'llama', not mistral",
    ),
    "too few layers": (
        lambda root: edit(root / "tuned-model" / "config.json", num_hidden_layers=4),
        r"layers\.3\..* is missing; .* and \d+ more",
    ),
    "too many layers": (
        lambda root: edit(root / "tuned-model" / "config.json", num_hidden_layers=2),
        r"model\.layers\.2\..* is unexpected",
    ),
    "wrong shape": (
        lambda root: edit(root / "tuned-model" / "config.json", intermediate_size=48),
        r"gate_proj.weight in .* has shape \(44, 24\), the model \(48, 24\)",
    ),
    "unexpected tensor": (extra, "model.surprise in .* is unexpected|says that"),
    "tensor twice": (twice, "is both in model-00001-of-00003.safetensors and in model-00002"),
    "quantised": (quantised, "Quantised weights"),
    "index to elsewhere": (
        index(a="../../../etc/passwd"),
        "names '../../../etc/passwd', which is not a file beside it",
    ),
    "index of another": (
        index(a="model-00001-of-00003.safetensors"),
        "says that a is in model-00001-of-00003.safetensors; it is not",
    ),
    "empty index": (index(), "has no weight_map"),
    "wrong vector": (special(SOI=torch.zeros(7)), "instead of four vectors of one length"),
    "all vectors wrong": (
        special(**{k: torch.zeros(25) for k in ("SOI", "EOI", "USER", "BOT")}),
        r"special in .*special_embeddings.pt has shape \(4, 25\), the model \(4, 24\)",
    ),
    "missing vector": (special(SOI=None), "holds BOT, EOI, USER instead of SOI, EOI, USER, BOT"),
    "two encoders": (two_encoders, "two encoders.*does not fix how the features"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_gives_one_error_and_nothing_else(name, source, tower, tmp_path):
    damage, message = DAMAGE[name]
    damage(source / "OmniMistral-v1_1")
    before = set(tmp_path.iterdir())
    with pytest.raises(MMLensError, match=message):
        convert(source, tmp_path / "a" / "out", tower)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "file", ["projection.pt", "special_embeddings.pt", "tuned-model/pytorch_model.bin", "tower"]
)
def test_no_file_of_the_checkpoint_runs_code(file, parts, tower, tmp_path):
    root = write_upstream(tmp_path / "source", parts, binary=True, shards=1)
    if file == "tower":
        tower = write_tower(tmp_path / "tower", parts)
    canary = tmp_path / "canary"
    evil(tower / "pytorch_model.bin" if file == "tower" else root / file, canary)
    with pytest.raises(MMLensError, match=r"refused\. Its pickle asks for posix\.system"):
        convert(root, tmp_path / "out", tower)
    assert not canary.exists()
    assert not list(tmp_path.glob("out*"))


def test_python_files_beside_the_weights_are_not_run(source, tower, converted, tmp_path):
    root, canary = source / "OmniMistral-v1_1", tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w').close()\nclass Custom: pass\n"
    for directory in (root, root / "tokenizer", root / "tuned-model"):
        (directory / "custom.py").write_text(code)
        (directory / "models.py").write_text(code)
    edit(
        root / "tokenizer" / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["custom.Custom", "custom.Custom"]},
        tokenizer_class="Custom",
        chat_template="{{ cycler.__init__.__globals__ }}",
    )
    auto_map = {"AutoConfig": "custom.Custom", "AutoModelForCausalLM": "custom.Custom"}
    edit(root / "tuned-model" / "config.json", auto_map=auto_map)
    out = convert(root, tmp_path / "out", tower)
    loaded(out)
    assert not canary.exists()
    assert not list(out.glob("*.py"))
    same = {n: d for n, d in contents(out).items() if n != "conversion.json"}
    assert same == {n: d for n, d in contents(converted).items() if n != "conversion.json"}


def test_a_tower_that_does_not_fit_is_named(source, tower, tmp_path, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(tower, other)
    config = json.loads((tower / "config.json").read_text())

    def refused(message, **vision):
        edit(other / "config.json", vision_config={**config["vision_config"], **vision})
        with pytest.raises(MMLensError, match=message):
            convert(source, tmp_path / "out", other)

    refused("gives 100 patches of width 20, but the projection takes 25", patch_size=2)
    refused("25 patches of width 32, but .* 25 of width 20", hidden_size=32)
    refused("encoder.layers.3.* is unexpected", num_hidden_layers=3)
    refused("crops to 20×20 pixels, the tower takes 23×23", image_size=23)
    edit(other / "config.json", model_type="siglip")
    with pytest.raises(MMLensError, match="of type 'siglip', not clip"):
        convert(source, tmp_path / "out", other)
    for name in ("preprocessor_config.json", "config.json", "pytorch_model.bin"):
        shutil.rmtree(other)
        shutil.copytree(tower, other)
        (other / name).unlink()
        with pytest.raises(MMLensError, match=f"{name}.* missing"):
            convert(source, tmp_path / "out", other)
    with pytest.raises(MMLensError, match=r"is not there. Name a directory or a hub id"):
        convert(source, tmp_path / "out", tmp_path / "nowhere")
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    with pytest.raises(MMLensError, match=r"--vision-tower.*HF_HUB_OFFLINE is set"):
        convert(source, tmp_path / "out", "somebody/clip")


def test_what_is_there_already_is_kept_or_replaced_when_asked(source, tower, tmp_path):
    out = convert(source, tmp_path / "out", tower)
    with pytest.raises(InputError, match="exists already"):
        convert(source, out, tower)
    (out / "stray").touch()
    convert(source, out, tower, overwrite=True)
    assert not (out / "stray").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    with pytest.raises(InputError, match="not written by mm-lens"):
        convert(source, mine, tower, overwrite=True)
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is a file"):
        convert(source, mine / "thesis.tex", tower)
    with pytest.raises(MMLensError, match=r"thesis\.tex.*name another directory"):
        convert(source, mine / "thesis.tex" / "out", tower)


# ---- interruption, disk, memory ------------------------------------------------------------------


def killed(source, out, tower, monkeypatch, module, name, call):
    """Convert in a process of its own that kills itself when a function is called the n-th time."""
    pid = os.fork()
    if pid == 0:
        calls, real = [], getattr(module, name)

        def fatal(*arguments, **keywords):
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)

        monkeypatch.setattr(module, name, fatal)
        convert(source, out, tower)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "call", "finished"),
    [
        ("_write_shard", 3, 2),  # between two
        ("_to_disk", 2, 1),  # a file is written, but has not got its name
        ("_write_json", 2, 3),  # the last file, behind configuration and tokenizer
        ("_exchange", 1, 3),  # all is there but the name
    ],
)
def test_a_killed_conversion_is_continued(
    name, call, finished, source, converted, tower, tmp_path, monkeypatch
):
    from mm_lens._storage import files

    out, partial = tmp_path / "out", tmp_path / "out.partial"
    module = files if name == "_exchange" else shards
    killed(source, out, tower, monkeypatch, module, name, call)
    assert not out.exists()
    before = {p.name: p.stat().st_ino for p in partial.glob("*.safetensors")}
    assert len(before) == finished
    convert(source, out, tower)
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*"))
    kept = {p.name: p.stat().st_ino for p in out.glob("*.safetensors") if p.name in before}
    if name != "_exchange":
        assert kept == before
    ours, whole = contents(out), contents(converted)
    assert ours == whole


def test_only_the_same_conversion_is_continued(source, tower, tmp_path, monkeypatch):
    out = tmp_path / "out"
    killed(source, out, tower, monkeypatch, shards, "_write_shard", 3)
    with pytest.raises(MMLensError, match=r"dtype: float32 then, bfloat16 now"):
        convert(source, out, tower, dtype=torch.bfloat16)
    with pytest.raises(MMLensError, match=r"unfinished work on something else \(shards: "):
        convert(source, out, tower, shard_bytes=30_000)
    path = source / "OmniMistral-v1_1" / "special_embeddings.pt"
    special(SOI=torch.ones(24))(path.parent)
    with pytest.raises(
        MMLensError, match=r"special_embeddings\.pt: \d+ bytes.* Delete it to begin"
    ):
        convert(source, out, tower)
    shutil.rmtree(tmp_path / "out.partial")
    model, _ = loaded(convert(source, out, tower))
    assert torch.equal(model.get_input_embeddings().special[0], torch.ones(24))


def test_a_directory_in_the_way_is_not_touched(source, tower, tmp_path):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.tex").touch()
    with pytest.raises(MMLensError, match=r"was not written by mm-lens. Move it"):
        convert(source, tmp_path / "out", tower)
    assert [path.name for path in partial.iterdir()] == ["thesis.tex"]


def test_a_damaged_finished_shard_is_named(source, tower, tmp_path, monkeypatch):
    killed(source, tmp_path / "out", tower, monkeypatch, shards, "_write_shard", 2)
    cut(tmp_path / "out.partial" / "model-00001-of-00003.safetensors")
    with pytest.raises(MMLensError, match=r"out\.partial/model-00001.* is truncated or damaged"):
        convert(source, tmp_path / "out", tower)


def test_two_at_once_do_not_meet(source, tower, tmp_path):
    with (
        FileLock(tmp_path / ".out.lock"),
        pytest.raises(MMLensError, match="Another process is writing"),
    ):
        convert(source, tmp_path / "out", tower)


def test_ctrl_c_keeps_what_is_finished(source, converted, tower, tmp_path, monkeypatch, capsys):
    real = shards._to_disk

    def interrupted(path):
        if "00002" in path.name:
            raise KeyboardInterrupt
        real(path)

    monkeypatch.setattr(shards, "_to_disk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", tower)
    assert {p.name for p in (tmp_path / "out.partial").iterdir()} == {
        "journal.json",
        "model-00001-of-00003.safetensors",
    }
    monkeypatch.setattr(shards, "_write_shard", lambda *_: interrupted(Path("00002")))
    arguments = [str(source), str(tmp_path / "other"), "--vision-tower", str(tower), "--quiet"]
    assert cli.run(["convert", "omnifusion", *arguments]) == 130
    assert "Interrupted: " in (error := capsys.readouterr().err)
    assert "The same command resumes" in error
    assert not list(tmp_path.glob("other*"))
    monkeypatch.undo()
    assert contents(convert(source, tmp_path / "out", tower)) == contents(converted)


def test_a_full_disk_is_told_before_and_while_writing(source, tower, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
        with pytest.raises(MMLensError, match=r"The disk is full \(0\.0 GB needed, .*Free some"):
            convert(source, tmp_path / "out", tower)
        assert not list(tmp_path.glob("out*"))
    real, calls = shards.save_file, []

    def full(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        real(tensors, path, metadata)

    monkeypatch.setattr(shards, "save_file", full)
    with pytest.raises(MMLensError, match=r"The disk is full.*run the same again to resume"):
        convert(source, tmp_path / "out", tower)
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.partial").iterdir())) == 2  # a shard and the journal
    loaded(convert(source, tmp_path / "out", tower))
    assert len(calls) == 4


def test_a_disk_that_cannot_be_written_is_told(source, tower, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path / "out.partial"))

    monkeypatch.setattr(shards, "save_file", refused)
    with pytest.raises(MMLensError, match=r"out\.partial: Permission denied.*name another"):
        convert(source, tmp_path / "out", tower)
    assert not list(tmp_path.glob("out*"))


MEASURE = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import torch
    torch.set_num_threads(1)
    import mm_lens

    def peak():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

    def convert(name):
        mm_lens.convert(
            "omnifusion", {work!r} + "/" + name, {work!r} + "/out-" + name,
            vision_tower={work!r} + "/tower", shard_bytes={shard}, progress=False,
        )

    convert("small")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak()
    convert("large")
    print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.slow
@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
def test_memory_holds_one_shard_not_the_model(binary, tmp_path):
    parts = random_parts()
    write_tower(tmp_path / "tower", parts)
    write_upstream(tmp_path / "small", parts)
    large = random_parts(hidden_size=256, intermediate_size=1024, num_hidden_layers=16, head_dim=64)
    write_upstream(tmp_path / "large", large, shards=4, binary=binary)
    model = sum(t.nbytes for t in large.language.state_dict().values())
    shard = 6 * 2**20
    assert model > 8 * shard
    script = MEASURE.format(tests=str(Path(__file__).parents[1]), work=str(tmp_path), shard=shard)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 2 * shard


# ---- command line, formats, load -----------------------------------------------------------------


def test_the_command_line_converts(source, tower, converted, tmp_path, capsys):
    arguments = ["convert", "omnifusion", str(source), str(tmp_path / "out")]
    arguments += ["--vision-tower", str(tower)]
    assert cli.run([*arguments, "--dtype", "bfloat16"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"Converted to {tmp_path / 'out'}\n"
    assert "converting to out: 100%" in captured.err
    assert loaded(tmp_path / "out")[0].dtype == torch.bfloat16
    assert cli.run(arguments) == 1
    assert "exists already" in capsys.readouterr().err
    assert cli.run([*arguments, "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.run(["convert", "nothing", *arguments[2:]]) == 1
    assert "Known: omnifusion" in capsys.readouterr().err
    (source / "OmniMistral-v1_1" / "projection.pt").write_bytes(pickle.dumps(print, protocol=2))
    assert cli.run([*arguments[:3], str(tmp_path / "other"), *arguments[4:]]) == 1
    error = capsys.readouterr().err
    assert "refused" in error
    assert error.count("\n") == 1


FILES = [
    "README.md",
    "models.py",
    "V/projection.pt",
    "V/special_embeddings.pt",
    "V/tuned-model/config.json",
    "V/tuned-model/generation_config.json",
    "V/tuned-model/model-00001-of-00002.safetensors",
    "V/tuned-model/model-00002-of-00002.safetensors",
    "V/tuned-model/model.safetensors.index.json",
    "V/tokenizer/tokenizer.model",
    "V/tokenizer/custom.py",
]


def test_a_format_names_the_files_it_needs():
    assert set(OmniFusionFormat.files(FILES)) == {
        name for name in FILES[2:-1] if "generation_config" not in name
    }
    bare = [name.removeprefix("V/") for name in FILES[2:]]
    assert "projection.pt" in OmniFusionFormat.files(bare)
    two = [name.replace("V/", f"v1_{i}/") for i in (0, 1) for name in FILES]
    assert all(name.startswith("v1_1/") for name in OmniFusionFormat.files(two))
    for needed in ("projection.pt", "special_embeddings.pt", "tuned-model/config.json"):
        assert OmniFusionFormat.files([n for n in FILES if n != f"V/{needed}"]) == []
    assert formats.recognise(["config.json", "model.safetensors"]) is None
    assert formats.recognise(FILES) is OmniFusionFormat


def test_a_broken_format_takes_no_other_along(tmp_path, monkeypatch):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mm_lens.formats]\nbroken = no_such_module:Format\n")
    monkeypatch.syspath_prepend(tmp_path)
    formats.formats.cache_clear()
    with pytest.warns(mm_lens.MMLensWarning, match="no_such_module"):
        assert formats.format_named("omnifusion") is OmniFusionFormat
    formats.formats.cache_clear()


class Hub:
    """Repositories in local directories, behind the functions that ask the hub's."""

    def __init__(self, root, monkeypatch):
        import huggingface_hub

        self.root, self.downloads, self.repositories = root, [], {}
        self.offline = False
        monkeypatch.setattr(huggingface_hub, "model_info", self.model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: self.offline)
        monkeypatch.setenv("MM_LENS_CACHE", str(root / "cache"))

    def model_info(self, repository, revision=None, **_):
        from huggingface_hub.hf_api import ModelInfo

        directory, commit = self.repositories[repository]
        names = [p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()]
        return ModelInfo(id=repository, sha=commit, siblings=[{"rfilename": n} for n in names])

    def snapshot_download(self, repository, *, allow_patterns=None, revision=None, **options):
        from huggingface_hub.errors import LocalEntryNotFoundError

        if options.get("local_files_only"):
            raise LocalEntryNotFoundError("not in the cache")
        directory, commit = self.repositories[repository]
        assert revision == commit
        self.downloads.append(repository)
        target = self.root / "snapshots" / repository / commit
        for name in allow_patterns:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(directory / name, target / name)
        return str(target)


@pytest.fixture
def replica(source, tower, tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub", monkeypatch)
    hub.repositories["AIRI-Institute/OmniFusion"] = source, "c0ffee"
    hub.repositories["openai/clip-vit-large-patch14-336"] = tower, "beef"
    return hub


def test_load_downloads_converts_and_keeps(replica, parts, source):
    model = mm_lens.load("AIRI-Institute/OmniFusion")
    assert model.report.max_logit_difference == 0.0
    inputs = model.prepare(QUESTION, random_image(31, 57))
    plain = tiny_tokenizer(image_token=None)
    ids = [plain(part, add_special_tokens=False).input_ids for part in (PROMPT, QUESTION)]
    expected = upstream_logits(parts, inputs["pixel_values"], *ids)
    assert torch.equal(model(inputs), expected)
    assert replica.downloads == ["AIRI-Institute/OmniFusion", "openai/clip-vit-large-patch14-336"]
    snapshot = replica.root / "snapshots" / "AIRI-Institute" / "OmniFusion" / "c0ffee"
    assert not (snapshot / "models.py").exists()
    kept = replica.root / "cache" / "converted" / "AIRI-Institute--OmniFusion"
    assert sorted(path.name for path in kept.iterdir()) == ["c0ffee", "refs"]

    replica.offline = True
    assert mm_lens.load("AIRI-Institute/OmniFusion", check=False)(inputs).equal(expected)
    replica.offline = False
    assert loadable("AIRI-Institute/OmniFusion") == str(kept / "c0ffee")
    assert len(replica.downloads) == 2
    replica.repositories["AIRI-Institute/OmniFusion"] = source, "decaf"
    assert loadable("AIRI-Institute/OmniFusion", torch.bfloat16) == str(kept / "decaf-bfloat16")
    assert replica.downloads[2:] == replica.downloads[:2]
    config = OmniFusionConfig.from_pretrained(kept / "decaf-bfloat16")
    assert config.dtype == torch.bfloat16
    assert len(list((replica.root / "cache").rglob("*.partial"))) == 0


def test_load_without_network_or_cache_is_one_error(replica):
    replica.offline = True
    message = r"OmniFusion: .*HF_HUB_OFFLINE is set.*neither in the cache of the hub nor converted"
    with pytest.raises(MMLensError, match=message):
        mm_lens.load("AIRI-Institute/OmniFusion")
    replica.offline = False
    with pytest.raises(MMLensError, match="local_files_only forbids"):
        mm_lens.load("AIRI-Institute/OmniFusion", local_files_only=True)

    def no_route(*_, **__):
        raise ConnectionError("no route to host")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.model_info", no_route)
        with pytest.raises(MMLensError, match=r"does not answer .no route to host.*Connect once"):
            mm_lens.load("AIRI-Institute/OmniFusion")
    assert not replica.downloads


def test_load_converts_a_local_directory_once_for_each_state(replica, source, parts):
    model = mm_lens.load(str(source), check=False)
    assert torch.equal(model.original_model.get_input_embeddings().special[0], parts.special["SOI"])
    kept = replica.root / "cache" / "converted"
    assert len(list(kept.glob("source--*"))) == 1
    first = loadable(str(source))
    assert replica.downloads == ["openai/clip-vit-large-patch14-336"]
    special(SOI=torch.ones(24))(source / "OmniMistral-v1_1")
    second = loadable(str(source))
    assert {Path(first), Path(second)} == set(kept.glob("source--*"))
    table = loaded(second)[0].get_input_embeddings()
    assert torch.equal(table.special[0], torch.ones(24))


def test_what_transformers_can_load_is_left_to_it(replica, converted, tmp_path):
    replica.repositories["somebody/llava"] = converted, "abc"
    assert loadable("somebody/llava") is None
    assert loadable(str(converted)) is None
    assert loadable(str(tmp_path)) is None
    assert loadable("not/a/hub/id") is None
    assert not replica.downloads
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MM_LENS_CACHE")
        patch.setenv("XDG_CACHE_HOME", "/somewhere")
        assert cache_directory() == Path("/somewhere/mm_lens/converted")


def test_a_plan_with_a_name_twice_is_refused(source, tower):
    plan = OmniFusionFormat.plan(source, vision_tower=str(tower))
    shards.check_names(plan)
    with pytest.raises(MMLensError, match=r"is in .* and in "):
        shards.check_names(replace(plan, parts=[*plan.parts, plan.parts[-1]]))


def test_older_buffers_in_a_checkpoint_are_left_out(parts, tower, source, converted, tmp_path):
    directory = source / "OmniMistral-v1_1" / "tuned-model"
    for path in directory.glob("model*"):
        path.unlink()
    weights = dict(parts.language.state_dict())
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    write_weights(directory, weights, shards=2, binary=True)
    found, expected = loaded(convert(source, tmp_path / "out", tower))[0], loaded(converted)[0]
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
