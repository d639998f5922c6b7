"""Token boxes, scales and relief of what is drawn on a picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import random_image

from mm_lens import InputError
from mm_lens.drawing.on_image import (
    find_token_boxes,
    panel_names,
    relief,
    scale_of,
    values_table,
)


@pytest.mark.every_family
def test_every_token_of_an_image_has_one_box(model):
    layout = model.prepare("These?", [random_image(31, 57), random_image(40, 22)]).layout
    for index in (0, 1):
        parts = find_token_boxes(layout, 0, index)
        positions = np.concatenate([part.positions for part in parts])
        here = (layout.image[0] == index) & layout.mask("visual")[0]
        assert len(set(positions)) == len(positions)
        assert set(positions) <= set(here.nonzero()[:, 0].tolist())
        seen = here & ~layout.box[0].isnan().any(-1)
        assert set(seen.nonzero()[:, 0].tolist()) <= set(positions)
        for part in parts:
            for position, box in zip(part.positions, part.boxes, strict=True):
                if not layout.newline[0, position]:
                    assert box.tolist() == layout.box[0, position].tolist()
    with pytest.raises(InputError, match="no image 2"):
        find_token_boxes(layout, 0, 2)


def test_values_stand_at_the_tokens_of_the_image_alone(model):
    images = [random_image(31, 57), random_image(40, 22)]
    layout = model.prepare("These?", images).layout
    values = torch.arange(2.0 * layout.shape[1]).reshape(2, -1)
    table = values_table(images[1], layout, values, 0, 1, layers=[1])
    for position in range(layout.shape[1]):
        if np.isfinite(table[0, position]):
            assert table[0, position] == values[1, position]
            assert layout.image[0, position] == 1
    assert np.isfinite(table).any()
    with pytest.raises(InputError, match="Pass the picture that was prepared"):
        values_table(images[0], layout, values, 0, 1)


@pytest.mark.parametrize(
    ("values", "limits", "low", "high", "extend"),
    [
        ([1.0, 3.0], None, 1, 3, "neither"),
        ([-1.0, 3.0], None, -3, 3, "neither"),
        ([2.0, 2.0], None, 1.5, 2.5, "neither"),
        ([0.0, 9.0], (1.0, 5.0), 1, 5, "both"),
        ([2.0, 9.0], (1.0, 5.0), 1, 5, "max"),
        ([np.nan, 0.0, 2.0], (1.0, 5.0), 1, 5, "min"),
    ],
)
def test_colours_span_the_values_and_say_what_is_beyond(values, limits, low, high, extend):
    scale = scale_of(np.array([values]), limits)
    assert (scale.low, scale.high, scale.extend) == (low, high, extend)


def test_limits_without_a_range_are_refused():
    with pytest.raises(InputError, match="leave no range"):
        scale_of(np.array([[1.0]]), (2.0, 2.0))


def test_layers_keep_their_numbers_or_get_a_name_each():
    table = np.zeros((2, 3))
    assert panel_names(table, None, []) == ["layer 0", "layer 1"]
    assert panel_names(table, [4, 7], []) == ["layer 4", "layer 7"]
    with pytest.raises(InputError, match="1 names for 2 layers"):
        panel_names(table, None, ["one"])


def test_only_edges_hide_the_colours_below():
    assert not np.asarray(relief(Image.new("RGB", (40, 30), (200, 30, 90))))[..., 3].any()
    half = np.zeros((60, 60), np.uint8)
    half[:, 30:] = 255
    found = np.asarray(relief(Image.fromarray(half)))
    assert found[:, [0, -1], 3].max() <= 2  # far from the edge
    assert found[:, 29:31, 3].min() > 50
    assert found[0, 29, 0] == 0  # the dark side in black, the bright side in white
    assert found[0, 30, 0] == 255
