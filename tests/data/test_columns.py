"""Columns by name: whatever a table calls them, and what is said of a wrong one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import random_image

from mm_lens.data import datasets
from mm_lens.data.samples import Sample
from mm_lens.errors import DataError


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    for i in range(3):
        random_image(5 + i, 7, i).save(tmp_path / f"{i}.png")
    return [f"{i}.png" for i in range(3)]


def write(path: Path, rows: list[dict], ending: str) -> Path:
    """A table in each format, by pandas or json."""
    table = path / f"set{ending}"
    frame = pd.DataFrame(rows)
    if ending == ".json":
        table.write_text(json.dumps(rows))
    elif ending == ".jsonl":
        table.write_text("\n".join(map(json.dumps, rows)))
    elif ending == ".parquet":
        frame.to_parquet(table)
    else:
        frame.to_csv(table, index=False, sep="\t" if ending == ".tsv" else ";")
    return table


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format_by_the_names_of_its_columns(tmp_path, pictures, ending):
    rows = [
        {"pic": name, "q": f"What, {i}?", "a": "no; yes", "key": f"k{i}", "level": i}
        for i, name in enumerate(pictures)
    ]
    samples = datasets.load(
        write(tmp_path, rows, ending),
        image_column="pic",
        text_column="q",
        answer_column="a",
        id_column="key",
        prompt="Level {level}: {question}",
    )
    assert [sample.id for sample in samples] == ["k0", "k1", "k2"]
    for i, sample in enumerate(samples):
        assert sample.text == f"Level {i}: What, {i}?"
        assert sample.answer == "no; yes"
        expected = np.asarray(Image.open(tmp_path / pictures[i]))
        np.testing.assert_array_equal(np.asarray(sample.image), expected)


def test_a_separator_is_found_or_given(tmp_path):
    for separator in ",;\t|":
        (tmp_path / "a.csv").write_text(f"image{separator}text\n{separator}hm\n")
        assert datasets.load(tmp_path / "a.csv")[0].text == "hm"
    (tmp_path / "a.txt").write_text("image^text\n^a,b\n")
    assert datasets.load(tmp_path / "a.txt", separator="^")[0].text == "a,b"
    with pytest.raises(DataError, match="separator is one character"):
        datasets.load(tmp_path / "a.txt", separator="^^")


def test_samples_of_text_alone(tmp_path):
    (tmp_path / "a.csv").write_text("text\nhm\n")
    assert datasets.load(tmp_path / "a.csv", image_column=None)[0].image is None


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, r"no column 'image'\. There are: picture, text\..*image_column= \(--image-column\)"),
        ({"image_column": "pictures"}, r"Did you mean 'picture'\?"),
        ({"image_column": "picture", "text_column": "q"}, r"no column 'q'.*--text-column"),
        ({"image_column": "picture", "answer_column": "a"}, r"no column 'a'.*--answer-column"),
        ({"image_column": "picture", "options_column": "o"}, r"no column 'o'.*--options-column"),
        ({"image_column": "picture", "id_column": "i"}, r"no column 'i'.*--id-column"),
    ],
)
def test_a_wrong_column_says_which_there_are_and_the_option(tmp_path, asked, told):
    (tmp_path / "a.csv").write_text("picture,text\n,hm\n")
    with pytest.raises(DataError, match=told):
        datasets.load(tmp_path / "a.csv", **asked)


OPTIONS = ("red", "green", "blue")


@pytest.mark.parametrize("cell", [[*OPTIONS], json.dumps(OPTIONS), "red | green|blue"])
@pytest.mark.parametrize("answer", ["green", "B", "(B)", "1", 1])
def test_options_and_the_right_one_however_they_are_written(cell, answer):
    (sample,) = datasets.load([{"image": None, "text": "?", "options": cell, "answer": answer}])
    assert (sample.options, sample.right, sample.answer) == (OPTIONS, 1, "green")


def test_options_in_columns_of_their_own():
    record = {"image": None, "text": "?", "A": "red", "B": "green", "C": "", "answer": "A"}
    (sample,) = datasets.load([record], options_column=["A", "B", "C"])
    assert (sample.options, sample.right) == (("red", "green"), 0)


@pytest.mark.parametrize(
    ("options", "answer", "told"),
    [
        (["a", "b"], "c", "'c' of 'answer' is none of the 2 options"),
        (["a", "b"], 2, "'2' of 'answer' is none"),
        (["a", "b"], 0.5, "'0.5' of 'answer' is none"),
        (["a"], "a", "fewer than two options"),
        (["a", ""], "a", "or an empty one"),
        (3, "a", "'options' is a int"),
        ('["a", ', "a", "is none"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, answer, told):
    record = {"image": None, "text": "?", "options": options, "answer": answer}
    with pytest.raises(DataError, match=told):
        datasets.load([record])


def test_several_images_of_a_row(tmp_path, pictures):
    rows = [{"image": pictures[:2], "text": "Two?"}, {"image": [], "text": "None?"}]
    two, none = datasets.load(write(tmp_path, rows, ".jsonl"))
    assert isinstance(two.image, tuple)
    assert [image.size for image in two.images] == [(7, 5), (7, 6)]
    assert (none.image, none.images) == (None, ())
    record = {"one": str(tmp_path / "0.png"), "other": None, "text": "?"}
    (sample,) = datasets.load([record], image_column=["one", "other"])
    assert sample.image.size == (7, 5)


def test_a_folder_of_images_elsewhere(tmp_path, pictures):
    (tmp_path / "tables").mkdir()
    table = write(tmp_path / "tables", [{"image": "0.png", "text": "?"}], ".jsonl")
    with pytest.raises(DataError, match="does not exist"):
        datasets.load(table)[0]
    assert datasets.load(table, image_folder=tmp_path)[0].image.size == (7, 5)


def test_objects_in_memory():
    image = random_image(5, 7)
    expected = np.asarray(image)
    forms = [
        [{"image": image, "text": "?", "answer": "a"}],
        [(image, "?", "a")],
        [Sample("0", "?", image, "a")],
        pd.DataFrame([{"image": image, "text": "?", "answer": "a"}]),
        [{"image": expected, "text": "?", "answer": "a"}],
    ]
    for form in forms:
        (sample,) = datasets.load(form)
        assert (sample.id, sample.text, sample.answer) == ("0", "?", "a")
        np.testing.assert_array_equal(np.asarray(sample.image), expected)
        assert datasets.load(form).outline() == datasets.load(form).outline()


@pytest.mark.parametrize("item", [("?",), ("a.png", 3), ("a.png", "?", "a", "b")])
def test_a_tuple_of_another_form_is_refused(item):
    with pytest.raises(DataError, match=r"Item 0 .*A tuple is"):
        datasets.load([item])


def test_what_would_have_no_effect_is_refused(tmp_path, pictures):
    with pytest.raises(DataError, match="holds no table: leave out names of columns"):
        datasets.load(tmp_path, text_column="q")
    with pytest.raises(DataError, match="has questions of its own"):
        datasets.load(write(tmp_path, [{"image": "", "text": "?"}], ".csv"), question="What?")


def test_columns_of_a_set_that_has_its_own_are_refused():
    with pytest.raises(DataError, match="easy-vqa has columns of its own"):
        datasets.load("easy-vqa", text_column="q")
    with pytest.raises(DataError, match="leave out what stands behind it"):
        datasets.load("easy-vqa:/tmp/nowhere")
