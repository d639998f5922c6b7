"""Pictures of a profile: curves over layers, one figure per metric.

Colour, marker and line style all tell the modality (colours of Okabe and Ito 2008, told apart with
any colour vision). Bands are 95 % intervals, dotted lines in the same colour the chance floor. The
axis covers the values; a wide interval may leave it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from mm_lens.arguments import suggest
from mm_lens.errors import InputError
from mm_lens.metrics import METRICS
from mm_lens.profiling.collecting.token_sample import BETWEEN
from mm_lens.profiling.points.lines import take_first
from mm_lens.profiling.result import Profile

STYLES = {
    "visual": ("#0072B2", "o", "-"),
    "text": ("#D55E00", "s", "--"),
    "all": ("#009E73", "^", "-."),
    BETWEEN: ("#CC79A7", "D", "-"),
}
"""Colour, marker and line style of each modality."""
STREAM_NAMES = {"residual": "residual stream", "main": "main stream (no skip connections)"}
DPI = 110


class InlineFigure(Figure):
    """A matplotlib figure that notebooks show without any backend being set up."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()


# R² has no lower end: where nearly all states coincide, a few tokens can take it to -1,000.
FLOOR = -0.5


@dataclass(frozen=True)
class DrawnCurve:
    """One metric over the layers for one stream, modality and model; columns as in the table.

    Attributes:
        label: what tells it from the other curves of its panel.
        style: colour, marker and line style.
        rows: by ascending layer.
        x: the column that the horizontal axis shows.
    """

    label: str
    style: tuple[str, str, str]
    rows: pd.DataFrame
    x: str = "layer"

    @property
    def name(self) -> str:
        """Label and number of tokens, for legends."""
        few, many = self.rows.n_tokens.min(), self.rows.n_tokens.max()
        return f"{self.short}\nn = {few:,}" + (f"–{many:,}" if many > few else "")

    @property
    def short(self) -> str:
        """The label; of a long one, the end."""
        return self.label if len(self.label) <= 24 else f"…{self.label[-23:]}"


@dataclass(frozen=True)
class Panel:
    """Curves that share a pair of axes."""

    title: str
    curves: Sequence[DrawnCurve]


@dataclass(frozen=True)
class Look:
    """How a metric is drawn. `across` and `limits` are the ranges of the axes; without any value
    there are no `limits`.
    """

    title: str
    unit: str
    over: str
    across: tuple[float, float]
    log: bool
    limits: tuple[float, float] | None


def curves(profile: Profile, metric: str, stream: str) -> list[DrawnCurve]:
    """The curves of a metric in one stream, by ascending layer.

    Raises:
        InputError: the metric is not in the table.
    """
    table = profile.table
    if metric not in set(table.metric):
        raise InputError(
            f"The profile holds no metric {metric!r}; it holds {', '.join(metrics(profile))}."
            f"{suggest(metric, metrics(profile))}"
        )
    rows = take_first(table[table.metric == metric])
    rows = rows[rows.stream == stream]
    return [
        DrawnCurve(modality, STYLES[modality], rows[rows.modality == modality].sort_values("layer"))
        for modality in STYLES
        if (rows.modality == modality).any()
    ]


def metrics(profile: Profile) -> list[str]:
    """The metrics of a profile, those that stand for their kind first."""
    return list(dict.fromkeys([*headline(profile), *profile.table.metric]))


def headline(profile: Profile) -> list[str]:
    """The metrics that stand for their kind: honest ones, the paper's in its order, then others."""
    table = profile.table
    first = ("linearity", "dimension", "anisotropy")
    kinds = dict.fromkeys([*first, *(metric.kind for metric in METRICS.values())])
    return [
        name
        for preset in ("honest", "paper", "between", "lens")
        for kind in kinds
        for name, metric in METRICS.items()
        if preset in metric.headline and metric.kind == kind and name in set(table.metric)
    ]


def first_shown(profile: Profile) -> list[str]:
    """Those of them that a picture shows unless it is told what: all but the paper's."""
    return [name for name in headline(profile) if METRICS[name].headline - {"paper"}]


def streams(profile: Profile) -> list[str]:
    """The streams of a profile."""
    return [stream for stream in STREAM_NAMES if stream in set(profile.table.stream)]


def look(profile: Profile, metric: str) -> Look:
    """Title, axis labels, scale and range of a metric, the same in every stream."""
    return look_at(take_first(profile.table[profile.table.metric == metric]), metric)


def look_at(rows: pd.DataFrame, metric: str, x: str = "layer", log_from: float = 8.0) -> Look:
    """The same for any rows of that metric.

    Args:
        rows: of the table.
        metric: which one they are of.
        x: column of the horizontal axis: "layer" or "depth".
        log_from: largest over smallest value from which on a count is drawn on a log scale.
    """
    known = METRICS.get(metric)
    label, unit = (known.label, known.unit) if known else (metric, "")
    pair = known is not None and known.arity == 2
    over = "layer l (from state l − 1 to state l)" if pair else "layer (0: embeddings)"
    if x == "path":
        over = "t: tower · in, out: projector · 0, 1, …: language model · norm: final norm"
    if x == "depth":
        over = "relative depth (0: embeddings, 1: last layer)"
    around = 0.03 if x == "depth" else 0.3
    numbers = pd.concat([rows.value, rows.chance]).dropna()
    # Counts (of dimensions, of tokens) may lie orders of magnitude apart.
    log = bool(
        unit and len(numbers) and numbers.min() > 0 and numbers.max() > log_from * numbers.min()
    )
    return Look(
        title=label,
        unit=unit,
        over=over,
        across=(float(rows[x].min()) - around, float(rows[x].max()) + around),
        log=log,
        limits=_limits(rows, log, FLOOR if pair else -math.inf),
    )


def draw(profile: Profile, chosen: Sequence[str] = ()) -> InlineFigure:
    """Draw metrics over the layers: one row of panels per metric, one column per stream.

    Args:
        profile: what to draw.
        chosen: metrics; if empty, those that stand for their kind, the paper's own left out.

    Raises:
        InputError: a metric is not in the table.
    """
    chosen = chosen or first_shown(profile) or metrics(profile)
    rows = [
        (
            look(profile, metric),
            [Panel(STREAM_NAMES[s], curves(profile, metric, s)) for s in streams(profile)],
        )
        for metric in chosen
    ]
    title = rows[0][0].title if len(chosen) == 1 else "Metrics over layers"
    return compose(rows, title, profile.title, note(profile.table, chosen))


def compose(
    rows: Sequence[tuple[Look, Sequence[Panel]]], title: str, subtitle: str, footnote: str
) -> InlineFigure:
    """A grid of panels; each row has its own scale, which its first panel is labelled with."""
    figure, grid = _panels(len(rows), len(rows[0][1]))
    for (style, panels), row in zip(rows, grid, strict=True):
        for axes, panel in zip(row, panels, strict=True):
            for curve in panel.curves:
                _draw_curve(axes, curve, curve.name if len(panel.curves) < 5 else curve.short)
            _dress(axes, style, panel)
        row[0].set_ylabel(f"{style.title}\n[{style.unit}]" if style.unit else style.title)
        if style.log:
            scale_log(row[0])
        if style.limits:
            row[0].set_ylim(*style.limits)
        else:
            row[0].set_yticks([])
    inch = 1 / figure.get_figheight()
    figure.suptitle(title, fontsize=14, fontweight="bold", y=1 - 0.1 * inch)
    figure.text(0.5, 1 - 0.55 * inch, subtitle, ha="center", fontsize=12)
    figure.text(0.5, 0.1 * inch, footnote, ha="center", fontsize=10, color="0.35")
    return figure


LOG_TICKS = [base * 10**power for power in range(-3, 7) for base in (1, 2, 5)]


def find_log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, at least two: on short log axes, evenly spread ones."""
    found = [tick for tick in LOG_TICKS if low <= tick <= high]
    if len(found) >= 2:
        return found
    return [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]


class LogTicks(LogLocator):
    """Ticks of `find_log_ticks`: matplotlib's own may leave a short axis without any."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """The ticks of an axis from `vmin` to `vmax`."""
        return np.array(find_log_ticks(min(vmin, vmax), max(vmin, vmax)))


def scale_log(axes: Axes) -> None:
    """A log scale with plain numbers at its ticks."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogTicks())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def note(table: pd.DataFrame, chosen: Sequence[str]) -> str:
    """What bands and dotted lines are, for the foot of a picture of these metrics."""
    known = [METRICS[metric] for metric in chosen if metric in METRICS]
    of_null = "dimension" in {metric.kind for metric in known}
    null = " (dimension: of a Gaussian with the same covariance)" * of_null
    pairs = [metric.name for metric in known if metric.arity == 2]
    cuts = bool((table[table.metric.isin(pairs)].value < FLOOR).any())
    cut = f" R² below {FLOOR:g} is cut off." * cuts
    return f"Bands: 95 % interval over samples. Dotted: chance level{null}. n: tokens.{cut}"


def _panels(n_rows: int, n_columns: int) -> tuple[InlineFigure, Any]:
    """A figure with panels at fixed places: matplotlib's own layout would double the time."""
    panel, gap, left, right = (5.0 if n_columns > 1 else 9.0, 3.0), (0.65, 1.5), 1.15, 0.2
    top, bottom = 0.95, 1.45  # inches, like the above (horizontal, vertical)
    width = left + right + n_columns * panel[0] + (n_columns - 1) * gap[0]
    height = top + bottom + n_rows * panel[1] + (n_rows - 1) * gap[1]
    figure = InlineFigure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=gap[0] / panel[0],
        hspace=gap[1] / panel[1],
    )
    return figure, figure.subplots(n_rows, n_columns, squeeze=False, sharey="row")


def _draw_curve(axes: Axes, curve: DrawnCurve, name: str) -> None:
    colour, marker, dashes = curve.style
    x, rows = curve.rows[curve.x].to_numpy(), curve.rows
    axes.fill_between(x, rows.low, rows.high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, rows.chance, color=colour, linestyle=":", linewidth=1.6)
    axes.plot(
        x,
        rows.value,
        color=colour,
        marker=marker,
        linestyle=dashes,
        linewidth=2,
        markersize=6,
        label=name,
    )


def _dress(axes: Axes, style: Look, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=12)
    axes.set_xlabel(style.over)
    axes.set_xlim(*style.across)
    axes.xaxis.set_major_locator(MaxNLocator(integer=style.across[1] > 2))
    axes.tick_params(labelleft=True)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
        why = "no value (see the warnings)" if panel.curves else "not defined in this stream"
        axes.text(0.5, 0.5, why, ha="center", transform=axes.transAxes)
    if not panel.curves:
        return
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.15),  # below the panel, where no curve can be
        ncol=3 if len(panel.curves) == 3 else 2,
        frameon=False,
        fontsize=9,
        labelspacing=0.5 if len(panel.curves) < 5 else 0.25,
        handlelength=2.5,
        columnspacing=1.2,
    )


def _limits(rows: pd.DataFrame, log: bool, floor: float) -> tuple[float, float] | None:
    """A range that shows every value and chance floor, and intervals as far as they are near.

    Nothing below `floor`.
    """

    def numbers(*columns: str) -> Any:
        found = rows[list(columns)].to_numpy(float).ravel()
        found = found[np.isfinite(found) & ((found > 0) | (not log))]
        return np.log(found) if log else found

    core, bands = numbers("value", "chance"), numbers("low", "high")
    if not len(core):
        return None
    low, high = core.min(), core.max()
    span = max(high - low, 0.05 * max(1e-9, abs(high)))
    if len(bands):
        low = min(low, max(bands.min(), low - 0.5 * span))
        high = max(high, min(bands.max(), high + 0.5 * span))
    low = max(low, floor)
    span = min(span, high - low) or span
    low, high = low - 0.06 * span, high + 0.06 * span
    return (math.exp(low), math.exp(high)) if log else (low, high)
