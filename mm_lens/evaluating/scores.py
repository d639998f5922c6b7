"""`Scores`: how often a model was right, of which questions, and every answer that it gave."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from mm_lens._notebook import make_table
from mm_lens._storage.files import whole_directory
from mm_lens._storage.frames import read_frame, require_columns
from mm_lens._storage.sums import check_sums, write_sums
from mm_lens._storage.texts import read_json
from mm_lens.arguments import describe_value
from mm_lens.errors import DataError
from mm_lens.evaluating.intervals import accuracy_interval

COLUMNS = (
    *("condition", "group", "value", "n", "n_images"),
    *("right", "accuracy", "low", "high", "chance"),
)
ANSWERS = (
    *("condition", "index", "id", "image", "shared"),
    *("asked", "written", "said", "wanted", "right", "confidence"),
)
"""Columns that the answers have under any protocol."""
ANSWERS_FILE, TABLE_FILE, CSV_FILE = "answers.parquet", "accuracy.parquet", "accuracy.csv"
PROVENANCE_FILE = "provenance.json"


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """What `mm_lens.evaluate` returns.

    Attributes:
        table: a row for each condition and group of questions, with the columns `COLUMNS`: all;
            those with an image, and without; and by each column that was asked for. `low` and
            `high` are a 95 % interval over questions (`mm_lens.evaluating.intervals`). `chance` is
            what one guess among the options is worth; of open questions, the share of the most
            frequent answer of the group.
        answers: a row for each question and condition: what was asked, what the model wrote, what
            that was taken to say and what was right (`ANSWERS`), how sure the model was of it
            (`confidence`: log-probability of all that it wrote, its end included; of options, among
            these), the columns of groups, and, where answers were scored, the log-probability of
            each.
        provenance: versions, model, data, protocol and options, ready for JSON.
    """

    table: pd.DataFrame
    answers: pd.DataFrame
    provenance: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """Share of right answers among all questions, under the first condition."""
        return float(self.table.accuracy.iloc[0])

    @property
    def title(self) -> str:
        """Model, data and protocol."""
        about = self.provenance
        return f"{about['model']['name']} on {about['data']['name']}, protocol {about['protocol']}"

    @property
    def unread(self) -> str:
        """Answers to choose from options that name none of them, in words; "" if all do."""
        if not {"n_options", "said"} <= {*self.answers}:
            return ""
        closed = self.answers[self.answers["n_options"] > 0]
        lost = closed[closed["said"] == ""]
        if lost.empty:
            return ""
        return (
            f"{len(lost):,} of {len(closed):,} answers to choose from options name none of them, "
            f"as {str(lost['written'].iloc[0])[:40]!r}: they count as wrong."
        )

    def __repr__(self) -> str:
        text = f"{self.title}\n{self._shown().to_string(index=False)}"
        return f"{text}\n{self.unread}" if self.unread else text

    def _repr_html_(self) -> str:
        shown = self._shown()
        title = f"{self.title}. {self.unread}" if self.unread else self.title
        return make_table([str(name) for name in shown], shown.itertuples(index=False), title)

    def _shown(self) -> pd.DataFrame:
        rows = []
        for row in self.table.to_dict("records"):
            rows.append(
                {
                    "condition": row["condition"],
                    "questions": row["group"] + (f": {row['value']}" if row["value"] else ""),
                    "n": f"{row['n']:,}",
                    "right, %": _percent(row["accuracy"]),
                    "95 %": f"[{_percent(row['low'])}, {_percent(row['high'])}]",
                    "chance, %": _percent(row["chance"]),
                }
            )
        return pd.DataFrame(rows)

    def write(self, directory: Path) -> None:
        """Write tables, provenance and their checksums into an existing directory."""
        (directory / TABLE_FILE).write_bytes(self.table.to_parquet(index=False))
        (directory / ANSWERS_FILE).write_bytes(self.answers.to_parquet(index=False))
        self.table.to_csv(directory / CSV_FILE, index=False)
        text = json.dumps(self.provenance, indent=2, ensure_ascii=False)
        (directory / PROVENANCE_FILE).write_text(
            text + "\n", encoding="utf-8", errors="backslashreplace"
        )
        write_sums(directory, [TABLE_FILE, ANSWERS_FILE, CSV_FILE, PROVENANCE_FILE])

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write accuracy.parquet and .csv, answers.parquet, provenance.json and SHA256SUMS.

        All, or nothing at all.

        Raises:
            InputError: `path` holds files already; `overwrite` replaces earlier scores only.
            OSError: it cannot be written.
        """
        with whole_directory(path, PROVENANCE_FILE, overwrite) as new:
            self.write(new)

    @staticmethod
    def load(path: str | Path) -> Scores:
        """Read what `save` or `mm-lens evaluate` wrote.

        Raises:
            DataError: there are no scores, they cannot be read, or were changed since.
        """
        if not isinstance(path, str | PathLike):
            raise DataError(f"Scores are read from a directory, not from {describe_value(path)}.")
        path = Path(path)
        try:
            check_sums(path)
            table, answers = read_frame(path / TABLE_FILE), read_frame(path / ANSWERS_FILE)
            texts = dict.fromkeys(("condition", "group", "value"), str)
            numbers = dict.fromkeys(("accuracy", "low", "high", "chance"), float)
            require_columns(TABLE_FILE, table, {**texts, **numbers, "n": int, "right": int})
            require_columns(ANSWERS_FILE, answers, {"condition": str, "id": str, "written": str})
            provenance = read_json(path / PROVENANCE_FILE)
            return Scores(table, answers, provenance)
        except DataError:
            raise
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} holds no readable scores ({error}). Give a directory that Scores.save or "
                "mm-lens evaluate wrote."
            ) from error


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f}"


def tabulate(answers: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Accuracy of each condition and group."""
    rows = [
        _count(group, condition, *name)
        for condition in dict.fromkeys(answers.condition)
        for name, group in _groups(answers[answers.condition == condition], by)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _groups(
    answers: pd.DataFrame, by: Sequence[str]
) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    yield ("all", ""), answers
    for value in (True, False):
        group = answers[answers.image == value]
        if 0 < len(group) < len(answers):
            yield ("image", "yes" if value else "no"), group
    for column in by:
        for value in sorted({*answers[column]} - {""}, key=_natural):
            yield (column, str(value)), answers[answers[column] == value]


def _natural(value: str) -> tuple[str, int, str]:
    """grade2 before grade10."""
    stem = value.rstrip("0123456789")
    return stem, int(value[len(stem) :] or -1), value


def _count(group: pd.DataFrame, condition: str, name: str, value: str) -> dict[str, Any]:
    right = [bool(entry) for entry in group.right]
    low, high = accuracy_interval(right, list(group.shared))
    return {
        "condition": condition,
        "group": name,
        "value": value,
        "n": len(group),
        "n_images": group.shared.nunique(),
        "right": sum(right),
        "accuracy": sum(right) / len(right),
        "low": low,
        "high": high,
        "chance": _chance(group),
    }


def _chance(group: pd.DataFrame) -> float:
    if (group.n_options > 0).all():
        return float((1 / group.n_options).mean())
    return max(Counter(group.wanted).values()) / len(group)
