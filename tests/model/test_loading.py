"""`load`: arguments, the check at load, and what it does when something is wrong."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import suppress
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import FAMILIES, load_tiny
from huggingface_hub.errors import GatedRepoError
from made_data import make_data, profile, same
from opened_families import open_family
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import place_parts, random_image, tiny_llava_next
from transformers import AutoProcessor
from transformers.utils import import_utils

import mm_lens
from mm_lens import InputError, MMLensError
from mm_lens.causal import knockout
from mm_lens.data import templates
from mm_lens.model.families import family_for
from mm_lens.model.native import read_model, read_processor


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
    native.to(inputs.input_ids.device)  # the model may be on a GPU
    assert torch.equal(other(inputs), native(**inputs).logits)


def test_device_map(tmp_path):
    native, processor = tiny_llava_next()
    native.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model = mm_lens.load(str(tmp_path), device_map={"": "cpu"})
    assert model.report.max_logit_difference == 0.0


@torch.no_grad()
def test_weights_on_disk_change_nothing(tmp_path):
    """Logits, caches, edits, patterns, knock-out, generation and profiles, to the last bit."""
    native, processor = tiny_llava_next()
    native.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    where = place_parts(native, "cpu", "disk")
    split = mm_lens.load(str(tmp_path), device_map=where, offload_folder=str(tmp_path / "off"))
    whole = mm_lens.load(str(tmp_path), check=False, device="cpu")
    assert split.report.max_logit_difference == 0.0
    assert set(split.original_model.hf_device_map.values()) == {"cpu", "disk"}

    def numbers(model):
        inputs = model.prepare("What is it?", random_image(20, 30))
        edit = ("blocks.1.visual.hook_resid_post", lambda rows, hook: rows * 2)
        _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("resid_post", "visual"))
        last = model.cfg.n_layers - 1
        _, seen = model.run_with_cache(inputs, names_filter=f"blocks.{last}.attn.hook_pattern")
        with knockout.knockout(model, inputs, query="text", key="visual"):
            cut = model(inputs)
        yield model(inputs)
        yield model.run_with_hooks(inputs, fwd_hooks=[edit])
        yield cut
        yield from cache.cache_dict.values()
        yield from seen.cache_dict.values()
        yield model.generate(inputs, max_new_tokens=4, do_sample=False, verbose=False)

    found, expected = ([x.cpu() for x in numbers(model)] for model in (split, whole))
    assert len(found) == len(expected) > 4
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    inputs = whole.prepare("What is it?", random_image(20, 30))
    assert torch.equal(found[0], native(**inputs).logits)
    same(profile(split, make_data(4)), profile(whole, make_data(4)))


def test_a_part_without_a_place_is_named(tmp_path):
    native, processor = tiny_llava_next()
    native.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    where = {
        k: v for k, v in place_parts(native, "cpu", "disk").items() if not k.endswith("newline")
    }
    with pytest.raises(InputError, match=r"image_newline.*device_map=\"auto\" places every part"):
        mm_lens.load(str(tmp_path), device_map=where, offload_folder=str(tmp_path / "off"))


def test_arguments_that_do_not_go_together():
    native, _ = tiny_llava_next()
    for options, message in (
        ({}, "either name_or_path or hf_model"),
        ({"name_or_path": "x", "hf_model": native}, "either name_or_path or hf_model"),
        ({"hf_model": native, "dtype": torch.float16}, "keeps its dtype"),
        ({"name_or_path": "x", "device": "cpu", "device_map": "auto"}, "not both"),
        ({"hf_model": native}, r"pass processor="),
        ({"name_or_path": "demo/nonsense"}, "demo/nonsense"),
        ({"name_or_path": "x", "attn_implementation": "eager"}, 'called attention="sdpa" or'),
        ({"name_or_path": "x", "torch_dtype": torch.float16}, "called dtype="),
        ({"model": native}, "called hf_model="),
        ({"name_or_path": "x", "ignore_mismatched_sizes": True}, "another shape are an error"),
        ({"hf_model": native, "quantization_config": 3}, "quantization_config= has no effect"),
        ({"name_or_path": "x", "device": "gpu"}, "no device 'gpu' here"),
        ({"name_or_path": "x", "device": "cuda:99"}, "no device 'cuda:99' here"),
        ({"hf_model": native, "device": "meta"}, "there are no numbers"),
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


def test_a_picture_that_would_be_made_enormous_is_refused_before_it_is_resized():
    bridge, _ = open_family("llava-1.5")
    with pytest.raises(InputError, match=r"would be resized to .* Crop the part that you mean"):
        bridge.prepare("<image> what?", Image.new("RGB", (600_000, 1)))


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


# ---- the processor is the model's ----


def with_processor(family="llava-next", **changes):
    """A tiny model whose processor has some entries changed."""
    native, processor = FAMILIES[family]()
    for name, value in changes.items():
        owner = processor if hasattr(processor, name) else processor.image_processor
        setattr(owner, name, value)
    return native, processor


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llava-next", {"patch_size": 6}, "patch_size=6, but the model needs 4"),
        ("llava-next", {"patch_size": None}, "patch_size=None, but the model needs 4"),
        ("llava-next", {"num_additional_image_tokens": 0}, "num_additional_image_tokens=0.* 1 "),
        (
            "llava-next",
            {"vision_feature_select_strategy": "full"},
            "vision_feature_select_strategy='full', but the model needs 'default'",
        ),
        ("llava-next", {"image_token_id": 7}, "image_token_id=7"),
        ("llava-next", {"image_grid_pinpoints": [[12, 24]]}, r"\[\[12, 24\]\], but config.json"),
        ("llava-next", {"crop_size": {"height": 9, "width": 9}}, "makes tiles of 9 px"),
        ("omnifusion", {"patch_size": 5}, "patch_size=5, but the model needs 4"),
        ("omnifusion", {"crop_size": {"height": 9, "width": 9}}, r"crops to \(9, 9\) px"),
        ("omnifusion", {"do_center_crop": False}, "after resizing to {'shortest_edge'"),
    ],
)
def test_another_processor_is_refused_before_the_model_runs(family, changes, message):
    native, processor = with_processor(family, **changes)
    native.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(InputError, match=message) as told:
        mm_lens.load(hf_model=native, processor=processor)
    assert "processor of the same checkpoint" in str(told.value)
    if family == "llava-next":
        assert "processor_config.json" in str(told.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_as_plain_dictionaries_are_the_same_sizes(family):
    """As somebody may set them by hand; the processor makes the same pixels."""
    native, processor = FAMILIES[family]()
    images = processor.image_processor
    plain = {name: dict(getattr(images, name)) for name in ("size", "crop_size")}
    changed = with_processor(family, **plain)
    want = mm_lens.load(hf_model=native, processor=processor, check=False)
    found = mm_lens.load(hf_model=changed[0], processor=changed[1])
    assert isinstance(found.processor.image_processor.size, dict)
    image = random_image(31, 57)
    one, two = (model.prepare("What?", image) for model in (found, want))
    assert torch.equal(one.pixel_values, two.pixel_values)
    assert torch.equal(one.layout.box.nan_to_num(-1), two.layout.box.nan_to_num(-1))
    assert torch.equal(found(one), want(two))


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_image_sizes_are_said(family):
    model = load_tiny(family, check=False)
    inputs = dict(model.prepare("What?", random_image(31, 57)))
    del inputs["image_sizes"]
    with pytest.raises(InputError, match="image_sizes is missing"):
        model.family.layout(inputs)
    if family == "llava-next":  # the other's tokens do not depend on it
        for run in (model, model.original_model):
            with pytest.raises(InputError, match="image_sizes is missing"):
                run(**inputs)


def test_a_template_that_drops_the_question_does_not_load():
    native, processor = tiny_llava_next()
    processor.chat_template = "[INST] <image>\n[/INST]"
    for check_it in (True, False):
        with pytest.raises(InputError, match="chat template drops the text"):
            mm_lens.load(hf_model=native, processor=processor, check=check_it)


# ---- what is wrapped around the model ----


def logits_of(native, processor):
    """The native model's, on one picture."""
    text = "[INST] <image>\nWhat? [/INST]"
    inputs = processor(images=[random_image(31, 57)], text=[text], return_tensors="pt")
    with torch.no_grad():
        return native(**inputs).logits


def bridge_logits(model):
    return model(model.prepare("What?", random_image(31, 57)))


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_model_is_taken_as_it_was(in_place):
    native, processor = tiny_llava_next()
    want = logits_of(native, processor)
    if in_place:
        native.compile()
        native.model.language_model.layers[0].compile()
    else:
        native = torch.compile(native)
    model = mm_lens.load(hf_model=native, processor=processor)
    assert torch.equal(bridge_logits(model), want)
    name = "blocks.1.visual.hook_resid_post"
    edited = model.run_with_hooks(
        model.prepare("What?", random_image(31, 57)), fwd_hooks=[(name, lambda x, hook: x * 0)]
    )
    assert not torch.equal(edited, want)


def test_a_compiled_part_and_other_wrappers_are_refused():
    native, processor = tiny_llava_next()
    layers = native.model.language_model.layers
    layers[1] = torch.compile(layers[1])
    for wrapped, message in (
        (native, r"layers\.1 of hf_model is compiled"),
        (torch.nn.DataParallel(tiny_llava_next()[0]), "a DataParallel.*hf_model.module"),
        (load_tiny(check=False), "a VisionLanguageBridge"),
        (tiny_llava_next()[0].model, "No family is installed for LlavaNextModel"),
        ("demo/llava-next", "hf_model is a str"),
    ):
        with pytest.raises(MMLensError, match=message):
            mm_lens.load(hf_model=wrapped, processor=processor)


class LoRA(torch.nn.Module):
    """A linear layer with a low-rank update, with the names of peft's."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = torch.nn.Linear(base_layer.in_features, 2, bias=False)
        self.lora_B = torch.nn.Linear(2, base_layer.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))

    @torch.no_grad()
    def merged(self):
        self.base_layer.weight += self.lora_B.weight @ self.lora_A.weight
        return self.base_layer


class Peft(torch.nn.Module):
    """What `load` relies on of `peft.PeftModel`, which is no dependency; on one layer."""

    peft_config = "LoRA"

    def __init__(self, model):
        super().__init__()
        self.model = model
        attention = model.model.language_model.layers[0].self_attn
        attention.q_proj = LoRA(attention.q_proj)

    def get_base_model(self):
        return self.model

    def merge_and_unload(self):
        attention = self.model.model.language_model.layers[0].self_attn
        attention.q_proj = attention.q_proj.merged()
        return self.model


def test_adapters_are_merged():
    """The bridge computes what the model with its adapter computed, and its weights say so."""
    native, processor = tiny_llava_next()
    plain = native.model.language_model.layers[0].self_attn.q_proj.weight.detach().clone()
    torch.manual_seed(0)
    adapted = Peft(native).double()
    want = logits_of(native, processor)
    model = mm_lens.load(hf_model=adapted, processor=processor)
    assert torch.allclose(bridge_logits(model), want, atol=1e-10)
    weight = model.original_model.model.language_model.layers[0].self_attn.q_proj
    assert not torch.allclose(weight.original_component.weight.float(), plain)


def test_adapters_that_cannot_be_merged_are_refused(monkeypatch):
    native, processor = tiny_llava_next()
    adapted = Peft(native)
    with pytest.raises(InputError, match="q_proj of hf_model has an adapter"):
        mm_lens.load(hf_model=native, processor=processor)
    native.is_quantized = True
    with pytest.raises(InputError, match="adapter on quantised weights"):
        mm_lens.load(hf_model=adapted, processor=processor)
    native.is_quantized = False
    monkeypatch.setattr(Peft, "merge_and_unload", lambda self: self.nothing)
    with pytest.raises(InputError, match="cannot be merged into its weights"):
        mm_lens.load(hf_model=adapted, processor=processor)


# ---- the checkpoint is whole ----


@pytest.fixture
def checkpoint(tmp_path):
    """A directory of the tiny model, and a way to change its weights."""
    native, processor = tiny_llava_next()
    native.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    def change(edit):
        weights = load_file(tmp_path / "model.safetensors")
        edit(weights)
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        return tmp_path

    return change


@pytest.mark.parametrize("check_it", [True, False])
def test_missing_renamed_and_mismatched_weights_are_errors(checkpoint, check_it):
    """Each was profiled with random numbers in its place."""
    removed = []

    def drop(weights):
        key = next(name for name in sorted(weights) if name.endswith("1.mlp.up_proj.weight"))
        removed[:] = [key, weights.pop(key)]

    path = checkpoint(drop)
    with pytest.raises(MMLensError, match=r"1\.mlp\.up_proj\.weight are missing.*random numbers"):
        mm_lens.load(str(path), check=check_it)
    path = checkpoint(lambda w: w.update({removed[0] + "s": removed[1]}))
    with pytest.raises(MMLensError, match=r"are missing.*up_proj\.weights are unknown"):
        mm_lens.load(str(path), check=check_it)
    path = checkpoint(lambda w: (w.pop(removed[0] + "s"), w.update({removed[0]: removed[1][:-1]})))
    with pytest.raises(Exception, match=r"up_proj\.weight|size mismatch|mismatch"):
        mm_lens.load(str(path), check=check_it)
    path = checkpoint(lambda w: w.update({removed[0]: removed[1]}))
    mm_lens.load(str(path), check=check_it)


def test_buffers_that_older_versions_stored_are_no_matter(checkpoint):
    path = checkpoint(
        lambda w: w.update({"vision_tower.vision_model.embeddings.position_ids": torch.arange(10)})
    )
    mm_lens.load(str(path))


def test_code_of_a_checkpoint_runs_only_if_it_is_allowed(checkpoint, monkeypatch):
    """Transformers would ask on the terminal, and take a piped "y" for the answer."""
    path = checkpoint(lambda w: None)
    (path / "evil.py").write_text(f"open({str(path / 'ran')!r}, 'w')\nclass Config: ...\n")
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="trust_remote_code"):
        mm_lens.load(str(path))
    assert not (path / "ran").exists()


def test_a_library_that_a_processor_needs_is_named(monkeypatch):
    """As transformers says it where the library is not there."""
    known = import_utils.BACKENDS_MAPPING
    monkeypatch.setitem(known, "torchvision", (lambda: False, known["torchvision"][1]))

    def read(*args, **options):
        import_utils.requires_backends(AutoProcessor, ["torchvision"])

    monkeypatch.setattr(AutoProcessor, "from_pretrained", read)
    told = r'^The processor of a/b needs torchvision, .*: pip install "mm-lens\[torchvision\]"\.$'
    with pytest.raises(InputError, match=told):
        read_processor("a/b", {})
    for error, told in (
        (ModuleNotFoundError("No module", name="num2words"), "pip install num2words"),
        (ImportError("cannot import name x"), "without a library: cannot import name x"),
    ):
        monkeypatch.setattr(AutoProcessor, "from_pretrained", Mock(side_effect=error))
        with pytest.raises(InputError, match=told):
            read_processor("a/b", {})


def test_terms_that_were_not_accepted_are_told(monkeypatch):
    answer = SimpleNamespace(headers={}, request=None)
    refused = GatedRepoError("403 Client Error", response=answer)
    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", Mock(side_effect=refused))
    with pytest.raises(MMLensError, match=r"a/b is gated.*Accept them"):
        read_model("a/b", None, None, None, "sdpa", {})


def test_a_tokenizer_cannot_allow_its_own_code(checkpoint):
    """TransformerLens loads the tokenizer again with the entries of tokenizer_config.json."""
    path = checkpoint(lambda w: None)
    (path / "evil.py").write_text(
        f"open({str(path / 'ran')!r}, 'w')\n"
        "from transformers import LlamaTokenizer\nclass Tok(LlamaTokenizer): ...\n"
    )
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings |= {
        "add_bos_token": False,
        "trust_remote_code": True,
        "auto_map": {"AutoTokenizer": ["evil.Tok", "evil.Tok"]},
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    with suppress(MMLensError):
        mm_lens.load(str(path))
    assert not (path / "ran").exists()


# ---- and not larger, longer or elsewhere than it looks ----


def edit(path, **entries):
    """Change entries of a JSON file; a name with a dot is one of an inner object."""
    found = json.loads(path.read_text())
    for name, value in entries.items():
        outer, _, inner = name.rpartition("__")
        (found[outer] if outer else found)[inner] = value
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("file", "entries", "told"),
    [
        ("config.json", {"text_config__vocab_size": 10**8}, r"model of [\d,]+ numbers, but its f"),
        ("config.json", {"text_config__num_hidden_layers": 10**7}, "num_hidden_layers is 10,000,0"),
        ("config.json", {"text_config__num_attention_heads": 5}, "no model that can be built|can"),
        ("config.json", {"text_config__hidden_size": "wide"}, r"config\.json cannot be used"),
        ("config.json", {"text_config": [1]}, r"config\.json cannot be used"),
        ("config.json", {"vision_config__patch_size": 0}, r"config\.json"),
        ("processor_config.json", {"image_processor__size": {"shortest_edge": 10**7}}, "10,000,0"),
        ("processor_config.json", {"image_processor__crop_size": "x"}, r"processor"),
        ("tokenizer.json", {"model": 3}, "processor of .* cannot be read"),
    ],
)
def test_a_directory_that_costs_too_much_or_is_damaged_is_one_line(checkpoint, file, entries, told):
    path = checkpoint(lambda w: None)
    edit(path / file, **entries)
    with pytest.raises(MMLensError, match=told) as raised:
        mm_lens.load(str(path))
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_model_of_too_many_modules_is_one_line(checkpoint, monkeypatch):
    path = checkpoint(lambda w: None)
    monkeypatch.setattr("mm_lens.checkpoints.building.MAX_MODULES", 2_000)
    mm_lens.load(str(path), check=False)
    edit(path / "config.json", text_config__num_hidden_layers=300)
    with pytest.raises(MMLensError, match="more than 2,000 modules") as raised:
        mm_lens.load(str(path))
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_index_names_files_beside_it_only(checkpoint, tmp_path_factory):
    path = checkpoint(lambda w: None)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "model.safetensors"
    (path / "model.safetensors").rename(elsewhere)
    names = load_file(elsewhere)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, f"../{elsewhere.parent.name}/x")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MMLensError, match="is not a file beside it"):
        mm_lens.load(str(path))


def test_a_pipe_is_not_waited_for(checkpoint):
    path = checkpoint(lambda w: None)
    for name in ("tokenizer.json", "model-00001-of-00002.safetensors"):
        (path / name).unlink(missing_ok=True)
        os.mkfifo(path / name)
        with pytest.raises(MMLensError, match=rf"{name} is not a file, but a pipe"):
            mm_lens.load(str(path))
        (path / name).unlink()


def test_a_template_that_loops_does_not_load(checkpoint, monkeypatch):
    monkeypatch.setattr(templates, "MAX_STEPS", 5_000)
    path = checkpoint(lambda w: None)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    (path / "chat_template.jinja").write_text(loop)
    with pytest.raises(InputError, match="takes more than 5,000 steps") as raised:
        mm_lens.load(str(path))
    assert str(path) in str(raised.value)


# ---- numbers ----


def test_weights_that_are_no_numbers_are_named(checkpoint):
    def spoil(weights):
        name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
        weights[name][3, 5] = float("nan")

    path = checkpoint(spoil)
    told = rf"{path.name}: .*no.* finite numbers.*layers\.1\.mlp\.up_proj\.weight among 1\."
    with pytest.raises(MMLensError, match=told):
        mm_lens.load(str(path))


def test_states_that_overflow_are_told_with_the_dtype(checkpoint):
    def enlarge(weights):
        for name, weight in weights.items():
            if "language_model" in name and "mlp" in name:
                weight *= 3000

    path = checkpoint(enlarge)
    with pytest.raises(MMLensError, match=r"overflow in float16\. Load it in another dtype"):
        mm_lens.load(str(path), dtype=torch.float16)


def test_tokens_that_the_model_has_no_row_for_are_refused(checkpoint):
    path = checkpoint(lambda w: None)
    found = json.loads((path / "tokenizer.json").read_text())
    found["model"]["vocab"]["Q"] = 5_000
    (path / "tokenizer.json").write_text(json.dumps(found))
    model = mm_lens.load(str(path))
    with pytest.raises(InputError, match=r"the token 'Q' with the id 5,000, but the model"):
        model.prepare("Q", random_image(9, 9))


def test_nothing_is_left_in_the_directory_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    native, processor = tiny_llava_next()
    processor.tokenizer.add_tokens(["<new>"])
    processor.tokenizer.name_or_path = ""
    model = mm_lens.load(hf_model=native, processor=processor)
    assert not [*tmp_path.iterdir()]
    with_bos = model.to_tokens("What?", prepend_bos=True)
    without = model.to_tokens("What?", prepend_bos=False)
    assert torch.equal(with_bos[:, 1:], without)
