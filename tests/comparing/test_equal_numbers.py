"""Counts of dimensions are compared on equal numbers of tokens, or not at all."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from made_profiles import HEADLINE, TILED, WHOLE, planted

import mm_lens
from mm_lens.comparing.statements import UNTOLD
from mm_lens.profiling.result import Profile

SCALES = {"dimension_mle": 1, "dimension_mle_half": 2, "dimension_mle_quarter": 4}


def at(name: str, architecture: str, n: int, level: float, seed: int) -> Profile:
    """A model whose dimension is `level` at 1,000 tokens, and one more at each doubling."""
    shapes = {m: level + math.log2(n / part / 1000) for m, part in SCALES.items()}
    metrics = (*HEADLINE, *list(SCALES)[1:])
    profile = planted(name, architecture, shapes, metrics=metrics, n_tokens=n, seed=seed)
    table = profile.table.copy()
    table["n_tokens"] = n // table.metric.map(SCALES).fillna(1).astype(int)
    return replace(profile, table=table)


def rows_of(comparison, metric="dimension_mle"):
    found = comparison.differences
    return found[(found.metric == metric) & (found.modality == "visual")]


@pytest.mark.parametrize("n", [4000, 3000, 2000, 1500, 1000])
def test_the_larger_one_is_taken_at_the_number_of_the_smaller(n):
    """Value and number make a straight line over log n: so interpolation is exact."""
    more, fewer = at("a", TILED, n, 8.0, 0), at("b", WHOLE, 1000, 7.5, 1)
    rows = rows_of(mm_lens.compare(more, fewer))
    np.testing.assert_allclose(rows.difference, 0.5)
    np.testing.assert_allclose(rows_of(mm_lens.compare(fewer, more)).difference, -0.5)
    assert {*rows.note} == {""}
    assert np.isfinite(rows.low).all()
    raw = 8 + math.log2(n / 1000) - 7.5
    assert n == 1000 or abs(raw - 0.5) > 0.5, "what it would have been"
    finding = mm_lens.compare(more, fewer).findings
    honest = finding[(finding.finding == 3) & (finding.preset == "honest")]
    assert honest.value.tolist() == pytest.approx([-0.5, -0.5])


def test_where_the_data_do_not_allow_it_there_is_no_interval_but_a_reason():
    more, fewer = at("a", TILED, 8000, 8.0, 0), at("b", WHOLE, 1000, 7.5, 1)
    comparison = mm_lens.compare(more, fewer)
    rows = rows_of(comparison)
    assert rows[["low", "high", "band_low", "band_high", "p", "p_holm"]].isna().all(axis=None)
    assert {*rows.verdict} == {UNTOLD}
    reason = "on 8,000 and 1,000 tokens, and counts of dimensions depend on it"
    assert rows.note.str.startswith(reason).all()
    found = comparison.findings[comparison.findings.finding == 3]
    assert found[["low", "high"]].isna().all(axis=None)
    assert not found.note.str.contains("band above").any()
    assert {*found.finding_verdict} == {UNTOLD}
    for shown in (str(comparison), comparison.markdown(), comparison._repr_html_()):
        said = " ".join(shown.split())
        assert "on 1,000 and 8,000 tokens" in said or "on 8,000 and 1,000 tokens" in said


def test_the_papers_dimension_has_no_other_scale():
    more, fewer = at("a", TILED, 2000, 8.0, 0), at("b", WHOLE, 1000, 7.5, 1)
    rows = rows_of(mm_lens.compare(more, fewer), "dimension_paper")
    assert rows.low.isna().all()
    assert rows.note.str.contains("2,000 and 1,000").all()


def test_other_metrics_do_not_care():
    more, fewer = at("a", TILED, 8000, 8.0, 0), at("b", WHOLE, 1000, 7.5, 1)
    rows = rows_of(mm_lens.compare(more, fewer), "anisotropy")
    assert np.isfinite(rows.low).all()
    assert {*rows.note} == {""}
