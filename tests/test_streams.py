"""The main stream against a plain loop over the native model's layers."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, load_tiny
from tiny import random_image
from transformers.masking_utils import create_causal_mask

import mm_lens
from mm_lens.streams import main_stream_hooks


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


def plain_main_stream(native, inputs, positions):
    """x_{l+1} = MLP(norm2(Attn(norm1(x_l)))) with the model's own masks, and nothing of ours."""
    language = native.model.language_model
    x = native(**inputs, position_ids=positions, output_hidden_states=True).hidden_states[0]
    mask = create_causal_mask(
        config=language.config,
        inputs_embeds=x,
        attention_mask=inputs["attention_mask"],
        past_key_values=None,
        position_ids=positions,
    )
    rotary = language.rotary_emb(x, positions)
    states = [x]
    for layer in language.layers:
        attended, _ = layer.self_attn(
            layer.input_layernorm(x), position_embeddings=rotary, attention_mask=mask
        )
        x = layer.mlp(layer.post_attention_layernorm(attended))
        states.append(x)
    return states


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@torch.no_grad()
def test_main_stream_equals_plain_loop(family, attention, padding_side):
    native, _ = FAMILIES[family]()
    native.set_attn_implementation(attention)
    model = load_tiny(family, attention=attention, check=False)
    inputs = model.prepare(
        ["What is it?", "Longer than the other one, with no picture?"],
        [random_image(31, 57), None],
        padding_side=padding_side,
    )
    positions = (inputs.attention_mask.cumsum(-1) - 1).clamp(min=0)
    want = plain_main_stream(native, inputs, positions)
    names = mm_lens.names(["resid_pre", "resid_post"])
    with model.hooks(fwd_hooks=main_stream_hooks(model)):
        _, cache = model.run_with_cache(inputs, names_filter=names)
    valid = inputs.attention_mask.bool()
    assert torch.equal(cache["resid_pre", 0][valid], want[0][valid])
    for layer in range(model.cfg.n_layers):
        assert torch.equal(cache["resid_post", layer][valid], want[layer + 1][valid])
    _, residual = model.run_with_cache(inputs, names_filter=names)
    assert not torch.equal(residual["resid_post", 0][valid], want[1][valid])
