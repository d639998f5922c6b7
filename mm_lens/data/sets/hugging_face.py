"""Data sets of the library `datasets`: objects, directories that it saved, names on the hub.

The library is imported only here. Texts and numbers are read at once, images when their sample is
taken: of each only the bytes, which `mm_lens.data.open_picture` opens as any other picture.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm_lens.arguments import describe_value
from mm_lens.data.columns import Columns, as_images, read_row
from mm_lens.data.samples import DataSet, Row
from mm_lens.data.sources import Source, Stored
from mm_lens.errors import DataError

MARKS = ("dataset_dict.json", "dataset_info.json")
"""Files that `save_to_disk` leaves, one of them in every directory."""
_CHUNK = 1000  # rows whose texts are read at a time


def is_dataset(thing: Any) -> bool:
    """Whether it is a data set of the library, or several by split. Nothing is imported."""
    library = sys.modules.get("datasets")
    kinds = ("Dataset", "DatasetDict", "IterableDataset", "IterableDatasetDict")
    found = tuple(kind for name in kinds if isinstance(kind := getattr(library, name, None), type))
    return isinstance(thing, found)


def is_saved(path: Path) -> bool:
    """Whether a directory was written by `save_to_disk`."""
    return any((path / mark).is_file() for mark in MARKS)


def open_set(where: str, split: str | None, columns: Columns | None = None) -> DataSet:
    """`hf:ORGANISATION/NAME`, or `hf:ORGANISATION/NAME:CONFIGURATION`."""
    found, split = fetch_named(where, split)
    return DataSet(read_rows(found, columns or Columns()), f"{where} {split}", split)


def fetch_named(where: str, split: str | None) -> tuple[Any, str]:
    """A data set of the hub, from its cache where it is there, and the split.

    Raises:
        DataError: the library is missing, or there is no such data set, configuration or split.
    """
    path, _, configuration = where.partition(":")
    if not path:
        raise DataError("hf needs a name: hf:ORGANISATION/NAME, or hf:ORGANISATION/NAME:CONFIG.")
    library = _library()
    split = split or "test"
    try:
        return library.load_dataset(path, configuration or None, split=split), split
    except Exception as error:  # the library, the hub and the network fail each in its own way
        raise DataError(
            f"The data set {where!r} cannot be had, split {split!r} "
            f"({(str(error).strip() or type(error).__name__).splitlines()[0]}). Check name, "
            "configuration, --split and the connection."
        ) from error


def open_saved(path: Path) -> Any:
    """What `save_to_disk` wrote.

    Raises:
        DataError: the library is missing, or the directory is damaged.
    """
    try:
        return _library().load_from_disk(str(path))
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as what datasets.save_to_disk wrote ({error}). Write it again."
        ) from error


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"The library datasets is needed for this and cannot be imported ({error}): pip "
            "install datasets."
        ) from error
    return datasets


def choose_split(found: Any, split: str | None) -> Any:
    """One part of a data set that has several.

    Raises:
        DataError: there is no such part, or rows can only be read one after another.
    """
    if hasattr(found, "keys") and hasattr(found, "values"):
        parts = list(found.keys())
        name = split or ("test" if "test" in parts else parts[0] if len(parts) == 1 else None)
        if name not in parts:
            raise DataError(
                f"The data set has no split {name or 'test'!r}. Available: {', '.join(parts)}. "
                "Name one with split= (--split)."
            )
        found = found[name]
    elif split is not None and str(getattr(found, "split", split)) != split:
        raise DataError(f"The data set is the split {found.split}, not {split!r}. Leave it out.")
    if not hasattr(found, "__len__"):
        raise DataError(
            f"{describe_value(found)} can only be read from the front. Load it without "
            "streaming=True: samples are taken in any order."
        )
    return found


def read_rows(found: Any, columns: Columns) -> list[Row]:
    """Its rows, whose images are read when they are asked for."""
    rows = []
    for index, record in enumerate(read_records(found)):
        rows.append(read_row(record, columns, f"Row {index}", index, Path()))
    return rows


def read_records(found: Any) -> Iterator[dict[str, Any]]:
    """Its rows as objects; where there are images, a `Stored` in their place."""
    raw = found.with_format(None)
    late = [name for name, feature in raw.features.items() if _holds_images(feature)]
    for name in late:
        raw = raw.cast_column(name, _undecoded(raw.features[name]))
    early = raw.select_columns([name for name in raw.column_names if name not in late])
    key = str(getattr(found, "_fingerprint", id(found)))
    for start in range(0, len(raw), _CHUNK):
        end = min(start + _CHUNK, len(raw))
        cells = early[start:end] if early.column_names else {}
        for index in range(start, end):
            record = {name: values[index - start] for name, values in cells.items()}
            for name in late:
                record[name] = Stored(f"{key} {index} {name}", _Look(raw, index, name))
            yield {name: record[name] for name in raw.column_names}


class _Look:
    """Reads one cell of images."""

    def __init__(self, raw: Any, index: int, name: str) -> None:
        self.raw, self.index, self.name = raw, index, name

    def __call__(self) -> tuple[Source, ...]:
        cell = self.raw.select_columns([self.name])[self.index][self.name]
        return as_images(f"Row {self.index}", self.name, Path(), cell)


def _holds_images(feature: Any) -> bool:
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) else feature)
    return type(inner).__name__ == "Image"


def _undecoded(feature: Any) -> Any:
    image = _library().Image(decode=False)
    if isinstance(feature, list):
        return [image]
    return type(feature)(image) if hasattr(feature, "feature") else image
