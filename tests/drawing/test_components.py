"""Pictures of profiles of many hooks: what is drawn is what the table says."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from made_data import make_data, quick

import mm_lens
from mm_lens.drawing import components, report
from mm_lens.profiling.points.lines import name_lines, place_on_path

HOOKS = ["states", "attn_out", "z", "tower", "projector_in", "projector_out", "ln_final"]

METRIC = "anisotropy_without_massive"


@pytest.fixture(scope="module")
def profile(model):
    return quick(
        model,
        make_data(9, text_only=()),
        hooks=HOOKS,
        heads=True,
        pairs=["states", "tower", "projector", ("resid_pre", "attn_out"), "heads"],
        streams=["residual"],
        modalities=["visual", "text"],
        metrics=["anisotropy_without_massive", "linearity_paper"],
    )


def test_lines_are_components_heads_and_pairs(profile):
    table = profile.table.assign(line=name_lines(profile.table))
    singles = (
        table[table.metric == "anisotropy_without_massive"].groupby("line").layer.unique().map(list)
    )
    assert singles["states"] == [0, 1, 2, 3]
    assert singles["tower"] == [0, 1, 2, 3]
    assert singles["z head 3"] == singles["attn_out"] == [1, 2, 3]
    assert singles["projector_in"] == singles["projector_out"] == [0]
    pairs = table[table.metric == "linearity_paper"].groupby("line").layer.unique().map(list)
    assert pairs.to_dict() == {
        "states": [1, 2, 3],
        "tower": [1, 2, 3],
        "projector_in → projector_out": [0],
        "resid_pre → attn_out": [1, 2, 3],
        "resid_pre → z": [1, 2, 3],
        **{f"resid_pre → z head {h}": [1, 2, 3] for h in range(4)},
    }


def test_a_line_per_component_shows_the_values_of_the_table(profile):
    figure = components.draw_components(profile, "linearity_paper")
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["states", "resid_pre → z", "resid_pre → attn_out"]
    visual = figure.axes[0]
    rows = profile.table[
        (profile.table.component == "attn_out")
        & (profile.table.metric == "linearity_paper")
        & (profile.table.modality == "visual")
    ]
    np.testing.assert_array_equal(visual.lines[2].get_xdata(), rows.layer)
    np.testing.assert_array_equal(visual.lines[2].get_ydata(), rows.value)


def test_the_map_of_heads_shows_the_values_of_the_table(profile):
    figure = components.draw_heads(profile, "anisotropy_without_massive")
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (4, 3)
    table = profile.table
    row = table[
        (table.hook == "blocks.1.attn.hook_z")
        & (table["head"] == 2)
        & (table.modality == "visual")
        & (table.metric == "anisotropy_without_massive")
    ]
    assert shown[2, 1] == row.value.item()


def test_from_pixel_to_word_is_one_axis(profile):
    placed = place_on_path(profile.table)
    rows = placed[placed.metric == "anisotropy_without_massive"].sort_values("path")
    stops = ["t0", "t1", "t2", "t3", "in", "out", "0", "1", "2", "3", "norm"]
    assert list(rows.stop) == stops
    assert list(rows.path) == [*range(11)]
    figure = components.draw_path(profile, "anisotropy_without_massive")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == stops
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), rows.value)
    pairs = placed[placed.metric == "linearity_paper"].sort_values("path")
    assert list(pairs.stop) == ["t1", "t2", "t3", "out", "1", "2", "3"]


def test_the_report_has_them_and_a_profile_of_states_does_not(model, profile, tmp_path):
    files = {path.name for path in report.write(profile, tmp_path)}
    assert {
        f"{kind}-anisotropy_without_massive.png" for kind in ("components", "heads", "path")
    } <= files
    page = report.render(profile)
    plots = re.findall(r'drawChart\("((?:plot|first)-[^"]+)", (.+?)\);</script>', page)
    names = [name for name, _ in plots]
    assert len(set(names)) == len(names)
    for _, drawn in plots:
        assert json.loads(f"[{drawn}]")[1]["data"]
    assert any("from pixel to word" in name for name in names)
    assert any("heads × layers" in name for name in names)

    states = quick(model, make_data(6))
    assert not components.has_components(states)
    (tmp_path / "states").mkdir()
    files = {path.name for path in report.write(states, tmp_path / "states")}
    assert files == {"overview.png", "report.html", *(f"{m}.png" for m in states.table.metric)}


def test_curves_over_layers_show_the_states(profile):
    figure = profile.plot("linearity_paper")
    assert [len(line.get_xdata()) for line in figure.axes[0].lines[1::2]] == [3, 3]


def test_a_profile_without_states_is_drawn(model, tmp_path):
    only = quick(model, make_data(6), hooks=["z"], heads=[1], metrics=["anisotropy"])
    files = {path.name for path in report.write(only, tmp_path)}
    assert "heads-anisotropy.png" in files
    from mm_lens.cli import summary

    summary.show(only, tmp_path, sorted(files))


def test_components_of_two_models_are_compared(model, profile, tmp_path):
    other = quick(
        model,
        make_data(9, text_only=()),
        hooks=["states", "attn_out"],
        streams=["residual"],
        modalities=["visual", "text"],
        metrics=["anisotropy_without_massive", "linearity_paper"],
        pairs=["states", ("resid_pre", "attn_out")],
    )
    found = mm_lens.compare(profile, other, labels=["one", "other"])
    differences = found.differences
    assert set(differences.line) == {"states", "attn_out", "resid_pre → attn_out"}
    rows = differences[differences.line == "attn_out"]
    assert (rows.difference == 0).all()
    assert len(rows) == 3 * 2
    expected = profile.table[
        (profile.table.component == "attn_out")
        & (profile.table.metric == "anisotropy_without_massive")
        & (profile.table.modality == "visual")
    ]
    np.testing.assert_array_equal(rows[rows.modality == "visual"].value_a, expected.value)
    found.save(tmp_path / "compared")
    assert (tmp_path / "compared" / "components-anisotropy_without_massive.png").exists()
