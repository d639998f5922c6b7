"""The code of docs/data.md and docs/evaluating.md runs, each page from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.pages
@pytest.mark.parametrize("page", ["data.md", "evaluating.md"])
def test_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text("utf-8"), re.M | re.S)
    assert blocks
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    if page == "data.md":
        assert [sample.id for sample in names["pictures"]] == ["a.png", "b.png"]
        assert names["table"][1].image is None
        assert names["asked"][0].text == "Which colour?\nA. blue\nB. red\nAnswer with a letter."
