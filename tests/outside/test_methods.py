"""Every method of the table in docs/tools.md against numbers that are not ours."""

from __future__ import annotations

import pytest
from attribution_cases import Case
from outside_methods import BEGIN, BOUND, DOCS, END, METHODS, difference, table

from mm_lens.model.running import methods


@pytest.fixture(scope="module")
def case(family):
    return Case(family)


@pytest.mark.every_family
@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
@pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")
@pytest.mark.parametrize("key", METHODS, ids=[name for name, _ in METHODS])
def test_a_method_gives_the_numbers_of_others(case, family, key, record_property):
    found = difference(*METHODS[key](case))
    record_property(" | ".join(key), (family, found))
    assert found < BOUND


def test_the_page_has_a_row_for_each():
    text = DOCS.read_text("utf-8")
    printed = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    rows = [line.split("|")[1:3] for line in printed.splitlines()[2:]]
    wanted = [line.split("|")[1:3] for line in table({}).splitlines()[2:]]
    assert rows == wanted
    assert "not run" not in printed


def test_every_method_that_a_model_lists_has_a_row():
    """A profile's numbers are those of its metrics, whose references are in tests/metrics."""
    text = DOCS.read_text("utf-8")
    rows = {row.split("`")[1].split(",")[0] for row in text.splitlines() if row.startswith("| `")}
    listed = {one.name.replace("knockout.knockout", "knockout") for one in methods.METHODS}
    assert listed - rows == {"profile"}
