"""The bridge against the native model: difference 0.0 in float32 on valid rows."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, load_tiny
from tiny import random_image

from mm_lens import InputError

pytestmark = pytest.mark.every_family


PROMPTS = {
    "text only": ("Only words.", None),
    "one image": ("What is it?", random_image(31, 57)),
    "several images": ("Alike?", [random_image(8, 90), random_image(40, 22), random_image(12, 12)]),
    "ragged": (
        ["What is it?", "No picture here.", "Alike?"],
        [random_image(31, 57), None, [random_image(90, 8), random_image(40, 22)]],
    ),
}


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def pair(request, family):
    """The native model, untouched, and the bridge around a copy of it."""
    native, _ = FAMILIES[family]()
    native.set_attn_implementation(request.param)
    return native, load_tiny(family, attention=request.param, check=False)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("case", PROMPTS)
@torch.no_grad()
def test_logits_equal_native(pair, case, padding_side):
    native, model = pair
    text, images = PROMPTS[case]
    inputs = model.prepare(text, images, padding_side=padding_side)
    valid = inputs.attention_mask.bool()
    if case == "ragged":
        assert not valid.all()
        assert valid[:, 0 if padding_side == "right" else -1].all()
    # TransformerLens derives positions from the mask, bare transformers does not (left padding).
    positions = (inputs.attention_mask.cumsum(-1) - 1).clamp(min=0)
    want = native(**inputs, position_ids=positions).logits
    assert (model(inputs)[valid] - want[valid]).abs().max().item() == 0.0


@torch.no_grad()
def test_residual_stream_equals_native_hidden_states(pair):
    native, model = pair
    inputs = model.prepare(*PROMPTS["one image"])
    states = native(**inputs, output_hidden_states=True).hidden_states
    _, cache = model.run_with_cache(inputs, names_filter=lambda n: n.endswith("hook_resid_post"))
    for layer in range(model.cfg.n_layers - 1):  # HF's last state is after the final norm
        assert torch.equal(cache["resid_post", layer], states[layer + 1])


@torch.no_grad()
def test_generate_equals_native(pair):
    native, model = pair
    text, images = PROMPTS["ragged"]
    inputs = model.prepare(text, images, padding_side="left")
    n = 6
    want = native.generate(**inputs, max_new_tokens=n, do_sample=False, eos_token_id=None)
    options = {"max_new_tokens": n, "do_sample": False, "stop_at_eos": False, "verbose": False}
    got = model.generate(inputs, **options)
    assert torch.equal(got[:, -n:], want[:, -n:])
    assert torch.equal(model.generate(inputs, use_past_kv_cache=False, **options), got)
    streamed = torch.cat(list(model.generate_stream(inputs, max_tokens_per_yield=2, **options)), 1)
    assert torch.equal(streamed[:, -n:], want[:, -n:])
    hf = model.hf_generate(inputs, max_new_tokens=n, do_sample=False, stop_at_eos=False)
    assert torch.equal(hf[:, -n:], want[:, -n:])


def test_generating_from_right_padding_is_refused(pair):
    _, model = pair
    inputs = model.prepare(*PROMPTS["ragged"], padding_side="right")
    for generate in (model.generate, model.hf_generate, model.generate_stream):
        with pytest.raises(InputError, match="padding_side"):
            generate(inputs, max_new_tokens=2)


@pytest.mark.parametrize("text", ["mistral", "llama"])
def test_language_models(text):
    model = load_tiny(text=text)
    assert model.report.max_logit_difference == 0.0
    assert not model.report.findings or all(f.level == "note" for f in model.report.findings)
