"""TransformerLens's Jacobian lens, fitted with images. Numbers: tests/outside."""

from __future__ import annotations

import pytest
import torch
from tiny import random_image
from transformer_lens.tools.analysis import JacobianLens

from mm_lens import InputError
from mm_lens.looking import fit_jacobian_lens, visual_logit_lens

pytestmark = pytest.mark.every_family


def test_it_is_transformer_lenss_own_and_reads_images(model, tmp_path):
    rows = [random_image(12, 12, 1), random_image(12, 12, 2)]
    both = model.prepare(["Eh?", "No!"], rows)
    lens = fit_jacobian_lens(model, both, corpus="noise")
    ones = [model.prepare(text, image) for text, image in zip(("Eh?", "No!"), rows, strict=True)]
    apart = fit_jacobian_lens(model, ones, corpus="noise")
    assert isinstance(lens, JacobianLens)
    assert (lens.n_prompts, lens.source_layers) == (2, [0, 1])
    for k in (0, 1):
        torch.testing.assert_close(lens.jacobians[k], apart.jacobians[k], rtol=1e-4, atol=1e-5)
    lens.save(str(tmp_path / "lens.pt"), dtype=torch.float32)
    lens = JacobianLens.load(str(tmp_path / "lens.pt"))
    read = visual_logit_lens(model, ones[0], "all", lens=lens, top_k=3, quantity="logits")
    assert read.layers == (1, 2, 3)
    with model.bound(ones[0]):
        want = lens.readout(model, ones[0].input_ids, top_k=3)
    for k, layer in enumerate((0, 1, 2)):
        torch.testing.assert_close(read.top[k, 0], want.lens_topk_values[layer])


def test_what_cannot_be_fitted_is_refused(model, batch):
    for options, told in (
        ({"layers": [0]}, "states 1 to 2, not 0"),
        ({"where": "visual"}, "Row 1 has no position of where"),
        ({"where": "text", "target": "visual"}, "Row 1 has no position of target"),
    ):
        with model.text_only_allowed(), pytest.raises(InputError, match=told):
            fit_jacobian_lens(model, batch, corpus="x", **options)
    with pytest.raises(InputError, match="no samples"):
        fit_jacobian_lens(model, [], corpus="x")
    inputs = model.prepare("Eh?", random_image(12, 12))
    lens = fit_jacobian_lens(model, inputs, layers=[1], corpus="x")
    with pytest.raises(InputError, match="has no state 2"):
        visual_logit_lens(model, inputs, layers=[2], lens=lens)
    lens.d_model = 7
    with pytest.raises(InputError, match="states of 7 numbers"):
        visual_logit_lens(model, inputs, layers=[1], lens=lens)
