"""Attribution to pixels against captum, Grad-CAM on the tower against autograd, both native."""

from __future__ import annotations

import pytest
import torch
from attribution_cases import metric
from captum.attr import IntegratedGradients

from mm_lens import HookError, InputError, MMLensWarning
from mm_lens.attribution import pixel_attribution, tower_grad_cam

pytestmark = [
    pytest.mark.every_family,
    pytest.mark.filterwarnings("ignore:Setting forward, backward hooks"),
]


def forward(case, inputs):
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)

    def run(pixels):
        given = {**inputs.native, "pixel_values": pixels}
        return metric(case.native(**given, position_ids=positions).logits)

    return run


def test_the_integral_is_captums(case):
    pixels = case.one["pixel_values"].double()
    base = pixels.mean().expand_as(pixels)
    want = IntegratedGradients(lambda x: forward(case, case.one)(x).sum()[None]).attribute(
        pixels,
        base,
        n_steps=6,
        method="gausslegendre",
        internal_batch_size=len(pixels),
    )
    with pytest.warns(MMLensWarning, match="pixels do not add up"):
        got = pixel_attribution(case.model, case.one, metric, "integrated", steps=6)
    torch.testing.assert_close(got.pixels["pixel_values"].double(), want, atol=1e-5, rtol=1e-3)
    assert got.gap == pytest.approx(float(want.sum()) - (got.metric - got.baseline), abs=1e-3)
    plain = pixel_attribution(case.model, case.one, metric)
    smooth = pixel_attribution(case.model, case.one, metric, "smooth", steps=2, noise=0.0)
    assert torch.allclose(plain.pixels["pixel_values"], smooth.pixels["pixel_values"], atol=1e-6)
    assert plain.gap is None


def test_the_towers_map_is_captums(case):
    tower = case.native.model.vision_tower
    layer = getattr(tower, "vision_model", tower).encoder.layers[-2]
    pixels = case.one["pixel_values"].double()

    held = []
    handle = layer.register_forward_hook(
        lambda m, a, out: held.append(out[0] if isinstance(out, tuple) else out)
    )
    value = forward(case, case.one)(pixels.clone().requires_grad_(True)).sum()
    (gradient,) = torch.autograd.grad(value, held[0])
    handle.remove()
    states, gradient = held[0].detach()[:, 1:], gradient[:, 1:]
    want = (gradient.mean(1, keepdim=True) * states).sum(-1).relu()
    got, at_tokens = tower_grad_cam(case.model, case.one, metric)
    torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=1e-4)
    layout = case.one.layout
    placed = layout.mask("visual") & ~layout.newline
    first = placed[0].nonzero()[0, 0]
    assert at_tokens.values[0, first] == got[0, 0]
    assert at_tokens.values[placed].isfinite().all()
    assert at_tokens.values[~placed].isnan().all()


def test_what_has_no_pixels_or_layer_is_refused(case):
    text = case.model.prepare("Eh?", None)
    with case.model.text_only_allowed(), pytest.raises(InputError, match="hold no pixels"):
        pixel_attribution(case.model, text, metric)
    with pytest.raises(HookError, match="has no layer 99"):
        tower_grad_cam(case.model, case.one, metric, layer=99)
