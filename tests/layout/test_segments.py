"""Markers: what a processor writes in and around an image."""

from __future__ import annotations

import torch

from mm_lens.layout.layout import TokenLayout
from mm_lens.layout.tiles import Tile, lay, whole

IMAGE, BREAK, BEGIN = 50, 51, 52


def test_what_stands_in_an_image_is_a_marker_and_not_text_behind_it():
    size = (8, 8)
    images = [lay(size, [Tile(2, 2, whole(size))])] * 2
    row = [1, 7, BEGIN, IMAGE, IMAGE, BREAK, 9, IMAGE, IMAGE, 8, IMAGE, IMAGE, BREAK, IMAGE, IMAGE]
    tokens = torch.tensor([[*row, 5, BREAK]])
    layout = TokenLayout.build(
        tokens, image_token_id=IMAGE, special_ids=[1, BEGIN], marker_ids=[BEGIN, BREAK],
        images=images,
    )  # fmt: skip
    named = [layout.segment_names[i] for i in layout.segment[0].tolist()]
    first, second, both = ["image 0"] * 2, ["image 1"] * 2, ["marker"] * 2
    assert named == [
        "special", "text before", "marker", *first, *both, *first,
        "text between 0 and 1", *second, "marker", *second, "text after", "marker",
    ]  # fmt: skip
    assert layout.modality[0].tolist() == [int(token == IMAGE) for token in tokens[0].tolist()]


def test_without_markers_nothing_names_them():
    size = (8, 8)
    layout = TokenLayout.build(
        torch.tensor([[1, IMAGE, 2, 3]]),
        image_token_id=IMAGE,
        images=[lay(size, [Tile(1, 1, whole(size))])],
    )
    assert "marker" not in layout.segment_names
    assert not layout.mask("marker").any()
