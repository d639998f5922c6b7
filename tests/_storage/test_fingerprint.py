"""A digest of the weights changes with every weight and with nothing else."""

from __future__ import annotations

import pytest
import torch

import mm_lens
from mm_lens._storage.fingerprint import weights_digest


def test_it_follows_the_weights_bit_for_bit(fresh):
    before = weights_digest(fresh)
    with fresh.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda x, hook: x)]):
        assert weights_digest(fresh) == before
    weights = [*fresh.original_model.parameters()]
    for weight in (weights[0], weights[-1]):
        kept = weight.detach().clone()
        with torch.no_grad():
            flat = weight.view(-1)
            flat[0] = torch.nextafter(flat[0], torch.tensor(9.0))
        assert weights_digest(fresh) != before
        with torch.no_grad():
            weight.copy_(kept)
        assert weights_digest(fresh) == before


def test_weights_that_change_places_are_others(fresh):
    first, second = (fresh.original_model.model.language_model.layers[i].mlp for i in (0, 1))
    before = weights_digest(fresh)
    with torch.no_grad():
        a, b = first.up_proj.weight.clone(), second.up_proj.weight.clone()
        first.up_proj.weight.copy_(b)
        second.up_proj.weight.copy_(a)
    assert weights_digest(fresh) != before


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_way_of_loading_does_not_matter(attention):
    one = mm_lens.load("demo/llava-next", check=False)
    two = mm_lens.load("demo/llava-next", attention=attention, check=False)
    assert weights_digest(one) == weights_digest(two)
