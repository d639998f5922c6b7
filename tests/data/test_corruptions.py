"""Corruptions change what they say and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tiny import random_image

from mm_lens import InputError
from mm_lens.data import corruptions

IMAGE = random_image(30, 40)
BOX = (10, 5, 20, 15)


def pixels(image):
    return np.asarray(image).astype(float)


def outside(image):
    kept = pixels(image)
    kept[5:15, 10:20] = 0
    return kept


def test_blank_is_the_mean_colour():
    blank = corruptions.blank(IMAGE)
    assert blank.size == IMAGE.size
    assert np.abs(pixels(blank) - pixels(IMAGE).mean((0, 1))).max() <= 0.5
    assert corruptions.blank(IMAGE, (1, 2, 3)).getpixel((0, 0)) == (1, 2, 3)


def test_noise_is_seeded_and_graded():
    full, again, other = (corruptions.noise(IMAGE, seed=s) for s in (0, 0, 1))
    assert np.array_equal(full, again)
    assert not np.array_equal(full, other)
    assert np.array_equal(corruptions.noise(IMAGE, 0.0), IMAGE)
    near, far = (
        np.abs(pixels(corruptions.noise(IMAGE, s)) - pixels(IMAGE)).mean() for s in (0.2, 0.9)
    )
    assert 0 < near < far
    with pytest.raises(InputError, match="strength"):
        corruptions.noise(IMAGE, 2.0)


@pytest.mark.parametrize("change", [corruptions.blur_box, corruptions.remove_box])
def test_boxes_change_only_what_is_inside(change):
    changed = change(IMAGE, BOX)
    assert np.array_equal(outside(changed), outside(IMAGE))
    assert pixels(changed)[5:15, 10:20].std() < pixels(IMAGE)[5:15, 10:20].std() / 2
    for box in ((50, 50, 60, 60), (5, 5, 5, 9)):
        with pytest.raises(InputError, match="outside"):
            change(IMAGE, box)


def test_a_removed_box_has_the_colour_of_its_frame():
    image = Image.new("RGB", (40, 30), (200, 0, 0))
    image.paste((0, 0, 255), BOX)
    assert np.array_equal(
        corruptions.remove_box(image, BOX), Image.new("RGB", (40, 30), (200, 0, 0))
    )
    assert corruptions.remove_box(image, BOX, (1, 2, 3)).getpixel((12, 7)) == (1, 2, 3)
    with pytest.raises(InputError, match="whole image"):
        corruptions.remove_box(image, (0, 0, 40, 30))


def test_others_are_never_the_same():
    for n in (2, 3, 10):
        found = corruptions.others(list(range(n)), seed=n)
        assert sorted(found) == list(range(n))
        assert all(i != other for i, other in enumerate(found))
    assert corruptions.assign_others([2, 0, 1, 3]) == [1, 3, 0, 2]  # 2 → 0 → 1 → 3 → 2
    for few in ([], [1]):
        with pytest.raises(InputError, match="at least two"):
            corruptions.others(few)
