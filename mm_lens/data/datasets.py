"""Image-text samples from wherever they are: a named data set, files, a table, objects in memory.

`load` is the one way in, for Python and the command line; `as_samples` takes what `profile` and
`evaluate` are given. What goes in, with an example of each: docs/data.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from mm_lens._storage.texts import make_encodable
from mm_lens.arguments import describe_value, require_whole, suggest
from mm_lens.data import sets
from mm_lens.data.asking import apply_prompt
from mm_lens.data.columns import Columns, read_row
from mm_lens.data.samples import SHOWN, DataSet, Row, Sample, Samples
from mm_lens.data.sets import hugging_face
from mm_lens.data.sets.easy_vqa import EasyVQA
from mm_lens.data.sources import File, Given
from mm_lens.data.tables import SUFFIXES, read_table
from mm_lens.errors import DataError

__all__ = [
    "IMAGE_SUFFIXES",
    "QUESTION",
    "SHOWN",
    "DataSet",
    "EasyVQA",
    "ImageFolder",
    "Sample",
    "Samples",
    "as_samples",
    "describe",
    "load",
    "names",
]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
QUESTION = "What is shown in this image?"
"""What every image of a folder is asked, where nothing else is said."""
IN_FOLDERS = SUFFIXES - {".json"}
"""Tables that a folder is searched for: a .json beside images may be about anything."""


class ImageFolder(DataSet):
    """Local images: a table of images and questions, or a folder of image files.

    A table (`.csv`, `.tsv`, `.json`, `.jsonl`, `.parquet`) has the columns `image` (a path,
    relative to the table, or the bytes of a file; may be empty), `text` and optionally `answer`,
    `options` and `id`; `columns` says other names. A folder is searched for such a table first, but
    for `.json`; without one, every image file in it (recursively, sorted) is asked `question`.
    """

    def __init__(
        self,
        path: str | Path,
        question: str | None = None,
        columns: Columns | None = None,
        separator: str | None = None,
    ) -> None:
        path = Path(path)
        if not path.exists():
            raise DataError(f"{path} does not exist. Give a folder of images or a table file.")
        tables = _with_suffix(path.iterdir(), IN_FOLDERS) if path.is_dir() else [path]
        if len(tables) > 1:
            names = ", ".join(table.name for table in tables)
            raise DataError(f"{path} holds several tables ({names}). Give the path of one of them.")
        if tables and question is not None:
            raise DataError(
                f"{tables[0]} has questions of its own: leave out question={question!r}."
            )
        if not tables and columns not in (None, Columns()):
            raise DataError(f"{path} holds no table: leave out names of columns.")
        if tables:
            super().__init__(read_table(tables[0], columns, separator), path.name)
            return
        files = _with_suffix(path.rglob("*"), IMAGE_SUFFIXES)
        asked = QUESTION if question is None else question
        rows = [
            Row(
                make_encodable(str(file.relative_to(path))),
                asked,
                (File(file),),
                about={"question": asked},
            )
            for file in files
        ]
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


def names() -> list[str]:
    """Names that `load` knows; installed packages may add some."""
    return sets.names()


def describe(name: str) -> str:
    """What a named data set is, in words."""
    return inspect.getdoc(inspect.getmodule(sets.opener(name))) or ""


def load(
    source: Any,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    *,
    image_column: str | Sequence[str] | None = "image",
    text_column: str = "text",
    answer_column: str | None = None,
    options_column: str | Sequence[str] | None = None,
    id_column: str | None = None,
    prompt: str | None = None,
    question: str | None = None,
    image_folder: str | PathLike[str] | None = None,
    separator: str | None = None,
    fetch: bool = False,
) -> DataSet:
    r"""A data set, from whatever it is in, as a sequence of samples.

    ```python
    load("easy-vqa", limit=100)
    load("questions.tsv", image_column="picture", text_column="q", answer_column="a")
    load("llava_v1_5_mix665k.json", image_folder="images")
    load("scienceqa:ScienceQA/data/scienceqa", prompt="{hint}\n{question}\n{choices}")
    load([{"image": "a.png", "text": "What is this?"}])
    ```

    ```python
    data = datasets.load("easy-vqa", limit=100)
    mine = datasets.load("my-pictures/")       # a folder, or a .csv, .jsonl, .parquet
    data[0].image, data[0].text, data[0].answer
    ```

    Args:
        source: one of `names()`, as "easy-vqa", with a place behind a colon where it needs one
            ("scienceqa:DIR"); a folder of images; a table (csv, tsv, json, jsonl, parquet); records
            of LLaVA (`conversations`); a `datasets.Dataset`, or the directory that it was saved to;
            a data frame; a sequence of dictionaries, of tuples (image, text, answer), or of
            samples.
        split: of a set that has several; None takes its usual one.
        limit: at most this many samples, drawn without replacement, spread over the images; None
            takes all, in order.
        seed: of the draw, and of samples that are made ("scenes"). The same seed gives the same
            samples in the same order.
        image_column: column of images: paths, bytes, structs of the two, pictures; a list in a cell
            where a sample has several. Several columns, if each has one. None: no images.
        text_column: column of the question.
        answer_column: column of the answer. None takes "answer" if it is there.
        options_column: column of the options: a list, or a text with `|` between them; or several
            columns, one for each. None takes "options" if it is there.
        id_column: column of ids. None takes "id" if it is there; else rows are numbered.
        prompt: template of what is asked, with columns in braces: `{question}`, `{choices}`.
        question: what every image of a folder without a table is asked.
        image_folder: where relative paths begin; None takes the folder of the table.
        separator: between the cells of a csv; None finds it out.
        fetch: fetch images whose column holds an address, each time that a sample is taken.

    Raises:
        DataError: unknown name or path, unreadable table, wrong column, or no sample at all.
        InputError: the prompt is no template of these columns.
    """
    columns = Columns(
        image=_as_names(image_column),
        text=text_column,
        answer=answer_column,
        options=_as_names(options_column),
        id=id_column,
        folder=None if image_folder is None else Path(image_folder),
        fetch=fetch,
    )
    if limit is not None and require_whole("limit", limit) < 1:
        raise DataError(
            f"limit={limit} leaves no samples. Give a positive number, or None for all."
        )
    if separator is not None and len(separator) != 1:
        raise DataError(f"separator is one character, as ';', not {separator!r}.")
    if isinstance(source, str | PathLike):
        samples = _open(source, split, columns, question, separator, seed)
    else:
        samples = _of_objects(source, split, columns)
    if not len(samples):
        name = source if isinstance(source, str | PathLike) else "The data set"
        raise DataError(f"{name} holds no samples. Put images or table rows into it.")
    if prompt is not None:
        samples = apply_prompt(samples, prompt)
    if limit is None or limit >= len(samples):
        return samples
    return samples.draw(limit, seed)


def _as_names(columns: str | Sequence[str] | None) -> tuple[str, ...]:
    if columns is None:
        return ()
    return (columns,) if isinstance(columns, str) else tuple(columns)


def _open(
    source: str | PathLike[str],
    split: str | None,
    columns: Columns,
    question: str | None,
    separator: str | None,
    seed: int,
) -> DataSet:
    """A data set by its name or path."""
    path = Path(source)
    name, _, where = str(source).partition(":")
    if name in names() and not (where and path.exists()):
        if name == "hf":
            return hugging_face.open_set(where, split, columns)
        if replace(columns, fetch=False) != Columns():
            raise DataError(f"{name} has columns of its own: leave out names of columns.")
        return sets.open_set(name, where, split, seed)
    if not path.exists():
        raise DataError(
            f"{str(source)!r} is neither a data set ({', '.join(names())}) nor an existing "
            f"folder or table. Correct the name or the path.{suggest(source, names())}"
        )
    if path.is_dir() and hugging_face.is_saved(path):
        found = hugging_face.choose_split(hugging_face.open_saved(path), split)
        return DataSet(hugging_face.read_rows(found, columns), path.name, split or "")
    if split is not None:
        raise DataError(f"{path} has no splits: leave out split={split!r} (--split).")
    return ImageFolder(path, question, columns, separator)


def _of_objects(source: Any, split: str | None, columns: Columns) -> DataSet:
    """A data set of objects in memory."""
    if isinstance(source, DataSet):
        return source
    if hugging_face.is_dataset(source):
        found = hugging_face.choose_split(source, split)
        name = str(
            getattr(getattr(found, "info", None), "dataset_name", None) or "datasets.Dataset"
        )
        return DataSet(hugging_face.read_rows(found, columns), name, split or "")
    if type(source).__name__ == "DataFrame" and hasattr(source, "to_dict"):
        source = source.to_dict("records")
    if isinstance(source, Mapping) or not isinstance(source, Samples) or isinstance(source, bytes):
        raise DataError(
            f"A data set is a name ({', '.join(names())}), a path, a datasets.Dataset, or a "
            f"sequence of dictionaries, tuples or samples, not {describe_value(source)}."
        )
    return DataSet([_object_row(source[i], i, columns) for i in range(len(source))], "samples")


def _object_row(item: Any, index: int, columns: Columns) -> Row:
    if isinstance(item, Sample):
        images = tuple(Given(image) for image in item.images)
        about = {"question": item.text, **item.about}
        return Row(item.id, item.text, images, item.answer, item.options, item.right, about)
    where = f"Item {index}"
    if isinstance(item, (tuple, list)):
        texts = [part for part in item[1:] if isinstance(part, (str, type(None)))]
        if not 2 <= len(item) <= 3 or len(texts) < len(item) - 1:
            raise DataError(
                f"{where} is {describe_value(item)}. A tuple is (image, text) or (image, text, "
                "answer); or give dictionaries."
            )
        names = (*columns.image[:1], columns.text, columns.answer or "answer")
        item = dict(zip(names, item, strict=False))
    return read_row(item, columns, where, index, Path())


def as_samples(data: Any) -> Samples:
    """What a function is given for data, as samples: see `load`.

    A sequence that gives samples one by one is taken as it is: none of them is looked at.
    """
    if isinstance(data, str | PathLike) or hugging_face.is_dataset(data):
        return load(data)
    if type(data).__name__ == "DataFrame":
        return load(data)
    if isinstance(data, (list, tuple)) and data and isinstance(data[0], (Mapping, tuple, list)):
        return load(data)
    found: Samples = data
    return found
