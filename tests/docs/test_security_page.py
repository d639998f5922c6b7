"""The limits that docs/security.md states are those of the code."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
ROWS = re.findall(
    r"^\| ([^|]+) \| ([^|]+) \| `(mm_lens\.[\w.]+)\.([A-Z_]+)`", PAGE.read_text(), re.M
)
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@pytest.mark.parametrize(("what", "limit", "module", "name"), ROWS, ids=[row[0] for row in ROWS])
def test_a_limit_is_as_stated(what, limit, module, name):
    number, unit = re.search(r"([\d,]+) ?(\w*)", limit).groups()
    stated = int(number.replace(",", "")) * UNITS.get(unit, 1)
    assert getattr(importlib.import_module(module), name) == stated


def test_limits_are_found():
    assert len(ROWS) >= 10
