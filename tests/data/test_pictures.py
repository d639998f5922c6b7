"""What goes in as a picture, and what comes out of it: closed forms, whatever the type."""

from __future__ import annotations

import io
import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from tiny import random_image

from mm_lens import InputError, MMLensWarning
from mm_lens.data import corruptions, pictures
from mm_lens.data.datasets import ImageFolder
from mm_lens.data.pictures import open_picture, read_picture
from mm_lens.errors import DataError

RAMP = np.arange(256, dtype=np.uint8)[None].repeat(3, 0)  # every level, three pixels high
WIDE = RAMP.astype(np.uint16) * 257  # the same in 16 bits


def pixels(source, **options):
    picture = open_picture(source, **options)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def in_file(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file


def grey(levels):
    return np.stack([levels] * 3, -1)


# ---- numbers ----


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_grey_keeps_its_256_levels(format):
    """The figure of the issue: mean 127.5 with 256 levels, not white with 17."""
    file = in_file(Image.fromarray(WIDE), format)
    assert np.array_equal(pixels(file), grey(RAMP))
    assert np.array_equal(np.asarray(read_picture(file.getvalue())), grey(RAMP))


def test_16_bit_big_endian_and_arrays():
    tiff = in_file(Image.frombytes("I;16B", (256, 3), WIDE.astype(">u2").tobytes()), "TIFF")
    assert Image.open(tiff).mode == "I;16B"
    for source in (tiff, WIDE, WIDE.astype(">u2"), torch.from_numpy(WIDE), grey(WIDE)):
        assert np.array_equal(pixels(source), grey(RAMP))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_from_0_to_1(dtype):
    values = (RAMP / 255).astype(dtype)
    for source in (values, grey(values), torch.from_numpy(values)):
        assert np.abs(pixels(source).astype(int) - grey(RAMP).astype(int)).max() == 0
    if dtype is np.float32:
        assert np.array_equal(pixels(in_file(Image.fromarray(values), "TIFF")), grey(RAMP))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (RAMP.astype(np.float32), "from 0 to 255"),
        ((RAMP / 127.5 - 1).astype(np.float64), "from -1 to 1"),
        (np.full((2, 2), np.nan), "from nan to nan"),
        (np.full((2, 2), np.inf), "from inf to inf"),
        (RAMP.astype(np.int64), "int64 from 0 to 255"),
        (torch.from_numpy(RAMP.astype(np.int32)), "int32 from 0 to 255"),
        (Image.fromarray(RAMP.astype(np.int32)), "int32 from 0 to 255"),
        (Image.fromarray(RAMP.astype(np.float32)), "float32 from 0 to 255"),
        (RAMP.astype(complex), "complex128"),
        (np.array([["a", "b"]]), "<U1 holds no pixels"),
        (np.array([[None]]), "object holds no pixels"),
    ],
)
def test_other_ranges_are_refused_with_the_range_found(source, found):
    with pytest.raises(InputError, match=found):
        open_picture(source)


def test_rounding_is_no_other_range():
    assert pixels(np.float32([[1.00001, -0.00001]]))[0, :, 0].tolist() == [255, 0]


def test_truth_values_and_one_bit():
    mask = np.array([[True, False]])
    assert pixels(mask)[0, :, 0].tolist() == [255, 0]
    assert pixels(torch.from_numpy(mask))[0, :, 0].tolist() == [255, 0]
    assert pixels(Image.fromarray(mask))[0, :, 0].tolist() == [255, 0]
    assert pixels(in_file(Image.fromarray(mask), "PNG"))[0, :, 0].tolist() == [255, 0]


# ---- shapes ----


def test_tensors_either_way_round():
    array = np.asarray(random_image(9, 14))
    for source in (
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array.copy()),
        torch.from_numpy(array.transpose(2, 0, 1).copy()),
        torch.from_numpy(array.copy()).requires_grad_(False)[None][0],
    ):
        assert np.array_equal(pixels(source), array)
    halves = torch.from_numpy(array.copy()).to(torch.bfloat16) / 255
    assert np.abs(pixels(halves).astype(int) - array).max() <= 1
    gradient = (torch.from_numpy(array.copy()).double() / 255).requires_grad_()
    assert np.array_equal(pixels(gradient), array)


@pytest.mark.parametrize("height", [1, 2, 3, 4])
def test_an_array_of_few_rows_is_not_taken_for_channels(height):
    array = np.asarray(random_image(height, 145))
    assert np.array_equal(pixels(array), array)
    first = torch.from_numpy(array.transpose(2, 0, 1).copy())
    assert np.array_equal(pixels(first), array)
    with pytest.raises(InputError, match="could be the channels"):
        open_picture(torch.from_numpy(array.copy()))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 8, 8), "several pictures as a list"),
        ((7, 8, 9), "no axis of 1 to 4 channels"),
        ((5,), "not one picture"),
        ((0, 8, 3), "no pixels"),
    ],
)
def test_shapes_that_are_no_picture(shape, message):
    for source in (np.zeros(shape, np.uint8), torch.zeros(shape, dtype=torch.uint8)):
        with pytest.raises(InputError, match=message):
            open_picture(source)


# ---- modes ----


def test_transparency_lies_on_white_or_on_what_is_said():
    clear, half, solid = (10, 20, 30, 0), (0, 0, 0, 128), (10, 20, 30, 255)
    image = Image.new("RGBA", (3, 1))
    image.putdata([clear, half, solid])
    expected = [[255] * 3, [127] * 3, [10, 20, 30]]
    for source in (
        image,
        np.asarray(image),
        in_file(image, "PNG"),
        in_file(image, "WEBP", lossless=True),
    ):
        assert pixels(source)[0].tolist() == expected
    assert pixels(image, background=(0, 0, 255))[0].tolist()[0] == [0, 0, 255]
    assert pixels(image.convert("RGBa"))[0].tolist()[0] == [255] * 3
    two = Image.new("LA", (2, 1))
    two.putdata([(9, 0), (9, 255)])
    for source in (two, in_file(two, "PNG"), np.asarray(two), two.convert("La")):
        assert pixels(source)[0, :, 0].tolist() == [255, 9]


def test_a_transparent_colour_of_a_palette_or_of_grey():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putdata([0, 1])
    assert pixels(palette)[0].tolist() == [[255, 0, 0], [0, 255, 0]]
    assert pixels(in_file(palette, "GIF", transparency=0))[0].tolist() == [[255] * 3, [0, 255, 0]]
    eight, sixteen = Image.fromarray(RAMP[:, :4]), Image.fromarray(WIDE[:, :4])
    assert pixels(in_file(eight, "PNG", transparency=2))[0, :, 0].tolist() == [0, 1, 255, 3]
    assert pixels(in_file(sixteen, "PNG", transparency=514))[0, :, 0].tolist() == [0, 1, 255, 3]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "L", "P"])
def test_every_other_mode_is_what_pillow_makes_of_it(mode):
    image = random_image(5, 6).convert("RGB")
    image = image.convert(mode) if mode != "LAB" else Image.merge("LAB", image.split())
    assert np.array_equal(pixels(image), np.asarray(image.convert("RGB")))


# ---- orientation ----


def photo(orientation, size=(64, 64)):
    """Noise with a note of how the camera was held; JPEG without loss of the note."""
    image = random_image(*size[::-1], seed=orientation)
    exif = image.getexif()
    exif[274] = orientation
    return in_file(image, "PNG", exif=exif), np.asarray(image)


UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x[::-1].transpose(1, 0, 2),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: x[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright_everywhere(orientation, tmp_path):
    file, stored = photo(orientation, (40, 24))
    upright = UPRIGHT[orientation](stored)
    path = tmp_path / "photo.png"
    path.write_bytes(file.getvalue())
    opened = Image.open(path)
    sample = ImageFolder(tmp_path)[0].image
    for source in (path, str(path), file, file.getvalue(), opened, sample, open_picture(path)):
        assert np.array_equal(pixels(source), upright)
    height, width = upright.shape[:2]
    for changed in (
        corruptions.blank(opened),
        corruptions.noise(opened),
        corruptions.blur_box(opened, (0, 0, 9, 9)),
        corruptions.remove_box(opened, (0, 0, 9, 9)),
    ):
        assert changed.size == (width, height)


def test_a_removed_box_lies_where_it_was_asked_for():
    """The example of the issue: the upper half of what is seen, not its right half."""
    file, stored = photo(6)
    upright = UPRIGHT[6](stored)
    removed = np.asarray(corruptions.remove_box(Image.open(file), (0, 0, 64, 32), (1, 2, 3)))
    assert (removed[:32] == (1, 2, 3)).all()
    assert np.array_equal(removed[32:], upright[32:])


# ---- files ----


def test_files_in_every_form(tmp_path):
    image = random_image(6, 7)
    expected = np.asarray(image)
    file = in_file(image, "PNG")  # read from its start, though written to its end
    path = tmp_path / "a.png"
    path.write_bytes(file.getvalue())
    with path.open("rb") as opened:
        for source in (file, opened, path, str(path), file.getvalue(), bytearray(file.getvalue())):
            assert np.array_equal(pixels(source), expected)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "not int"),
        (None, "not NoneType"),
        ({"bytes": b""}, "not dict"),
        (io.StringIO("text"), 'mode "rb"'),
        ("https://example.org/a.png", "addresses are not fetched"),
        ("s3://bucket/a.png", "addresses are not fetched"),
        (b"no picture", "cannot be read"),
        (b"", "cannot be read"),
        ("nowhere.png", "nowhere.png"),
        (Path("."), "is not a file"),
        (Image.new("RGB", (0, 4)), "no pixels"),
    ],
)
def test_what_is_no_picture(source, message):
    with pytest.raises(InputError, match=message):
        open_picture(source)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match="is not a file"):
        open_picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="is not a file"):
        ImageFolder(tmp_path)[0]


def test_of_several_frames_the_first_and_it_is_said():
    frames = [Image.new("L", (4, 4), level) for level in (10, 20, 30)]
    for format in ("GIF", "TIFF", "WEBP", "PNG"):
        options = {"lossless": True} if format == "WEBP" else {}
        file = in_file(
            frames[0].convert("RGB"), format, save_all=True, append_images=frames[1:], **options
        )
        with pytest.warns(MMLensWarning, match="several frames"):
            assert (pixels(file) == 10).all()
    animation = Image.open(in_file(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    animation.seek(2)  # somebody has chosen
    assert (pixels(animation) == 30).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("lenient", [False, True])
def test_half_a_picture_is_refused_whatever_pillow_was_told(format, lenient, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    whole = in_file(random_image(64, 64), format).getvalue()
    assert pixels(whole).shape == (64, 64, 3)
    half = whole[: len(whole) // 2]
    with pytest.raises(InputError, match="cannot be read"):
        open_picture(half)
    with pytest.raises(DataError, match="cannot be decoded"):
        read_picture(half)
    if format == "JPEG":  # opened by the user, and not read yet
        with pytest.raises(InputError, match="cannot be read"):
            open_picture(Image.open(io.BytesIO(half)))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_pillow_is_told_what_it_was_told_before_by_many_threads_too(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    content = in_file(random_image(64, 64), "JPEG").getvalue()
    threads = [threading.Thread(target=open_picture, args=(content,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_a_bomb_is_refused_before_it_is_read(monkeypatch):
    """20 kB that stand for 169 megapixels; Pillow alone warns only, up to twice its limit."""
    bomb = in_file(Image.new("1", (13000, 13000)), "PNG", optimize=True)
    assert len(bomb.getvalue()) < 30_000
    loaded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: loaded.append(self))
    for source in (bomb, bomb.getvalue()):
        with (
            pytest.warns(Image.DecompressionBombWarning),
            pytest.raises(InputError, match=r"13000×13000 pixels.*MAX_IMAGE_PIXELS"),
        ):
            open_picture(source)
    assert not loaded
    monkeypatch.undo()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(InputError, match="more than the 20"):
        open_picture(random_image(5, 5))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert open_picture(random_image(5, 5)).size == (5, 5)


def test_the_picture_given_stays_as_it_is():
    image = Image.open(photo(6, (4, 3))[0])
    info = dict(image.info)
    opened = open_picture(image)
    assert image.size == (4, 3)
    assert image.info == info
    assert opened.info == {}
    plain = random_image(4, 4)
    open_picture(plain).putpixel((0, 0), (0, 0, 0))
    assert np.array_equal(np.asarray(plain), np.asarray(random_image(4, 4)))


def test_a_data_set_of_animations_says_it_once(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_said", [])
    frames = [Image.new("L", (4, 4), level) for level in (10, 20)]
    for k in range(3):
        frames[0].save(tmp_path / f"{k}.gif", save_all=True, append_images=frames[1:])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        assert all(np.asarray(s.image).max() == 10 for s in ImageFolder(tmp_path))
    assert [str(w.message) for w in found] == [pictures.ONE_FRAME]
