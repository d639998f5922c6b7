"""Scores of heads against native attention, NumPy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from native_attention import native
from scipy.sparse.csgraph import connected_components
from scipy.stats import entropy
from sklearn.metrics import jaccard_score
from tiny import random_image

from mm_lens import InputError
from mm_lens.heads import head_scores, relative_attention
from mm_lens.layout import regions

pytestmark = pytest.mark.every_family


@pytest.fixture(scope="module")
def shown():
    return random_image(24, 12, 1)


def test_scores_are_those_of_native_attention(model, family, shown):
    inputs = model.prepare("Eh?", shown)
    box = regions.Box(0, 0, 6, 9)
    table = head_scores(model, inputs, box, layers=[1])
    attentions, _ = native(family, inputs)
    layout = inputs.layout
    visual, base = (layout.mask(x)[0].numpy() for x in ("visual", "base"))
    base = base if base.any() else visual
    inside = regions.group_mask(layout, box)[0].numpy()
    for row in table.to_dict("records"):
        weights = attentions[1][0, row["head"], -1].double().numpy()
        here = weights[visual] / weights[visual].sum()
        assert row["image"] == pytest.approx(weights[visual].sum(), rel=1e-4)
        assert row["entropy"] == pytest.approx(entropy(here) / np.log(len(here)), rel=1e-4)
        assert row["region"] == pytest.approx(here[inside[visual]].sum(), rel=1e-4)
        assert row["region_tokens"] == pytest.approx(inside.sum() / visual.sum())
        assert row["hit"] == inside[visual][here.argmax()]
        above = weights[base] > weights[base].mean()
        assert row["overlap"] == pytest.approx(jaccard_score(inside[base], above))
        at = torch.stack([layout.row[0], layout.col[0]], 1).numpy()[base][above].astype(int)
        near = np.abs(at[:, None] - at[None]).max(-1) <= 1
        sizes = np.bincount(connected_components(near)[1])
        assert row["spatial_entropy"] == pytest.approx(entropy(sizes), abs=1e-9)
    assert "region" not in head_scores(model, inputs, layers=[1])


def test_relative_to_a_neutral_prompt(model, family, shown):
    inputs, neutral = model.prepare("Eh?", shown), model.prepare("Say all.", shown)
    found = relative_attention(model, inputs, neutral, layers=[2])
    (asked, _), (plain, _) = native(family, inputs), native(family, neutral)
    want = (
        asked[2][0, :, -1, inputs.layout.mask("visual")[0]]
        / plain[2][0, :, -1, neutral.layout.mask("visual")[0]]
    )
    mask = inputs.layout.mask("visual")[0]
    torch.testing.assert_close(found[0, :, 0, mask], want, rtol=1e-3, atol=1e-5)
    same = relative_attention(model, inputs, inputs)
    assert torch.allclose(same[:, :, 0, mask], torch.ones(1))
    other = model.prepare("Eh?", random_image(12, 12))
    with pytest.raises(InputError, match="pictures of other sizes"):
        relative_attention(model, inputs, other)


def test_what_cannot_be_scored_is_refused(model, batch):
    with (
        model.text_only_allowed(),
        pytest.raises(InputError, match="Row 1 has no token of the image"),
    ):
        head_scores(model, batch)
