"""Positions of boxes and masks against a loop over tokens and pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import random_image

from mm_lens import InputError
from mm_lens.layout import LAST, Box, group_mask, last_position
from mm_lens.layout.groups import which_image

pytestmark = pytest.mark.every_family

HEIGHT, WIDTH = 31, 57


@pytest.fixture(scope="module")
def layout(model):
    return model.prepare("What is it?", random_image(HEIGHT, WIDTH)).layout


def token_boxes(layout):
    """(position, box) of each token that stands for pixels."""
    boxes = layout.box[0].tolist()
    return [(p, box) for p, box in enumerate(boxes) if layout.image[0, p] == 0 and box == box]


@pytest.mark.parametrize("rect", [(0, 0, 57, 31), (10, 5, 20, 15), (30.5, 7.25, 30.75, 7.5)])
@pytest.mark.parametrize("touch", ["any", "centre"])
def test_a_box_has_the_tokens_that_a_loop_finds(layout, rect, touch):
    x0, y0, x1, y1 = rect
    expected = set()
    for position, (left, top, right, bottom) in token_boxes(layout):
        x, y = (left + right) / 2, (top + bottom) / 2
        shares = left < x1 and x0 < right and top < y1 and y0 < bottom
        if shares if touch == "any" else x0 <= x < x1 and y0 <= y < y1:
            expected.add(position)
    found = group_mask(layout, Box(*rect, touch=touch))[0].nonzero()[:, 0].tolist()
    assert set(found) == expected
    assert expected or touch == "centre"


@pytest.mark.parametrize("seed", range(4))
def test_a_mask_of_pixels_has_the_tokens_that_a_loop_finds(layout, seed):
    mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.004
    mask[seed, 2 * seed] = True
    expected = {
        position
        for position, (left, top, right, bottom) in token_boxes(layout)
        for y, x in np.argwhere(mask)
        if left < x + 1 and x < right and top < y + 1 and y < bottom
    }
    found = group_mask(layout, mask)[0].nonzero()[:, 0].tolist()
    assert set(found) == expected
    assert expected


def test_the_last_attended_position_whatever_the_padding(model):
    for side in ("left", "right"):
        inputs = model.prepare(["What is it?", "Why?"], padding_side=side)
        expected = torch.zeros_like(inputs.attention_mask).bool()
        for row, mask in enumerate(inputs.attention_mask.tolist()):
            expected[row, max(p for p, attended in enumerate(mask) if attended)] = True
        assert torch.equal(last_position(inputs.layout), expected)
        assert torch.equal(group_mask(inputs.layout, LAST), expected)


def test_a_mask_of_positions_is_taken_as_it_is(layout):
    mask = torch.rand(layout.shape) < 0.5
    assert torch.equal(group_mask(layout, mask), mask)


def test_what_is_no_group_is_refused(model, layout):
    with pytest.raises(InputError, match=r"fits neither the batch .* nor an image"):
        group_mask(layout, torch.ones(3, 4))
    for rect, message in (((5, 5, 5, 9), "is empty"), ((57, 0, 60, 9), "lies outside image 0")):
        with pytest.raises(InputError, match=message):
            group_mask(layout, Box(*rect))
    two = model.prepare("These?", [random_image(9, 9), random_image(20, 30)]).layout
    with pytest.raises(InputError, match=r"Row 0 has 2 images\. Say which"):
        which_image(two, None)
    with pytest.raises(InputError, match="there is no image 2"):
        which_image(two, 2)
    assert which_image(two, 1) == 1
