"""The terminal shows the values of the table, by stream and modality."""

from __future__ import annotations

import io

import pytest
from made_profiles import planted
from rich.console import Console

from mm_lens.cli import summary


@pytest.fixture(scope="module")
def profile():
    return planted(shapes={"linearity": lambda depth: 0.9 - 0.5 * depth, "dimension": 12.345})


def shown(table) -> str:
    console = Console(file=io.StringIO(), width=summary.WIDTH)
    console.print(table)
    return console.file.getvalue()


def test_first_middle_and_last_layer_are_those_of_the_table(profile):
    text = shown(summary.headline(profile, "paper"))
    for metric in ("linearity_paper", "dimension_paper"):
        rows = profile.table.query(
            f"stream == 'main' and modality == 'visual' and metric == '{metric}'"
        ).sort_values("layer")
        layers, values = rows.layer.to_list(), rows.value.to_list()
        middle = len(layers) // 2
        chosen = [values[0], values[middle], values[-1]]
        digits = ".2f" if metric.startswith("linearity") else ".1f"
        assert " · ".join(f"{value:{digits}}" for value in chosen) in text
        assert f"layers {layers[0]} · {layers[middle]} · {layers[-1]}" in text


def test_a_preset_without_metrics_has_no_table(profile):
    only = planted(metrics=("linearity_paper",))
    assert summary.headline(only, "honest") is None
    assert "demo/a" in shown(summary.headline(only, "paper"))


def test_a_preset_is_shown_only_if_it_was_asked_for(tmp_path, capsys):
    profile = planted()
    summary.show(profile, tmp_path, [])
    assert "preset paper" in capsys.readouterr().out
    profile.provenance["options"] = {"presets": ["honest"]}
    summary.show(profile, tmp_path, [])
    said = capsys.readouterr().out
    assert "preset honest" in said
    assert "preset paper" not in said


def test_files_and_warnings_are_named(profile, tmp_path, capsys):
    summary.show(profile, tmp_path, ["report.html", "a.png", "b.png"])
    said = capsys.readouterr().out
    assert "Wrote report.html and 2 pictures" in said
    assert str(tmp_path) in said
    assert "values have warnings" not in said
    warned = planted()
    warned.table.loc[:2, "warning"] = ["7 tokens", "8 tokens", "other"]
    warned.provenance["data"]["n_skipped"] = 5
    summary.show(warned, tmp_path, [])
    said = " ".join(capsys.readouterr().out.split())
    assert f"3 of {len(warned.table)} values have warnings" in said
    assert "2 × # tokens" in said
    assert "5 samples could not be read" in said
