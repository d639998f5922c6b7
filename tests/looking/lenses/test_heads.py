"""A lens on each head. Numbers: tests/outside."""

from __future__ import annotations

import pytest
import torch
from tiny import random_image

from mm_lens import InputError, MMLensError
from mm_lens.looking import head_lens
from mm_lens.looking.lenses.heads import head_outputs

pytestmark = pytest.mark.every_family


def test_words_of_each_head(model):
    inputs = model.prepare(["Eh?", "No!"], [random_image(12, 12, 1), random_image(12, 12, 2)])
    table = head_lens(model, inputs, layers=[1], top_k=2)
    assert len(table) == model.cfg.n_heads * 2
    assert {len(x) for x in table["words"]} == {2}
    with pytest.raises(InputError, match="Row 0 has no position"):
        head_lens(model, inputs, "tile 9")
    z = torch.randn(1, model.cfg.n_heads, model.cfg.d_head).double()
    with pytest.raises(MMLensError, match="a lens on one head is not defined"):
        head_outputs(model, 1, z, torch.ones(1, model.cfg.d_model).double())
