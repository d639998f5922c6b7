"""`mm-lens list`: what there is to name in other commands."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from mm_lens import demo
from mm_lens.cli import options


def list_command(
    what: Annotated[
        Literal["models", "families", "data", "metrics"], typer.Argument(help="What to list.")
    ],
    as_json: options.AsJson = False,
) -> None:
    """List demo models, model families, data sets, or metrics.

    Example: mm-lens list metrics
    """
    rows, rest = {
        "models": _models,
        "families": _families,
        "data": _data,
        "metrics": _metrics,
    }[what]()
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        name, *about = [str(value) for value in row.values() if value]
        print(f"{name}: {' · '.join(about)}" if about else name)
    if rest:
        print(rest)


Rows = list[dict[str, str]]


def _models() -> tuple[Rows, str]:
    rest = (
        "Besides: hub ids (organisation/model) and directories of any model of the families "
        "(mm-lens list families)."
    )
    return [{"name": name} for name in demo.available()], rest


def _families() -> tuple[Rows, str]:
    from mm_lens.model.families import families

    found: dict[str, list[str]] = {}
    for architecture, family in families().items():
        found.setdefault(family.__name__.removesuffix("Family"), []).append(architecture)
    return [{"name": name, "classes": ", ".join(classes)} for name, classes in found.items()], ""


def _data() -> tuple[Rows, str]:
    from mm_lens.data import datasets

    rows = [
        {"name": name, "about": (datasets.describe(name) or "").split("\n")[0]}
        for name in datasets.names()
    ]
    rest = (
        "Besides: folders of pictures, and tables (.csv, .jsonl, .parquet) with the columns "
        "image, text and perhaps answer."
    )
    return rows, rest


def _metrics() -> tuple[Rows, str]:
    from mm_lens.metrics import METRICS

    rows = [
        {"name": name, "label": metric.label, "presets": ", ".join(metric.presets)}
        for name, metric in METRICS.items()
    ]
    return rows, "After the label: the presets that it is part of."
