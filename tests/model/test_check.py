"""The check at load finds what is planted."""

from __future__ import annotations

import pytest
import torch
from conftest import load_tiny
from mm_lens_adapters.llava_next import LlavaNextFamily
from transformer_lens.model_bridge import TransformerBridge

import mm_lens
from mm_lens import MMLensError, MMLensWarning
from mm_lens.model import bridge, check


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_clean_model_gets_a_clean_report(attention, recwarn):
    model = load_tiny(attention=attention)
    assert isinstance(model, TransformerBridge)
    assert model.report.max_logit_difference == 0.0
    assert {f.level for f in model.report.findings} == {"note"}
    assert "rotary_emb.hook_out" in model.report.dead_hooks
    assert ("blocks.0.attn.hook_pattern" in model.report.dead_hooks) == (attention == "sdpa")
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
