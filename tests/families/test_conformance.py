"""The conformance suite (mm_lens.check) on a small random model of each configuration.

`make test` runs a sample, `make test-families` all of it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_families import CONFIGURATIONS, build

import mm_lens
from mm_lens.check import CHECKS, run_suite

SAMPLE = ("one image", "left padding", "row without image", "rows of a batch", "read", "places")


def table_of(name, only, sample):
    native, _ = build(name)
    wrapped, processor = build(name)
    model = mm_lens.load(hf_model=wrapped, processor=processor, check=False)
    return run_suite(native, model, only, sample)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_sample(name):
    table = table_of(name, SAMPLE, sample=True)
    assert table.ok, table
    assert len(table.outcomes) == len(SAMPLE)


@pytest.mark.families
@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("check", CHECKS)
def test_everything(name, check):
    table = table_of(name, [check], sample=False)
    assert table.ok, table


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_declared_exceptions_are_checks_with_a_reason(name):
    wrapped, processor = build(name)
    family = mm_lens.families.family_for(type(wrapped).__name__)(wrapped, processor)
    assert set(family.exceptions) <= set(CHECKS)
    assert all(len(reason.split()) > 4 for reason in family.exceptions.values())


def test_the_page_has_a_row_for_each_configuration():
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    rows = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")}
    assert rows - {"configuration"} == set(CONFIGURATIONS)
    assert f"{len(CONFIGURATIONS)} configurations" in page
    assert f"{len(CHECKS)} checks each" in page
    assert "| ✗" not in page
