"""docs/guarantees.md tells what tests of TransformerLens fail here, and why."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_what_is_known_to_fail_is_told():
    page = " ".join((ROOT / "docs" / "guarantees.md").read_text().split())
    suite = runpy.run_path(str(ROOT / "tests" / "transformer_lens_suite" / "run.py"))
    told = [reason for reasons in suite["KNOWN"].values() for reason in reasons.values()]
    assert told
    for reason in told:
        assert reason in page
