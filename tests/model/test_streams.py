"""The main stream against a plain loop over the native model's layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILIES, load_tiny
from native_runs import plain_main_stream
from tiny import random_image

import mm_lens
from mm_lens import InputError
from mm_lens.model.streams import main_stream_hooks, resolve_layers

pytestmark = pytest.mark.every_family


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


def test_layers_keep_their_order_and_count_from_the_end_too():
    assert resolve_layers(None, 3) == (0, 1, 2)
    assert resolve_layers(np.array([-1, 0]), 3) == (2, 0)
    assert resolve_layers(range(2, -1, -1), 3) == (2, 1, 0)
    for layers, complaint in (
        ([], "names no layer"),
        ([3], r"no layer 3: there are 3, 0 to 2 \(or -3 to -1"),
        ([-4], "no layer -4"),
        ([1, 1], "named twice"),
        ([2, -1], "named twice"),
        (3, "list of numbers of layers"),
        ("12", "list of numbers of layers"),
        ([0.5], "list of numbers of layers"),
    ):
        with pytest.raises(InputError, match=complaint):
            resolve_layers(layers, 3)
