"""Patches of the vision tower are the tokens that they become."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILIES
from made_data import make_data, quick
from made_hooks import TOWER, native_batches, states_at, two_of

from mm_lens.profiling.collecting.token_sample import PATCH


@pytest.mark.parametrize("family", FAMILIES)
def test_patches_are_the_tokens_that_they_become(family):
    """A projected patch is, bit by bit, the embedding of its token; nothing else tells where."""
    model, native = two_of(family)
    data = make_data(6, text_only=(4,))
    states = states_at(model, data, [*TOWER, "states"])
    index = {point.hook: i for i, point in enumerate(states.points)}
    embedded = states.tokens.tokens("residual", index["blocks.0.hook_resid_pre"], "visual")
    projected = states.tokens.tokens("residual", index["vision_projector.hook_out"], PATCH)
    place = {int(key): i for i, key in enumerate(projected.key)}
    shared = [(i, place[int(key)]) for i, key in enumerate(embedded.key) if int(key) in place]
    ours, theirs = (torch.tensor(side) for side in zip(*shared, strict=True))
    assert torch.equal(embedded.x[ours], projected.x[theirs])
    assert torch.equal(embedded.position[ours], projected.position[theirs])
    assert torch.equal(embedded.sample[ours], projected.sample[theirs])
    newlines = sum(
        int(inputs.layout.mask("newline").sum())
        for _, inputs, _ in native_batches(model, native, data)
    )
    assert len(embedded) - len(shared) == newlines

    held = [held for *_, held in native_batches(model, native, data)]
    flat = {
        name: torch.cat(
            [h[name][:, -h["vision_projector.hook_out"].shape[1] :] for h in held if name in h]
        ).flatten(0, 1)
        for name in index
        if name.startswith("vision")
    }
    rows = {
        vector.numpy().tobytes(): i for i, vector in enumerate(flat["vision_projector.hook_out"])
    }
    order = torch.tensor([rows[vector.numpy().tobytes()] for vector in projected.x])
    assert len(projected) == len(rows) == len(flat["vision_projector.hook_out"])
    for name, vectors in flat.items():
        found = states.tokens.tokens("residual", index[name], PATCH)
        assert torch.equal(found.x, vectors[order]), name
    # State k is what layer k - 1 leaves; the model reads one before the last.
    layers = [point.layer for point in states.points if point.component.startswith("tower")]
    assert layers == [0, 1, 2, 3]


def test_patches_keep_their_keys_whatever_the_batch(model):
    data = make_data(6, text_only=(1,))
    one = states_at(model, data, TOWER)
    two = states_at(model, data[::-1], TOWER)
    for index in range(len(one.points)):
        a, b = (s.tokens.tokens("residual", index, PATCH) for s in (one, two))
        assert torch.equal(a.key, b.key)
        torch.testing.assert_close(a.x, b.x, rtol=1e-4, atol=1e-5)


def test_patches_to_tokens(model):
    """The embedding of a token is its projected patch: the same tokens, at hooks of two towers."""
    table = quick(
        model,
        make_data(12, text_only=()),
        hooks=["states"],
        tokens=10**4,
        pairs=[("projector_out", "blocks.0.hook_resid_pre")],
        streams=["residual"],
        metrics=["linearity_paper"],
    ).table
    visual = table[table.modality == "visual"]
    np.testing.assert_allclose(visual.value, 1, atol=1e-9)
    assert table[table.modality == "text"].value.isna().all()
