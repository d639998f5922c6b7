"""The README's code runs as pasted, from top to bottom, in an interpreter of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from page_code import ROOT, blocks_of

BLOCKS = blocks_of(ROOT / "README.md")
RUN = [block for block in BLOCKS if block.runs]


def test_the_first_screen_has_code():
    assert RUN
    assert RUN[0].line <= 40


@pytest.mark.pages
def test_it_runs_as_pasted(tmp_path):
    """As a user does it: nothing is defined before, and no type checker stands in front."""
    code = "\n".join(block.code for block in RUN)
    ran = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},  # where what it says was read
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    for line in said(RUN):
        assert line in ran.stdout.splitlines(), f"{line!r} is not what it prints"


def said(blocks) -> list[str]:
    """What the comments behind `print` say that it prints."""
    lines = [line for block in blocks for line in block.code.splitlines()]
    found = [line.split("# prints ")[1] for line in lines if "# prints " in line]
    return [text.strip() for text in found]


def test_it_says_what_it_prints():
    assert len(said(RUN)) >= 2
