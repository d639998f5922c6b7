"""Matches by hand; patching between images of different layouts, against a plain loop over the
native model. Which clean position goes where is written out here, entry by entry.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_layouts import image, laid_out, newline, overview, places, token
from native_runs import layers_of, metric, run_native
from tiny import random_image

import mm_lens
from mm_lens import InputError
from mm_lens.causal import patching
from mm_lens.layout.layout import TokenLayout
from mm_lens.layout.matching import (
    are_aligned,
    describe_difference,
    find_counterparts,
    match_positions,
    match_regions,
)
from mm_lens.layout.regions import Box, find_regions

pytestmark = [pytest.mark.every_family, pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")]
WIDE, TALL = (160, 40), (40, 160)
"""Clean and corrupted image, width and height."""
BOX = (2.0, 70.0, 33.0, 140.0)
AXIS = {
    "image": "visual",
    "text": "text",
    "box": Box(*BOX),
    "centred": Box(0, 75, 40, 110, touch="centre"),
}


# ---- by hand ----


def strip(*boxes, size=(4, 8), lines=(), tile=0, start=0):
    """An image of tokens in one row of a tile, with these boxes, then newlines."""
    tokens = [token(tile, 0, start + k, *box) for k, box in enumerate(boxes)]
    return image(*size, *tokens, *(newline(row) for row in lines))


LEFT, RIGHT = (0, 0, 4, 4), (4, 0, 8, 4)


def matches(a, b, boxes=None):
    return match_positions(laid_out(a), laid_out(b), boxes)[0].tolist()


def test_text_matches_by_segment_if_it_is_as_long():
    one = strip(LEFT)
    assert matches([2, one, 3], [-1, 2, one, 2]) == [1, 2, 3, -1, -1, -1]
    assert matches([1, one, 2, -1], [3, one, 2]) == [-1, 3, 4, 5, -1]
    assert matches([2, one, 1, one, 1], [1, one, 1, one, 2]) == [-1, -1, 1, 2, 3, -1]
    assert matches([2], [1, one]) == [-1, -1]  # "text only" is no "text before"
    # Images pair up as long as both rows have one.
    assert matches([1, one, 1, one], [1, one]) == [0, 1, -1, -1]
    assert matches([1, one], [1, one, 1, one]) == [0, 1]
    both = match_positions(laid_out([1, one], [1, one]), laid_out([-1, 1, one], [1, one, 1]))
    assert both.tolist() == [[1, 2], [0, 1]]


def test_same_tokens_match_one_by_one_to_half_a_patch():
    """Moved by exactly half a patch they still do, where the nearest would be another."""
    a = [strip(LEFT, RIGHT)]
    for dx, dy in ((2, 0), (0, 2), (2, 2), (-2, -2)):
        b = [strip(*((x0 + dx, y0 + dy, x1 + dx, y1 + dy) for x0, y0, x1, y1 in (LEFT, RIGHT)))]
        assert matches(a, b) == [0, 1]
    assert matches(a, [strip((2.5, 0, 6.5, 4), (6.5, 0, 10.5, 4))]) == [0, 0]
    # One that moved further is enough, though the other did not.
    assert matches(a, [strip((2, 0, 6, 4), (9, 0, 13, 4))]) == [0, 0]
    column = [strip(LEFT, (0, 4, 4, 8), size=(8, 4))]
    assert matches(column, [strip((0, 2, 4, 6), (0, 9, 4, 13), size=(8, 4))]) == [0, 0]
    assert matches(a, [strip(RIGHT, LEFT)]) == [1, 0]
    up_down = [strip((0, 0, 8, 2), (0, 2, 8, 4))]
    assert matches(up_down, [strip((0, 2, 8, 4), (0, 0, 8, 2))]) == [1, 0]
    # In fractions of the image: the same picture twice as wide and three times as high.
    assert matches(a, [strip((0, 0, 8, 12), (8, 0, 16, 12), size=(12, 16))]) == [0, 1]
    # Tokens without a place stand in the way of nothing.
    assert matches([strip(LEFT, ())], [strip(LEFT, ())]) == [0, 1]
    # Others by their tile, column or as a newline are matched by place, the first of the nearest.
    assert matches([strip(LEFT, LEFT)], [strip(LEFT, LEFT, start=1)]) == [0, 0]
    assert matches([strip(LEFT, LEFT)], [strip(LEFT, LEFT, tile=1)]) == [0, 0]
    assert matches([strip(LEFT, LEFT)], [strip(LEFT, LEFT)]) == [0, 1]


def test_patches_match_the_nearest_of_their_kind():
    halves, thirds = overview(6, 12, 1, 2), overview(6, 12, 1, 3)
    # Centres of thirds at 2, 6 and 10, of halves at 3 and 9: the middle is as near to both.
    assert matches([image(6, 12, *thirds)], [image(6, 12, *halves)]) == [0, 0, 1]
    assert matches([image(6, 12, *halves)], [image(6, 12, *thirds)]) == [0, 2]
    below = [token(0, 0, 0, 0, 0, 12, 3), token(0, 1, 0, 0, 3, 12, 6), token(0, 2, 0, 0, 5, 12, 6)]
    assert matches([image(6, 12, *below)], [image(6, 12, *below[1:])]) == [0, 0, 1]
    tile = [token(1, 0, k, 4 * k, 0, 4 * (k + 1), 6) for k in range(3)]
    # Overview to overview and tile to tile, though the other kind is nearer.
    assert matches([image(6, 12, *halves, *tile)], [image(6, 12, *thirds, *tile[:1])]) == [
        *(0, 2),
        *(3, 3, 3),
    ]
    assert matches([image(6, 12, *halves, tile[0])], [image(6, 12, *thirds[:1], *tile)]) == [
        *(0, 0),
        1,
    ]
    # All patches where the other image has none of the kind; tokens without a place have none.
    assert matches([image(6, 12, *tile)], [image(6, 12, *halves)]) == [0, 0, 1]
    assert matches([image(6, 12, *halves)], [image(6, 12, *tile)]) == [0, 2]
    blind = token(0, 0, 7)
    assert matches([image(6, 12, *halves, blind)], [image(6, 12, blind, *thirds)]) == [1, 3, -1]
    assert matches([image(6, 12, *halves)], [image(6, 12, blind)]) == [-1, -1]


def test_fractions_of_pictures_of_other_shapes():
    """The patch at the end of a wide picture is the one at the end of a narrow one."""
    wide = [token(0, 0, k, 10 * k, 0, 10 * (k + 1), 2) for k in range(3)]
    narrow = [token(0, k, 0, 0, 5 * k, 6, 5 * (k + 1)) for k in range(4)]
    sides = [token(0, 4, 1 + k, 2 * k, 9, 2 * (k + 1), 11) for k in range(3)]
    # wide: centres at x = 1/6, 1/2 and 5/6, y = 1/2; narrow's sides at the same, y = 1/2.
    a, b = [image(2, 30, *wide)], [image(20, 6, *narrow, *sides)]
    assert matches(a, b) == [4, 5, 6]
    # narrow: x = 1/2, y = 1/8 to 7/8: all nearest to the middle.
    assert matches(b, a) == [1, 1, 1, 1, 0, 1, 2]
    # Two thirds of three pixels are two thirds of thirty, not half of them.
    few, many = (
        token(0, 0, 0, 1, 0, 3, 4),
        [token(0, 0, k, x, 0, x + 2, 4) for k, x in ((0, 14), (1, 19))],
    )
    assert matches([image(4, 3, few)], [image(4, 30, *many)]) == [1]


def test_unknown_places_match_one_by_one_or_not_at_all():
    def unknown(*row):
        layout = laid_out([*row])
        return replace(layout, tile=layout.tile * 0 - 1, box=layout.box * torch.nan)

    two = unknown(strip(LEFT, RIGHT))
    assert match_positions(two, two).tolist() == [[0, 1]]
    for other in (unknown(strip(LEFT, RIGHT, size=(12, 16))), unknown(strip(LEFT))):
        with pytest.raises(InputError, match="Matching pictures of different sizes needs to"):
            match_positions(two, other)


def test_newlines_match_the_nearest_height():
    """In fractions of the rows that each image has, wherever their numbering begins."""
    a, b = [strip(LEFT, lines=(5, 6, 7))], [strip(LEFT, lines=(2, 3))]
    assert matches(a, b) == [0, 1, 1, 2]  # 1/6, 1/2 and 5/6; 1/4 and 3/4
    assert matches(b, a) == [0, 1, 3]
    assert matches(a, [strip(LEFT)]) == [0, -1, -1, -1]
    assert matches([strip(LEFT)], a) == [0]
    # A newline is no patch: its like is a newline, though its row is numbered as a patch's.
    long = [strip(LEFT, lines=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9))]
    assert matches(a, long) == [0, 2, 5, 9]


def test_boxes_are_matched_inside():
    four = [token(0, 0, k, 4 * k, 0, 4 * (k + 1), 4) for k in range(4)]
    row = [1, image(4, 16, *four)]
    left, right = (0, 0, 8, 4), (8, 0, 16, 4)
    assert matches(row, row, (left, right, 0)) == [0, 3, 4, 4, 4]
    assert matches(row, row, (right, left, 0)) == [0, 1, 1, 1, 2]
    assert matches(row, row, (left, (8, 0, 12, 4), 0)) == [0, 3, 3, 4, 4]
    # Up and down.
    column = [1, image(16, 4, *(token(0, k, 0, 0, 4 * k, 4, 4 * (k + 1)) for k in range(4)))]
    assert matches(column, column, ((0, 0, 4, 8), (0, 8, 4, 16), 0)) == [0, 3, 4, 4, 4]
    # Only in the image that is meant.
    two = [1, image(4, 16, *four), image(4, 16, *four)]
    assert matches(two, two, (left, right, 1)) == [0, 1, 2, 3, 4, 7, 8, 8, 8]
    assert matches(two, two, (left, right, 0)) == [0, 3, 4, 4, 4, 5, 6, 7, 8]
    # Half of a patch is measured in the box: here 1/2 of it, in the whole image 1/8.
    moved = (3, 0, 11, 4)
    assert matches(row, row, ((0, 0, 4, 4), (1, 0, 5, 4), 0)) == [0, 1, 2, 3, 4]
    assert matches(row, row, (left, moved, 0)) == [0, 2, 3, 4, 4]


def test_boxes_that_are_none_are_refused():
    row, other = laid_out([1, strip(LEFT, RIGHT)]), laid_out([1, strip(LEFT, size=(4, 4))])
    good = (0, 0, 4, 4)
    with pytest.raises(InputError, match=r"^The box \(9, 0, 12, 4\) lies outside image 0 of 8×4"):
        match_positions(row, other, ((9, 0, 12, 4), good, 0))
    with pytest.raises(InputError, match=r"^The clean box \(5, 0, 8, 4\) lies outside .* of 4×4"):
        match_positions(row, other, ((5, 0, 8, 4), (5, 0, 8, 4), 0))
    with pytest.raises(InputError, match="there is no image 1"):
        match_positions(row, other, (good, good, 1))


def test_batches_of_other_sizes_do_not_match():
    with pytest.raises(InputError) as error:
        match_positions(laid_out([2], [2]), laid_out([2]))
    assert str(error.value) == (
        "One input has 2 row(s), the other 1. Clean and corrupted inputs match row by row."
    )


def test_regions_match_row_by_row():
    a = laid_out([1, strip(LEFT, RIGHT), 1], [2, strip(RIGHT), 1])
    b = laid_out([-1, 1, strip(RIGHT, LEFT), 1], [2, strip(LEFT), 2])
    found = find_regions(a, {"image": "visual", "before": "text before"})
    (rows, here, there), (*_, before) = match_regions(found, a, b)
    assert (rows.tolist(), here.tolist(), there.tolist()) == ([0, 0, 1], [1, 2, 2], [3, 2, 2])
    assert before.tolist() == [1, 0, 1]
    with pytest.raises(InputError) as error:
        match_regions(find_regions(a, ["text"]), a, b)
    assert str(error.value) == (
        "Region 'text': in row 1, 'text after' has 1 token(s) in the corrupted input and 2 in the "
        "clean one, so its tokens do not match. Use prompts of one length, or patch the image only."
    )
    no_text = laid_out([-3, strip(LEFT, RIGHT)], [-4, strip(LEFT)])
    with pytest.raises(InputError, match=r"'text before' has 1 .* corrupted input and 0 in the"):
        match_regions(find_regions(a, ["text before"]), a, no_text)
    blind = laid_out([1, strip(LEFT, ()), 1], [1, strip((), ()), 1])
    with pytest.raises(InputError) as error:
        match_regions(find_regions(a, ["visual"]), a, blind)
    assert str(error.value) == (
        "Region 'visual': position 2 of row 1 ('image 0') stands for nothing that the clean input "
        f"has: corrupted is {a.row_of(1).describe()}; clean is {blind.row_of(1).describe()}."
    )


def test_the_row_that_is_named_is_the_one_without_a_match():
    """Also where a row before it matches position 0."""
    a = laid_out([strip(LEFT, RIGHT)], [strip(LEFT, RIGHT)])
    blind = laid_out([strip(LEFT), 1], [strip(()), 1])
    with pytest.raises(InputError, match="position 0 of row 1"):
        match_regions(find_regions(a, ["visual"]), a, blind)


def test_a_region_that_moved_is_matched_in_its_boxes():
    four = [token(0, 0, k, 4 * k, 0, 4 * (k + 1), 4) for k in range(4)]
    layout = laid_out([1, image(4, 16, *four)])
    moved = Box(0, 0, 8, 4, clean=(8, 0, 16, 4))
    found = find_regions(layout, {"moved": moved, "still": Box(0, 0, 8, 4)})
    assert [there.tolist() for *_, there in match_regions(found, layout, layout)] == [
        [3, 4],
        [1, 2],
    ]
    two = laid_out([1, image(4, 16, *four), image(4, 16, *four)])
    second = find_regions(two, {"second": Box(0, 0, 8, 4, image=1, clean=(8, 0, 16, 4))})
    assert [there.tolist() for *_, there in match_regions(second, two, two)] == [[7, 8]]


def test_counterparts_by_hand():
    four = [token(0, 0, k, 4 * k, 0, 4 * (k + 1), 4) for k in range(4)]
    tall = [token(0, k, 0, 0, 8 * k, 4, 8 * (k + 1)) for k in range(4)]
    wide = [token(0, 4, k, k, 0, k + 1, 32) for k in range(4)]
    a = laid_out([1, image(4, 16, *four)])
    b = laid_out([2, image(32, 4, *tall, *wide)])  # tall at 2 to 5, wide at 6 to 9
    pixels = torch.zeros(4, 16, dtype=torch.bool)
    pixels[:, 4:8] = True
    axis = {
        "group": "visual",
        "quarter": Box(4, 0, 8, 4),  # x from 1/4 to 1/2: 1 to 2 pixels there
        "upper": Box(0, 0, 16, 1),  # y to 1/4: 8 pixels there
        "centred": Box(0, 0, 12, 4, touch="centre"),
        "told": Box(0, 0, 4, 4, clean=(0, 8, 4, 24)),
        "pixels": pixels,
        "array": pixels.numpy(),
    }
    tall_all, wide_all = [*range(2, 6)], [*range(6, 10)]
    expected = {
        "group": tall_all + wide_all,
        "quarter": [*tall_all, 7],
        "upper": [2, *wide_all],
        "centred": [*tall_all, 6, 7, 8],
        "told": [3, 4, *wide_all],
        "pixels": [*tall_all, 7],
        "array": [*tall_all, 7],
    }
    found = find_counterparts(axis, a, b)
    assert {name: places(mask)[0] for name, mask in found} == expected
    regions = find_regions(a, {"told": axis["told"]})
    assert places(find_counterparts(regions, a, b).masks[0])[0] == expected["told"]
    mask = a.mask("visual") & (torch.arange(a.shape[1]) == 2)
    assert places(find_counterparts(find_regions(a, {"one": mask}), a, a).masks[0]) == [[2]]
    two = laid_out([1, image(4, 16, *four), image(4, 16, *four)])
    second = find_counterparts({"second": Box(4, 0, 8, 4, image=1)}, two, two)
    assert places(second.masks[0]) == [[6]]
    assert find_counterparts(["visual"], a, b).labels == ("visual",)
    assert find_counterparts("image", a, b).labels == ("image 0",)
    with pytest.raises(InputError, match=r"^The clean box .* lies outside image 0 of 4×32"):
        find_counterparts({"x": Box(0, 0, 4, 4, clean=(5, 0, 9, 4))}, a, b)


def test_pixels_are_stretched_over_each_clean_image():
    """By the centres of its pixels: the half of a picture three pixels wide is two of them."""
    columns = [token(0, 0, k, k, 0, k + 1, 1) for k in range(3)]
    a = laid_out([2, image(1, 2, token(0, 0, 0, 0, 0, 2, 1))])
    b = laid_out([2, image(1, 3, *columns)])
    for pixels, there in (([True, False], [2]), ([False, True], [3, 4])):
        found = find_counterparts({"half": np.array([pixels])}, a, b)
        assert places(found.masks[0]) == [there]
    rows = [token(0, k, 0, 0, k, 1, k + 1) for k in range(3)]
    up = laid_out([2, image(2, 1, token(0, 0, 0, 0, 0, 1, 2))])
    down = laid_out([2, image(3, 1, *rows)])
    for pixels, there in (([[True], [False]], [2]), ([[False], [True]], [3, 4])):
        found = find_counterparts({"half": np.array(pixels)}, up, down)
        assert places(found.masks[0]) == [there]


def test_text_that_the_clean_input_has_not_is_counted():
    """Whatever the family calls it: segments of the one need not be known to the other."""
    one = strip(LEFT)
    a, b = laid_out([1, one, 2, one]), laid_out([1, one, 2])
    names = [n.replace("text between 0 and 1", "question") for n in a.segment_names]
    a = replace(a, segment_names=tuple(names))
    with pytest.raises(InputError) as error:
        match_regions(find_regions(a, ["question"]), a, b)
    assert str(error.value) == (
        "Region 'question': in row 0, 'question' has 2 token(s) in the corrupted input and 0 in "
        "the clean one, so its tokens do not match. Use prompts of one length, or patch the image "
        "only."
    )


def test_masks_of_positions_stand_for_themselves_or_nothing():
    a, b = laid_out([1, strip(LEFT, RIGHT), 1]), laid_out([1, strip(RIGHT, LEFT), 1])
    longer = laid_out([1, strip(LEFT, RIGHT), 2])
    mask = torch.tensor([[True, False, False, True]])
    assert torch.equal(find_counterparts({"m": mask}, a, b).masks[0], mask)
    for other in (b, longer):
        here = a.mask("visual") if other is b else mask & a.mask("text before")
        with pytest.raises(InputError) as error:
            find_counterparts({"m": here}, a, other)
        assert str(error.value) == (
            'resample="mean" does not know which positions of the clean input a mask of positions '
            "stands for, since the inputs have other tokens there. Name the region by a group, a "
            'Box or a mask of pixels, or use resample="nearest".'
        )
    with pytest.raises(InputError, match="fits neither"):
        find_counterparts({"m": torch.ones(3, 3)}, a, a)


# ---- the same positions ----


def test_aligned_layouts_and_what_differs():
    base = [1, image(4, 8, token(1, 0, 0, *LEFT), newline(0)), 1]
    a = laid_out(base)
    bigger = laid_out([1, image(40, 80, token(1, 0, 0, 0, 0, 9, 9), newline(3)), 1])
    assert are_aligned(a, bigger)
    assert describe_difference(a, bigger) == ""
    where = "position 1 of row 0 is another token of 'image 0'"
    second = "position 2 of row 0 is another token of 'image 0'"
    line = image(4, 8, token(1, 0, 0, *LEFT), newline(0))
    other = {
        "tile": ([1, image(4, 8, token(2, 0, 0, *LEFT), newline(0)), 1], where),
        "row": ([1, image(4, 8, token(1, 1, 0, *LEFT), newline(0)), 1], where),
        "col": ([1, image(4, 8, token(1, 0, 1, *LEFT), newline(0)), 1], where),
        "newline": ([1, replace(line, newline=line.newline & False), 1], second),
        "image": (
            [1, strip(LEFT), strip(LEFT), 1],
            "position 1 of row 0 is another token of 'image 0'",
        ),
        "modality": (
            [1, image(4, 8, token(1, 0, 0, *LEFT)), 2],
            "position 2 of row 0 is 'image 0' there and 'text after' here",
        ),
        "padding": (
            [-1, image(4, 8, token(1, 0, 0, *LEFT), newline(0)), 1],
            "position 0 of row 0 is 'text before' there and 'pad' here",
        ),
        "shape": ([*base, 1], "(1, 4) and (1, 5) [batch, pos]"),
        "segment": (
            [2, image(4, 8, token(1, 0, 0, *LEFT), newline(0))],
            "position 1 of row 0 is 'image 0' there and 'text before' here",
        ),
    }
    for name, (row, said) in other.items():
        b = laid_out(row)
        assert not are_aligned(a, b), name
        assert not are_aligned(b, a), name
        assert describe_difference(a, b) == said, name


def test_segments_of_other_names_are_not_aligned():
    """The words are the same, and a family calls a part of them otherwise."""
    a = laid_out([2])
    names = (*a.segment_names, "question")
    unused = replace(a, segment_names=names)
    assert are_aligned(a, unused)
    assert are_aligned(unused, a)
    used = replace(unused, segment=torch.full_like(a.segment, len(names) - 1))
    assert not are_aligned(a, used)
    assert not are_aligned(used, a)
    said = "position 0 of row 0 is 'text only' there and 'question' here"
    assert describe_difference(a, used) == said
    alone = replace(used, segment_names=names[-1:], segment=torch.zeros_like(a.segment))
    assert not are_aligned(a, alone)
    assert not are_aligned(alone, a)
    assert are_aligned(alone, used)
    assert describe_difference(a, alone) == said


def test_copies_of_rows_are_the_same_rows():
    one, two = laid_out([1, strip(LEFT)]), laid_out([1, strip(LEFT)], [1, strip(RIGHT)])
    four = two.repeat(2)
    for a, b in ((one, two), (two, one), (two, four), (four, two), (one, four)):
        assert describe_difference(a, b) == ""
    turned = laid_out([1, strip(LEFT)], [-1, strip(LEFT)])
    said = "position 0 of row 1 is 'text before' there and 'pad' here"
    assert describe_difference(one, turned) == said
    three = laid_out([2], [2], [2])
    assert describe_difference(laid_out([2], [2]), three) == "(2, 2) and (3, 2) [batch, pos]"
    empty = TokenLayout.build(torch.zeros(0, 2, dtype=torch.long), image_token_id=9)
    assert describe_difference(empty, laid_out([2])) == "(0, 2) and (1, 2) [batch, pos]"


# ---- against models ----


@pytest.fixture(scope="module")
def pair(model):
    """(clean, corrupted)"""
    return tuple(
        model.prepare("Eh?", random_image(height, width, seed))
        for seed, (width, height) in enumerate((WIDE, TALL))
    )


def tokens(inputs, size):
    """Of each position: ("text", distance from the start or the end of the image), ("newline",
    height), or (overview or not, (x, y) of its centre), in fractions of the image."""
    layout = inputs.layout
    image = [p for p in range(layout.shape[1]) if int(layout.image[0, p]) == 0]
    ends = [p for p in image if bool(layout.newline[0, p])]
    out = []
    for p in range(layout.shape[1]):
        if p not in image:
            out.append(("text", p if p < image[0] else p - layout.shape[1]))
        elif p in ends:
            out.append(("newline", ((ends.index(p) + 0.5) / len(ends),)))
        else:
            x0, y0, x1, y1 = layout.box[0, p].tolist()
            centre = (x0 + x1) / 2 / size[0], (y0 + y1) / 2 / size[1]
            out.append((int(layout.tile[0, p]) == 0, centre))
    return out


def plain_sources(pair):
    """The clean position of each corrupted one."""
    theirs, mine = tokens(pair[0], WIDE), tokens(pair[1], TALL)
    out = []
    for kind, place in mine:
        same = [p for p, token in enumerate(theirs) if token[0] == kind]
        if kind == "text":
            out.append(next(p for p in same if theirs[p][1] == place))
            continue
        apart = [sum((a - b) ** 2 for a, b in zip(place, theirs[p][1], strict=True)) for p in same]
        # Of several that are as near, the first.
        out.append(next(p for p, d in zip(same, apart, strict=True) if d < min(apart) + 1e-6))
    return out


def members(pair):
    """Positions of each region of the axis, from its definition."""
    layout = pair[1].layout
    image = layout.image[0] == 0
    x0, y0, x1, y1 = layout.box[0].unbind(-1)
    left, top, right, bottom = BOX
    shown = (x0 < right) & (x1 > left) & (y0 < bottom) & (y1 > top)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    centred = (x >= 0) & (x < 40) & (y >= 75) & (y < 110)
    return [image, ~image, shown, centred]


def test_the_layouts_differ(pair, family):
    clean, corrupted = (inputs.layout for inputs in pair)
    if family == "llava-next":
        assert not torch.equal(clean.newline[0].nonzero(), corrupted.newline[0].nonzero())
    moved = [p for p, q in enumerate(plain_sources(pair)) if p != q]
    assert len(moved) > 5
    assert [int(mask.sum()) > 0 for mask in members(pair)] == [True] * 4


@torch.no_grad()
@pytest.mark.parametrize("name", ["resid_pre", "mlp_out"])
def test_between_layouts(model, native, pair, name):
    """Every region and layer: equal to 1e-5 at logits of size 10."""
    clean, corrupted = pair
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names(name))
    sweep = getattr(patching, f"get_act_patch_{name}")
    result = sweep(model, corrupted, cache, metric, axis=AXIS, progress=False)
    source = plain_sources(pair)
    for layer, block in enumerate(layers_of(native)):
        held = []

        def keep(value, held=held):
            held.append(value)
            return value

        hooked(block, name, keep, lambda: run_native(native, clean))
        for k, mask in enumerate(members(pair)):

            def put(value, mask=mask, held=held):
                value = value.clone()
                for p in mask.nonzero()[:, 0].tolist():
                    value[0, p] = held[0][0, source[p]]
                return value

            want = metric(hooked(block, name, put, lambda: run_native(native, corrupted)))
            assert (result.values[layer, k] - want).abs().max() < 1e-5
    assert result.effect().abs().amax((0, 2)).min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_heads_between_layouts(model, native, pair, name):
    """A head's rows leave the native projection as its slice of columns."""
    clean, corrupted = pair
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names(name))
    sweep = getattr(patching, f"get_act_patch_attn_head_{name}_by_pos")
    result = sweep(model, corrupted, cache, metric, axis=AXIS, layers=[1], progress=False)
    config = native.config.get_text_config()
    heads = config.num_attention_heads if name == "q" else config.num_key_value_heads
    assert result.values.shape == (1, 4, heads, 1)
    project = getattr(layers_of(native)[1].self_attn, f"{name}_proj")
    held, source = [], plain_sources(pair)
    handle = project.register_forward_hook(lambda m, args, output: held.append(output))
    run_native(native, clean)
    handle.remove()
    width = held[0].shape[-1] // heads
    for k, mask in enumerate(members(pair)):
        for head in range(heads):

            def edit(m, args, output, mask=mask, head=head):
                new, columns = output.clone(), slice(head * width, (head + 1) * width)
                for p in mask.nonzero()[:, 0].tolist():
                    new[0, p, columns] = held[0][0, source[p], columns]
                return new

            handle = project.register_forward_hook(edit)
            want = metric(run_native(native, corrupted))
            handle.remove()
            assert (result.values[0, k, head] - want).abs().max() < 1e-5
    assert result.effect().abs().max() > 1e-4


def hooked(block, name, change, run):
    """What `run` returns while `change` makes the activation of a native block another one."""
    if name == "mlp_out":
        handle = block.mlp.register_forward_hook(lambda m, args, output: change(output))
    else:

        def edit(module, args, kwargs):
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

        handle = block.register_forward_pre_hook(edit, with_kwargs=True)
    try:
        return run()
    finally:
        handle.remove()
