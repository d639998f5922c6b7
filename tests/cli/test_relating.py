"""`mm-lens relate`: from what profile and evaluate wrote to a verdict."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
from made_data import make_data
from tiny import random_image

import mm_lens
from mm_lens.cli import commands as cli
from mm_lens.data.samples import Sample
from mm_lens.evaluating.scores import tabulate


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """A profile and scores of forty samples: answers of a random model, judged at random."""
    folder = tmp_path_factory.mktemp("written")
    data = [
        Sample(f"q{i}", "What?", random_image(9, 11 + i % 4, i), None, about={"kind": "ab"[i % 2]})
        for i in range(40)
    ]
    options = {"metrics": ["anisotropy"], "streams": ["residual"], "progress": False}
    mm_lens.profile(model, data, per_sample=True, **options).save(folder / "profile")
    answers = pd.DataFrame(
        {
            "condition": "given",
            "index": range(40),
            "id": [sample.id for sample in data],
            "image": True,
            "shared": [f"{i}" for i in range(40)],
            "asked": "What?",
            "written": "a",
            "said": "a",
            "wanted": ["ab"[i // 3 % 2] for i in range(40)],
            "right": [i // 3 % 2 == 0 for i in range(40)],
            "n_options": 0,
            "kind": [sample.about["kind"] for sample in data],
        }
    )
    table = tabulate(answers, ["kind"])
    mm_lens.Scores(table, answers, {}).save(folder / "scores")
    mm_lens.profile(model, make_data(3, ()), **options).save(folder / "pooled")
    return folder


def test_a_relation_is_written(written, tmp_path, capsys):
    given = ["relate", str(written / "profile"), str(written / "scores"), "--over", "kind"]
    assert cli.run([*given, "--flips", "99", "--out", str(tmp_path / "one")]) == 0
    assert "questions about 40 images" in capsys.readouterr().out
    about = json.loads((tmp_path / "one" / "relation.json").read_text())
    expected = mm_lens.relate(
        mm_lens.Profile.load(written / "profile"),
        mm_lens.Scores.load(written / "scores"),
        over=["kind"],
        flips=99,
    )
    assert about["verdict"] == expected.verdict
    found = pd.read_parquet(tmp_path / "one" / "relation.parquet")
    pd.testing.assert_frame_equal(found, expected.table)
    assert set(found.quantity) >= {"norm", "participation_ratio"}


def test_a_profile_without_samples_is_refused(written, tmp_path, capsys):
    given = ["relate", str(written / "pooled"), str(written / "scores")]
    assert cli.run([*given, "--out", str(tmp_path / "one")]) == 1
    assert "per_sample=True" in capsys.readouterr().err
    assert not (tmp_path / "one").exists()


def test_what_it_warns_of_is_one_line_without_a_place(written, tmp_path, capsys):
    samples = mm_lens.Profile.load(written / "profile")
    gaps = samples.samples.copy()
    gaps.loc[gaps.id.isin([f"q{i}" for i in range(20)]), "norm"] = float("nan")
    replace(samples, samples=gaps).save(tmp_path / "gaps")
    given = ["relate", str(tmp_path / "gaps"), str(written / "scores"), "--flips", "19"]
    assert cli.run([*given, "--out", str(tmp_path / "one")]) == 0
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert line.startswith("mm-lens: warning: ")
    assert "20 of 40 samples have" in line
