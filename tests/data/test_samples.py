"""Sequences of samples: what tells two apart, and what is drawn."""

from __future__ import annotations

from PIL import Image
from tiny import random_image

from mm_lens.data import datasets
from mm_lens.data.samples import DataSet, Row, Sample
from mm_lens.data.sources import Given


def test_images_however_many():
    one, other = random_image(3, 4), random_image(4, 5)
    for image, expected in [(None, ()), (one, (one,)), ((one, other), (one, other))]:
        assert Sample("0", "?", image, None).images == expected


def test_samples_that_share_something_are_drawn_one_after_another():
    rows = [Row(str(i), "?", (Given(random_image(3, 4)),), shared=i % 2) for i in range(10)]
    rows = [Row(**{**vars(row), "shared": f"of {row.shared}"}) for row in rows]
    drawn = DataSet(rows).draw(2, seed=3)
    assert {row.shared for row in drawn._rows} == {"of 0", "of 1"}


def test_split_and_name_stay():
    samples = datasets.load("easy-vqa", limit=4)
    assert (samples.split, samples[1:3].split) == ("test", "test")
    assert samples[1:3].name == "easy-vqa test"


def test_texts_may_be_written_anew():
    samples = datasets.load("easy-vqa", limit=2).ask(lambda row: row.about["question"].upper())
    assert samples[0].text.isupper()
    assert isinstance(samples[0].image, Image.Image)
