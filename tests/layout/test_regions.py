"""Regions and their matches against definitions written out entry by entry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_layouts import image, laid_out, newline, overview, places, token
from native_runs import native_patched, native_states
from tiny import random_image

import mm_lens
from mm_lens import InputError
from mm_lens.causal import patching
from mm_lens.layout.groups import last_index
from mm_lens.layout.matching import are_aligned, find_counterparts, match_positions, match_regions
from mm_lens.layout.regions import Box, Grid, find_regions, group_mask

pytestmark = pytest.mark.every_family


def layout_of(model, height, width, text="Eh?"):
    return model.prepare(text, random_image(height, width)).layout


def patches(layout, row=0):
    """(position, tile, box) of every image token that shows pixels."""
    for p in range(layout.shape[1]):
        box = layout.box[row, p].tolist()
        if not np.isnan(box).any():
            yield p, int(layout.tile[row, p]), box


# ---- by hand ----


def picture(scale=1):
    """12 × 8 pixels: an overview of 2 × 3 patches, two tiles beside each other of 1 × 2 each."""
    s = scale
    tiles = [
        token(1 + k // 2, 0, k % 2, 3 * k * s, 0, 3 * (k + 1) * s, 8 * s, at=(0, k))
        for k in range(4)
    ]
    return image(8 * s, 12 * s, *overview(8 * s, 12 * s, 2, 3), *tiles, newline(0))


def letterbox():
    """6 × 6 pixels: one of 2 × 2 overview patches shows some, one tile shows all."""
    blind = [token(0, k // 2, k % 2) for k in (1, 2, 3)]
    return image(6, 6, token(0, 0, 0, 0, 0, 3, 6), *blind, token(1, 0, 0, 0, 0, 6, 6))


# Where they stand in [2, picture, 1]: overview 2 to 7, tiles 8 to 11, newline 12.
CELLS = [[2], [3], [4], [5, 8], [6, 9, 10], [7, 11]]
CORNERS = {
    "x0": [0, 4, 8, 0, 4, 8],
    "y0": [0, 0, 0, 4, 4, 4],
    "x1": [4, 8, 12, 4, 8, 12],
    "y1": [4, 4, 4, 8, 8, 8],
}
BY_HAND = {
    "modality": (("visual", "text"), [[*range(2, 13)], [0, 1, 13]], {}),
    "segment": (
        ("text before", "text after", "image 0"),
        [[0, 1], [13], [*range(2, 13)]],
        {},
    ),
    "image": (("image 0",), [[*range(2, 13)]], {}),
    "tile": (("tile 0", "tile 1", "tile 2"), [[*range(2, 8)], [8, 9], [10, 11]], {}),
    "row band": (
        ("row band 0", "row band 1"),
        [[2, 3, 4], [5, 6, 7, 8, 9, 10, 11]],
        {"row": [0, 1], "x0": [0, 0], "y0": [0, 4], "x1": [12, 12], "y1": [4, 8]},
    ),
    "cell": (
        tuple(f"row {r} col {c}" for r in range(2) for c in range(3)),
        CELLS,
        {"row": [0, 0, 0, 1, 1, 1], "col": [0, 1, 2, 0, 1, 2], **CORNERS},
    ),
    "patch": (
        (
            *(f"tile 0 row {r} col {c}" for r in range(2) for c in range(3)),
            *(f"tile {t} row 0 col {c}" for t in (1, 2) for c in range(2)),
        ),
        [[p] for p in range(2, 12)],
        {
            "image": [0] * 10,
            "tile": [0] * 6 + [1, 1, 2, 2],
            "row": [0, 0, 0, 1, 1, 1, 0, 0, 0, 0],
            "col": [0, 1, 2, 0, 1, 2, 0, 1, 0, 1],
            "x0": [*CORNERS["x0"], 0, 3, 6, 9],
            "y0": [*CORNERS["y0"], 0, 0, 0, 0],
            "x1": [*CORNERS["x1"], 3, 6, 9, 12],
            "y1": [*CORNERS["y1"], 8, 8, 8, 8],
        },
    ),
    Grid(2, 3): (tuple(f"row {r} col {c}" for r in range(2) for c in range(3)), CELLS, CORNERS),
    Grid(1, 2): (
        ("row 0 col 0", "row 0 col 1"),
        [[2, 5, 8, 9], [3, 4, 6, 7, 10, 11]],
        {"x0": [0, 6], "y0": [0, 0], "x1": [6, 12], "y1": [8, 8]},
    ),
}
AXES_BY_HAND = pytest.mark.parametrize("axis", BY_HAND, ids=str)


@AXES_BY_HAND
def test_an_axis_by_hand(axis):
    labels, members, columns = BY_HAND[axis]
    found = find_regions(laid_out([2, picture(), 1]), axis)
    assert found.labels == labels
    assert [places(mask) for _, mask in found] == [[positions] for positions in members]
    assert {name: list(values) for name, values in found.columns.items()} == columns
    assert found.axis == (axis if isinstance(axis, str) else f"grid {axis.rows}×{axis.cols}")
    assert found.clean_boxes == {}
    assert found.masks.dtype == torch.bool


@AXES_BY_HAND
def test_an_axis_of_rows_of_other_sizes(axis):
    """The same regions, the second row one position later; no one pixel box to tell."""
    labels, members, columns = BY_HAND[axis]
    found = find_regions(laid_out([2, picture(), 1, -1], [3, picture(2), 1]), axis)
    assert found.labels == labels
    for mask, positions in zip(found.masks, members, strict=True):
        first, second = places(mask)
        assert first == positions
        words = [0] if 0 in positions else []
        assert second == words + [p + 1 for p in positions]
    left = {name: values for name, values in columns.items() if name not in CORNERS}
    assert {name: list(values) for name, values in found.columns.items()} == left


def test_axes_of_several_images_by_hand():
    """Labels begin with the image; what shows no pixel is no region."""
    # Words 0 and 15, image 0 at 1 to 11, image 1 at 12 to 16: overview 12 (blind: 13 to 15), 16.
    layout = laid_out([1, picture(), letterbox(), 1])
    moved = [[p - 1 for p in positions] for positions in CELLS]
    cells = [f"image 0 row {r} col {c}" for r in range(2) for c in range(3)]
    second = {"x0": 0, "y0": 0, "x1": 3, "y1": 6}
    expected = {
        "cell": ([*cells, "image 1 row 0 col 0"], [*moved, [12]]),
        "row band": (
            ["image 0 row band 0", "image 0 row band 1", "image 1 row band 0"],
            [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [12]],
        ),
        "image": (["image 0", "image 1"], [[*range(1, 12)], [*range(12, 17)]]),
        "tile": (
            [*(f"image 0 tile {t}" for t in range(3)), "image 1 tile 0", "image 1 tile 1"],
            [[*range(1, 7)], [7, 8], [9, 10], [12, 13, 14, 15], [16]],
        ),
        Grid(1, 1): (
            ["image 0 row 0 col 0", "image 1 row 0 col 0"],
            [[*range(1, 11)], [12, 16]],
        ),
        Grid(1, 1, image=1): (["image 1 row 0 col 0"], [[12, 16]]),
    }
    for axis, (labels, members) in expected.items():
        found = find_regions(layout, axis)
        assert [*found.labels] == labels, axis
        assert [places(mask)[0] for mask in found.masks] == members, axis
        if axis in ("cell", "row band"):
            assert [*found.columns["image"]] == [int(label[6]) for label in labels]
            assert {name: found.columns[name][-1] for name in second} == second
            assert next(iter(found.columns)) == "image"
    patch = find_regions(layout, "patch")
    assert patch.labels[0] == "image 0 tile 0 row 0 col 0"
    assert patch.labels[-1] == "image 1 tile 1 row 0 col 0"
    assert patch.columns["image"] == [0] * 10 + [1] * 5
    assert [*find_regions(layout, Grid(1, 1, image=1)).columns["image"]] == [1]


def test_named_axes_by_hand():
    layout = laid_out([2, picture(), 1])
    given = {
        "all of it": "visual",
        "moved": Box(0, 0, 4, 4, clean=(1, 1, 3, 3)),
        "left": Box(0, 0, 4, 4),
    }
    found = find_regions(layout, given)
    assert (found.axis, found.labels) == ("region", (*given,))
    assert found.clean_boxes == {"moved": given["moved"]}
    assert places(found.masks[1]) == [[2, 8, 9]]
    listed = find_regions(layout, ["text", "newline"])
    assert (listed.axis, listed.labels) == ("region", ("text", "newline"))
    assert [places(mask)[0] for mask in listed.masks] == [[0, 1, 13], [12]]


def test_axes_of_text_alone():
    layout = laid_out([2], [2])
    assert find_regions(layout, "modality").labels == ("text",)
    assert find_regions(layout, "segment").labels == ("text only",)
    with pytest.raises(InputError, match=r"^Row 0 has 0 image\(s\); there is no image 0"):
        find_regions(layout, Grid(1, 1))
    with pytest.raises(InputError, match="of image 0 are of 0 shapes, or a row has none"):
        find_regions(layout, "cell")


def test_what_shows_no_pixel_is_passed_over_wherever_it_stands():
    """Above the picture as below it: a letterbox pads both edges."""
    band = [token(0, 0, 0), token(0, 1, 0, 0, 0, 6, 4), token(0, 2, 0)]
    layout = laid_out([1, image(4, 6, *band)])
    assert find_regions(layout, "cell").labels == ("row 1 col 0",)
    found = find_regions(layout, "row band")
    assert found.labels == ("row band 1",)
    assert places(found.masks[0]) == [[2]]


def test_overviews_must_be_alike():
    other = image(4, 4, *overview(4, 4, 3, 2))
    wide = image(4, 4, *overview(4, 4, 2, 2))
    for second, count in ((other, 2), (wide, 2), (image(4, 4, token(1, 0, 0, 0, 0, 4, 4)), 1)):
        longer = 11 - len(second)
        for axis in ("cell", "row band"):
            with pytest.raises(InputError) as error:
                find_regions(laid_out([1, picture()], [1 + longer, second]), axis)
            assert str(error.value) == (
                f"The axis {axis!r} follows the patches of the overview, and the rows' overviews "
                f"of image 0 are of {count} shapes, or a row has none. Use "
                "Grid(rows, cols), with image= where rows have different numbers of images."
            )


def test_a_region_without_a_position_is_named():
    layout = laid_out([2, picture(), 1], [3, picture()])
    remedy = (
        "Run rows of another shape in another call, or take an axis that every row has: "
        'Grid(rows, cols), "modality", or a mapping of groups. A box smaller than a patch needs '
        'touch="any".'
    )
    for axis, said in (
        (["visual", "text after"], "Row 1 has no position in 'text after' of the axis 'region'"),
        ("segment", "Row 1 has no position in 'text after' of the axis 'segment'"),
        ({}, "Row 0 has no position in any region of the axis 'region'"),
        (Grid(9, 9), "Row 0 has no position in 'row 0 col 0' of the axis 'grid 9×9'"),
    ):
        with pytest.raises(InputError) as error:
            find_regions(layout, axis)
        assert str(error.value) == f"{said}. {remedy}"


def test_axes_that_are_none_are_named():
    layout = laid_out([2, picture(), 1])
    with pytest.raises(InputError) as error:
        find_regions(layout, "colour")
    assert str(error.value) == (
        "No axis is called 'colour'. Use one of: modality, segment, image, tile, row band, cell, "
        "patch, Grid(rows, cols), a list of groups, or a mapping from names to groups, boxes or "
        "masks."
    )
    with pytest.raises(InputError) as error:
        find_regions(layout, find_regions(laid_out([2], [2]), ["text"]))
    assert str(error.value) == (
        "The regions are of a layout of shape (2, 2) [batch, pos], but the inputs have (1, 14). "
        "Make them from inputs.layout."
    )


def test_regions_are_painted_by_hand():
    layout = laid_out([1, picture(), 1])
    found = find_regions(layout, {"a": "text", "b": "all", "c": "newline"})
    painted = found.paint(torch.tensor([1.0, 4.0, 10.0]))[0].tolist()
    assert painted == [2.5, *[4.0] * 10, 7.0, 2.5]
    some = find_regions(layout, ["newline"]).paint(torch.tensor([3.0]))[0]
    assert some.isnan().tolist() == [p != 11 for p in range(13)]


# ---- against models ----


def test_grids_and_cells_part_the_picture(model):
    """Every patch lies in exactly one region: the one that holds its centre."""
    layout = layout_of(model, 31, 57)
    shown = {p for p, _, _ in patches(layout)}
    for axis in (Grid(3, 2), "cell", "row band"):
        found = find_regions(layout, axis)
        columns = found.columns
        assert set(found.masks.sum(0)[0].nonzero()[:, 0].tolist()) <= shown
        for p, _, (x0, y0, x1, y1) in patches(layout):
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            inside = [
                columns["x0"][k] <= x < columns["x1"][k]
                and columns["y0"][k] <= y < columns["y1"][k]
                for k in range(len(found))
            ]
            assert found.masks[:, 0, p].tolist() == inside
        assert found.masks.sum(0).max() == 1
    grid = find_regions(layout, Grid(3, 2))
    assert grid.labels[3] == "row 1 col 1"
    assert (grid.columns["x0"][3], grid.columns["y1"][3]) == pytest.approx((28.5, 31 * 2 / 3))


def test_boxes_and_masks_take_what_they_touch(model):
    layout = layout_of(model, 31, 57)
    rect, pixels = (25, 11, 30, 14), np.zeros((31, 57), dtype=bool)
    pixels[11:14, 25:30] = True
    for p, _, (x0, y0, x1, y1) in patches(layout):
        touches = x0 < rect[2] and x1 > rect[0] and y0 < rect[3] and y1 > rect[1]
        assert bool(group_mask(layout, Box(*rect))[0, p]) == touches
        cut = pixels[int(np.floor(y0)) : int(np.ceil(y1)), int(np.floor(x0)) : int(np.ceil(x1))]
        assert bool(group_mask(layout, pixels)[0, p]) == cut.any()
    assert group_mask(layout, Box(*rect)).any()
    assert not (group_mask(layout, Box(*rect)) & layout.newline).any()
    with pytest.raises(InputError, match="fits neither"):
        group_mask(layout, pixels[:-1])


def test_named_axes_are_the_groups_of_the_layout(model):
    batch = model.prepare(["Eh?", "What?"], [random_image(31, 57), random_image(31, 57, 1)])
    layout = batch.layout
    assert find_regions(layout, "modality").labels == ("visual", "text")
    for axis in ("modality", "segment", "image", "tile", ["all", "visual"]):
        for label, mask in find_regions(layout, axis):
            assert torch.equal(mask, layout.mask(label))
    patch = find_regions(layout, "patch")
    assert (patch.masks.sum(-1) == 1).all()  # one token in each row
    assert torch.equal(patch.masks.any(0), layout.mask("visual") & ~layout.newline)
    last = group_mask(layout, "last")
    assert last.nonzero()[:, 1].tolist() == [int(row.nonzero()[-1]) for row in batch.attention_mask]
    assert last_index(layout).tolist() == last.nonzero()[:, 1].tolist()
    own = find_regions(layout, {"mine": last})
    assert find_regions(layout, own) is own


def test_paint_puts_values_where_regions_are(model):
    layout = layout_of(model, 31, 57)
    found = find_regions(layout, ["visual", "all"])
    painted = found.paint(torch.tensor([1.0, 4.0]))
    assert torch.equal(painted[layout.mask("visual")].unique(), torch.tensor([2.5]))
    assert torch.equal(painted[layout.mask("text")].unique(), torch.tensor([4.0]))
    cells = find_regions(layout, "cell")
    assert torch.equal(cells.paint(torch.zeros(len(cells))).isnan(), ~cells.masks.any(0))


@pytest.mark.parametrize("size", [(57, 31), (40, 60), (12, 90)])
def test_images_match_by_the_nearest_centre(model, size):
    """Among tokens of the same kind, in fractions of the pictures."""
    layout, other = layout_of(model, 31, 57), layout_of(model, *size)
    match = match_positions(layout, other)[0]
    theirs = list(patches(other))
    for p, tile, box in patches(layout):
        x, y = (box[0] + box[2]) / 2 / 57, (box[1] + box[3]) / 2 / 31

        def distance(item, x=x, y=y):
            _, _, (x0, y0, x1, y1) = item
            return (x - (x0 + x1) / 2 / size[1]) ** 2 + (y - (y0 + y1) / 2 / size[0]) ** 2

        same = [item for item in theirs if (item[1] == 0) == (tile == 0)] or theirs
        chosen = next(item for item in theirs if item[0] == int(match[p]))
        assert chosen in same
        # The nearest, or one by one where both have the same tokens: then to half a patch.
        if len(theirs) != len(list(patches(layout))):
            assert distance(chosen) == pytest.approx(min(map(distance, same)), abs=1e-9)
    text = layout.mask("text")[0]
    assert torch.equal(match[text], other.mask("text")[0].nonzero()[:, 0])
    newline = layout.newline[0]
    if bool(newline.any()):
        assert other.newline[0, match[newline]].all()


def test_same_layout_matches_one_by_one(model):
    layout = layout_of(model, 31, 57)
    assert torch.equal(match_positions(layout, layout)[0], torch.arange(layout.shape[1]))
    assert are_aligned(layout, layout_of(model, 31, 57))
    assert not are_aligned(layout, layout_of(model, 31, 57, "Eh??"))


@torch.no_grad()
def test_a_thing_that_moved_is_matched_inside_its_boxes(model):
    layout = layout_of(model, 40, 40)
    here, there = (4.0, 4.0, 20.0, 20.0), (20.0, 20.0, 36.0, 36.0)
    match = match_positions(layout, layout, (here, there, 0))[0]
    own = {p: (tile, box) for p, tile, box in patches(layout)}
    for p, (tile, (x0, y0, x1, y1)) in own.items():
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        if here[0] <= x < here[2] and here[1] <= y < here[3]:
            other, (a0, b0, a1, b1) = own[int(match[p])]
            assert (other == 0) == (tile == 0)
            # Moved by (16, 16), to the nearest patch: at most half of one away on each axis.
            assert abs((a0 + a1) / 2 - x - 16) <= (a1 - a0) / 2 + 1e-3
            assert abs((b0 + b1) / 2 - y - 16) <= (b1 - b0) / 2 + 1e-3


@pytest.mark.parametrize(
    ("box", "complaint"),
    [
        ((5, 5, 5, 9), "is empty"),
        ((24, 24, 0, 0), "is empty"),
        ((0, float("nan"), 9, 9), "is empty"),
        ((57, 0, 70, 9), "outside image 0 of 57×31 pixels"),
        ((0, 31, 9, 40), "outside image 0 of 57×31 pixels"),
        ((-9, -9, 5, 0), "outside image 0 of 57×31 pixels"),
    ],
)
def test_boxes_outside_of_the_image_are_refused(model, box, complaint):
    """Of the clean box, too, which is measured in the clean image."""
    layout, other = layout_of(model, 80, 90), layout_of(model, 31, 57)
    with pytest.raises(InputError, match=complaint):
        group_mask(other, Box(*box))
    found = find_regions(layout, {"thing": Box(0, 0, 20, 20, clean=box)})
    with pytest.raises(InputError, match=f"clean box.*{complaint}"):
        match_regions(found, layout, other)
    with pytest.raises(InputError, match=f"clean box.*{complaint}"):
        find_counterparts({"thing": Box(0, 0, 20, 20, clean=box)}, layout, other)
    assert group_mask(other, Box(25, -9, 32, 0.1)).any()  # the edge overlaps


def two_images(model, sizes=((31, 57), (40, 22))):
    images = [random_image(*size, k) for k, size in enumerate(sizes)]
    return model.prepare(["Eh?"], [images])


def test_axes_cover_every_image_of_a_row(model):
    """As the same axis over each image alone."""
    layout = two_images(model).layout
    for axis in ("cell", "row band", Grid(2, 2)):
        found, start = find_regions(layout, axis), 0
        for k, size in enumerate(((31, 57), (40, 22))):
            one = layout_of(model, *size)
            alone = find_regions(one, axis)
            here = slice(start, start + len(alone))
            start += len(alone)
            assert found.labels[here] == tuple(f"image {k} {label}" for label in alone.labels)
            own, theirs = (layout.image == k)[0], (one.image == 0)[0]
            assert torch.equal(found.masks[here, 0][:, own], alone.masks[:, 0][:, theirs])
            assert not found.masks[here, 0][:, ~own].any()
            assert list(found.columns["image"][here]) == [k] * len(alone)
            for name, values in alone.columns.items():
                assert list(found.columns[name][here]) == list(values)
        assert start == len(found)
    second = find_regions(layout, Grid(2, 2, image=1))
    assert second.labels[0] == "image 1 row 0 col 0"
    assert not (second.masks.any(0) & (layout.image == 0)).any()


def test_which_image_is_meant_must_be_said(model):
    layout = two_images(model).layout
    pixels = np.ones((40, 22), dtype=bool)
    for what in (Box(0, 0, 9, 9), pixels):
        with pytest.raises(InputError, match=r"2 images\. Say which"):
            group_mask(layout, what)
    second = (layout.image == 1) & ~layout.newline & ~layout.box.isnan().any(-1)
    assert torch.equal(group_mask(layout, pixels, image=1), second)
    assert torch.equal(group_mask(layout, Box(0, 0, 22, 40, image=1)), second)
    with pytest.raises(InputError, match="nor image 0 of every row"):
        group_mask(layout, pixels, image=0)


def test_rows_of_one_size_have_their_boxes_in_the_table(model):
    """And rows of other sizes have none: there is no one box to tell."""
    images = [random_image(31, 57), random_image(31, 57, 1), random_image(62, 114)]
    one = find_regions(model.prepare("Eh?", images[0]).layout, Grid(2, 2)).columns
    same = find_regions(model.prepare(["Eh?", "Oh!"], images[:2]).layout, Grid(2, 2)).columns
    assert same == one
    assert set(one) == {"x0", "y0", "x1", "y1"}
    both = model.prepare(["Eh?", "Oh!"], images[1:]).layout
    assert not find_regions(both, Grid(2, 2)).columns
    patch = find_regions(model.prepare(["Eh?", "Oh!"], images[:2]).layout, "patch")
    layout = layout_of(model, 31, 57)
    got = torch.tensor([patch.columns[name] for name in ("x0", "y0", "x1", "y1")]).T
    for k, mask in enumerate(patch.masks):
        want = layout.box[0, mask[0].nonzero().item()]
        assert torch.allclose(got[k], want, equal_nan=True)


MEANT = {
    "fractions": ({}, lambda x0, y0, x1, y1: x0 < 90 and x1 > 30 and y0 < 44 and y1 > 8),
    "clean": (
        {"clean": (70, 5, 90, 30)},
        lambda x0, y0, x1, y1: x0 < 90 and x1 > 70 and y0 < 30 and y1 > 5,
    ),
    "centre": (
        {"touch": "centre"},
        lambda x0, y0, x1, y1: 30 <= (x0 + x1) / 2 < 90 and 8 <= (y0 + y1) / 2 < 44,
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("case", MEANT)
def test_mean_of_a_box_in_a_clean_image_of_another_size(model, native, case):
    """Against a plain loop over the native model: the corrupted image is half as wide and high."""
    corrupted = model.prepare("Eh?", random_image(40, 60))
    clean = model.prepare("Eh?", random_image(80, 120, 1))
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names("resid_pre"))
    options, inside = MEANT[case]
    box = Box(15, 4, 45, 22, **options)
    result = patching.get_act_patch_resid_pre(
        model,
        corrupted,
        cache,
        lambda logits: logits[:, -1, 3] - logits[:, -1, 5],
        axis={"box": box},
        resample="mean",
        progress=False,
    )
    state, value = None, None
    here, there = corrupted.layout, clean.layout
    targets = {p: t for p, t, _ in patches(here) if bool(group_mask(here, box)[0, p])}
    read = [(p, tile) for p, tile, rect in patches(there) if inside(*rect)]
    assert targets
    assert read
    for layer in range(3):
        state = native_states(native, clean, layer)[0][0]
        value = native_states(native, corrupted, layer)[0].clone()
        for p, tile in targets.items():
            same = [q for q, other in read if (other == 0) == (tile == 0)] or [q for q, _ in read]
            value[0, p] = state[same].mean(0)
        mask = torch.zeros(1, here.shape[1], dtype=torch.bool)
        mask[0, list(targets)] = True
        logits = native_patched(native, corrupted, layer, mask, value)
        want = logits[:, -1, 3] - logits[:, -1, 5]
        assert (result.values[layer, 0] - want).abs().max() < 1e-5
    assert result.effect().abs().max() > 1e-3


def test_counterparts_of_masks(model):
    """A mask of pixels is stretched over the clean image; one of positions must match itself."""
    layout, other = layout_of(model, 40, 60), layout_of(model, 80, 120)
    pixels = np.zeros((40, 60), dtype=bool)
    pixels[4:20, 15:45] = True
    there = find_counterparts({"m": pixels}, layout, other).masks[0]
    assert torch.equal(there, group_mask(other, Box(30, 8, 90, 40)))
    mask = group_mask(layout, pixels)
    assert torch.equal(find_counterparts({"m": mask}, layout, layout).masks[0], mask)
    own = find_regions(layout, {"m": mask})
    assert torch.equal(find_counterparts(own, layout, layout).masks[0], mask)
    tall = layout_of(model, 90, 12)
    for axis in ({"m": mask}, own):
        with pytest.raises(InputError, match="have other tokens there"):
            find_counterparts(axis, layout, tall)
    boxed = find_regions(layout, {"m": Box(15, 4, 45, 20, clean=(0, 0, 6, 45))})
    want = group_mask(tall, Box(0, 0, 6, 45))
    assert torch.equal(find_counterparts(boxed, layout, tall).masks[0], want)


@torch.no_grad()
def test_mean_of_the_clean_region(model):
    """Every token gets the mean of the clean region's tokens of its kind."""
    corrupted, clean = (model.prepare("Eh?", random_image(31, 57, s)) for s in (0, 1))
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names("resid_pre"))

    def metric(logits):
        return logits[:, -1, 3] - logits[:, -1, 5]

    result = patching.get_act_patch_resid_pre(
        model, corrupted, cache, metric, axis=Grid(1, 2), resample="mean", progress=False
    )
    layout = corrupted.layout
    for k, (_, mask) in enumerate(find_regions(layout, Grid(1, 2))):
        value = cache["resid_pre", 1].clone()
        for kind in (layout.tile == 0, layout.tile > 0):
            if bool((mask & kind).any()):
                value[mask & kind] = cache["resid_pre", 1][mask & kind].mean(0)

        def put(x, hook, mask=mask, value=value):
            return torch.where(mask[..., None], value, x)

        hooks = [("blocks.1.hook_resid_pre", put)]
        want = metric(model.run_with_hooks(corrupted, fwd_hooks=hooks))
        assert (result.values[1, k] - want).abs().max() < 1e-5


def test_what_is_no_region_is_refused(model):
    ragged = model.prepare(["Eh?", "Oh!"], [random_image(31, 57), None])
    for axis, complaint in (
        ("visual part", "No axis"),
        (["nothing"], "No group"),
        ("image", "Row 1 has no position"),
        (Grid(2, 2), "Row 1 has 0 image"),
        ("cell", "overview"),
        ({"far": Box(0, 0, 1, 1, image=2)}, "there is no image 2"),
        ({}, "no position"),
    ):
        with pytest.raises(InputError, match=complaint):
            find_regions(ragged.layout, axis)
    one = layout_of(model, 31, 57)
    with pytest.raises(InputError, match="of a layout of shape"):
        find_regions(one, find_regions(ragged.layout, ["all"]))
    with pytest.raises(InputError, match="row"):
        match_positions(one, ragged.layout)
