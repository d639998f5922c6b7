"""Pictures of the layout: what is drawn is what the layout says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from painted import ASPECTS, colour_at, data_of, pixels_of, shades
from tiny import random_image

from mm_lens import InputError
from mm_lens.drawing import draw_layout, draw_values, explore

"""(height, width) of pictures."""


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


@pytest.mark.parametrize(("height", "width"), [(31, 57), (20, 200), (3, 2000), (12, 12)])
def test_a_legend_says_what_colours_and_strokes_are(model, height, width):
    inputs = model.prepare("What is it?", random_image(height, width))
    figure = draw_layout(inputs)
    layout = inputs.layout
    (legend,) = figure.legends
    told = {
        text.get_text(): handle
        for text, handle in zip(legend.texts, legend.legend_handles, strict=True)
    }
    numbers = sorted({*layout.tile[0].tolist()} - {0, -1})
    assert [name for name in told if name.startswith("tile ")] == [f"tile {k}" for k in numbers]
    assert any(name.startswith("overview") for name in told)
    assert any("newline" in name for name in told) == bool(layout.counts("newline")[0])
    for number in numbers:
        cells = figure.axes[1].collections[0]
        tiled = layout.tile[0, layout.mask("tiles")[0] & ~layout.box[0].isnan().any(-1)]
        drawn = cells.get_edgecolors()[int((tiled == number).nonzero()[0])]
        assert told[f"tile {number}"].get_edgecolor() == pytest.approx(tuple(drawn))
    # It covers nothing that is drawn, and nothing is cut.
    figure.canvas.draw()
    inside = figure.get_window_extent()
    box = legend.get_window_extent()
    highest = legend.get_title().get_window_extent().y1
    for axis in figure.axes:
        area = axis.get_tightbbox()
        assert area.y0 >= highest
        assert area.y1 <= inside.y1 + 1
    assert box.x0 >= inside.x0
    assert box.x1 <= inside.x1
    assert box.y0 >= inside.y0


def test_a_missing_image_raises(model, batch):
    draw_layout(batch, row=2, image=1)
    with pytest.raises(InputError, match=r"0 image\(s\)"):
        draw_layout(batch, row=1)


def brightest(figure, axis):
    """Centre of the yellowest pixel of a drawn figure, in coordinates of `axis`; no colour bar."""
    figure.set_dpi(60)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    red, green, blue, _ = np.asarray(canvas.buffer_rgba()).astype(float).transpose(2, 0, 1)
    yellow = red + green - 2 * blue
    bar = figure.axes[-1].get_window_extent()
    yellow[:, int(bar.x0) - 1 :] = -np.inf
    top, left = np.unravel_index(yellow.argmax(), yellow.shape)
    assert yellow[top, left] > 100
    return axis.transData.inverted().transform((left + 0.5, len(yellow) - top - 0.5))


@pytest.mark.every_family
@pytest.mark.parametrize(("height", "width"), ASPECTS)
def test_a_painted_patch_is_brightest_where_it_belongs(each, height, width):
    image = random_image(height, width).convert("L").convert("RGB")  # yellow is no part of it
    layout = each.prepare("What is it?", image).layout
    # The token below a pixel off the centre, in each part; and a newline.
    x, y = int(0.47 * width), int(0.52 * height)
    painted = layout.tokens_at(0, x, y).tolist()
    newlines = layout.mask("newline")[0].nonzero().squeeze(1).tolist()
    assert 1 <= len(painted) <= 2
    for panel, position in enumerate(painted):
        values = torch.zeros(layout.shape[1])
        values[position] = 1
        figure = draw_values(image, layout, values)
        axis = figure.axes[1 + panel]  # after the picture itself
        found = brightest(figure, axis)
        x0, y0, x1, y1 = layout.box[0, position].tolist()
        assert x0 <= x + 0.5 <= x1
        assert y0 <= y + 0.5 <= y1
        assert x0 <= found[0] <= x1
        assert y0 <= found[1] <= y1
    for position in newlines[-1:]:
        values = torch.zeros(layout.shape[1])
        values[position] = 1
        figure = draw_values(image, layout, values)
        found = brightest(figure, figure.axes[2])
        beside = layout.grid_row[0] == layout.grid_row[0, position]
        boxes = layout.box[0, beside & layout.mask("tiles")[0] & ~layout.mask("newline")[0]]
        assert width < found[0] < 1.1 * width
        assert boxes[:, 1].min() <= found[1] <= boxes[:, 3].max()


@pytest.mark.every_family
def test_layers_share_their_colours_and_tokens_may_be_the_visual_ones(each):
    image = random_image(31, 57)
    layout = each.prepare("What is it?", image).layout
    visual = layout.mask("visual")[0]
    values = torch.rand(3, layout.shape[1])
    whole = draw_values(image, layout, values, names=["a", "b", "c"], label="norm [1]")
    alone = draw_values(image, layout, values[:, visual])
    assert whole.axes[-1].get_ylabel() == "norm [1]"
    assert [axis.get_title() for axis in whole.axes[:3]] == ["a", "b", "c"]
    for a, b in zip(whole.axes[:-1], alone.axes[:-1], strict=True):
        for one, two in zip(a.collections, b.collections, strict=True):
            if one.get_array() is not None:
                assert np.array_equal(one.get_array(), two.get_array())
                assert one.norm.vmin == pytest.approx(float(values[:, visual].min()))
    drawn = [c.get_array() for axis in whole.axes[:-1] for c in axis.collections[:1]]
    assert sum(map(len, drawn)) == 3 * int(visual.sum())


@pytest.mark.every_family
def test_chosen_layers_keep_their_numbers(each):
    image = random_image(31, 57)
    layout = each.prepare("What is it?", image).layout
    values = torch.rand(9, layout.shape[1])
    chosen = draw_values(image, layout, values, layers=[0, 4, 8])
    assert [axis.get_title() for axis in chosen.axes[:3]] == ["layer 0", "layer 4", "layer 8"]
    last = chosen.axes[2].collections[0].get_array()
    assert np.allclose(last, values[8, layout.positions("base")[0]])
    titles = [axis.get_ylabel() for axis in draw_values(image, layout, values, layers=[5]).axes]
    assert any("layer 5" in title for title in titles)
    for layers in ([9], [-1], []):
        for draw in (draw_values, explore):
            with pytest.raises(InputError, match="layers 0 to 8"):
                draw(image, layout, values, layers=layers)
    words = [[[f"{layer}.{p}"] for p in range(layout.shape[1])] for layer in range(9)]
    data = data_of(explore(image, layout, values, layers=[0, 4, 8], words=words).html)
    assert data["layers"] == ["layer 0", "layer 4", "layer 8"]
    for k, layer in enumerate((0, 4, 8)):
        base = layout.positions("base")[0]
        drawn = data["parts"][0]
        assert drawn["values"][k] == pytest.approx(values[layer, base].tolist(), rel=1e-3)
        told = [data["words"][i] for (i,) in drawn["words"][k]]
        assert told == [f"{layer}.{p}" for p in base.tolist()]


@pytest.mark.parametrize("kind", ["white", "black", "halves"])
@pytest.mark.parametrize("value", [0.02, 0.25, 0.98])
def test_colours_are_those_of_the_bar_whatever_is_below(model, kind, value):
    image = shades(kind)
    layout = model.prepare("What is it?", image).layout
    values = torch.full((layout.shape[1],), value)
    figure = draw_values(image, layout, values, limits=(0.0, 1.0))
    pixels = pixels_of(figure)
    bar = figure.axes[-1]
    want = colour_at(figure, pixels, bar, 0.5, value)
    assert np.abs(want - colormaps["cividis"](value)[:3]).max() < 0.02
    for axis in figure.axes[1:-1]:
        for x in (2, 20, 44, 62):  # away from the edge in the middle
            assert np.abs(colour_at(figure, pixels, axis, x, 30) - want).max() < 0.02
        if kind == "halves":  # and its two sides are told apart
            dark, light = (colour_at(figure, pixels, axis, x, 30).sum() for x in (31.2, 32.8))
            assert light - dark > 0.2


@pytest.mark.parametrize(("height", "width", "layers"), [(64, 64, 3), (200, 20, 3), (20, 200, 1)])
def test_newlines_cover_no_label(model, height, width, layers):
    image = random_image(height, width)
    layout = model.prepare("What is it?", image).layout
    figure = draw_values(image, layout, torch.rand(layers, layout.shape[1]))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    bar = figure.axes[-1].get_tightbbox()
    written = [bar]
    for axis in figure.axes[:-1]:
        for label in (*axis.get_xticklabels(), *axis.get_yticklabels()):
            if label.get_visible() and label.get_text():
                written.append(label.get_window_extent())
    strips = 0
    for axis in figure.axes[:-1]:
        for cells in axis.collections:
            for path in cells.get_paths():
                box = path.get_extents(axis.transData)
                if path.vertices[:, 0].min() > width:
                    strips += 1
                    assert not any(box.overlaps(other) for other in written)
    assert strips == layers * int(layout.counts("newline")[0])
    assert bar.x1 <= figure.bbox.x1


@pytest.mark.every_family
def test_signs_limits_and_missing_values(each):
    image = random_image(31, 57)
    layout = each.prepare("What is it?", image).layout
    values = torch.linspace(-1, 3, int(layout.counts("visual")[0]))
    values = torch.zeros(layout.shape[1]).masked_scatter(layout.mask("visual")[0], values)
    values[layout.positions("base")[0, :4]] = torch.nan
    figure = draw_values(image, layout, values)
    solid, empty = figure.axes[1].collections
    assert solid.cmap.name == "RdBu_r"
    assert solid.norm.vmin == -solid.norm.vmax
    assert len(empty.get_paths()) == 4
    assert len(solid.get_array()) == int(layout.counts("base")[0]) - 4
    assert figure.axes[1].patches[0].get_hatch()
    cut = draw_values(image, layout, values.abs(), limits=(0.0, 1.0))
    assert cut.axes[1].collections[0].norm.vmax == 1
    assert draw_values(image, layout, torch.ones(layout.shape[1])).axes  # all the same


@pytest.mark.every_family
def test_what_does_not_fit_is_refused(each):
    image = random_image(31, 57)
    inputs = each.prepare(["What is it?", "No picture."], [image, None])
    layout = inputs.layout
    values = torch.rand(layout.shape[1])
    with pytest.raises(InputError, match="57×31"):
        draw_values(random_image(57, 31), layout, values)
    with pytest.raises(InputError, match=r"0 image\(s\)"):
        draw_values(image, layout, values, row=1)
    with pytest.raises(InputError, match="do not fit"):
        draw_values(image, layout, values[:-1])
    with pytest.raises(InputError, match="finite"):
        draw_values(image, layout, values * torch.nan)
    with pytest.raises(InputError, match="explore"):
        draw_values(image, layout, values.expand(9, -1))
    with pytest.raises(InputError, match="names"):
        draw_values(image, layout, values, names=["a", "b"])
    with pytest.raises(InputError, match="low, high"):
        draw_values(image, layout, values, limits=(1.0, 1.0))
    with pytest.raises(InputError, match="words"):
        explore(image, layout, values, words=[[["a"]]])
