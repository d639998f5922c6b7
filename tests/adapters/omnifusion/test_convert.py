"""Conversion of OmniFusion's published files, in miniature, against the published pipeline."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from mm_lens_adapters.omnifusion import (
    OmniFusionConfig,
)
from mm_lens_adapters.omnifusion.convert import build_config, shapes
from mm_lens_adapters.omnifusion.projection import NAMES, Projection
from published_files import SHARD, asked, contents, convert, cut, edit, loaded, special
from safetensors.torch import load_file, save_file
from tiny import VOCAB_SIZE
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    MistralConfig,
    MistralForCausalLM,
)
from upstream import (
    random_parts,
    upstream_logits,
    write_projection,
    write_tower,
    write_upstream,
    write_weights,
)

from mm_lens import MMLensError


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
        r"tokenizer\.json is truncated or no JSON file",
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
