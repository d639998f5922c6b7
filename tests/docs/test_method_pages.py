"""The code of the pages on methods runs as it stands, from above to below."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.pages
@pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")
@pytest.mark.parametrize("page", ["writing", "attribution", "lenses", "dictionaries", "recipes"])
def test_a_page_runs_as_pasted(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / f"{page}.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    assert len(blocks) >= 3
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, f"docs/{page}.md", "exec"), scope)
    if page == "writing":
        assert 'id="sentence"' in (tmp_path / "written.html").read_text("utf-8")
