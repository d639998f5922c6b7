"""Data sets of the library `datasets`, made and saved by it."""

from __future__ import annotations

import io

import datasets as library
import numpy as np
import pytest
from tiny import random_image

from mm_lens.data import datasets
from mm_lens.data.sets import hugging_face
from mm_lens.errors import DataError

IMAGES = [random_image(5 + i, 7, i) for i in range(3)]


@pytest.fixture(scope="module")
def table() -> library.Dataset:
    """Images of Pillow, one missing, options and the number of the right one."""
    return library.Dataset.from_dict(
        {
            "picture": [IMAGES[0], None, IMAGES[2]],
            "question": ["a?", "b?", "c?"],
            "choices": [["x", "y"]] * 3,
            "answer": [0, 1, 1],
        },
        features=library.Features(
            {
                "picture": library.Image(),
                "question": library.Value("string"),
                "choices": library.List(library.Value("string")),
                "answer": library.Value("int8"),
            }
        ),
    )


NAMES = {"image_column": "picture", "text_column": "question", "options_column": "choices"}


def check(samples) -> None:
    assert [s.text for s in samples] == ["a?", "b?", "c?"]
    assert [(s.answer, s.right) for s in samples] == [("x", 0), ("y", 1), ("y", 1)]
    assert samples[1].image is None
    for i in (0, 2):
        np.testing.assert_array_equal(np.asarray(samples[i].image), np.asarray(IMAGES[i]))


def test_an_object_in_memory(table):
    samples = datasets.load(table, **NAMES)
    check(samples)
    assert samples.outline() == datasets.load(table, **NAMES).outline()
    other = datasets.load(table.select([1, 0, 2]), **NAMES)
    assert [s.text for s in other] == ["b?", "a?", "c?"]
    assert other.outline() != samples.outline()


def test_images_are_not_decoded_before_they_are_asked_for(table, monkeypatch):
    read = []
    monkeypatch.setattr(hugging_face, "as_images", lambda *a, **k: read.append(a) or ())
    samples = datasets.load(table, **NAMES)
    assert not read
    _ = samples[0]
    assert len(read) == 1


def test_a_saved_directory_and_its_splits(table, tmp_path):
    table.save_to_disk(str(tmp_path / "one"))
    check(datasets.load(tmp_path / "one", **NAMES))
    parts = library.DatasetDict({"test": table, "train": table.select([0])})
    parts.save_to_disk(str(tmp_path / "several"))
    check(datasets.load(tmp_path / "several", **NAMES))
    assert len(datasets.load(parts, split="train", **NAMES)) == 1
    with pytest.raises(DataError, match=r"no split 'dev'\. Available: test, train"):
        datasets.load(tmp_path / "several", split="dev", **NAMES)
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as what"):
        datasets.load(tmp_path / "one")


def test_several_images_of_a_row():
    feature = library.Features(
        {"image": library.List(library.Image()), "text": library.Value("string")}
    )
    file = io.BytesIO()
    IMAGES[0].save(file, "PNG")
    cells = [[{"bytes": file.getvalue(), "path": None}] * 2]
    table = library.Dataset.from_dict({"image": cells, "text": ["?"]}, features=feature)
    assert [image.size for image in datasets.load(table)[0].images] == [(7, 5)] * 2


def test_a_name_of_the_hub(table, tmp_path, monkeypatch):
    """The library is asked for the name, the configuration and the split: no network here."""
    asked = []

    def load_dataset(*given, **options):
        asked.append((given, options))
        if len(asked) > 1:
            raise ConnectionError("no network")
        return table

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    check(datasets.load("hf:some/set:part", split="validation", **NAMES))
    assert asked == [(("some/set", "part"), {"split": "validation"})]
    with pytest.raises(DataError, match=r"'some/set' cannot be had, split 'test' \(no network\)"):
        datasets.load("hf:some/set")
    with pytest.raises(DataError, match="hf needs a name"):
        datasets.load("hf:")


def test_a_wrong_column_and_a_stream_are_refused(table):
    with pytest.raises(DataError, match=r"Row 0 has no column 'image'\. There are: picture, "):
        datasets.load(table)
    with pytest.raises(DataError, match="without streaming=True"):
        datasets.load(table.to_iterable_dataset(), **NAMES)
