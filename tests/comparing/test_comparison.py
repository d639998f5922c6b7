"""Comparisons: what is planted is found, and nothing else is said."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import load_tiny
from figures import drawn
from made_data import make_data, quick
from made_profiles import HEADLINE, TILED, WHOLE, T, planted

import mm_lens
from mm_lens import DataError, InputError
from mm_lens.cli import commands as cli
from mm_lens.comparing.comparison import COMPARISON_FILE, DIFFERENCES
from mm_lens.comparing.findings import COLUMNS, FAILS, HOLDS, UNCLAIMED
from mm_lens.comparing.statements import DECLINE, HIGHLY_LINEAR, LOW_ANISOTROPY, UNTOLD
from mm_lens.drawing.comparison import STYLES

# What the paper says: the shapes of both models that make all of its findings hold.
TILED_SHAPES = {"linearity": lambda x: 0.99 - 0.05 * x, "dimension": 8.0, "anisotropy": 0.9}
WHOLE_SHAPES = {"linearity": 0.98, "dimension": lambda x: 9 + x, "anisotropy": 0.2}


def tiled(shapes=None, **options):
    return planted("demo/tiled", TILED, {**TILED_SHAPES, **(shapes or {})}, **options)


def whole(shapes=None, **options):
    return planted("demo/whole", WHOLE, {**WHOLE_SHAPES, **(shapes or {})}, seed=1, **options)


def verdicts(comparison, finding, preset=None, stream=None):
    rows = comparison.findings[comparison.findings.finding == finding]
    rows = rows[rows.preset == preset] if preset else rows
    rows = rows[rows.stream == stream] if stream else rows
    return {*rows.finding_verdict}


def with_cells(profile, condition, **values):
    """The profile with some cells of its table changed."""
    table = profile.table.copy()
    table.loc[condition(table), [*values]] = [*values.values()]
    return replace(profile, table=table)


@pytest.fixture(scope="module")
def comparison():
    return mm_lens.compare(tiled(), whole())


# ---- findings ----


def test_what_the_paper_says_holds_where_it_is_planted(comparison):
    found = comparison.findings
    assert tuple(found.columns) == COLUMNS
    assert {*found.finding_verdict} == {HOLDS}
    assert found.groupby(["preset", "finding", "stream"]).ngroups == 2 * 6
    assert not found[["value", "low", "high"]].isna().any(axis=None)


def test_numbers_are_those_planted(comparison):
    rows = comparison.findings[comparison.findings.preset == "honest"].set_index("finding")
    linear = rows.loc[1]
    visual = linear[(linear.models == "demo/tiled") & (linear.modality == "visual")].iloc[0]
    assert visual.value == pytest.approx(0.99 - 0.05 * 0.5)
    # All layers of the planted profiles err together: the mean as each of them.
    assert (visual.low, visual.high) == pytest.approx(
        (visual.value - T * 0.01, visual.value + T * 0.01), rel=1e-4
    )
    decline = rows.loc[2].set_index("models").value
    # Nine layers: the middles of the first and of the last three are 1/6 and 5/6.
    assert decline["demo/tiled"].iloc[0] == pytest.approx(-0.05 * 4 / 6)
    higher = rows.loc[3].set_index("quantity")
    assert set(higher.models) == {"demo/whole − demo/tiled"}
    assert higher.value["mean"] == pytest.approx(1.5)
    assert higher.value["lowest"] == pytest.approx(1.0)
    low = rows.loc[4]
    assert low[(low.models == "demo/whole") & (low.quantity == "highest")].value.iloc[0] == 0.2


@pytest.mark.parametrize("preset", ["paper", "honest"])
@pytest.mark.parametrize(
    ("finding", "a", "b", "verdict"),
    [
        (1, {"linearity@main": lambda x: 0.5 - 0.05 * x}, {}, FAILS),
        (1, {}, {"linearity@main": HIGHLY_LINEAR + 0.01}, UNTOLD),
        (2, {"linearity": 0.95}, {}, FAILS),  # the first should decline
        (2, {}, {"linearity": lambda x: 1 - 0.1 * x}, FAILS),  # the second should not
        (2, {"linearity": lambda x: 0.95 - 1.5 * DECLINE * x}, {}, UNTOLD),
        (3, {"dimension": lambda x: 8 + 4 * (x > 0.5)}, {}, FAILS),
        (3, {"dimension": lambda x: 8 + (1 + x) * ((x > 0.5) & (x < 0.7))}, {}, UNTOLD),
        (4, {}, {"anisotropy": lambda x: 0.2 + 0.5 * (x > 0.5)}, FAILS),
        (4, {}, {"anisotropy": lambda x: 0.2 + (LOW_ANISOTROPY - 0.21) * (x > 0.5)}, UNTOLD),
    ],
)
def test_each_finding_can_fail_or_stay_open(finding, a, b, verdict, preset):
    # Errors of two kinds, so that a difference over depth is uncertain too.
    first, second = tiled(a), whole(b)
    if finding == 2 and verdict == UNTOLD:
        rows = first.replicates.layer > 5
        groups = [f"g{i}" for i in range(16)]
        first.replicates.loc[rows, groups] = first.replicates.loc[rows, groups[::-1]].to_numpy()
    found = mm_lens.compare(first, second)
    stream = "main" if finding == 1 else "residual"
    assert verdicts(found, finding, preset, stream) == {verdict}
    others = {1, 2, 3, 4} - {finding}
    assert {v for other in others for v in verdicts(found, other, preset)} == {HOLDS}, others


def test_the_paper_leaves_out_first_and_last_layer():
    def spike(x):
        return 0.2 + 0.7 * ((x == 0) | (x == 1))

    found = mm_lens.compare(tiled(), whole({"anisotropy": spike}))
    assert verdicts(found, 4, "paper") == {HOLDS}
    assert verdicts(found, 4, "honest") == {FAILS}

    def dip(x):
        return 0.98 - 0.98 * (x < 1 / 9)

    found = mm_lens.compare(tiled(), whole({"linearity": dip}))
    assert verdicts(found, 1, "paper") == {HOLDS}
    assert verdicts(found, 1, "honest") == {FAILS}


def test_the_order_of_the_models_does_not_matter(comparison):
    turned = mm_lens.compare(whole(), tiled()).findings
    key = ["preset", "finding", "stream", "models", "modality", "quantity"]
    for column in ("value", "low", "high", "verdict", "finding_verdict"):
        a, b = (f.set_index(key)[column].sort_index() for f in (comparison.findings, turned))
        pd.testing.assert_series_equal(a, b)


def test_models_that_no_paper_speaks_of_are_measured():
    other = planted("demo/other", "SomethingElse", WHOLE_SHAPES)
    found = mm_lens.compare(other, replace(other)).findings
    assert {*found.finding_verdict} == {UNCLAIMED}
    assert {*found.claimed} == {""}
    assert {*found.answer[found.finding == 1]} == {"yes"}
    assert {*found.answer[(found.finding == 2)]} == {"no"}
    assert np.isfinite(found.value).all()


def test_a_third_model_changes_no_verdict_of_the_others(comparison):
    other = planted("demo/other", "SomethingElse", {"linearity": 0.1, "dimension": 2.0})
    found = mm_lens.compare(tiled(), other, whole()).findings
    assert {*found.finding_verdict} == {HOLDS}
    pairs = {*found.models[found.finding == 3]}
    assert pairs == {
        "demo/whole − demo/tiled",  # as claimed
        "demo/tiled − demo/other",  # as given
        "demo/other − demo/whole",
    }


def test_claims_can_be_given():
    claims = {"low_anisotropy": {(TILED,): True}}
    found = mm_lens.compare(tiled(), whole(), claims=claims)
    assert verdicts(found, 4) == {FAILS}
    assert verdicts(found, 1) == {UNCLAIMED}


def test_a_missing_value_settles_nothing():
    def middle(table):
        return (table.layer == 4) & (table.metric == "anisotropy_trimmed")

    hole = {"value": np.nan, "low": np.nan, "high": np.nan, "warning": "all tokens alike"}
    found = mm_lens.compare(tiled(), with_cells(whole(), middle, **hole))
    assert verdicts(found, 4, "honest") == {UNTOLD}
    assert verdicts(found, 4, "paper") == {HOLDS}
    notes = found.findings[(found.findings.finding == 4) & (found.findings.preset == "honest")].note
    assert notes.str.contains("layer 4 of demo/whole: all tokens alike").any()


def test_noise_that_scores_high_settles_nothing():
    noisy = with_cells(tiled(), lambda t: t.metric == "linearity_paper", chance=0.7)
    found = mm_lens.compare(noisy, whole())
    assert verdicts(found, 1, "paper") == verdicts(found, 2, "paper") == {UNTOLD}
    assert verdicts(found, 1, "honest") == {HOLDS}


def test_dimensions_on_different_numbers_of_tokens_are_not_compared():
    found = mm_lens.compare(tiled(n_tokens=1000), whole(n_tokens=2000))
    assert verdicts(found, 3) == {UNTOLD}
    assert found.findings[found.findings.finding == 3].note.str.contains("1,000").any()
    assert verdicts(found, 4) == {HOLDS}


def test_few_layers_settle_nothing_about_depth():
    found = mm_lens.compare(tiled(n_layers=2), whole(n_layers=2))
    assert verdicts(found, 2, "honest") == {HOLDS}
    assert verdicts(found, 2, "paper") <= {UNTOLD}


def test_findings_of_one_stream_only():
    found = mm_lens.compare(tiled(streams=("residual",)), whole(streams=("residual",))).findings
    assert {*found.stream} == {"residual"}
    assert {*found.finding_verdict} == {HOLDS}


# ---- differences ----


def test_differences_are_of_the_planted_curves(comparison):
    found = comparison.differences
    assert tuple(found.columns) == DIFFERENCES
    rows = found[(found.metric == "dimension_mle") & (found.stream == "residual")]
    rows = rows[rows.modality == "visual"]
    np.testing.assert_allclose(rows.difference, -1 - rows.depth)
    np.testing.assert_array_equal(rows.layer_a, np.arange(10))
    np.testing.assert_array_equal(rows.layer_b, np.arange(10))
    assert {*rows.verdict} == {"lower"}
    assert (rows.low < rows.difference).all()
    assert (rows.difference < rows.high).all()
    assert (rows.p_holm >= rows.p).all()


def test_models_of_different_depth_meet_at_equal_depth():
    a = tiled({"anisotropy": lambda x: 0.1 + 0.5 * x, "linearity": lambda x: 0.5 + 0.1 * x})
    b = whole({"anisotropy": lambda x: 0.4 * x, "linearity": lambda x: 0.7 + 0.1 * x}, n_layers=5)
    found = mm_lens.compare(a, b).differences
    rows = found[(found.metric == "anisotropy") & (found.stream == "main")]
    rows = rows[rows.modality == "text"]
    np.testing.assert_allclose(rows.depth, np.arange(6) / 5)
    np.testing.assert_allclose(rows.layer_b, np.arange(6))
    np.testing.assert_allclose(rows.layer_a, 9 * rows.depth)
    np.testing.assert_allclose(rows.difference, 0.1 + 0.1 * rows.depth)
    pairs = found[found.metric == "linearity_paper"]
    np.testing.assert_allclose(pairs.difference, -0.2, atol=1e-12)
    assert {*pairs.depth.round(6)} == {0.1, 0.3, 0.5, 0.7, 0.9}


def test_one_model_twice_differs_by_nothing():
    profile = tiled()
    found = mm_lens.compare(profile, profile)
    assert found.labels == ["demo/tiled (#1)", "demo/tiled (#2)"]
    rows = found.differences
    assert (rows[["difference", "low", "high"]].abs() < 1e-12).all(axis=None)
    assert {*rows.verdict} == {"cannot be told"}


def test_pairing_narrows_differences_and_is_said():
    a, b = tiled(), planted("demo/b", WHOLE, seed=0)  # of one seed: errors that are the same
    paired = mm_lens.compare(a, b)
    apart = mm_lens.compare(a, b, paired=False)
    assert paired.paired
    assert not apart.paired
    width = {c: float((c.differences.high - c.differences.low).mean()) for c in (paired, apart)}
    assert width[paired] < 1e-9
    assert width[apart] == pytest.approx(2 * T * 0.01 * 2**0.5, rel=1e-4)
    assert any("not paired" in note for note in apart.notes)


def test_earlier_profiles_are_compared_without_pairing():
    found = mm_lens.compare(tiled(), whole(replicates=False))
    assert not found.paired
    assert any("demo/whole: no replicates" in note for note in found.notes)
    assert verdicts(found, 3) == {HOLDS}
    unknown = tiled()
    unknown.provenance["data"]["fingerprint"] = None
    assert any("earlier" in note for note in mm_lens.compare(unknown, whole()).notes)


# ---- what is asked for ----


def test_only_what_all_profiles_hold_is_compared():
    few = whole(metrics=HEADLINE[:3], streams=("residual",), modalities=("visual",))
    found = mm_lens.compare(tiled(), few)
    assert {*found.table.metric} == {*HEADLINE[:3]}
    assert {*found.table.stream} == {"residual"}
    said = " ".join(found.notes)
    for name in ("anisotropy", "main", "text"):
        assert name in said


def test_errors_name_cause_and_remedy(tmp_path):
    with pytest.raises(InputError, match="Give two or more"):
        mm_lens.compare(tiled())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no readable profile"):
        mm_lens.compare(tiled(), tmp_path / "empty")
    with pytest.raises(InputError, match="2 different labels"):
        mm_lens.compare(tiled(), whole(), labels=["one", "one"])
    with pytest.raises(InputError, match="2 different labels"):
        mm_lens.compare(tiled(), whole(), labels="ab")
    with pytest.raises(InputError, match="no metric in common"):
        mm_lens.compare(tiled(metrics=HEADLINE[:2]), whole(metrics=HEADLINE[2:]))
    with pytest.raises(InputError, match="linearity_paper"):
        mm_lens.compare(tiled(), whole()).plot("nope")
    for where, key, value, what in (
        ("options", "seed", 7, "seed: 0 .demo/tiled., 7 .demo/whole."),
        ("data", "fingerprint", "beef", "samples"),
        ("data", "n_samples", 7, "number of samples"),
    ):
        other = whole()
        other.provenance[where][key] = value
        with pytest.raises(InputError, match=what) as error:
            mm_lens.compare(tiled(), other)
        assert "paired=False" in str(error.value)
        assert not mm_lens.compare(tiled(), other, paired=False).paired


def test_labels(tmp_path):
    first, second = tiled(), tiled()
    first.save(tmp_path / "one")
    second.save(tmp_path / "two")
    found = mm_lens.compare(tmp_path / "one", tmp_path / "two", whole())
    assert found.labels == ["demo/tiled (one)", "demo/tiled (two)", "demo/whole"]
    assert mm_lens.compare(first, second, labels=["x", "y"]).labels == ["x", "y"]
    second.provenance["model"]["name"] = "/very/long" * 9 + "/checkpoint"
    assert mm_lens.compare(first, second).labels == ["demo/tiled", "…/checkpoint"]


def test_replicates_survive_saving(tmp_path):
    profile = whole()
    profile.save(tmp_path / "b")
    kept, read = (mm_lens.compare(tiled(), b) for b in (profile, tmp_path / "b"))
    pd.testing.assert_frame_equal(kept.differences, read.differences)
    pd.testing.assert_frame_equal(kept.findings, read.findings)


# ---- files, pictures, page ----


def test_saved_files(tmp_path):
    few = HEADLINE[::4]
    comparison, path = mm_lens.compare(tiled(metrics=few), whole(metrics=few)), tmp_path / "out"
    comparison.save(path)
    names = {file.name for file in path.iterdir()}
    tables = {"findings.csv", "findings.md", "differences.parquet", COMPARISON_FILE}
    assert names == tables | {"compare.html", "overview.png"} | {f"{m}.png" for m in few}
    with (path / "findings.csv").open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert [row["finding_verdict"] for row in rows] == [*comparison.findings.finding_verdict]
    assert [float(r["value"]) for r in rows] == pytest.approx([*comparison.findings.value])
    differences = pd.read_parquet(path / "differences.parquet")
    pd.testing.assert_frame_equal(differences, comparison.differences)
    about = json.loads((path / COMPARISON_FILE).read_text(encoding="utf-8"))
    assert {*about["profiles"]} == {*comparison.labels}
    assert about["paired"] is True
    with pytest.raises(InputError, match="exists already"):
        comparison.save(path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="not written by mm-lens"):
        comparison.save(tmp_path / "other", overwrite=True)


def test_the_table_says_the_same_everywhere(comparison):
    text, markdown, html = str(comparison), comparison.markdown(), comparison._repr_html_()
    assert max(map(len, text.splitlines())) <= 100
    assert all(label in text.splitlines()[0] for label in comparison.labels)
    for row in comparison.findings.itertuples():
        number = f"{row.value:.2f}".replace("-", "−").rstrip("0")
        for where in (text, markdown, html):
            assert number in where
            assert row.statement in where
            assert row.finding_verdict in where
    assert markdown.count(HOLDS) == html.count(HOLDS)
    # One line each: a finding per stream, and its numbers.
    per_preset = comparison.findings[comparison.findings.preset == "honest"]
    assert markdown.count("\n|") == 1 + 6 + len(per_preset)


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
            part = html.split(f'Plotly.newPlot("plot-{name}-{modality}", ')[1]
            found = json.loads(part.split(");</script>")[0].replace("<\\/", "</"))
            curves = [trace for trace in found["data"] if "name" in trace]
            assert [t["name"] for t in curves] == 2 * comparison.labels
    assert "Low visual anisotropy" in html


# ---- command line ----


def test_command_line(tmp_path, capsys):
    tiled(metrics=HEADLINE[:2]).save(tmp_path / "a")
    whole(metrics=HEADLINE[:2]).save(tmp_path / "b")
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    out = ["--out", str(tmp_path / "c")]
    assert cli.run(["compare", *paths, *out, "--labels", "tiles, whole"]) == 0
    said = capsys.readouterr().out
    expected = str(mm_lens.compare(*paths, labels=["tiles", "whole"]))
    assert expected in said
    assert "3 pictures" in said
    assert (tmp_path / "c" / "compare.html").exists()

    assert cli.run(["compare", *paths, *out]) == 1
    assert "exists already" in capsys.readouterr().err
    assert cli.run(["compare", *paths, *out, "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert cli.run(["compare", paths[0], *out, "--overwrite"]) == 1
    assert "Give two or more" in capsys.readouterr().err
    assert cli.run(["compare", paths[0], str(tmp_path / "nowhere"), "--out", "x"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert (tmp_path / "c" / "compare.html").exists(), "a failed run leaves the earlier one alone"


# ---- from models to findings ----


def test_profiles_of_models_are_paired(tmp_path):
    data = make_data(12)
    one, two = load_tiny(check=False), load_tiny(check=False, seed=1)
    a, b = quick(one, data), quick(two, data, batch_size=5)
    again = quick(one, data, batch_size=7)
    assert a.provenance["data"]["fingerprint"] == b.provenance["data"]["fingerprint"]
    other = quick(one, [*data[:-1], replace(data[-1], text="Another question?")])
    assert other.provenance["data"]["fingerprint"] != a.provenance["data"]["fingerprint"]

    found = mm_lens.compare(a, b)
    assert found.paired
    assert not found.notes
    assert np.isfinite(found.differences.high).mean() > 0.9
    same = mm_lens.compare(a, again).differences
    assert same.difference.abs().max() < 1e-5
    assert (same.high - same.low).max() < 1e-4 < (a.table.high - a.table.low).min()
