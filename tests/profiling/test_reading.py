"""Samples that cannot be read end the run or are listed."""

from __future__ import annotations

import pytest
from made_data import make_data, quick
from tiny import random_image

from mm_lens import DataError, InputError
from mm_lens.data.datasets import ImageFolder, Sample


@pytest.fixture
def folder(tmp_path):
    """Three images, the second one truncated."""
    for i in range(3):
        random_image(20, 30, i).save(tmp_path / f"{i}.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    return ImageFolder(tmp_path)


def test_unreadable_sample_ends_the_run_or_is_listed(model, folder):
    with pytest.raises(DataError, match=r"1\.png"):
        quick(model, folder)
    data = quick(model, folder, on_error="skip").provenance["data"]
    assert (data["n_samples"], data["n_skipped"]) == (2, 1)
    assert "1.png" in data["skipped"][0]["reason"]


def test_a_sample_the_processor_refuses_is_found_in_its_batch(model):
    data = make_data(4)
    data[2] = Sample("bad", "two <image> <image> placeholders", data[2].image, None)
    assert quick(model, data, on_error="skip").provenance["data"]["skipped"][0]["sample"] == "bad"
    with pytest.raises(InputError, match="placeholder"):
        quick(model, data)


def test_a_data_set_of_ones_own_may_raise_anything(model):
    class Broken(list):
        def __getitem__(self, index):
            if index == 1:
                raise ZeroDivisionError("nothing left")
            return super().__getitem__(index)

    data = Broken(make_data(3))
    with pytest.raises(ZeroDivisionError):
        quick(model, data)
    (skipped,) = quick(model, data, on_error="skip").provenance["data"]["skipped"]
    assert skipped == {"index": 1, "sample": "#1", "reason": "ZeroDivisionError: nothing left"}


def test_no_sample_left(model, folder):
    with pytest.raises(DataError, match="All 1 samples were skipped"):
        quick(model, folder[1:2], on_error="skip")
    with pytest.raises(DataError, match="no samples"):
        quick(model, [])
