"""Pictures of the layout: what is drawn is what the layout says."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import random_image

from mm_lens import InputError
from mm_lens.overlay import draw_layout


@pytest.mark.parametrize(("height", "width"), [(31, 57), (57, 31), (20, 200), (12, 12)])
def test_every_box_is_drawn_where_it_belongs(model, height, width):
    inputs = model.prepare("What is it?", random_image(height, width))
    figure = draw_layout(inputs)
    layout = inputs.layout
    for axis, group in zip(figure.axes, ("base", "tiles"), strict=True):
        (boxes,) = axis.collections
        drawn = [path.get_extents().get_points().ravel() for path in boxes.get_paths()]
        want = layout.box[layout.mask(group)]
        assert np.allclose(drawn, want[~want.isnan().any(-1)], atol=1e-4)
        assert f"{int(layout.counts(group)[0])} tokens" in axis.get_title()
        assert axis.get_xlim() == (0, width)
        assert axis.get_ylim() == (height, 0)
    newlines = int(layout.counts("newline")[0])
    assert f"{newlines} newlines" in figure.axes[1].get_title()
    assert len(figure.axes[1].lines) == newlines


def test_a_missing_image_raises(model, batch):
    draw_layout(batch, row=2, image=1)
    with pytest.raises(InputError, match=r"0 image\(s\)"):
        draw_layout(batch, row=1)
