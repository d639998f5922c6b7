"""docs/guarantees.md tells what tests of TransformerLens fail here, and why."""

from __future__ import annotations

import re
import runpy
from functools import reduce
from pathlib import Path

import mm_lens

ROOT = Path(__file__).parents[2]


def test_what_is_known_to_fail_is_told():
    page = " ".join((ROOT / "docs" / "guarantees.md").read_text().split())
    suite = runpy.run_path(str(ROOT / "tests" / "transformer_lens_suite" / "run.py"))
    told = [reason for reasons in suite["KNOWN"].values() for reason in reasons.values()]
    assert told
    for reason in told:
        assert reason in page


def test_what_is_said_to_be_here_is_here():
    """The table of other libraries: each row says yes, where, or why not."""
    page = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
    table = page.split("<!-- peers -->")[1].split("<!-- end of peers -->")[0]
    rows = [[c.strip() for c in line.strip("|").split(" | ")] for line in table.split("\n")[3:-1]]
    assert len(rows) > 50
    assert all(len(row) == 3 for row in rows)
    libraries = [name for name, _, _ in rows if name]
    assert len(libraries) == 5
    packages = "attribution|causal|dictionaries|drawing|heads|looking|replacing"
    for _, what, here in rows:
        names = re.findall(rf"`(?:mm_lens\.)?((?:{packages})\.\w+)", here)
        assert all(reduce(getattr, name.split("."), mm_lens) for name in names)
        if here.startswith("yes"):
            assert "`" in here or "see above" in here or "merged" in here, what
        else:
            assert len(here) > 20, what
