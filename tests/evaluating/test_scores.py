"""Tables of accuracy: against pandas, and as they are saved."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mm_lens import DataError, Scores
from mm_lens.evaluating.scores import tabulate


@pytest.fixture(scope="module")
def answers():
    chance = np.random.default_rng(0)
    n = 60
    said = chance.choice(["a", "b"], n)
    wanted = chance.choice(["a", "b", "b"], n)
    return pd.DataFrame(
        {
            "condition": np.repeat(["given", "blanked"], n // 2),
            "index": [*range(n // 2)] * 2,
            "id": [f"q{i}" for i in [*range(n // 2)] * 2],
            "image": chance.random(n) < 0.5,
            "shared": [f"{i // 2}" for i in range(n)],
            "asked": "Which?",
            "written": said,
            "said": said,
            "wanted": wanted,
            "right": said == wanted,
            "n_options": chance.choice([2, 3, 4], n),
            "grade": [f"grade{1 + i % 12}" for i in range(n)],
        }
    )


@pytest.fixture(scope="module")
def scores(answers):
    about = {"model": {"name": "m"}, "data": {"name": "d"}, "protocol": "exact"}
    return Scores(tabulate(answers, ["grade"]), answers, about)


def test_counts_are_those_of_the_answers(scores, answers):
    for row in scores.table.itertuples():
        group = answers[answers.condition == row.condition]
        if row.group == "image":
            group = group[group.image == (row.value == "yes")]
        elif row.group == "grade":
            group = group[group.grade == row.value]
        assert (row.n, row.right) == (len(group), group.right.sum())
        assert row.accuracy == group.right.mean()
        assert row.chance == pytest.approx((1 / group.n_options).mean())
    grades = scores.table[scores.table.group == "grade"].value
    assert [*grades][:12] == [f"grade{i}" for i in range(1, 13)]
    assert scores.accuracy == answers[answers.condition == "given"].right.mean()


def test_chance_of_open_questions_is_the_most_frequent_answer(answers):
    table = tabulate(answers.assign(n_options=0), [])
    group = answers[answers.condition == "given"]
    assert table.chance[0] == group.wanted.value_counts().iloc[0] / len(group)


def test_saved_scores_are_read_back(scores, tmp_path):
    scores.save(tmp_path / "one")
    found = Scores.load(tmp_path / "one")
    pd.testing.assert_frame_equal(found.table, scores.table)
    pd.testing.assert_frame_equal(found.answers, scores.answers)
    assert found.provenance == scores.provenance
    assert pd.read_csv(tmp_path / "one" / "accuracy.csv").right.tolist() == [*scores.table.right]
    (tmp_path / "one" / "accuracy.csv").write_text("mine")
    with pytest.raises(DataError, match=r"accuracy\.csv is damaged or was edited"):
        Scores.load(tmp_path / "one")
    with pytest.raises(DataError, match="holds no readable scores"):
        Scores.load(tmp_path)


def test_shown_with_interval_and_chance(scores):
    text = repr(scores)
    assert "m on d, protocol exact" in text
    assert f"{100 * scores.accuracy:.1f}" in text
    assert "grade: grade12" in text
    assert "right, %" in text
    assert "<table" in scores._repr_html_()


def test_answers_that_name_no_option_are_told_of(scores, answers):
    """They may be below chance for that alone."""
    assert "name none" not in repr(scores)
    lost = answers.assign(said=["", "", *answers.said[2:]], written=["dunno"] * len(answers))
    told = "2 of 60 answers to choose from options name none of them, as 'dunno'"
    found = Scores(scores.table, lost, scores.provenance)
    assert told in repr(found)
    assert "name none of them" in found._repr_html_()
    opened = Scores(scores.table, lost.assign(n_options=0), scores.provenance)
    assert "name none" not in repr(opened)
