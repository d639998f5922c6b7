"""Logits taken apart, by plain sums over the native model's weights and activations."""

from __future__ import annotations

import pytest
import torch
from conftest import load_tiny
from native_hooks import run as native_run

from mm_lens import InputError
from mm_lens.attribution.logits import logit_attribution
from mm_lens.causal.answers import Answers
from mm_lens.errors import MMLensError
from mm_lens.layout.groups import Box

pytestmark = pytest.mark.every_family


def made_answers(model, inputs, wrong="b"):
    right = ["a"] * len(inputs.input_ids)
    return Answers(
        model, inputs, ["a", "b", "c"], right, wrong and [wrong] * len(right), tokens=[3, 5, 7]
    )


@pytest.mark.usefixtures("no_float32_in_module")
@pytest.mark.parametrize("wrong", ["b", None])
def test_parts_and_sources_are_those_of_native_sums(case, wrong):
    inputs, native = case.inputs, case.native
    answers = made_answers(case.model, inputs, wrong)
    got = logit_attribution(case.model, inputs, answers)
    with torch.no_grad():
        _, out = case.run(inputs, output_attentions=True)
    logits = out.logits[:, -1]
    ids = answers.tokens.tolist()
    others = [ids[1]] if wrong else ids[1:]
    want = logits[:, ids[0]] - logits[:, others].mean(1)
    assert (got.total - want).abs().max() < 1e-5
    assert (got.components.sum(0) - want).abs().max() < 1e-4 * want.abs().max()

    held = native_run(native, inputs)
    language, unembed = native.model.language_model, native.lm_head.weight
    direction = unembed[ids[0]] - unembed[others].mean(0)
    last = held[f"blocks.{len(case.layers) - 1}.hook_resid_post"][:, -1]
    scale = (last.square().mean(-1, keepdim=True) + language.norm.variance_epsilon).rsqrt()
    through = direction * language.norm.weight * scale
    kv = native.config.get_text_config().num_key_value_heads
    n_heads = native.config.get_text_config().num_attention_heads
    for b, layer in enumerate(case.layers):
        written = (held[f"blocks.{b}.hook_attn_out"][:, -1] * through).sum(-1)
        place = got.names.index(f"attn {b}")
        assert (got.components[place] - written).abs().max() < 1e-5
        assert (got.heads[b].sum(0) - written).abs().max() < 1e-5
        values = held[f"blocks.{b}.attn.hook_v"]
        d = values.shape[-1] // kv
        for head in (0, n_heads - 1):
            group = head * kv // n_heads
            v = values[..., group * d : (group + 1) * d]
            output = layer.self_attn.o_proj.weight[:, head * d : (head + 1) * d]
            for row in range(2):
                weights = out.attentions[b][row, head, -1]
                each = (weights[:, None] * v[row]) @ output.T @ through[row]
                assert (got.tokens[b, head, row] - each).abs().max() < 1e-5


def test_regions_add_up_to_the_head(case):
    inputs = case.inputs
    got = logit_attribution(case.model, inputs, made_answers(case.model, inputs))
    table = got.by({"corner": Box(0, 0, 5, 5), "words": "text"})
    assert set(table["region"]) == {"corner", "words", "elsewhere"}
    sums = table.groupby(["layer", "head", "row"])["value"].sum()
    for (layer, head, row), value in sums.items():
        assert value == pytest.approx(float(got.heads[layer, head, row]), abs=1e-5)
    parts = got.table
    assert parts.groupby("row")["value"].sum()[0] == pytest.approx(float(got.total[0]), abs=1e-4)
    without = logit_attribution(case.model, inputs, made_answers(case.model, inputs), by_head=False)
    assert torch.equal(without.components, got.components)
    with pytest.raises(InputError, match="by_head=True"):
        without.by("modality")


def test_refusals(case, family):
    sdpa = load_tiny(family, check=False)
    inputs = sdpa.prepare("Eh?", case.one.images[0][0])
    got, want = (
        logit_attribution(model, of, made_answers(model, of)).by("modality")
        for model, of in ((sdpa, inputs), (case.model, case.one))
    )
    assert (got["value"] - want["value"]).abs().max() < 1e-5

    class Shifted(torch.nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm, self.weight = norm, norm.weight

        def forward(self, x):
            return self.norm(x) + 1

    norm = sdpa.ln_final._modules["_original_component"]
    sdpa.ln_final._modules["_original_component"] = Shifted(norm)
    with pytest.raises(MMLensError, match=r"norm does more than to scale|not those of norm"):
        logit_attribution(sdpa, inputs, made_answers(sdpa, inputs), by_head=False)
