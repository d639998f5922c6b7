"""Registered data sets: those that ship, and those that packages add."""

from __future__ import annotations

import pytest

from mm_lens.data import datasets, sets
from mm_lens.errors import MMLensError

TOY = """
from mm_lens.data.samples import DataSet, Row

def open_set(where, split):
    return DataSet([Row(where, f"Which of {split}?")], "toy", split or "")
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    info = tmp_path / "toys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    points = "[mm_lens.datasets]\ntoy-set = toy_set:open_set\ntoy-broken = toy_missing:open_set\n"
    (info / "entry_points.txt").write_text(points)
    (tmp_path / "toy_set.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_package_adds_a_data_set(installed):
    assert {"toy-set", *sets.OWN} <= {*datasets.names()}
    (sample,) = datasets.load("toy-set:some/where", split="dev")
    assert (sample.id, sample.text) == ("some/where", "Which of dev?")
    with pytest.raises(MMLensError, match="Data set toy_missing:open_set cannot be loaded"):
        datasets.load("toy-broken")


def test_each_that_ships_has_its_file():
    for name in sets.OWN:
        assert callable(sets.opener(name))
