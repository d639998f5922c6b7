"""A cell of a table is what it should be, or refused with its row and column."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from mm_lens.data import datasets, tables
from mm_lens.data.tables import read_table
from mm_lens.errors import DataError


def png(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def parquet(path: Path, **columns) -> Path:
    pa.parquet.write_table(pa.table(columns), path / "set.parquet")
    return path / "set.parquet"


def jsonl(path: Path, *rows) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (path / "set.jsonl").write_text("\n".join(lines), "utf-8")
    return path / "set.jsonl"


# ---- pictures ----


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ({"bytes": None, "path": None}, "neither bytes nor path"),
        ({"url": "https://example.org/a.png"}, "neither bytes nor path"),
        ({"bytes": b"", "path": ""}, "neither bytes nor path"),
        (b"", "has no bytes"),
        ([1, 2], "is a list"),
        (3.5, "is a float"),
        ("https://example.org/a.png", "is an address"),
        ("a\0.png", "no path of a file"),
    ],
)
def test_an_image_that_is_none_is_not_a_sample_without_one(tmp_path, image, told):
    path = parquet(tmp_path, image=[image], text=["What is it?"])
    with pytest.raises(DataError, match=rf"Row 0 of .*set\.parquet.*'image'.*{told}"):
        datasets.load(path)


def test_an_empty_object_is_no_image(tmp_path):
    path = jsonl(tmp_path, {"image": None, "text": "a"}, {"image": {}, "text": "b"})
    with pytest.raises(DataError, match=r"Row 1 .*\(line 2\): 'image' .*neither bytes nor path"):
        datasets.load(path)


def test_images_in_structs_are_read(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    images = [{"bytes": png(), "path": "gone.png"}, {"bytes": None, "path": "a.png"}, None]
    samples = datasets.load(parquet(tmp_path, image=images, text=["a", "b", "c"]))
    for sample, seed in zip(samples, (0, 1), strict=False):
        assert np.array_equal(
            np.asarray(sample.image), np.asarray(Image.open(io.BytesIO(png(seed))))
        )
    assert samples[2].image is None


# ---- texts ----


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (["a", "b"], "'text' is a list"),
        ({"en": "a"}, "'text' is a dict"),
        (None, "'text' is empty"),
        ("", "'text' is empty"),
        (" \t", "'text' is empty"),
        (float("nan"), "'text' is empty"),
        (float("inf"), "'text' is inf"),
        ("half \ud83d", "'text' holds half of a character"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, text, told):
    path = jsonl(tmp_path, {"image": "", "text": "fine"}, {"image": "", "text": text})
    with pytest.raises(DataError, match=rf"Row 1 of .*set\.jsonl \(line 2\): {told}"):
        datasets.load(path)


def test_answers_and_ids(tmp_path):
    rows = [
        {"answer": "red", "id": 0},
        {"answer": 3, "id": "a"},
        {"answer": float("nan"), "id": None},
        {"answer": True},
    ]
    path = jsonl(tmp_path, *({"image": "", "text": "?", **row} for row in rows))
    found = read_table(path)
    assert [row.answer for row in found] == ["red", "3", None, "True"]
    assert [row.id for row in found] == ["0", "a", "2", "3"]
    for column in ("answer", "id"):
        path = jsonl(tmp_path, {"image": "", "text": "?", column: ["a"]})
        with pytest.raises(DataError, match=f"Row 0 .*'{column}' is a list"):
            datasets.load(path)


def test_missing_numbers_of_parquet_are_no_answers(tmp_path):
    columns = {"image": [None] * 2, "text": ["a", "b"], "answer": [1.0, float("nan")]}
    assert [row.answer for row in read_table(parquet(tmp_path, **columns))] == ["1.0", None]


def test_bytes_are_no_text(tmp_path):
    with pytest.raises(DataError, match=r"Row 0 .*'text' is a bytes"):
        read_table(parquet(tmp_path, image=[None], text=[b"What?"]))


# ---- csv ----


def test_a_comma_without_quotes_moves_nothing(tmp_path):
    path = tmp_path / "set.csv"
    path.write_text('image,text,answer\n,"Now, what?",a\n,Then, what?,red\n')
    with pytest.raises(DataError, match=r"row 1, line 3, has 4 cells under 3 columns: put quotes"):
        datasets.load(path)
    path.write_text("image,text\n,Then, what?\n")
    with pytest.raises(DataError, match="row 0, line 2, has 3 cells under 2 columns"):
        datasets.load(path)


@pytest.mark.parametrize(
    "text",
    [
        "image,text,answer\n,cut",  # the end is missing
        'image,text\n,"cut off in the mid',
        'image,text\n,"a"b"\n',
        "image,text,text\n,a,b\n",
        "image,text\n,a\n" + ",b\0,c\n",
    ],
)
def test_damaged_csv_is_refused(tmp_path, text):
    (tmp_path / "set.csv").write_text(text)
    with pytest.raises(DataError, match=r"set\.csv"):
        datasets.load(tmp_path / "set.csv")


def test_line_ends_and_marks_of_csv(tmp_path):
    (tmp_path / "set.csv").write_bytes(
        '\ufeffimage,text,answer\r\n,"two\nlines\u2028",\r\n\r\n,b,c\r\n'.encode()
    )
    rows = read_table(tmp_path / "set.csv")
    assert [(row.text, row.answer) for row in rows] == [("two\nlines\u2028", None), ("b", "c")]


# ---- jsonl ----


def test_line_ends_and_marks_of_jsonl(tmp_path):
    """U+2028 and U+0085 end a line for `str.splitlines`, and not for JSON."""
    text = "a\u2028b\x85c\x0bd"
    line = json.dumps({"image": "", "text": text}, ensure_ascii=False).replace("\\u000b", "\x0b")
    line = line.replace("\x0b", "\\u000b")
    (tmp_path / "set.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n\r\n{line}".encode())
    assert [row.text for row in read_table(tmp_path / "set.jsonl")] == [text, text]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[" * 100_000 + "]" * 100_000, "line 2: it is nested too deep"),
        ("[" * 500 + "]" * 500, "line 2: it is nested too deep"),
        ('{"image": "", "text": "a", "text": "b"}', "line 2: the entry 'text' is there twice"),
        ('{"image": "", "text": "a"', "line 2: "),
        ('\ufeff{"image": "", "text": "a"}', "line 2: "),
    ],
)
def test_damaged_jsonl_is_refused(tmp_path, line, told):
    with pytest.raises(DataError, match=rf"set\.jsonl cannot be read \({told}"):
        datasets.load(jsonl(tmp_path, {"image": "", "text": "fine"}, line))


# ---- sizes ----


def test_rows_are_counted_before_they_are_unpacked(tmp_path, monkeypatch):
    n = 3 * 10**7
    ones = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int8)), pa.array(["What?"]))
    path = parquet(tmp_path, image=pa.nulls(n, pa.string()), text=ones)
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match="30,000,000 rows, more than 10,000,000"):
        datasets.load(path)
    monkeypatch.setattr(tables, "MAX_ROWS", 2)
    with pytest.raises(DataError, match="more than 2 rows"):
        datasets.load(jsonl(tmp_path, *[{"image": "", "text": "a"}] * 3))


def test_bytes_are_counted_while_they_are_unpacked(tmp_path, monkeypatch):
    """A file of 500 kB that stands for 200 MB."""
    monkeypatch.setattr(tables, "MAX_BYTES", 10**8)
    picture = pa.array([np.random.default_rng(0).bytes(5 * 10**5)])
    images = pa.DictionaryArray.from_arrays(pa.array(np.zeros(400, np.int8)), picture)
    path = parquet(tmp_path, image=images, text=["What?"] * 400)
    assert path.stat().st_size < 10**6
    with pytest.raises(DataError, match="unpacks to more than 100,000,000 bytes"):
        datasets.load(path)


# ---- names ----


def test_names_that_are_no_utf_8(tmp_path):
    name = os.fsdecode(b"\xffpicture.png")
    (tmp_path / name).write_bytes(png())
    sample = datasets.load(tmp_path)[0]
    assert sample.image is not None
    assert sample.id == "\\udcffpicture.png"
    table = tmp_path / os.fsdecode(b"\xff.parquet")
    parquet(tmp_path, image=[None], text=["a"]).rename(table)
    assert datasets.load(table)[0].text == "a"


def test_what_macos_leaves_beside_files_is_no_sample(tmp_path):
    for name in ("a.png", "._a.png", "sub/._b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png() if name == "a.png" else b"\0\5\x16\7")
    assert [sample.id for sample in datasets.load(tmp_path)] == ["a.png"]
    jsonl(tmp_path, {"image": "a.png", "text": "?"}).rename(tmp_path / "set.jsonl")
    (tmp_path / "._set.jsonl").write_bytes(b"\0\5\x16\7")
    assert [sample.text for sample in datasets.load(tmp_path)] == ["?"]


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png cannot be used: .*is not a file"):
        datasets.load(tmp_path)[0]
    path = jsonl(tmp_path, {"image": "a.png", "text": "?"})
    with pytest.raises(DataError, match=r"a\.png cannot be used: .*is not a file"):
        datasets.load(path)[0]
    for suffix in tables.SUFFIXES:
        os.mkfifo(tmp_path / f"pipe{suffix}")
        with pytest.raises(DataError, match=r"cannot be read .it is not a file"):
            datasets.load(tmp_path / f"pipe{suffix}")
