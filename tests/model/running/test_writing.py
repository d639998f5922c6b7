"""Positions of a group in a text that grows, by hand, and where passes stand in it."""

from __future__ import annotations

import pytest
import torch
from conftest import load_tiny
from made_layouts import image, laid_out, token
from tiny import random_image

from mm_lens import InputError
from mm_lens.layout.groups import group_mask
from mm_lens.model.running.writing import Place, first_positions, reach


def drawn(mask):
    return ["".join("x" if here else "." for here in row) for row in mask]


def a_layout():
    """One word, two image tokens, two words; and padding, one image token, three words."""
    two = image(4, 8, token(0, 0, 0, 0, 0, 4, 4), token(0, 0, 1, 4, 0, 8, 4))
    one = image(4, 4, token(0, 0, 0, 0, 0, 4, 4))
    return laid_out([1, two, 2], [-1, one, 3])


@pytest.fixture(scope="module")
def own_layout():
    return load_tiny("omnifusion", check=False).prepare("Eh?", random_image(12, 12)).layout


def test_groups_in_what_is_written():
    layout = a_layout()
    mask = layout.mask("visual")
    for group, want in {
        "visual": [".xx....", ".x....."],
        "text": ["x..xxxx", "..xxxxx"],
        "all": ["xxxxxxx", ".xxxxxx"],
        "text before": ["x......", "......."],
        "text after": ["...xxxx", "..xxxxx"],
        "last": ["....xxx", "....xxx"],
        "written": [".....xx", ".....xx"],
        "pad": [".......", "x......"],
    }.items():
        assert drawn(reach(layout, group, 7)) == want, group
        assert drawn(reach(layout, group, 3)) == [row[:3] for row in want] or group == "last"
    assert drawn(reach(layout, mask, 7)) == [".xx....", ".x....."]
    for group in ("visual", "last", "text after"):
        assert torch.equal(reach(layout, group, 5), group_mask(layout, group))
    with pytest.raises(InputError, match="No group"):
        reach(layout, "nonsense", 7)


def test_a_pass_computes_some_rows_and_positions():
    layout = a_layout()
    place = Place(torch.tensor([0, 0, 1, 1]), 4, 6)
    assert drawn(place.of(reach(layout, "text after", 6))) == ["xx"] * 4
    assert drawn(place.of(reach(layout, "written", 6))) == [".x"] * 4
    assert drawn(Place(torch.tensor([1, 0]), 0, 5).of(layout.mask("visual"))) == [".x...", ".xx.."]


def test_first_positions():
    layout = a_layout()
    cut = first_positions(layout, 3)
    assert cut.shape == (2, 3)
    assert torch.equal(cut.mask("visual"), layout.mask("visual")[:, :3])
    assert cut.image_sizes == layout.image_sizes


def test_segments_that_a_family_names_itself(own_layout):
    """What is written is its answer."""
    grown = reach(own_layout, "answer", own_layout.shape[1] + 2)
    assert grown[:, -2:].all()
    assert not grown[:, : own_layout.shape[1]].any()
    assert reach(own_layout, "text", own_layout.shape[1] + 2)[:, -2:].all()
    assert not reach(own_layout, "question", own_layout.shape[1] + 2)[:, -2:].any()
