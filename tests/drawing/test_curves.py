"""Pictures: what is drawn is what the table says, also where values are missing."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_profiles import NAMES, make_profile
from figures import drawn

from mm_lens import InputError
from mm_lens.drawing import curves as plots
from mm_lens.drawing import report
from mm_lens.metrics import METRICS
from mm_lens.profiling.result import Profile


@pytest.mark.parametrize("name", NAMES)
def test_curves_are_the_rows_of_the_table(profile, name):
    figure = plots.draw(profile, [name])
    assert len(figure.axes) == 2
    for axes, stream in zip(figure.axes, ("residual", "main"), strict=True):
        curves = drawn(axes)
        assert set(curves) == {"visual", "text", "all"}
        for modality, points in curves.items():
            table = profile.table
            rows = table[(table.stream == stream) & (table.modality == modality)]
            rows = rows[rows.metric == name]
            np.testing.assert_array_equal(points, rows[["layer", "value"]].to_numpy(float))
        chance = [line for line in axes.lines if line.get_linestyle() == ":"]
        bands = axes.collections
        assert len(chance) == len(bands) == 3
        for i, line in enumerate(chance):  # one colour, one modality
            curve = axes.lines[2 * i + 1]
            assert line.get_color() == curve.get_color()
        assert axes.get_xlabel()
        low, high = axes.get_ylim()
        values = profile.table.value[profile.table.metric == name]
        assert low < values.min() < values.max() < high
    assert figure.axes[0].get_ylabel().startswith(METRICS[name].label)


def test_modalities_differ_in_more_than_colour(profile):
    lines = [
        line
        for line in plots.draw(profile, ["anisotropy"]).axes[0].lines
        if line.get_marker() != "None"
    ]
    for look in ("get_color", "get_marker", "get_linestyle"):
        assert len({getattr(line, look)() for line in lines}) == 3


def test_nothing_is_cut_off_or_overlaps(profile):
    figure = plots.draw(profile)
    figure.canvas.draw()
    renderer, whole = figure.canvas.get_renderer(), figure.bbox
    boxes = []
    for axes in figure.axes:
        legend = axes.get_legend().get_window_extent(renderer)
        label = axes.xaxis.label.get_window_extent(renderer)
        title = axes.title.get_window_extent(renderer)
        boxes += [legend, label, title, axes.get_window_extent(renderer)]
        boxes.append(axes.yaxis.get_tightbbox(renderer))
    boxes += [text.get_window_extent(renderer) for text in figure.texts]
    for box in boxes:
        assert whole.x0 <= box.x0 <= box.x1 <= whole.x1
        assert whole.y0 <= box.y0 <= box.y1 <= whole.y1
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            shared = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert min(shared) < 3, "an axis and its panel share a border, nothing shares more"


def test_headline_comes_first(profile):
    assert plots.headline(profile)[:2] == ["linearity_heldout_without_massive", "dimension_mle"]
    assert set(plots.metrics(profile)) == set(NAMES)
    assert [axes.get_ylabel().split("\n")[0] for axes in profile.plot().axes[::2]] == [
        METRICS[name].label for name in ("linearity_heldout_without_massive", "dimension_mle")
    ]


def test_profile_plot_draws_what_is_asked(profile):
    assert len(profile.plot("anisotropy", "dimension_mle").axes) == 4
    with pytest.raises(InputError, match="nope"):
        profile.plot("nope")


def test_notebooks_show_it_without_a_backend(profile):
    assert profile.plot("anisotropy")._repr_png_().startswith(b"\x89PNG")


def test_long_names_fit():
    profile = make_profile(["dimension_mle_quarter"])
    profile.provenance["model"]["name"] = "/a/very/long/path/to/some/" + 5 * "checkpoint-"
    profile.provenance["data"]["name"] = "somebody-with-a-name/and-some-data-of-theirs"
    figure = profile.plot()
    figure.canvas.draw()
    for text in figure.texts:
        box = text.get_window_extent(figure.canvas.get_renderer())
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1


def test_one_stream_unknown_metric_and_no_value_at_all():
    profile = make_profile(names=["third_party"], streams=["main"], layers=1)
    assert len(profile.plot().axes) == 1
    empty = profile.table.assign(value=np.nan, low=np.nan, high=np.nan, chance=np.nan)
    figure = plots.draw(Profile(empty, profile.provenance))
    assert any("no value" in text.get_text() for text in figure.axes[0].texts)
    assert "no value" in report.render(Profile(empty, profile.provenance))


@pytest.mark.parametrize(("low", "high"), [(2.2, 4.6), (11, 18), (0.9, 1.4), (3, 2000), (51, 99)])
def test_a_log_axis_has_labels_however_short(low, high):
    axes = plots.InlineFigure().subplots()
    plots.scale_log(axes)
    axes.set_ylim(low, high)
    shown = [text.get_text() for text in axes.get_yticklabels()]
    at = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert len(at) >= 2
    assert all(shown)
    assert at == plots.find_log_ticks(low, high)
