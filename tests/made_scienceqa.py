"""Replicas of ScienceQA: the same questions in the original layout and as the copies on the hub.

All types of columns, null images, empty hints, 2 to 5 options, and two questions that differ in
their picture alone.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from tiny import random_image

LETTERS = "ABCDE"


def problems(split: str = "test", n: int = 10) -> list[dict[str, Any]]:
    """Questions of one split; those of even number have a picture."""
    found = []
    for i in range(n):
        same = 2 if i == 4 else i  # 4 says what 2 says, of another picture
        found.append(
            {
                "question": f"Which  of {same} is it, of {split}?",
                "choices": [f"option {same} {k}" for k in range(2 + same % 4)],
                "answer": same % (2 + same % 4),
                "hint": "" if same % 3 else f"Look at {same}.",
                "image": random_image(8 + i, 12, i) if i % 2 == 0 else None,
                "task": "closed choice",
                "grade": f"grade{1 + same % 3}",
                "subject": ["natural science", "language science", "social science"][same % 3],
                "topic": "physics",
                "category": "Magnets",
                "skill": "Compare magnets",
                "lecture": "" if same % 2 else "Magnets pull.\nOr push.",
                "solution": f"Because of {same}.",
            }
        )
    return found


SPLITS = {"train": 12, "val": 4, "test": 10}


def write_original(folder: Path) -> Path:
    """`problems.json`, `pid_splits.json`, `images/<split>/<number>/image.png`."""
    by_number, numbers = {}, {}
    number = 1
    for split, n in SPLITS.items():
        numbers[split] = []
        for problem in problems(split, n):
            record = {**problem, "image": "image.png" if problem["image"] else None, "split": split}
            by_number[str(number)] = record
            numbers[split].append(str(number))
            if problem["image"]:
                place = folder / "images" / split / str(number)
                place.mkdir(parents=True)
                problem["image"].save(place / "image.png")
            number += 3
    numbers |= {
        "trainval": numbers["train"] + numbers["val"],
        "minitrain": numbers["train"][:3],
        "minival": numbers["val"][:2],
        "minitest": numbers["test"][:4],
    }
    (folder / "problems.json").write_text(json.dumps(by_number))
    (folder / "pid_splits.json").write_text(json.dumps(numbers))
    return folder


def write_parquet(path: Path, split: str = "test", backwards: bool = True) -> Path:
    """A file of a copy on the hub: the same columns and types, rows in another order."""
    rows = problems(split, SPLITS[split])
    for row in rows:
        image = row.pop("image")
        row["image"] = None
        if image is not None:
            file = io.BytesIO()
            image.save(file, "PNG", compress_level=1)  # other bytes, the same pixels
            row["image"] = {"bytes": file.getvalue(), "path": "image.png"}
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("question", pa.string()),
            ("choices", pa.list_(pa.string())),
            ("answer", pa.int8()),
            *((name, pa.string()) for name in ("hint", "task", "grade", "subject", "topic")),
            *((name, pa.string()) for name in ("category", "skill", "lecture", "solution")),
        ]
    )
    table = pa.Table.from_pylist(rows[::-1] if backwards else rows, schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(table, path)
    return path
