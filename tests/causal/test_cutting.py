"""What is cut at a place of a growing text, by hand; against native models: test_rewriting.py."""

from __future__ import annotations

import torch
from conftest import load_tiny
from made_layouts import image, laid_out, token
from native_writing import edges_cut, native_greedy
from tiny import random_image, tiny_llava_next

from mm_lens.causal.cutting import Edges
from mm_lens.causal.knockout import knockout
from mm_lens.model.running.writing import Place


def drawn(edges):
    return ["".join("x" if key else "." for key in row) for row in edges]


def test_edges_of_a_step_by_hand():
    """Two beams of the second row at their second new position."""
    two = image(4, 8, token(0, 0, 0, 0, 0, 4, 4), token(0, 0, 1, 4, 0, 8, 4))
    one = image(4, 4, token(0, 0, 0, 0, 0, 4, 4))
    layout = laid_out([1, two, 2], [-1, one, 3])
    step = Place(torch.tensor([1, 1]), 6, 7)
    for query, key, want in (
        ("text", "visual", ".x....."),
        ("written", "text after", "..xxxxx"),
        ("visual", "text", "......."),
        ("last", "written", ".....xx"),
    ):
        cut = Edges(layout, query, key).at(step)
        assert cut.shape == (2, 1, 1, 7)
        assert drawn(cut[:, 0, 0]) == [want] * 2, query
    kept = Edges(layout, "all", "all", keep_self=True).at(step)
    assert drawn(kept[:1, 0, 0]) == [".xxxxx."]
    heads = torch.tensor([True, False, True])
    cut = Edges(layout, "last", "visual", heads=heads).at(step)
    assert cut[0, :, 0].any(-1).tolist() == [True, False, True]


def test_keys_that_a_sliding_window_still_has():
    """Its cache keeps the latest alone: what is hidden are those columns of the whole text."""
    options = {"language": {"sliding_window": 5}}
    native = tiny_llava_next(**options)[0]
    native.set_attn_implementation("eager")
    inputs = None
    for attention in ("sdpa", "eager"):
        model = load_tiny(attention=attention, check=False, **options)
        inputs = model.prepare("What is it, then?", random_image(20, 20))
        n = inputs.input_ids.shape[1]
        near = torch.zeros(1, n, dtype=torch.bool)
        near[:, n - 4 : n - 1] = True

        def under(total, near=near, n=n):
            edges = torch.zeros(1, total, total, dtype=torch.bool)
            edges[:, n - 1 :, n - 4 : n - 1] = True
            return edges_cut(native, edges, [0, 1, 2])

        tokens, logits = native_greedy(native, inputs, 4, under)
        _, plain = native_greedy(native, inputs, 4)
        with knockout(model, inputs, query="last", key=near):
            found = model.generate(
                inputs,
                max_new_tokens=4,
                do_sample=False,
                stop_at_eos=False,
                output_logits=True,
                verbose=False,
                suppress_tokens=[*range(90, 113)],
            )
        assert torch.equal(found.sequences[:, n:], tokens)
        assert (torch.stack(found.logits, 1) - logits).abs().max() < 1e-4 * logits.std()
        assert (logits - plain)[:, :2].abs().amax(-1).min() > 1e-2
