"""Image-text samples: the demo data (easy-VQA), local files and folders.

A `DataSet` is a plain sequence of `Sample`; images are decoded only when a sample is taken, so a
large set costs little memory.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, overload, runtime_checkable

from PIL import Image

from mm_lens._notebook import Html, make_table, make_thumbnails
from mm_lens._storage.texts import make_encodable
from mm_lens.arguments import describe_value, require_whole
from mm_lens.data.pictures import read_picture, read_size
from mm_lens.data.tables import SUFFIXES as TABLE_SUFFIXES
from mm_lens.data.tables import TableRow, read_table
from mm_lens.errors import DataError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


SHOWN = 5
"""Samples that a notebook shows of a data set."""


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


@runtime_checkable
class Samples(Protocol):
    """A data set: any sequence of samples; one is read when it is taken."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...


class _Row(TableRow):
    """A sample whose image has not been decoded yet."""

    def read(self) -> Sample:
        name = f"of {self.id}" + (f" in {self.table}" if self.table else "")
        image = None if self.image is None else read_picture(self.image, name=name)
        return Sample(self.id, self.text, image, self.answer)

    def outline(self) -> tuple[str, str, str, int, int]:
        if isinstance(self.image, bytes):
            return self.id, self.text, blake2b(self.image).hexdigest(), len(self.image), 0
        if self.image is None:
            return self.id, self.text, "", 0, 0
        if not self.image.is_file():
            return self.id, self.text, str(self.image), -1, 0
        about = self.image.stat()
        return self.id, self.text, str(self.image), about.st_size, about.st_mtime_ns


if TYPE_CHECKING:
    _Samples = Sequence[Sample]
else:
    # A run-time type checker takes an item of what is annotated as Sequence[Sample]: it would
    # decode an image, perhaps a damaged one, at every call.
    _Samples = Sequence


class DataSet(_Samples):
    """Sequence of samples that decodes each image when its sample is taken.

    `name` says in provenance and titles where the samples come from.
    """

    def __init__(self, rows: Sequence[_Row], name: str = "") -> None:
        self._rows, self.name = rows, name

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        images = len({row.image for row in self._rows if row.image is not None})
        answers = sum(row.answer is not None for row in self._rows)
        return (
            f"{type(self).__name__}({self.name!r}: {len(self):,} samples, {images:,} images, "
            f"{answers:,} answers)"
        )

    def _repr_html_(self) -> str:
        """The first samples."""
        rows = []
        for row in self._rows[:SHOWN]:
            try:
                sample = row.read()
                picture = make_thumbnails([sample.image] if sample.image else [])
            except DataError as error:  # a notebook shows what can be shown
                picture = Html(escape(str(error)))
            rows.append((row.id, row.text, row.answer or "", picture))
        return make_table(["id", "text", "answer", "image"], rows, repr(self))

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "DataSet": ...
    def __getitem__(self, index: int | slice) -> "Sample | DataSet":
        if isinstance(index, slice):
            return DataSet(self._rows[index], self.name)
        return self._rows[index].read()

    def outline(self) -> list[tuple[str, str, str, int, int]]:
        """Id, text, file, its size in bytes and the time of its last change, of every sample.

        What tells two sets apart, undecoded. An image given as bytes stands there with their
        digest; -1 is the size of a missing file.
        """
        return [row.outline() for row in self._rows]

    def peek(self, index: int) -> tuple[str, str, tuple[int, int] | None]:
        """Id and text of a sample, and (height, width) of its picture, whose header alone is read.

        Raises:
            OSError: the file is missing, or no picture.
        """
        row = self._rows[index]
        return row.id, row.text, None if row.image is None else read_size(row.image)

    def select(self, indices: Sequence[int]) -> "DataSet":
        """The samples at `indices`, in that order, still undecoded."""
        return DataSet([self._rows[i] for i in indices], self.name)

    def draw(self, n: int, seed: int) -> "DataSet":
        """`n` samples without replacement, each image once before any is taken again.

        In a causal model questions about one image share its tokens to the last bit, so a second
        question adds copies rather than data.
        """
        order = random.Random(seed).sample(range(len(self)), len(self))
        taken: Counter[Path | bytes | int] = Counter()
        turn = {}
        for i in order:
            image = self._rows[i].image
            key = i if image is None else image
            turn[i] = taken[key]
            taken[key] += 1
        return self.select(sorted(order, key=turn.__getitem__)[:n])


class EasyVQA(DataSet):
    """easy-VQA (Victor Zhou, MIT licence): questions about one coloured shape per 64 x 64 image.

    train: 38,575 questions about 4,000 images; test: 9,673 questions about 1,000 other images;
    13 answers (yes, no, 3 shapes, 8 colours). Order is that of the package `easy-vqa`.
    """

    def __init__(self, split: str = "test") -> None:
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
            ],
            f"easy-vqa {split}",
        )


class ImageFolder(DataSet):
    """Local images: a table of images and questions, or a folder of image files.

    A table (`.csv`, `.jsonl`, `.parquet`) has the columns `image` (a path, relative to
    the table, or the bytes of a file; may be empty), `text` and optionally `answer`. A folder
    is searched for such a table first; without one, every image file in it (recursively, sorted)
    is asked `question`.
    """

    def __init__(self, path: str | Path, question: str = "What is shown in this image?") -> None:
        path = Path(path)
        if not path.exists():
            raise DataError(f"{path} does not exist. Give a folder of images or a table file.")
        if not path.is_dir():
            super().__init__(_table_rows(path), path.name)
            return
        tables = _with_suffix(path.iterdir(), TABLE_SUFFIXES)
        if len(tables) > 1:
            names = ", ".join(table.name for table in tables)
            raise DataError(f"{path} holds several tables ({names}). Give the path of one of them.")
        if tables:
            super().__init__(_table_rows(tables[0]), path.name)
            return
        files = _with_suffix(path.rglob("*"), IMAGE_SUFFIXES)
        rows = [_Row(make_encodable(str(f.relative_to(path))), question, f, None) for f in files]
        super().__init__(rows, path.name)


def _with_suffix(paths: Iterable[Path], suffixes: Collection[str]) -> list[Path]:
    """The files with one of these endings, sorted.

    Without those that macOS puts beside a file on a foreign disk: `._a.png` is no picture.
    """
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in suffixes and not path.name.startswith("._") and not path.is_dir()
    )


def _table_rows(path: Path) -> list[_Row]:
    return [_Row(**vars(row)) for row in read_table(path)]


_NAMED: dict[str, Callable[[str], DataSet]] = {"easy-vqa": EasyVQA}


def names() -> list[str]:
    """Names that `load` knows."""
    return sorted(_NAMED)


def load(
    name_or_path: str | Path, split: str = "test", limit: int | None = None, seed: int = 0
) -> DataSet:
    """A named data set or a local folder or table, as a sequence of samples.

    Args:
        name_or_path: One of `names()`, else a path for `ImageFolder`.
        split: Of a named data set; local files have none.
        limit: At most this many samples, drawn without replacement, spread over the images; None
            takes all, in order.
        seed: Of the draw. The same seed gives the same samples in the same order.

    Raises:
        DataError: Unknown name or path, unreadable table, or no sample at all.
    """
    if not isinstance(name_or_path, str | PathLike):
        raise DataError(
            f"A data set is a name ({', '.join(names())}) or a path, not "
            f"{describe_value(name_or_path)}. Samples of your own need no load: profile takes any "
            "sequence of mm_lens.data.Sample."
        )
    if limit is not None and require_whole("limit", limit) < 1:
        raise DataError(
            f"limit={limit} leaves no samples. Give a positive number, or None for all."
        )
    if str(name_or_path) in _NAMED:
        samples: DataSet = _NAMED[str(name_or_path)](split)
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
    return samples.draw(limit, seed)
