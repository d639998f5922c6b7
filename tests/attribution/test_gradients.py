"""Gradients against captum on the native model."""

from __future__ import annotations

import pytest
import torch
from attribution_cases import metric
from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam, Saliency
from transformer_lens.utilities.statistics import derive_generator

from mm_lens import InputError, MMLensWarning
from mm_lens.attribution.gradients import (
    grad_cam,
    gradient_input,
    integrated_gradients,
    smooth_grad,
)

pytestmark = [
    pytest.mark.every_family,
    pytest.mark.filterwarnings("ignore:Setting forward, backward hooks"),
]


def near(got, want, mask):
    """In float64, but for norms and softmax, which the models round to float32."""
    want = want.detach()
    assert got.isnan().equal(~mask)
    assert (got[mask] - want[mask]).abs().max() < 1e-5 * want[mask].abs().max()


@pytest.mark.parametrize("layer", [0, 1])
def test_gradient_times_input_and_integrated(case, layer):
    inputs = case.one
    mask = inputs.layout.mask("visual")
    states, out = case.run(inputs, layer)
    forward, base = case.forward(inputs, layer), case.baseline(inputs, states)
    gradient = InputXGradient(forward).attribute(states) / states
    got = gradient_input(case.model, inputs, metric, layer=layer)
    near(got.values, (gradient * (states - base)).sum(-1), mask)
    assert torch.allclose(got.metric, metric(out.logits).float())
    zero = gradient_input(case.model, inputs, metric, layer=layer, baseline="zero")
    near(zero.values, (gradient * states).sum(-1), mask)

    whole = IntegratedGradients(forward).attribute(
        states, base, n_steps=8, method="gausslegendre", internal_batch_size=1
    )
    got = integrated_gradients(case.model, inputs, metric, layer=layer, steps=8)
    near(got.values, whole.sum(-1), mask)
    empty = forward(base).float().detach()
    assert torch.allclose(got.baseline, empty)
    assert (got.gap - (got.values.nansum(1) - (got.metric - empty))).abs().max() < 1e-6


def test_integrated_gradients_add_up(case):
    """Rows of a batch, each by itself; and where they do not, a warning says so."""
    found = integrated_gradients(case.model, case.inputs, metric, steps=24)
    assert found.gap.abs().max() < 1e-2 * (found.metric - found.baseline).abs().min()
    alone = integrated_gradients(case.model, case.one, metric, steps=24)
    mine = case.one.layout.mask("visual")[0]
    assert torch.allclose(
        found.values[0][case.inputs.layout.mask("visual")[0]], alone.values[0][mine], atol=1e-5
    )
    table = found.by("modality").set_index(["row", "region"])
    assert table.loc[(0, "visual"), "value"] == pytest.approx(float(found.values[0].nansum()))
    assert table.loc[(0, "visual"), "share"] == pytest.approx(1)
    with pytest.warns(MMLensWarning, match="do not add up in row"):
        integrated_gradients(case.model, case.one, metric, baseline="zero", steps=2)


def test_smooth_grad_is_the_mean_of_gradients_around(case):
    inputs, n = case.one, 3
    mask = inputs.layout.mask("visual")
    states, _ = case.run(inputs, 1)
    forward, base = case.forward(inputs, 1), case.baseline(inputs, states)
    generator, total = derive_generator(4, "smooth_grad"), torch.zeros_like(states)
    width = states[mask].float().std()
    for _ in range(n):
        drawn = torch.randn(states.shape, generator=generator).double()
        moved = torch.where(mask[..., None], states + 0.2 * width * drawn, states)
        total += Saliency(forward).attribute(moved, abs=False) / n
    got = smooth_grad(case.model, inputs, metric, layer=1, noise=0.2, n=n, seed=4)
    near(got.values, (total * (states - base)).sum(-1), mask)


class FromChannels(torch.nn.Module):
    """The image tokens that enter a block as [batch, channel, token], as Grad-CAM has them."""

    def __init__(self, case, inputs, layer):
        super().__init__()
        self.enter, self.case, self.inputs, self.layer = torch.nn.Identity(), case, inputs, layer

    def forward(self, channels):
        rows, mask = self.enter(channels).transpose(1, 2), self.inputs.layout.mask("visual")

        def put(own):
            out = own.clone()
            out[mask] = rows[0]
            return out

        return metric(self.case.run(self.inputs, self.layer, put)[1].logits)


def test_grad_cam(case):
    inputs = case.one
    mask = inputs.layout.mask("visual")
    states, _ = case.run(inputs, 2)
    channels = states[mask].T[None]
    net = FromChannels(case, inputs, 2)
    want = LayerGradCam(net, net.enter).attribute(channels, relu_attributions=True)
    got = grad_cam(case.model, inputs, metric, layer=-1)
    assert got.values.isnan().equal(~mask)
    assert want.max() > 0
    assert (got.values[mask] - want[0, 0]).abs().max() < 1e-5 * want.max()


def test_weights_are_left_as_they_were(case):
    before = [p.requires_grad for p in case.model.original_model.parameters()]
    with torch.no_grad():  # the user's own
        gradient_input(case.model, case.one, metric)
    assert [p.requires_grad for p in case.model.original_model.parameters()] == before
    assert all(p.grad is None for p in case.model.original_model.parameters())


def test_refusals(case):
    for options, complaint in (
        ({"metric": lambda x: metric(x).detach()}, "has no gradient"),
        ({"metric": lambda x: metric(x).mean()}, "one value for each"),
        ({"where": "image 3"}, "no position of 'image 3'"),
        ({"layer": 9}, "no layer 9"),
        ({"baseline": torch.zeros(5)}, "does not fit"),
    ):
        given = {"metric": metric, **options}
        with pytest.raises(InputError, match=complaint):
            gradient_input(case.model, case.one, **given)
