"""ScienceQA (Lu et al. 2022): science questions of school, 2 to 5 options, half with a picture.

21,208 questions: train 12,726, val 4,241, test 4,241. Read from the original layout
(`problems.json`, `pid_splits.json`, `images/<split>/<number>/image.png`), from parquet files with
the columns of the copies on the hub (`image question choices answer hint task grade subject topic
category skill lecture solution`), and from those copies themselves. Copies have no ids, and rows in
an order of their own; so a sample's id is a digest of what it says, and samples are in the order of
their ids: every source gives the same samples, and the same ones for a limit and a seed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mm_lens._storage.texts import parse_json
from mm_lens.data.asking import letter_options
from mm_lens.data.columns import Columns, read_row
from mm_lens.data.samples import DataSet, Row
from mm_lens.data.sets import hugging_face
from mm_lens.data.tables import MAX_JSON, read_records
from mm_lens.errors import DataError

PROBLEMS, SPLITS = "problems.json", "pid_splits.json"
SUB = ("", "data/scienceqa", "scienceqa")
"""Folders below the one that is given in which the original files may lie."""
ALIASES = {"validation": "val"}
COLUMNS = Columns(text="question", answer="answer", options=("choices",))
TEXTS = ("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")


def open_set(where: str, split: str | None) -> DataSet:
    """`scienceqa:DIR`, `scienceqa:FILE.parquet` or `scienceqa:ORGANISATION/NAME:CONFIGURATION`.

    Raises:
        DataError: there is no such place or split, or a file is not what it should be.
    """
    if not where:
        raise DataError(
            "scienceqa needs a place: scienceqa:DIR (with problems.json and pid_splits.json), "
            "scienceqa:FILE.parquet, or scienceqa:ORGANISATION/NAME of a copy on the hub."
        )
    path, name = Path(where), split or "test"
    name = ALIASES.get(name, name)
    if path.is_file():
        found = _of_copy(_plain(path), path)
    elif path.is_dir():
        found = _of_directory(path, name)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", where):
        table, _ = hugging_face.fetch_named(where, "validation" if name == "val" else name)
        found = _of_copy(hugging_face.read_records(table), None)
    else:
        raise DataError(f"scienceqa:{where}: there is no such directory or file. Correct the path.")
    return DataSet(_in_order(found), f"scienceqa {name}", name)


def _of_directory(path: Path, split: str) -> list[Row]:
    for place in (path / sub for sub in SUB):
        if (place / PROBLEMS).is_file():
            return _of_original(place, split)
    if hugging_face.is_saved(path):
        saved = hugging_face.open_saved(path)
        names = list(saved.keys()) if hasattr(saved, "keys") else [split]
        name = "validation" if split == "val" and split not in names else split
        table = hugging_face.choose_split(saved, name if hasattr(saved, "keys") else None)
        return _of_copy(hugging_face.read_records(table), None)
    wanted = ("validation", "val") if split == "val" else (split,)
    files = sorted(file for name in wanted for file in path.rglob(f"{name}-*.parquet"))
    if not files:
        raise DataError(
            f"{path} holds neither {PROBLEMS} nor {split}-*.parquet. Give the directory of the "
            "original files, or of a copy."
        )
    return [row for file in files for row in _of_copy(_plain(file), file)]


def _plain(file: Path) -> Iterator[Any]:
    return (record for _, record in read_records(file))


def _of_copy(records: Iterable[Any], table: Path | None) -> list[Row]:
    """Rows of a copy: an image with each, or null, and no ids."""
    folder = Path() if table is None else table.parent
    rows = []
    for index, record in enumerate(records):
        where = f"Row {index}" + (f" of {table}" if table else " of scienceqa")
        rows.append(_row(read_row(record, COLUMNS, where, index, folder, table)))
    return rows


def _of_original(place: Path, split: str) -> list[Row]:
    problems, splits = (_read(place / name) for name in (PROBLEMS, SPLITS))
    if split not in splits:
        raise DataError(f"scienceqa has no split {split!r}. Available: {', '.join(splits)}.")
    rows: list[Row] = []
    for number in splits[split]:
        where = f"Question {number} of {place / PROBLEMS}"
        problem = problems.get(str(number))
        if not isinstance(problem, Mapping):
            raise DataError(f"{where} is named in {SPLITS} and is not there. Get both again.")
        record = {**problem, "pid": str(number), "image": None}
        if name := problem.get("image"):
            record["image"] = str(Path(problem.get("split", split)) / str(number) / str(name))
        folder = place / "images" if (place / "images").is_dir() else place
        rows.append(_row(read_row(record, COLUMNS, where, len(rows), folder, place / PROBLEMS)))
    return rows


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_JSON:
            raise ValueError(f"it has more than {MAX_JSON:,} bytes")
        found = parse_json(file.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}). Get it again.") from error
    return found


def _row(row: Row) -> Row:
    """The row of a question: its text with hint and lettered options, its id from its content."""
    texts = {name: str(row.about.get(name) or "") for name in TEXTS}
    about = {k: v for k, v in row.about.items() if k in ("question", "pid")} | texts
    lines = [texts["hint"], about["question"], letter_options(row.options)]
    content = (about["question"], row.options, row.right, *texts.values())
    return Row(
        blake2b(repr(content).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest(),
        "\n".join(line for line in lines if line),
        row.images,
        row.answer,
        row.options,
        row.right,
        about,
        row.table,
    )


def _in_order(rows: list[Row]) -> list[Row]:
    """In the order of ids; those that say the same are told apart by the pixels of their image."""
    counts = Counter(row.id for row in rows)
    found: dict[str, Row] = {}
    for row in rows:
        name = row.id
        if counts[name] > 1:
            name += f"-{_pixels(row)}"
        while name in found:  # the same picture, too
            name += "+"
        found[name] = Row(**{**vars(row), "id": name, "shared": name})
    return [found[name] for name in sorted(found)]


def _pixels(row: Row) -> str:
    try:
        images = row.read().images
    except DataError:  # the run will say so, or skip it
        return "unreadable"
    content = b"".join(repr(image.size).encode() + image.tobytes() for image in images)
    return blake2b(content, digest_size=4).hexdigest()
