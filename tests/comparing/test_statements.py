"""The statements of the paper hold, fail or stay open where that is planted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_comparisons import WHOLE_SHAPES, tiled, verdicts, whole, with_cells
from made_profiles import TILED, planted

import mm_lens
from mm_lens.comparing.findings import COLUMNS, FAILS, HOLDS, UNCLAIMED
from mm_lens.comparing.statements import DECLINE, HIGHLY_LINEAR, LOW_ANISOTROPY, UNTOLD


def test_what_the_paper_says_holds_where_it_is_planted(comparison):
    found = comparison.findings
    assert tuple(found.columns) == COLUMNS
    assert {*found.finding_verdict} == {HOLDS}
    assert found.groupby(["preset", "finding", "stream"]).ngroups == 2 * 6
    assert not found[["value", "low", "high"]].isna().any(axis=None)


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


def test_models_that_no_paper_speaks_of_are_measured():
    other = planted("demo/other", "SomethingElse", WHOLE_SHAPES)
    found = mm_lens.compare(other, replace(other)).findings
    assert {*found.finding_verdict} == {UNCLAIMED}
    assert {*found.claimed} == {""}
    assert {*found.answer[found.finding == 1]} == {"yes"}
    assert {*found.answer[(found.finding == 2)]} == {"no"}
    assert np.isfinite(found.value).all()


def test_claims_can_be_given():
    claims = {"low_anisotropy": {(TILED,): True}}
    found = mm_lens.compare(tiled(), whole(), claims=claims)
    assert verdicts(found, 4) == {FAILS}
    assert verdicts(found, 1) == {UNCLAIMED}


def test_a_missing_value_settles_nothing():
    def middle(table):
        return (table.layer == 4) & (table.metric == "anisotropy_without_massive")

    hole = {"value": np.nan, "low": np.nan, "high": np.nan, "warning": "all tokens alike"}
    found = mm_lens.compare(tiled(), with_cells(whole(), middle, **hole))
    assert verdicts(found, 4, "honest") == {UNTOLD}
    assert verdicts(found, 4, "paper") == {HOLDS}
    notes = found.findings[(found.findings.finding == 4) & (found.findings.preset == "honest")].note
    assert notes.str.contains("layer 4 of demo/whole: all tokens alike").any()


def test_the_reason_stands_under_the_row_wherever_it_is_shown():
    def middle(table):
        return (table.layer == 4) & (table.metric == "anisotropy_without_massive")

    hole = {"value": np.nan, "low": np.nan, "high": np.nan, "warning": "all tokens alike"}
    edge = whole({"linearity@main": HIGHLY_LINEAR + 0.01})
    found = mm_lens.compare(tiled(), with_cells(edge, middle, **hole))
    rows = found.findings[found.findings.answer == UNTOLD]
    assert (rows.note != "").all()
    assert rows[rows.finding == 4].low.isna().all()  # no confident interval beside it
    for shown in (str(found), found.markdown(), found._repr_html_()):
        said = " ".join(shown.split())
        assert "honest: no value or interval at layer 4 of demo/whole: all tokens alike" in said
        assert f"the interval contains {HIGHLY_LINEAR:g}" in said
    assert max(map(len, str(found).splitlines())) <= 100


def test_noise_that_scores_high_settles_nothing():
    noisy = with_cells(tiled(), lambda t: t.metric == "linearity_paper", chance=0.7)
    found = mm_lens.compare(noisy, whole())
    assert verdicts(found, 1, "paper") == verdicts(found, 2, "paper") == {UNTOLD}
    assert verdicts(found, 1, "honest") == {HOLDS}


def test_dimensions_on_different_numbers_of_tokens_are_not_compared():
    found = mm_lens.compare(tiled(n_tokens=1000), whole(n_tokens=2000))
    assert verdicts(found, 3) == {UNTOLD}
    third = found.findings[found.findings.finding == 3]
    assert third.note.str.contains("1,000").all()
    assert third[["low", "high"]].isna().all(axis=None)
    assert verdicts(found, 4) == {HOLDS}


def test_few_layers_settle_nothing_about_depth():
    found = mm_lens.compare(tiled(n_layers=2), whole(n_layers=2))
    assert verdicts(found, 2, "honest") == {HOLDS}
    assert verdicts(found, 2, "paper") <= {UNTOLD}
