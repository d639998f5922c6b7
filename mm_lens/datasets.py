"""Image-text samples: the demo data (easy-VQA), local files and folders.

A data set is a plain sequence of `Sample`; images are decoded only when a sample is taken, so a
large set costs no memory. `register` adds a named set.
"""

import csv
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from PIL import Image, UnidentifiedImageError

from .errors import DataError

Split = Literal["train", "test"]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
TABLE_SUFFIXES = frozenset({".csv", ".jsonl", ".parquet"})


@dataclass(frozen=True)
class Sample:
    """One question about at most one image.

    Attributes:
        id: Names the sample within its data set; stable between runs.
        text: The question.
        image: Fully decoded RGB image, or None for a text-only sample.
        answer: The expected answer, or None where it is not known.
    """

    id: str
    text: str
    image: Image.Image | None
    answer: str | None


@dataclass(frozen=True)
class _Row:
    """A sample whose image has not been read yet."""

    id: str
    text: str
    image: Path | None
    answer: str | None

    def read(self) -> Sample:
        image = None if self.image is None else read_image(self.image)
        return Sample(self.id, self.text, image, self.answer)


def read_image(path: Path) -> Image.Image:
    """Decode an image file completely, as RGB.

    Raises:
        DataError: The file is missing, not an image, or truncated.
    """
    try:
        with Image.open(path) as image:
            # Opening reads the header only, and Pillow can be told (globally, by any library) to
            # fill what is missing with grey: `verify` checks the file itself where it can.
            image.verify()
        with Image.open(path) as image:
            image.load()
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(
            f"Image {path} does not exist. Correct the path or remove the row."
        ) from error
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise DataError(
            f"Image {path} cannot be decoded ({error}). It is damaged or not an image: "
            "replace the file or remove it from the data set."
        ) from error


class _Rows(Sequence[Sample]):
    """Sequence over rows that reads each image when its sample is taken."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return _Rows(self._rows[index])
        return self._rows[index].read()

    def __iter__(self) -> Iterator[Sample]:
        return (row.read() for row in self._rows)


class _Subset(Sequence[Sample]):
    """Some samples of another sequence, in a given order, read when taken."""

    def __init__(self, samples: Sequence[Sample], indices: Sequence[int]) -> None:
        self._samples, self._indices = samples, indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return _Subset(self._samples, self._indices[index])
        return self._samples[self._indices[index]]


class EasyVQA(_Rows):
    """easy-VQA (Victor Zhou, MIT licence): questions about one coloured shape per 64 x 64 image.

    train: 38,575 questions about 4,000 images; test: 9,673 questions about 1,000 other images;
    13 answers (yes, no, 3 shapes, 8 colours). Order is that of the package ``easy-vqa``.
    """

    def __init__(self, split: Split = "test") -> None:
        import easy_vqa

        readers = {
            "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
            "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
        }
        if split not in readers:
            raise DataError(f"easy-vqa has no split {split!r}. Available: {', '.join(readers)}.")
        read_questions, read_paths = readers[split]
        paths = read_paths()
        super().__init__(
            [
                _Row(f"{split}/{image}/{i}", question, Path(paths[image]), answer)
                for i, (question, answer, image) in enumerate(zip(*read_questions(), strict=True))
            ]
        )


class ImageFolder(_Rows):
    """Local images: a table of images and questions, or a folder of image files.

    A table (``.csv``, ``.jsonl``, ``.parquet``) has the columns ``image`` (a path, relative to
    the table; may be empty), ``text`` and optionally ``answer``. A folder is searched for such a
    table first; without one, every image file in it (recursively, sorted) is asked `question`.
    """

    def __init__(self, path: str | Path, question: str = "What is shown in this image?") -> None:
        path = Path(path)
        if not path.exists():
            raise DataError(f"{path} does not exist. Give a folder of images or a table file.")
        if path.is_file():
            super().__init__(_table_rows(path))
            return
        tables = sorted(p for p in path.iterdir() if p.suffix.lower() in TABLE_SUFFIXES)
        if len(tables) > 1:
            names = ", ".join(table.name for table in tables)
            raise DataError(f"{path} holds several tables ({names}). Give the path of one of them.")
        if tables:
            super().__init__(_table_rows(tables[0]))
            return
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        super().__init__([_Row(str(f.relative_to(path)), question, f, None) for f in files])


def _table_rows(path: Path) -> list[_Row]:
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        known = ", ".join(sorted(TABLE_SUFFIXES))
        raise DataError(f"{path} is not a table that can be read. Known endings: {known}.")
    try:
        records = _RECORDS[suffix](path)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"Table {path} cannot be read ({error}). Check the file.") from error
    return [_table_row(path, i, record) for i, record in enumerate(records)]


def _table_row(path: Path, index: int, record: Any) -> _Row:
    if not isinstance(record, dict) or not record.get("text") or "image" not in record:
        raise DataError(
            f"Row {index} of {path} needs the columns 'image' (may be empty) and 'text' (may not)."
        )
    image = record["image"]
    if image and not isinstance(image, str):
        raise DataError(
            f"Row {index} of {path}: 'image' must be a path, not {type(image).__name__}."
        )
    answer = record.get("answer")
    return _Row(
        id=str(record.get("id") or index),
        text=str(record["text"]),
        image=path.parent / image if image else None,
        answer=None if answer in (None, "") else str(answer),
    )


def _read_csv(path: Path) -> list[Any]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _read_jsonl(path: Path) -> list[Any]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow.parquet

    records: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
    return records


_RECORDS: dict[str, Callable[[Path], list[Any]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}

_NAMED: dict[str, Callable[[Split], Sequence[Sample]]] = {"easy-vqa": EasyVQA}


def names() -> list[str]:
    """Names that `load` knows."""
    return sorted(_NAMED)


def load(
    name_or_path: str | Path, split: Split = "test", limit: int | None = None, seed: int = 0
) -> Sequence[Sample]:
    """A named data set or a local folder or table, as a sequence of samples.

    Args:
        name_or_path: One of `names()`, else a path for `ImageFolder`.
        split: Of a named data set; local files have none.
        limit: At most this many samples, drawn without replacement; None takes all, in order.
        seed: Of the draw. The same seed gives the same samples in the same order.

    Raises:
        DataError: Unknown name or path, unreadable table, or no sample at all.
    """
    if limit is not None and limit < 1:
        raise DataError(
            f"limit={limit} leaves no samples. Give a positive number, or None for all."
        )
    if str(name_or_path) in _NAMED:
        samples = _NAMED[str(name_or_path)](split)
    elif Path(name_or_path).exists():
        samples = ImageFolder(name_or_path)
    else:
        raise DataError(
            f"{str(name_or_path)!r} is neither a data set ({', '.join(names())}) nor an existing "
            "folder or table. Correct the name or the path."
        )
    if not len(samples):
        raise DataError(f"{name_or_path} holds no samples. Put images or table rows into it.")
    if limit is None or limit >= len(samples):
        return samples
    return _Subset(samples, random.Random(seed).sample(range(len(samples)), limit))
