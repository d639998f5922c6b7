"""`prepare`: pictures and prompts in every form, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from conftest import FAMILIES, load_tiny
from PIL import Image
from tiny import random_image

from mm_lens import InputError
from mm_lens.drawing import draw_values, explore


@pytest.fixture(scope="module", params=FAMILIES)
def each(request):
    """A tiny model of every family."""
    return load_tiny(request.param, check=False)


@pytest.mark.parametrize(
    "size", [(1, 145), (3, 145), (145, 1), (145, 3), (3, 3), (1, 1), (1, 3), (3, 7), (4, 30)]
)
def test_an_image_of_few_rows_is_not_taken_for_channels(each, size):
    """Against Pillow's own resizing of the picture, which knows no channels first."""
    image = random_image(*size)
    inputs = each.prepare("What?", image)
    assert inputs.image_sizes.tolist() == [list(size)]
    assert inputs.layout.image_sizes[0] == (size,)
    config = each.processor.image_processor
    side = config.crop_size.height
    if "image_grid_pinpoints" in vars(config):
        shown, seen = image.resize((side, side), Image.Resampling.BICUBIC), inputs.pixel_values[0, 0]
    else:
        short = min(size)
        width, height = (side * edge // short for edge in (size[1], size[0]))
        large = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        shown, seen = large.crop((left, top, left + side, top + side)), inputs.pixel_values[0]
    want = (np.asarray(shown) / 255 - config.image_mean) / config.image_std
    np.testing.assert_allclose(seen.permute(1, 2, 0), want, atol=1e-5)


def test_every_form_of_a_picture_gives_the_same_inputs(each, tmp_path):
    image = random_image(20, 33)
    path = tmp_path / "a.png"
    image.save(path)
    array = np.asarray(image)
    want = each.prepare("What?", image)
    forms = [
        path,
        str(path),
        path.read_bytes(),
        io.BytesIO(path.read_bytes()),
        array,
        array.astype(np.uint16) * 257,
        array / 255,
        torch.from_numpy(array.copy()),
        torch.from_numpy(array.transpose(2, 0, 1).copy()) / 255,
    ]
    for form in forms:
        for given in (form, [form]):
            assert torch.equal(each.prepare("What?", given).pixel_values, want.pixel_values)
    batch = each.prepare(["What?"] * len(forms), forms)
    assert len(batch.images) == len(forms)
    assert all(np.array_equal(row[0], array) for row in batch.images)


def test_a_photo_is_drawn_as_it_was_prepared(each):
    """Overlays take the file itself, and turn it as `prepare` does."""
    image = random_image(20, 44)
    exif = image.getexif()
    exif[274] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    inputs = each.prepare("What?", file)
    assert inputs.image_sizes.tolist() == [[44, 20]]
    values = torch.arange(inputs.layout.shape[1]).float()
    for picture in (file, Image.open(file), inputs.images[0][0]):
        draw_values(picture, inputs.layout, values)
        explore(picture, inputs.layout, values)


def test_messages_name_the_picture(each):
    with pytest.raises(InputError, match="Image 1 of prompt 2 cannot be used: its values are"):
        each.prepare(["a", "b"], [None, [random_image(9, 9), np.full((4, 4), 7.0)]])
