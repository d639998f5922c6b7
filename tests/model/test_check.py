"""The check at load finds what is planted."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from conftest import load_tiny
from made_data import make_data, quick
from mm_lens_adapters.llava_next import LlavaNextFamily
from tiny import random_image, tiny_llava_next
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import AttentionBridge
from transformers import GraniteConfig

import mm_lens
from mm_lens import MMLensError, MMLensWarning
from mm_lens.causal.knockout import knockout, knockout_table
from mm_lens.model import bridge, check


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_clean_model_gets_a_clean_report(attention, recwarn):
    model = load_tiny(attention=attention)
    assert isinstance(model, TransformerBridge)
    assert model.report.max_logit_difference == 0.0
    assert {f.level for f in model.report.findings} == {"note"}
    assert "rotary_emb.hook_out" in model.report.dead_hooks
    assert ("blocks.0.attn.hook_rot_q" in model.report.dead_hooks) == (attention == "sdpa")
    assert "blocks.0.attn.hook_pattern" not in model.report.dead_hooks
    assert not [w for w in recwarn if issubclass(w.category, MMLensWarning)]
    assert not any(p.has_hooks() for p in model.hook_points())


def test_wrong_logits_are_an_error(monkeypatch):
    """A bridge that computes something else than the native model is refused."""
    install = bridge.VisionLanguageBridge.install

    def install_and_break(*args):
        model = install(*args)
        with torch.no_grad():
            model.blocks[1].mlp.out.weight.mul_(1.5)
        return model

    monkeypatch.setattr(bridge.VisionLanguageBridge, "install", install_and_break)
    with pytest.raises(MMLensError, match="differ from the native model's by"):
        load_tiny()


def test_hooks_that_do_not_fire_are_found(monkeypatch):
    """Were the family silent about its dead hooks, the check would find them, and they raise."""
    monkeypatch.setattr(LlavaNextFamily, "dead_hooks", lambda self, attention: {})
    with pytest.warns(MMLensWarning, match="hook points never fire"):
        model = load_tiny()
    assert "rotary_emb.hook_out" in model.report.dead_hooks
    with pytest.raises(mm_lens.HookError, match="never fires"):
        model.add_hook("vision_projector.hook_projected", lambda x, hook: x)


def test_edits_without_effect_are_found():
    model = load_tiny(check=False)
    model.add_hook("blocks.1.hook_mlp_out", lambda x, hook: x * 0, is_permanent=True)
    expected = check.run_native(model.original_model, model.family, model.processor)
    report = check.self_check(model, expected)
    found = [f.message for f in report.findings if f.level == "warning"]
    assert found == [
        f"An edit at blocks.1.{group}.hook_{hook} does not change the output."
        for hook in ("resid_mid", "mlp_out", "pre", "post")
        for group in ("visual", "text")
    ]


def errors(model):
    """What the check finds of a model that is as it is now: text by what it spoils."""
    expected = check.run_native(model.original_model, model.family, model.processor)
    report = check.self_check(model, expected)
    return report, {f.spoils: f.message for f in report.findings if f.level == "error"}


def test_blocks_that_scale_what_they_write_are_found():
    """Granite multiplies what attention and MLP write before it adds it."""
    language = {"residual_multiplier": 0.3, "attention_multiplier": 0.4}
    native, processor = tiny_llava_next(text="granite", language=language)
    assert isinstance(native.config.text_config, GraniteConfig)
    with pytest.warns(MMLensWarning, match=r"add up: resid_\w+ \+ \w+_out is not resid_\w+ at bl"):
        model = mm_lens.load(hf_model=native, processor=processor)
    assert {f.spoils for f in model.report.findings if f.level == "error"} == {"residual"}
    inputs = model.prepare("Eh", random_image(8, 12))
    _, cache = model.run_with_cache(inputs)
    with pytest.raises(MMLensError, match=r"cache\.decompose_resid: refused.*does not add up"):
        cache.decompose_resid()
    assert cache["resid_post", 1, "visual"].shape[1] == int(inputs.layout.counts("visual")[0])


def test_what_enters_between_blocks_is_found():
    """As in models whose tower feeds features into the first blocks."""
    model = load_tiny(check=False)
    layer = model.original_model.get_decoder().layers[1]
    layer.register_forward_pre_hook(lambda module, args: (args[0] + 0.1, *args[1:]))
    _, found = errors(model)
    assert "the last block's resid_post is not resid_pre at block 1" in found["residual"]


def test_a_rerun_that_is_another_computation_is_found(monkeypatch):
    """A model that makes its positions of tokens, which a rerun has not: it must be told them."""
    model = load_tiny(check=False)

    def place(module, args, kwargs):
        tokens = args[0] if args else kwargs.get("input_ids")
        if tokens is None:
            return None
        return args, {**kwargs, "position_ids": 3 * torch.arange(tokens.shape[1])[None] ** 2}

    model.original_model.register_forward_pre_hook(place, with_kwargs=True)
    assert "rerun" not in errors(model)[1]
    monkeypatch.setattr(check.Rerun, "_telling", lambda self, copies: nullcontext())
    monkeypatch.setattr(check.Rerun, "_positions", lambda self, copies: {})
    report, found = errors(model)
    assert "without an edit, has other logits than the whole pass" in found["rerun"]
    model.report = report
    inputs = model.prepare("Eh", random_image(8, 12))
    with pytest.raises(MMLensError, match=r"Running blocks again .*: refused"):
        knockout_table(
            model, [(inputs, lambda x: x[:, -1, 3])], [("visual", "last")], progress=False
        )


def test_a_row_that_its_batch_changes_is_found():
    """Were positions counted with the padding, a padded row would be another than the row alone."""
    model = load_tiny(check=False)
    decoder = model.original_model.get_decoder()

    def count_padding(module, args, kwargs):
        n = kwargs["inputs_embeds"].shape[1]
        return args, {**kwargs, "position_ids": (torch.arange(n) ** 2)[None]}

    decoder.register_forward_pre_hook(count_padding, with_kwargs=True)
    report, found = errors(model)
    assert "A row in a padded batch has other logits" in found["batch"]
    model.report = report

    with pytest.raises(MMLensError, match=r"profile with batch_size=16: refused"):
        quick(model, make_data())
    quick(model, make_data(), batch_size=1)


def test_patterns_that_are_only_reported_are_found():
    """Attention left to the native model reports its weights afterwards; edits of them raise."""
    model = load_tiny(attention="eager", check=False)
    for block in model.blocks:
        block.attn.__dict__["forward"] = partial(AttentionBridge.forward, block.attn)
    _, found = errors(model)
    assert "blocks.1.attn.hook_pattern does not change the output" in found["pattern"]
    inputs = model.prepare("Eh", random_image(8, 12))
    with pytest.raises(mm_lens.HookError, match="does not reach the output"):
        model.run_with_hooks(
            inputs, fwd_hooks=[("blocks.2.attn.hook_pattern", lambda x, hook: x.flip(-1))]
        )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_cache_that_attention_does_not_see_is_found(attention):
    """As when transformers hands it over under a name that TransformerLens does not know."""
    model = load_tiny(attention=attention, check=False)

    def rename(module, args, kwargs):
        return args, {
            "kept" if name == "past_key_values" else name: v for name, v in kwargs.items()
        }

    assert "cache" not in errors(model)[1]
    for block in model.blocks:
        block.attn.register_forward_pre_hook(rename, with_kwargs=True)
    report, found = errors(model)
    assert "With its KV cache the model computes other logits" in found["cache"]
    assert set(found) == {"cache"}
    model.report = report
    inputs = model.prepare("Eh", random_image(8, 12))
    for generate in (model.generate, model.generate_stream, model.hf_generate):
        with pytest.raises(MMLensError, match=r"Generation with a KV cache: refused"):
            generate(inputs, max_new_tokens=2)
    options = {"max_new_tokens": 3, "do_sample": False, "stop_at_eos": False, "verbose": False}
    got = model.generate(inputs, use_past_kv_cache=False, **options)
    want = load_tiny(attention=attention, check=False).generate(inputs, **options)
    assert torch.equal(got, want)


def test_text_that_sees_the_image_past_its_masks_is_found():
    """As where something else than attention carries the image to the text."""
    model = load_tiny(check=False)
    layer = model.original_model.get_decoder().layers[1]

    def leak(module, args, kwargs):
        return (args[0] + args[0].mean(1, keepdim=True), *args[1:]), kwargs

    layer.register_forward_pre_hook(leak, with_kwargs=True)
    model.report, found = errors(model)
    assert "still depends on it" in found["mask"]
    inputs = model.prepare("Eh", random_image(8, 12))
    with (
        pytest.raises(MMLensError, match="A knock-out: refused"),
        knockout(model, inputs, query="last", key="visual"),
    ):
        pass
    sample = (inputs, lambda x: x[:, -1, 3])
    with pytest.raises(MMLensError, match="A knock-out: refused"):
        knockout_table(model, [sample], [("visual", "last")], progress=False)


def test_attention_that_shows_no_mask_is_found():
    model = load_tiny(check=False)

    def compute(attention, hidden_states, **kwargs):
        return hidden_states @ torch.eye(hidden_states.shape[-1]), None

    for block in model.blocks:
        block.attn.__dict__["forward"] = partial(compute, block.attn)
    _, found = errors(model)
    assert "computed by code that shows no mask" in found["mask"]
