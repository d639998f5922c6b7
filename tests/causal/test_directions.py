"""Directions against states of the native model, by numpy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from native_runs import native_states
from sklearn.decomposition import PCA
from tiny import random_image

from mm_lens import InputError
from mm_lens.causal.directions import difference_of_means, principal_directions

pytestmark = pytest.mark.every_family


def states(native, samples, group, layer):
    """What enters a block, of all tokens of a group."""
    rows = []
    for inputs in samples:
        found, _ = native_states(native, inputs, layer)
        mask = inputs.layout.mask(group)
        if group == "text":
            assert mask.any()
        rows.append(found[mask])
    return torch.cat(rows).double().numpy()


def test_difference_of_means_with_and_without_the_picture(model, native):
    with_it = [model.prepare("Eh?", random_image(20, 20, k)) for k in range(2)]
    without = [model.prepare("Eh?", None)]
    options = {"layers": [1, -1], "hook": "resid_pre"}
    found = difference_of_means(model, with_it, without, "text", **options)
    assert {*found} == {1, 2}
    for layer in found:
        one, other = (states(native, x, "text", layer) for x in (with_it, without))
        want = one.mean(0) - other.mean(0)
        assert np.abs(found[layer].numpy() - want).max() < 1e-5
    with pytest.raises(InputError, match="No sample has a position"):
        difference_of_means(model, with_it, without, "visual", **options)


def test_principal_directions_are_those_of_scikit_learn(model, native):
    samples = [model.prepare("Eh?", random_image(31, 57, k)) for k in range(2)]
    options = {"layers": [2], "hook": "resid_pre", "n": 3}
    found = principal_directions(model, samples, "visual", **options)[2]
    rows = states(native, samples, "visual", 2)
    want = PCA(3).fit(rows).components_
    cosine = np.abs((found.numpy() * want).sum(1))
    assert cosine.min() > 1 - 1e-5
    assert (found.abs().amax(1) == found.amax(1)).all()
    with pytest.raises(InputError, match="principal directions"):
        principal_directions(model, samples[:1], "last", **options)
