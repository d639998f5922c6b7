"""Samples agree with the files and packages they come from; damaged input is named."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import easy_vqa
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFile

from mm_lens.data import datasets, pictures
from mm_lens.data.datasets import EasyVQA, ImageFolder, Sample
from mm_lens.errors import DataError


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A noisy picture: a solid one would survive being cut in half."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(pixels).save(path)
    return path


def test_easy_vqa_is_the_package_in_its_order() -> None:
    questions, answers, images = easy_vqa.get_test_questions()
    samples = EasyVQA("test")
    assert len(samples) == len(questions) == 9673
    for i in (0, 1234, len(samples) - 1):
        sample = samples[i]
        assert (sample.text, sample.answer) == (questions[i], answers[i])
        with Image.open(easy_vqa.get_test_image_paths()[images[i]]) as image:
            assert sample.image is not None
            np.testing.assert_array_equal(
                np.asarray(sample.image), np.asarray(image.convert("RGB"))
            )
    assert samples[-1].id == samples[len(samples) - 1].id
    assert [s.id for s in samples[3:6]] == [samples[i].id for i in (3, 4, 5)]
    with pytest.raises(IndexError):
        samples[len(samples)]


def test_splits_share_no_image() -> None:
    train = {Path(p).read_bytes() for p in easy_vqa.get_train_image_paths().values()}
    test = {Path(p).read_bytes() for p in easy_vqa.get_test_image_paths().values()}
    assert len(train) == 4000
    assert not train & test


def test_ids_are_unique() -> None:
    samples = datasets.load("easy-vqa", "test", limit=200)
    assert len({sample.id for sample in samples}) == 200


def test_subset_follows_the_seed_and_spreads_over_images() -> None:
    first, again, other = (datasets.load("easy-vqa", limit=100, seed=s) for s in (3, 3, 4))
    ids = [sample.id for sample in first]
    assert ids == [sample.id for sample in again]
    assert ids != [sample.id for sample in other]
    images = {name.rsplit("/", 1)[0] for name in ids}
    assert len(images) > 80
    assert [sample.id for sample in first[10:12]] == ids[10:12]


def test_no_limit_is_everything_in_order() -> None:
    assert len(datasets.load("easy-vqa", "train")) == 38575
    assert len(datasets.load("easy-vqa", limit=10**6)) == 9673


def test_folder_without_a_table(tmp_path: Path, picture: Path) -> None:
    (tmp_path / "sub").mkdir()
    Image.new("L", (5, 7), 200).save(tmp_path / "sub" / "grey.jpg")
    (tmp_path / "notes.txt").write_text("not an image")
    samples = ImageFolder(tmp_path, question="What is it?")
    assert [s.id for s in samples] == ["noise.png", str(Path("sub") / "grey.jpg")]
    assert all(s.image is not None and s.image.mode == "RGB" for s in samples)
    assert {s.text for s in samples} == {"What is it?"}
    assert samples[1].image is not None
    assert samples[1].image.size == (5, 7)


def _csv(path: Path, rows: list[dict[str, str]]) -> Path:
    pd.DataFrame(rows).to_csv(path.with_suffix(".csv"), index=False)
    return path.with_suffix(".csv")


def _jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path.with_suffix(".jsonl")


def _parquet(path: Path, rows: list[dict[str, str]]) -> Path:
    pd.DataFrame(rows).to_parquet(path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


Writer = Callable[[Path, list[dict[str, str]]], Path]


@pytest.mark.parametrize("write", [_csv, _jsonl, _parquet])
@pytest.mark.parametrize("whole_folder", [True, False])
def test_tables(tmp_path: Path, picture: Path, write: Writer, whole_folder: bool) -> None:
    rows = [
        {"image": "noise.png", "text": "What, then?", "answer": "noise"},
        {"image": "", "text": "And without?", "answer": ""},
    ]
    table = write(tmp_path / "set", rows)
    samples = list(datasets.load(tmp_path if whole_folder else table))
    assert [(s.text, s.answer) for s in samples] == [
        ("What, then?", "noise"),
        ("And without?", None),
    ]
    assert samples[0].image is not None
    np.testing.assert_array_equal(np.asarray(samples[0].image), np.asarray(Image.open(picture)))
    assert samples[1].image is None


def test_parquet_with_images_inside(tmp_path: Path, picture: Path) -> None:
    rows = [
        {"image": {"bytes": picture.read_bytes(), "path": None}, "text": "a"},
        {"image": {"bytes": picture.read_bytes()[:-500], "path": None}, "text": "b"},
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "set.parquet")
    samples = ImageFolder(tmp_path / "set.parquet")
    assert samples[0].image is not None
    np.testing.assert_array_equal(np.asarray(samples[0].image), np.asarray(Image.open(picture)))
    with pytest.raises(DataError, match=r"of 1 in .*set\.parquet cannot be decoded"):
        samples[1]


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "webp", "gif"])
def test_truncated_image_is_named(tmp_path: Path, picture: Path, ending: str) -> None:
    path = tmp_path / f"cut.{ending}"
    Image.open(picture).save(path)
    picture.unlink()
    assert datasets.load(tmp_path)[0].image is not None
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"cut\.{ending}.*replace the file"):
        datasets.load(tmp_path)[0]


def test_truncated_png_is_named_even_if_pillow_is_told_to_fill_it(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture.write_bytes(picture.read_bytes()[:-2000])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match=r"noise\.png"):
        pictures.read_picture(picture)


def test_missing_image_is_named(tmp_path: Path) -> None:
    table = _jsonl(tmp_path / "set", [{"image": "gone.png", "text": "?"}])
    with pytest.raises(DataError, match=r"gone\.png does not exist"):
        datasets.load(table)[0]


def _bad_sources(folder: Path) -> Iterator[tuple[Path | str, str]]:
    yield "easy-vqs", "neither a data set .easy-vqa, .* nor"
    yield folder / "absent", "neither"
    (folder / "empty").mkdir()
    yield folder / "empty", "holds no samples"
    (folder / "text.txt").write_text("x")
    yield folder / "text.txt", "not a table"
    (folder / "none.jsonl").write_text("")
    yield folder / "none.jsonl", "holds no samples"
    (folder / "broken.jsonl").write_text('{"image": ')
    yield folder / "broken.jsonl", "broken.jsonl cannot be read"
    (folder / "broken.parquet").write_text("x")
    yield folder / "broken.parquet", "broken.parquet cannot be read"
    (folder / "columns.csv").write_text("picture,question\na.png,b\n")
    yield (
        folder / "columns.csv",
        "Row 0 .* no column 'image'. .*: picture, question. .*--image-column",
    )
    (folder / "list.jsonl").write_text("[1]\n")
    yield folder / "list.jsonl", "Row 0 .* is a list, not an object of columns"
    (folder / "number.jsonl").write_text('{"image": 3, "text": "?"}\n')
    yield folder / "number.jsonl", "'image' is a int"
    (folder / "two").mkdir()
    for name in ("a.csv", "b.csv"):
        (folder / "two" / name).write_text("image,text\n,hello\n")
    yield folder / "two", "several tables"


def test_bad_sources(tmp_path: Path) -> None:
    for source, message in _bad_sources(tmp_path):
        with pytest.raises(DataError, match=message):
            datasets.load(source)


def test_bad_split_and_limit() -> None:
    with pytest.raises(DataError, match="no split 'dev'"):
        datasets.load("easy-vqa", "dev")
    with pytest.raises(DataError, match="limit=0"):
        datasets.load("easy-vqa", limit=0)


def test_sample_cannot_be_changed() -> None:
    sample = Sample("a", "b", None, None)
    with pytest.raises(AttributeError):
        sample.text = "c"  # type: ignore[misc]


def test_a_draw_takes_every_image_once_before_any_twice() -> None:
    pixels = [sample.image.tobytes() for sample in datasets.load("easy-vqa", limit=40, seed=1)]
    paths = [row.images for row in datasets.load("easy-vqa", limit=1300, seed=1)._rows]
    assert len(set(paths[:1000])) == 1000
    assert len(set(pixels)) > 36  # different files may show the same shape
    assert max(paths.count(p) for p in set(paths)) == 2
