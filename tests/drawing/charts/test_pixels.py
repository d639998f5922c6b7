"""A grid of values lies over the whole picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import random_image

from mm_lens import InputError
from mm_lens.drawing import draw_pixels


def test_a_grid_is_as_large_as_its_picture():
    values = torch.tensor([[0.0, -2.0], [1.0, 4.0], [0.0, 0.0]])
    shown, beside, bar = draw_pixels(random_image(30, 50), values, label="logits").axes
    assert np.asarray(shown.images[0].get_array()).shape == (30, 50, 3)
    np.testing.assert_array_equal(beside.images[0].get_array(), values)
    assert beside.images[0].get_extent() == [0, 50, 30, 0]
    assert beside.images[0].get_clim() == (-4, 4)
    assert bar.get_ylabel() == "logits"
    with pytest.raises(InputError, match="no grid"):
        draw_pixels(random_image(30, 50), torch.zeros(3, 2, 2))
