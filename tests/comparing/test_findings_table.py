"""The table of findings."""

from __future__ import annotations

import pytest
from made_profiles import T

from mm_lens.comparing.findings import HOLDS


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
