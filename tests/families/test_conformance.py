"""The conformance suite (mm_lens.check) on a small random model of each configuration.

`make test` runs a sample, `make test-families` all of it: a test for each configuration and check.
The tests of one configuration share its two models.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_families import CONFIGURATIONS, build

import mm_lens
from mm_lens.check import CHECKS, run_suite

SAMPLE = ("one image", "left padding", "row without image", "rows of a batch", "read", "places")


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def pair(request):
    """The native model and the bridge of the same weights, for all tests of a configuration."""
    native, _ = build(request.param)
    wrapped, processor = build(request.param)
    model = mm_lens.load(hf_model=wrapped, processor=processor, check=False)
    before = [x.clone() for x in weights(native, model)]
    yield native, model
    assert all(torch.equal(x, y) for x, y in zip(before, weights(native, model), strict=True))


def weights(native, model):
    return [*native.state_dict().values(), *model.original_model.state_dict().values()]


def test_sample(pair):
    table = run_suite(*pair, SAMPLE, sample=True)
    assert table.ok, table
    assert len(table.outcomes) == len(SAMPLE)


@pytest.mark.families
@pytest.mark.parametrize("check", CHECKS)
def test_everything(pair, check):
    table = run_suite(*pair, [check])
    assert table.ok, table


def test_declared_exceptions_are_checks_with_a_reason(pair):
    _, model = pair
    assert set(model.family.exceptions) <= set(CHECKS)
    assert all(len(reason.split()) > 4 for reason in model.family.exceptions.values())


def test_the_page_has_a_row_for_each_configuration():
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    rows = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")}
    assert rows - {"configuration"} == set(CONFIGURATIONS)
    assert f"{len(CONFIGURATIONS)} configurations" in page
    assert f"{len(CHECKS)} checks each" in page
    assert "| ✗" not in page
