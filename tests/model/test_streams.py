"""The main stream against a plain loop over the native model's layers."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, load_tiny
from native_runs import plain_main_stream
from tiny import random_image

import mm_lens
from mm_lens.model.streams import main_stream_hooks


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


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
