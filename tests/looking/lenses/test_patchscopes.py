"""Patchscopes: which states are put where. Numbers: tests/outside."""

from __future__ import annotations

import pytest
from tiny import random_image

from mm_lens import InputError
from mm_lens.looking import patchscope


def test_each_token_is_put_in_alone_whatever_the_batch(model):
    inputs = model.prepare(["Eh?", "No!"], [random_image(12, 12, 1), random_image(12, 12, 2)])
    options = {"layer": 1, "target": "a?b?c", "new_tokens": 2}
    found = patchscope(model, inputs, "base", batch_size=7, **options)
    alone = patchscope(model, inputs, "base", batch_size=1, **options)
    assert found.equals(alone)
    assert found["position"].tolist() == [
        p for row in range(2) for p in inputs.layout.mask("base")[row].nonzero()[:, 0].tolist()
    ]
    assert {len(x) for x in found["token_ids"]} == {2}
    with pytest.raises(InputError, match="No prompt says"):
        patchscope(model, inputs, layer=1, target="abc")
    with pytest.raises(InputError, match="no position of"):
        patchscope(model, inputs, "tile 9", layer=1)
