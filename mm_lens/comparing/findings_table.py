"""Findings as a table: in the terminal, as Markdown, as HTML. The same rows in each.

One line per finding and stream with a verdict per preset; below it one line per number, marked by
what it says for the claim: ✓ holds, ✗ does not, ? cannot be told, · nothing is claimed. Why a
number cannot tell stands below it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import Any

import pandas as pd

from mm_lens.comparing.findings import FAILS, HOLDS, UNCLAIMED
from mm_lens.comparing.statements import UNTOLD

PRESET_NAMES = {"paper": "paper's definitions", "honest": "honest"}
MARKS = {HOLDS: "✓", FAILS: "✗", UNTOLD: "?", UNCLAIMED: "·", "": " "}
LEGEND = "✓ holds, ✗ does not hold, ? cannot be told, · no claim; brackets: 95 % interval."
WIDTH = 100


@dataclass(frozen=True)
class Line:
    """A line of the table: a finding with its verdicts and criterion, or one of its numbers."""

    label: str
    cells: tuple[str, ...]
    is_finding: bool
    criterion: str = ""
    reasons: tuple[str, ...] = ()


def lines(findings: pd.DataFrame, presets: Sequence[str]) -> list[Line]:
    """The table from top to bottom, one cell per preset."""
    found: list[Line] = []
    for (number, stream), rows in findings.groupby(["finding", "stream"], sort=False):
        by_preset = {preset: rows[rows.preset == preset] for preset in presets}
        verdicts = [
            part.finding_verdict.iloc[0] if len(part) else "–" for part in by_preset.values()
        ]
        title = f"{number} {rows.statement.iloc[0]}"
        criterion = f"{stream} stream: {rows.criterion.iloc[0]}"
        found.append(Line(title, tuple(verdicts), True, criterion))
        for place, parts in rows.groupby(["models", "modality", "quantity"], sort=False):
            named = [str(place[0])]
            named += [str(place[1])] * (rows.modality.nunique() > 1)
            named += [str(place[2])] * (rows.quantity.nunique() > 1)
            claimed_not = " (claimed: not so)" * (parts.claimed.iloc[0] == "no")
            cells = {row.preset: _cell(row) for row in parts.itertuples()}
            label = ", ".join(named) + claimed_not
            shown = tuple(cells.get(p, "–") for p in presets)
            found.append(Line(label, shown, False, reasons=_reasons(parts)))
    return found


def _reasons(parts: pd.DataFrame) -> tuple[str, ...]:
    """Why numbers of a line cannot tell, by preset unless that is all the same."""
    untold = parts[(parts.answer == UNTOLD) & (parts.note != "")]
    notes = dict(zip(untold.preset, untold.note, strict=True))
    if len(notes) == len(parts) and len({*notes.values()}) == 1:
        return (next(iter(notes.values())),)
    return tuple(f"{PRESET_NAMES[preset]}: {note}" for preset, note in notes.items())


def _cell(row: Any) -> str:
    if math.isnan(row.value):
        return f"not measured {MARKS[row.verdict]}"
    digits = 3 if row.high - row.low < 0.02 else 1 if abs(row.value) >= 10 else 2
    value, low, high = (
        f"{number:.{digits}f}".replace("-", "−") for number in (row.value, row.low, row.high)
    )
    interval = "" if math.isnan(row.low) else f" [{low}, {high}]"
    return f"{value}{interval} {MARKS[row.verdict]}"


def presets_of(findings: pd.DataFrame) -> list[str]:
    """The presets that were measured, in the order of the columns."""
    return [preset for preset in PRESET_NAMES if (findings.preset == preset).any()]


def text(findings: pd.DataFrame, title: str, notes: Sequence[str] = (), width: int = WIDTH) -> str:
    """The table as plain text, with the notes below."""
    from rich.console import Console

    console = Console(file=StringIO(), width=width, highlight=False, color_system=None)
    with console.capture() as captured:
        show(findings, title, notes, console)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def show(findings: pd.DataFrame, title: str, notes: Sequence[str], console: object) -> None:
    """Print the table and the notes to a rich console."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape as escape_markup
    from rich.padding import Padding
    from rich.table import Table

    assert isinstance(console, Console)
    presets = presets_of(findings)
    table = Table(
        title=title,
        title_style="bold",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("finding")
    for preset in presets:
        table.add_column(PRESET_NAMES[preset], justify="right", no_wrap=True)
    for i, line in enumerate(lines(findings, presets)):
        if line.is_finding and i:
            table.add_section()
        table.add_row(
            line.label if line.is_finding else f"    {line.label}",
            *line.cells,
            style="bold" if line.is_finding else "",
        )
        if line.criterion:
            table.add_row(f"  {line.criterion}", *("" for _ in presets))
        for reason in line.reasons:
            table.add_row(
                Padding(escape_markup(f"? {reason}"), (0, 0, 0, 6)), *("" for _ in presets)
            )
    console.print(table)
    console.print(f"\n{LEGEND}", markup=False)
    for note in notes:
        console.print(f"Note: {note}", markup=False)


def markdown(findings: pd.DataFrame) -> str:
    """The table as Markdown."""
    presets = presets_of(findings)
    rows = [["finding", *(PRESET_NAMES[preset] for preset in presets)]]
    rows.append(["---", *("--:" for _ in presets)])
    for line in lines(findings, presets):
        cells = [f"**{cell}**" if line.is_finding else cell for cell in line.cells]
        label = (
            f"**{line.label}**<br>{line.criterion}" if line.is_finding else f"&emsp;{line.label}"
        )
        label += "".join(f"<br>&emsp;&emsp;? {reason}" for reason in line.reasons)
        rows.append([label.replace("|", "\\|"), *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + f"\n{LEGEND}\n"


def verdict(findings: pd.DataFrame) -> str:
    """What came out, in a sentence."""
    presets = presets_of(findings)
    told = [line for line in lines(findings, presets) if line.is_finding]
    counts = dict.fromkeys(line.cells[0] for line in told) if presets else {}
    parts = [f"{name}: {sum(line.cells[0] == name for line in told)}" for name in counts]
    if not parts:
        return "No claim could be tested on these profiles."
    by = f", by the {PRESET_NAMES[presets[0]]}" if presets[0] == "paper" else ""
    return f"{len(told)} claims, each on one stream{by}. {'; '.join(parts).capitalize()}."


def verdicts_html(findings: pd.DataFrame) -> str:
    """The verdicts alone, as HTML."""
    presets = presets_of(findings)
    head = "".join(f"<th>{escape(PRESET_NAMES[p])}</th>" for p in presets)
    body = "".join(
        f'<tr><th scope="row">{escape(line.label)}<br><span class="note">{escape(line.criterion)}'
        f"</span></th>{''.join(f'<td>{escape(cell)}</td>' for cell in line.cells)}</tr>\n"
        for line in lines(findings, presets)
        if line.is_finding
    )
    return f'<div class="scroll"><table><tr><th>claim</th>{head}</tr>\n{body}</table></div>\n'


def html(findings: pd.DataFrame) -> str:
    """The table as HTML."""
    presets = presets_of(findings)
    head = "".join(f'<th class="number">{escape(PRESET_NAMES[p])}</th>' for p in presets)
    body = ""
    for line in lines(findings, presets):
        tag = "th" if line.is_finding else "td"
        cells = "".join(f'<{tag} class="number">{escape(cell)}</{tag}>' for cell in line.cells)
        label = escape(line.label)
        if line.criterion:
            label += f'<br><span class="note">{escape(line.criterion)}</span>'
        for reason in line.reasons:
            label += f'<br><span class="note">? {escape(reason)}</span>'
        body += f"<tr><{tag}>{label}</{tag}>{cells}</tr>\n"
    table = f"<table><tr><th>finding</th>{head}</tr>\n{body}</table>"
    return f'<div class="scroll">{table}</div><p>{escape(LEGEND)}</p>\n'
