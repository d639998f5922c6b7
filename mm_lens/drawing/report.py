"""The report of a profile: pictures, and one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mm_lens.drawing import components, curves, page
from mm_lens.profiling.result import Profile


def write(profile: Profile, directory: Path) -> Iterator[Path]:
    """Write overview.png, one PNG per metric and report.html; yields each file when written.

    A profile of more hooks than the states has pictures of its components, too.
    """
    pictures: dict[str, Sequence[str]] = {
        "overview": (),
        **{m: (m,) for m in curves.metrics(profile)},
    }
    for name, chosen in pictures.items():
        path = directory / f"{name}.png"
        curves.draw(profile, chosen).savefig(path, dpi=curves.DPI)
        yield path
    yield from components.write(profile, directory)
    path = directory / "report.html"
    path.write_text(render(profile), encoding="utf-8")
    yield path


def render(profile: Profile) -> str:
    """The page: every metric with its curves and definition, the warnings, the provenance."""
    chosen = curves.metrics(profile)
    body = (
        page.links({metric: curves.look(profile, metric).title for metric in chosen})
        + _warnings(profile)
        + "".join(_section(profile, metric) for metric in chosen)
        + components.sections(profile)
        + page.provenance(profile.provenance)
    )
    return page.document(profile.title, body)


def figure(profile: Profile, metric: str) -> dict[str, Any]:
    """The curves of one metric in plotly's own terms, one panel per stream."""
    panels = [
        curves.Panel(curves.STREAM_NAMES[stream], curves.curves(profile, metric, stream))
        for stream in curves.streams(profile)
    ]
    return page.side_by_side(curves.look(profile, metric), panels)


def _section(profile: Profile, metric: str) -> str:
    title = curves.look(profile, metric).title
    return page.section(metric, title, {"": figure(profile, metric)})


def _warnings(profile: Profile) -> str:
    counts = profile.warnings()
    if not counts:
        return "<p>No warnings.</p>"
    rows = "".join(
        f'<tr><td class="number">{count}</td><td>{escape(text)}</td></tr>'
        for text, count in counts.items()
    )
    total = int((profile.table.warning != "").sum())
    return (
        f"<details><summary>{total} of {len(profile.table)} values have warnings</summary>"
        "<table><tr><th>values</th><th>warning (# stands for a number)</th></tr>"
        f"{rows}</table></details>"
    )
