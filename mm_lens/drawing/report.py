"""The report of a profile: pictures, and one HTML page that needs no network.

First what was measured on what, in a sentence; then three curves with what high and low mean and
what this run shows; all else is folded up by topic.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mm_lens.drawing import components, curves, page
from mm_lens.metrics import METRICS
from mm_lens.profiling.collecting.token_sample import BETWEEN
from mm_lens.profiling.result import Profile

SAMPLE_FILE = "sample.png"
"""A sample with its tokens, where the directory holds one."""
PAGES = {"linearity", "dimension", "anisotropy", "spectrum", "gap", "cka", "lens"}
"""Kinds with a page of their name in docs/metrics."""


def write(profile: Profile, directory: Path) -> Iterator[Path]:
    """Write overview.png, one PNG per metric and report.html; yields each file when written.

    A profile of more hooks than the states has pictures of its components, too. A picture that lies
    there as `SAMPLE_FILE` is shown in the page.
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
    path.write_text(render(profile, directory), encoding="utf-8")
    yield path


def render(profile: Profile, directory: Path | None = None) -> str:
    """The page: what was measured, three curves in words, those between the modalities and of the
    lens, if there are any; then everything by topic."""
    chosen = curves.metrics(profile)
    stand = curves.first_shown(profile)
    first = [m for m in stand if "honest" in METRICS[m].headline][:3]
    first += [m for m in stand if {"between", "lens"} & METRICS[m].headline]
    kinds = dict.fromkeys(METRICS[m].kind if m in METRICS else "other" for m in chosen)
    body = (
        f'<p class="lead">{escape(say_what_was_measured(profile))}</p>'
        + _sample(directory)
        + page.HOW_TO_READ
        + "".join(_headline(profile, metric) for metric in first or chosen[:3])
        + '<h2 id="all">Everything that was measured</h2>'
        + "".join(_topic(profile, kind, chosen) for kind in kinds)
        + components.sections(profile)
        + _warnings(profile)
        + page.provenance(profile.provenance)
    )
    return page.document(profile.title, body)


def say_what_was_measured(profile: Profile) -> str:
    """One sentence: which model, which data, how many tokens of what."""
    model, data = profile.provenance["model"], profile.provenance["data"]
    sampled = profile.provenance.get("tokens", {}).get("sampled", {})
    parts = [f"{n:,} {name}" for name, n in sampled.items() if name != "all"]
    tokens = f", from {' and '.join(parts)} tokens" if parts else ""
    layers = f" ({model['n_layers']} layers)" if "n_layers" in model else ""
    held = [m for m in ("visual", "text") if (profile.table.modality == m).any()]
    whose = f"{' and '.join(held)} tokens" if held else "tokens"
    return (
        f"This page shows how {model['name']}{layers} treats its {whose}, layer by layer. It "
        f"was measured on {data['n_samples']:,} samples of {data['name']}{tokens}."
    )


def say_what_it_shows(profile: Profile, metric: str) -> str:
    """What the curves of a metric do in this run: from where to where, and who is above."""
    stream = curves.streams(profile)[0]
    drawn = [c for c in curves.curves(profile, metric, stream) if c.label != "all"]
    told, above = [], {}
    for curve in drawn or curves.curves(profile, metric, stream):
        rows, of = curve.rows.dropna(subset=["value"]), f"{curve.label} tokens"
        of = "visual against text tokens" if curve.label == BETWEEN else of
        if rows.empty:
            told.append(f"{of} have no value")
            continue
        first, last = rows.iloc[0], rows.iloc[-1]
        values = rows.value.to_numpy()
        top, low = rows.iloc[int(values.argmax())], rows.iloc[int(values.argmin())]
        told.append(
            f"{of} go from {first.value:.3g} (layer {first.layer}) to "
            f"{last.value:.3g} (layer {last.layer}), between {low.value:.3g} (layer {low.layer}) "
            f"and {top.value:.3g} (layer {top.layer})"
        )
        above[curve.label] = rows.set_index("layer")
    said = f"Here, on the {curves.STREAM_NAMES[stream]}: {'; '.join(told)}."
    if len(above) == 2:
        (a, one), (b, other) = above.items()
        both = one.merge(other, left_index=True, right_index=True, suffixes=("_a", "_b"))
        apart = int(((both.low_a > both.high_b) | (both.low_b > both.high_a)).sum())
        higher = int((both.value_a > both.value_b).sum())
        said += (
            f" {a.capitalize()} tokens lie above {b} tokens in {higher} of {len(both)} layers; the "
            f"intervals are apart in {apart} of them."
        )
    doubtful = sum(int((c.rows.warning != "").sum()) for c in drawn)
    if doubtful:
        said += f" {doubtful} of these values carry a warning (hollow)."
    return said


def figure(profile: Profile, metric: str) -> dict[str, Any]:
    """The curves of one metric as a chart, one panel per stream."""
    panels = [
        curves.Panel(curves.STREAM_NAMES[stream], drawn)
        for stream in curves.streams(profile)
        if (drawn := curves.curves(profile, metric, stream))
    ]
    return page.side_by_side(curves.look(profile, metric), panels)


def _headline(profile: Profile, metric: str) -> str:
    title = curves.look(profile, metric).title
    kind = METRICS[metric].kind if metric in METRICS else ""
    shows = say_what_it_shows(profile, metric)
    about = f"{title}. {shows}"
    return (
        f'<section class="headline"><h2>{escape(title)}</h2><p class="note">'
        f"{escape(page.MEANINGS.get(kind, ''))}</p><p>{escape(shows)}</p>"
        + page.plots(f"first-{metric}", about, {"": figure(profile, metric)})
        + "</section>"
    )


def _topic(profile: Profile, kind: str, chosen: Sequence[str]) -> str:
    own = [m for m in chosen if (METRICS[m].kind if m in METRICS else "other") == kind]
    body = "".join(
        page.section(m, curves.look(profile, m).title, {"": figure(profile, m)}) for m in own
    )
    more = f"; what it says and how far it can be trusted: docs/metrics/{kind}.md" * (kind in PAGES)
    count = f"{len(own)} metric{'s' * (len(own) > 1)}{more}"
    return page.topic(f"topic-{kind}", page.TOPICS.get(kind, kind.capitalize()), count, body)


def _sample(directory: Path | None) -> str:
    """The picture of a sample with its tokens, if there is one."""
    path = None if directory is None else directory / SAMPLE_FILE
    if path is None or not path.exists():
        return ""
    encoded = base64.b64encode(path.read_bytes()).decode()
    about = "A picture with its tokens: each cell is the piece that one token stands for"
    return (
        f'<figure style="margin:1em 0"><img alt="{escape(about)}" '
        f'src="data:image/png;base64,{encoded}"><figcaption class="note">One of the samples. '
        f"{escape(about)}.</figcaption></figure>"
    )


def _warnings(profile: Profile) -> str:
    counts = profile.warnings()
    if not counts:
        return "<p>No warnings.</p>"
    rows = "".join(
        f'<tr><td class="number">{count}</td><td>{escape(text)}</td></tr>'
        for text, count in counts.items()
    )
    total = int((profile.table.warning != "").sum())
    return page.topic(
        "warnings",
        f"{total} of {len(profile.table)} values have warnings",
        "docs/errors.md says what to do about each",
        '<div class="scroll"><table><tr><th>values</th>'
        f"<th>warning (# stands for a number)</th></tr>{rows}</table></div>",
    )
