"""Comparisons: what is planted is found, and nothing else is said."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import load_tiny
from made_comparisons import tiled, verdicts, whole
from made_data import make_data, quick
from made_profiles import HEADLINE, WHOLE, T, planted

import mm_lens
from mm_lens import DataError, InputError
from mm_lens.cli import commands as cli
from mm_lens.comparing.comparison import COMPARISON_FILE, DIFFERENCES
from mm_lens.comparing.findings import HOLDS

# ---- findings ----


def test_the_order_of_the_models_does_not_matter(comparison):
    turned = mm_lens.compare(whole(), tiled()).findings
    key = ["preset", "finding", "stream", "models", "modality", "quantity"]
    for column in ("value", "low", "high", "verdict", "finding_verdict"):
        a, b = (f.set_index(key)[column].sort_index() for f in (comparison.findings, turned))
        pd.testing.assert_series_equal(a, b)


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
    tables = {"findings.csv", "findings.md", "differences.parquet", COMPARISON_FILE, "SHA256SUMS"}
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


# ---- command line ----


def test_command_line(tmp_path, capsys, monkeypatch):
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
    monkeypatch.setattr("mm_lens.drawing.comparison.write", lambda *given: iter(()))
    assert cli.run(["compare", *paths, "--out", str(tmp_path / "d"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["findings"]) == len(mm_lens.compare(*paths).findings)
    assert "findings.csv" in found["files"]
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
