"""Pictures and page of a comparison: models side by side, per metric, modality and stream.

Colour, marker and line style all tell the model (colours of Paul Tol's high-contrast and vibrant
schemes, told apart with any colour vision and in grey). All panels of a metric share one scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import pandas as pd

from mm_lens.comparing import findings_table
from mm_lens.comparing.comparison import Comparison
from mm_lens.drawing import curves, page
from mm_lens.errors import InputError
from mm_lens.metrics import METRICS
from mm_lens.profiling.collecting.token_sample import BETWEEN
from mm_lens.profiling.points.lines import STATES, list_components

STYLES = (
    ("#004488", "o", "-"),
    ("#DDAA33", "s", "--"),
    ("#BB5566", "^", "-."),
    ("#33BBEE", "D", "-"),
    ("#009988", "v", "--"),
    ("#000000", "P", "-."),
)
"""Colour, marker and line style of each model, from the first again after the last."""
MODALITIES = ("visual", "text", "all", BETWEEN)


def metrics(comparison: Comparison) -> list[str]:
    """The metrics that all profiles hold, those that stand for their kind first."""
    return curves.metrics(next(iter(comparison.profiles.values())))


def headline(comparison: Comparison) -> list[str]:
    """Those that stand for their kind, the paper's own left out; all metrics without any."""
    known = metrics(comparison)
    return [m for m in known if m in METRICS and METRICS[m].headline - {"paper"}] or known


def _over(comparison: Comparison) -> str:
    """Models of different depth are drawn over relative depth, others over layers."""
    depths = {p.provenance["model"]["n_layers"] for p in comparison.profiles.values()}
    return "layer" if len(depths) == 1 else "depth"


def _states(comparison: Comparison) -> pd.DataFrame:
    """The rows that are drawn: of the states, or all where no model has any."""
    table = comparison.table
    return table[table.line == STATES] if (table.line == STATES).any() else table


def _panel(comparison: Comparison, metric: str, stream: str, modality: str) -> curves.Panel:
    table, x = _states(comparison), _over(comparison)
    rows = table[(table.metric == metric) & (table.stream == stream) & (table.modality == modality)]
    whose = "visual against text" if modality == BETWEEN else modality
    return curves.Panel(
        f"{whose} tokens, {curves.STREAM_NAMES[stream]}",
        [
            curves.DrawnCurve(
                label, STYLES[i % len(STYLES)], rows[rows.model == label].sort_values("layer"), x
            )
            for i, label in enumerate(comparison.labels)
            if (rows.model == label).any()
        ],
    )


def _row(
    comparison: Comparison, metric: str, modality: str, shared: Sequence[str]
) -> tuple[curves.Look, list[curves.Panel]]:
    """Panels of one metric and modality, on the scale of all the modalities in `shared`."""
    table = _states(comparison)
    rows = table[(table.metric == metric) & table.modality.isin(shared)]
    streams = curves.streams(next(iter(comparison.profiles.values())))
    # Chance stands far above the intrinsic dimension, and would press the models together.
    return curves.look_at(rows, metric, _over(comparison), log_from=4.0), [
        _panel(comparison, metric, stream, modality) for stream in streams
    ]


def _modalities(comparison: Comparison, metric: str) -> list[str]:
    """Visual and text; all tokens only where there is nothing else."""
    rows = comparison.table[comparison.table.metric == metric]
    held = [name for name in MODALITIES if (rows.modality == name).any()]
    return [name for name in held if name != "all"] or held


def draw(comparison: Comparison, chosen: Sequence[str] = ()) -> curves.InlineFigure:
    """One metric for each modality, or several metrics for visual tokens.

    Raises:
        InputError: a metric is not in every profile.
    """
    known = metrics(comparison)
    if unknown := [metric for metric in chosen if metric not in known]:
        raise InputError(
            f"Not every profile holds the metric {unknown[0]!r}; they hold {', '.join(known)}."
        )
    several = chosen or headline(comparison)
    if len(chosen) == 1:
        modalities = _modalities(comparison, chosen[0])
        rows = [_row(comparison, chosen[0], modality, modalities) for modality in modalities]
    else:
        first = {metric: _modalities(comparison, metric)[:1] for metric in several}
        rows = [_row(comparison, metric, own[0], own) for metric, own in first.items()]
    title = rows[0][0].title if len(chosen) == 1 else "Models side by side"
    footnote = curves.note(comparison.table, several)
    return curves.compose(rows, title, comparison.title, footnote)


def draw_components(comparison: Comparison, metric: str) -> curves.InlineFigure | None:
    """A row per component that all models have, visual and text; None if there is none."""
    table, x = comparison.table, _over(comparison)
    held = [set(table[table.model == label].line) for label in comparison.labels]
    rows = table[(table.metric == metric) & table.line.isin(set.intersection(*held))]
    lines = [line for line in list_components(list(rows.line)) if line != STATES]
    lines = [line for line in lines if rows[rows.line == line].value.notna().any()]
    if not lines:
        return None
    first, modalities = curves.streams(next(iter(comparison.profiles.values())))[0], MODALITIES[:2]
    drawn = []
    for line in lines:
        of = rows[(rows.line == line) & (rows.stream == first)]
        panels = [
            curves.Panel(
                f"{line}, {modality} tokens",
                [
                    curves.DrawnCurve(
                        label,
                        STYLES[i % len(STYLES)],
                        of[(of.model == label) & (of.modality == modality)].sort_values("layer"),
                        x,
                    )
                    for i, label in enumerate(comparison.labels)
                ],
            )
            for modality in modalities
        ]
        drawn.append((curves.look_at(of, metric, x, log_from=4.0), panels))
    footnote = curves.note(table, [metric])
    title = f"{drawn[0][0].title}: components, {curves.STREAM_NAMES[first]}"
    return curves.compose(drawn, title, comparison.title, footnote)


def write(comparison: Comparison, directory: Path) -> Iterator[Path]:
    """Write overview.png, one PNG per metric and compare.html; yields each file when written."""
    pictures: dict[str, Sequence[str]] = {"overview": (), **{m: (m,) for m in metrics(comparison)}}
    for name, chosen in pictures.items():
        path = directory / f"{name}.png"
        draw(comparison, chosen).savefig(path, dpi=curves.DPI)
        yield path
    for metric in metrics(comparison):
        if metric in headline(comparison) and (figure := draw_components(comparison, metric)):
            path = directory / f"components-{metric}.png"
            figure.savefig(path, dpi=curves.DPI)
            yield path
    path = directory / "compare.html"
    path.write_text(render(comparison), encoding="utf-8")
    yield path


def render(comparison: Comparison) -> str:
    """The page: the verdict, three metrics in view, and everything else folded by topic."""
    chosen = metrics(comparison)
    sections: dict[str, str] = {}
    first = []
    for metric in chosen:
        modalities = _modalities(comparison, metric)
        rows = {name: _row(comparison, metric, name, modalities) for name in modalities}
        figures = {
            name: page.side_by_side(look, [panel for panel in panels if panel.curves])
            for name, (look, panels) in rows.items()
        }
        title = next(iter(rows.values()))[0].title
        kind = METRICS[metric].kind if metric in METRICS else "other"
        sections[kind] = sections.get(kind, "") + page.section(metric, title, figures)
        if metric in headline(comparison)[:3]:
            meaning = escape(page.MEANINGS.get(kind, ""))
            first.append(
                f'<section class="headline"><h2>{escape(title)}</h2><p class="note">{meaning}</p>'
                + page.plots(f"first-{metric}", title, figures)
                + "</section>"
            )
    notes = "".join(f"<li>{escape(note)}</li>" for note in comparison.notes)
    numbers = findings_table.html(comparison.findings) + f"<ul>{notes}</ul>" * bool(notes)
    about = "what stands behind the verdicts: docs/comparing.md"
    body = (
        f'<p class="lead">{escape(findings_table.verdict(comparison.findings))}</p>'
        + findings_table.verdicts_html(comparison.findings)
        + page.topic("findings", "Findings in numbers", about, numbers)
        + page.HOW_TO_READ
        + "".join(first)
        + '<h2 id="all">Everything that was compared</h2>'
        + "".join(
            page.topic(f"topic-{kind}", page.TOPICS.get(kind, kind.capitalize()), "", html)
            for kind, html in sections.items()
        )
        + page.provenance(comparison.provenance)
    )
    return page.document(comparison.title, body)
