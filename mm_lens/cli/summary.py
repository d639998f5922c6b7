"""A profile in the terminal: the values that matter, the files, the warnings."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from mm_lens.drawing import curves
from mm_lens.metrics import METRICS, PRESETS
from mm_lens.profiling.points.lines import take_first
from mm_lens.profiling.result import Profile

WIDTH = 100
SHOWN = sorted(PRESETS, key=lambda name: name != "honest")
"""Presets in the order of their tables: what is meant by default comes first."""


def show(profile: Profile, directory: Path, files: Sequence[str]) -> None:
    """Print headline values, files and warnings to stdout."""
    terminal = Console()
    console = Console(
        width=min(WIDTH, terminal.width) if terminal.is_terminal else WIDTH, highlight=False
    )
    # Metrics belong to several: a table of the paper's own only for those who asked for them.
    asked = profile.provenance.get("options", {}).get("presets") or SHOWN
    for preset in SHOWN:
        if preset in asked and (table := headline(profile, preset)) is not None:
            console.print(table)
    pictures = [name for name in files if name.endswith(".png")]
    rest = [name for name in files if name not in pictures]
    console.print(f"Wrote {', '.join(rest)} and {len(pictures)} pictures (.png) to", end=" ")
    console.print(str(directory), style="bold", soft_wrap=True, markup=False)
    _show_warnings(profile, console)


def show_json(profile: Profile, directory: Path, files: Sequence[str]) -> None:
    """Print where everything is, and the headline values, as JSON."""
    table = take_first(profile.table)
    chosen = curves.first_shown(profile)
    rows = table[table.metric.isin(chosen or curves.headline(profile))]
    columns = ["stream", "modality", "layer", "metric", "value", "low", "high", "warning"]
    found = {
        "out": str(directory),
        "files": [*files],
        "samples": profile.provenance["data"]["n_samples"],
        "values": len(profile.table),
        "warnings": profile.warnings(),
        "headline": json.loads(rows[columns].to_json(orient="records")),
    }
    print(json.dumps(found, ensure_ascii=False))


def headline(profile: Profile, preset: str) -> Table | None:
    """Values at the first, middle and last layer of the metrics that stand for their kind."""
    metrics = [m for m in curves.headline(profile) if preset in METRICS[m].headline]
    if not metrics:
        return None
    table = Table(
        title=f"{profile.title}\npreset {preset}: first · middle · last layer",
        title_style="bold",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    for name in ("stream", "tokens"):
        table.add_column(name)
    for metric in metrics:
        layers = " · ".join(str(layer) for layer in _three(profile, metric))
        table.add_column(f"{METRICS[metric].label}\nlayers {layers}", justify="right")
    shown = take_first(profile.table)
    for stream in curves.streams(profile):
        for modality in curves.STYLES:
            rows = shown[(shown.stream == stream) & (shown.modality == modality)]
            rows = rows[rows.metric.isin(metrics)]
            if len(rows):
                cells = []
                for metric in metrics:
                    of_metric = rows[rows.metric == metric].set_index("layer").value
                    values = [of_metric.get(layer, math.nan) for layer in _three(profile, metric)]
                    cells.append(" · ".join(_number(value) for value in values))
                table.add_row(stream, modality, *cells)
        table.add_section()
    return table


def _three(profile: Profile, metric: str) -> list[int]:
    rows = take_first(profile.table)
    layers = sorted(set(rows.layer[rows.metric == metric])) or [0]
    return list(dict.fromkeys([layers[0], layers[len(layers) // 2], layers[-1]]))


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def _show_warnings(profile: Profile, console: Console) -> None:
    counts = profile.warnings()
    if not counts:
        return
    n = int((profile.table.warning != "").sum())
    most = list(counts.items())[:3]
    console.print(
        f"{n} of {len(profile.table)} values have warnings (column `warning`, report.html). "
        "Most frequent, # for numbers:",
        markup=False,
    )
    for text, count in most:
        console.print(f"  {count} × {text}", markup=False)
    skipped = profile.provenance["data"]["n_skipped"]
    if skipped:
        console.print(f"{skipped} samples could not be read: see provenance.json.")
