"""Norms, cosines and errors per token, against plain loops."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from native_attention import native, prepare
from tiny import random_image

from mm_lens import InputError, MMLensWarning
from mm_lens.looking.token_values import cosine_to_mean, find_words, linearity_error, norms

pytestmark = pytest.mark.every_family


def test_norms_and_cosines_equal_plain_loops(eager, family):
    inputs = prepare(eager, "left")
    _, states = native(family, inputs)
    layout = inputs.layout
    visual, text = layout.mask("visual"), layout.mask("text")
    found = (
        norms(eager, inputs),
        cosine_to_mean(eager, inputs),
        cosine_to_mean(eager, inputs, "visual", "text", layers=[1]),
    )
    for layer, state in enumerate(states):
        for row, position in layout.mask("all").nonzero().tolist():
            x = state[row, position].double()
            want = math.sqrt(sum(float(value) ** 2 for value in x))
            assert float(found[0][layer, row, position]) == pytest.approx(want, rel=1e-5)
            if not visual[row, position]:
                assert found[1][layer, row, position].isnan()
                continue
            means = [sum(state[m].double()) / int(m.sum()) for m in (visual, text)]
            cosines = [float(x @ mean / (x.norm() * mean.norm())) for mean in means]
            assert float(found[1][layer, row, position]) == pytest.approx(cosines[0], abs=1e-5)
            if layer == 1:
                assert float(found[2][0, row, position]) == pytest.approx(cosines[1], abs=1e-5)
    assert found[0][:, ~layout.mask("all")].isnan().all()


def test_linearity_error_finds_the_planted_token(model):
    """Block 1 is made a linear map; only one token is carried elsewhere."""
    inputs = model.prepare(["What is it?"] * 8, [[random_image(40, 60, seed)] for seed in range(8)])
    layout = inputs.layout
    d = model.cfg.d_model
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(d, d, generator=generator) / d**0.5
    row, position = 3, int(layout.positions("visual")[3, 4])
    held = {}

    def keep(state, hook):
        held["x"] = state

    def carry(state, hook):
        out = held["x"] @ matrix + 1
        out[row, position] += 10
        return out

    hooks = [("blocks.1.hook_resid_pre", keep), ("blocks.1.hook_resid_post", carry)]
    with model.hooks(fwd_hooks=hooks), warnings.catch_warnings():
        warnings.simplefilter("ignore", MMLensWarning)
        found = linearity_error(model, inputs, layers=[2])[0]
    visual = layout.mask("visual")
    assert found[~visual].isnan().all()
    assert int(found[visual].argmax()) == visual[:row].sum() + 4
    others = found[visual].clone()
    others[found[visual].argmax()] = 0
    assert found[row, position] > 20 * others.max()


def test_linearity_error_wants_pictures_enough(model):
    with pytest.raises(InputError, match="too few"):
        linearity_error(model, model.prepare("What is it?", random_image(31, 57)))


def test_state_zero_has_no_linearity_error(model):
    inputs = model.prepare(["What is it?"] * 3, [[random_image(31, 57, seed)] for seed in range(3)])
    with pytest.warns(MMLensWarning, match="tokens for each dimension"):
        found = linearity_error(model, inputs, layers=[0, 1])
    assert found[0].isnan().all()
    visual = inputs.layout.mask("visual")
    assert found[1][visual].isfinite().all()
    assert 0 < float(found[1][visual].mean()) < 1.5
    with pytest.warns(MMLensWarning, match="tokens for each dimension"):
        turned = linearity_error(model, inputs, layers=[1 - 4, 0])
    assert torch.equal(turned.flip(0).nan_to_num(-1), found.nan_to_num(-1))


def test_find_words_finds_words(model):
    inputs = model.prepare("is the red or the blue one red?", random_image(9, 9))
    tokens = model.tokenizer.convert_ids_to_tokens(inputs.input_ids[0].tolist())
    for text, count in (("red", 2), ("the blue", 1), ("the", 2)):
        found = find_words(model, inputs, text)[0]
        spelled = "".join(t for t, here in zip(tokens, found, strict=True) if here)
        assert "".join(c for c in spelled if c.isalpha()) == text.replace(" ", "") * count
    for absent in ("green", "", "x"):
        with pytest.raises(InputError, match="No prompt says"):
            find_words(model, inputs, absent)
