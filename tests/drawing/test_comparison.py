"""Pictures of a comparison say what its tables say."""

from __future__ import annotations

import json
import re

import numpy as np
from figures import drawn
from made_comparisons import tiled, whole
from made_profiles import HEADLINE, planted

import mm_lens
from mm_lens.drawing.comparison import STYLES


def test_labels_cannot_break_the_page():
    found = mm_lens.compare(tiled(), whole(), labels=["<script>a|b</script>", "b"])
    assert "<script>a" not in found._repr_html_()
    assert "a|b" not in found.markdown()


def test_curves_are_the_rows_of_the_tables(comparison):
    figure = comparison.plot("linearity_paper")
    panels = [(m, s) for m in ("visual", "text") for s in ("residual", "main")]
    assert len(figure.axes) == len(panels)
    limits = {axes.get_ylim() for axes in figure.axes}
    assert len(limits) == 1
    for axes, (modality, stream) in zip(figure.axes, panels, strict=True):
        found = drawn(axes)
        assert {*found} == {*comparison.labels}
        assert modality in axes.get_title()
        for label, points in found.items():
            table = comparison.profiles[label].table
            rows = table[(table.stream == stream) & (table.modality == modality)]
            rows = rows[rows.metric == "linearity_paper"]
            np.testing.assert_array_equal(points, rows[["layer", "value"]].to_numpy(float))


def test_models_differ_in_more_than_colour(comparison):
    lines = [
        line for line in comparison.plot("anisotropy").axes[0].lines if line.get_marker() != "None"
    ]
    for look in ("get_color", "get_marker", "get_linestyle"):
        assert len({getattr(line, look)() for line in lines}) == 2


def test_models_of_different_depth_are_drawn_over_relative_depth():
    figure = mm_lens.compare(tiled(), whole(n_layers=4)).plot("dimension_mle")
    assert "relative depth" in figure.axes[0].get_xlabel()
    points = drawn(figure.axes[0])
    np.testing.assert_allclose(points["demo/whole"][:, 0], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(points["demo/tiled"][:, 0], np.arange(10) / 9)


def test_nothing_is_cut_off_with_many_models():
    names = [f"a-model-with-a-long-name/version-{i}" for i in range(len(STYLES) + 1)]
    models = [planted(name, seed=i, metrics=("anisotropy",)) for i, name in enumerate(names)]
    figure = mm_lens.compare(*models).plot("anisotropy")
    figure.canvas.draw()
    renderer, whole_box = figure.canvas.get_renderer(), figure.bbox
    boxes = [axes.get_legend().get_window_extent(renderer) for axes in figure.axes]
    boxes += [axes.title.get_window_extent(renderer) for axes in figure.axes]
    boxes += [text.get_window_extent(renderer) for text in figure.texts]
    for box in boxes:
        assert whole_box.x0 <= box.x0 <= box.x1 <= whole_box.x1
        assert whole_box.y0 <= box.y0 <= box.y1 <= whole_box.y1
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert min(a.x1, b.x1) - max(a.x0, b.x0) < 1 or min(a.y1, b.y1) - max(a.y0, b.y0) < 1


def test_page_needs_no_network(comparison, tmp_path):
    from mm_lens.drawing.comparison import render

    html = render(comparison)
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="', html)
    for name in HEADLINE:
        for modality in ("visual", "text"):
            part = html.split(f'drawChart("plot-{name}-{modality}", ')[1]
            found = json.loads("[" + part.split(");</script>")[0] + "]")[1]
            curves = [trace for trace in found["data"] if "name" in trace]
            assert [t["name"] for t in curves] == 2 * comparison.labels
    assert "Low visual anisotropy" in html
    lead = html.split('<p class="lead">')[1].split("</p>")[0]
    assert html.index('class="lead"') < html.index("<table")
    verdicts = comparison.findings[comparison.findings.preset == "paper"]
    verdicts = verdicts.groupby(["finding", "stream"]).finding_verdict.first()
    for name, count in verdicts.value_counts().items():
        assert f"{name}: {count}" in lead.lower()
    assert len(html) < 2_000_000
