"""Options that say which data, shared by all commands that take some."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

Data = Annotated[
    str,
    typer.Option(
        help="easy-vqa, scenes, scienceqa:DIR, hf:ORGANISATION/NAME; a folder of images; a csv, "
        "tsv, json, jsonl or parquet; the directory of a saved datasets.Dataset: docs/data.md."
    ),
]
Split = Annotated[
    str | None,
    typer.Option(help="Part of a data set that has several.", show_default="test"),
]
ImageColumn = Annotated[
    str,
    typer.Option(help="Column of images; several with commas; '' for samples of text alone."),
]
TextColumn = Annotated[str, typer.Option(help="Column of the question.")]
AnswerColumn = Annotated[
    str | None, typer.Option(help="Column of the answer.", show_default="answer, if it is there")
]
OptionsColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of the options, or one for each with commas.",
        show_default="options, if it is there",
    ),
]
IdColumn = Annotated[
    str | None, typer.Option(help="Column of ids.", show_default="id, if it is there")
]
Prompt = Annotated[
    str | None,
    typer.Option(
        help=r"Template of what is asked, as '{question}\n{choices}': columns in braces.",
        show_default="the question",
    ),
]
Question = Annotated[
    str | None,
    typer.Option(
        help="What every image of a folder is asked.", show_default="What is shown in this image?"
    ),
]
ImageFolder = Annotated[
    Path | None,
    typer.Option(
        help="Where relative paths of images begin.", show_default="the folder of the table"
    ),
]
Separator = Annotated[
    str | None, typer.Option(help="Between the cells of a csv.", show_default="found out")
]
Fetch = Annotated[bool, typer.Option("--fetch", help="Fetch images that are addresses.")]


def read(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `mm_lens.datasets.load`, of a command's `locals()`."""
    asked = {name: given[name] for name in _LOADED}
    for name in ("image_column", "options_column"):
        asked[name] = _split(asked[name])
    # A shell hands on a backslash and a letter.
    for name, written, meant in (("prompt", r"\n", "\n"), ("separator", r"\t", "\t")):
        if asked[name] is not None:
            asked[name] = asked[name].replace(written, meant)
    return asked


_LOADED = (
    *("image_column", "text_column", "answer_column", "options_column", "id_column"),
    *("prompt", "question", "image_folder", "separator", "fetch"),
)


def _split(columns: str | None) -> list[str] | None:
    names = [] if columns is None else [name.strip() for name in columns.split(",")]
    return [name for name in names if name] or None
