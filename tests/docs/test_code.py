"""Code of the pages below docs/ runs: each page is one session, from top to bottom.

Fewer samples than the pages say, and one copy of each model for all of them.
"""

from __future__ import annotations

import re
from functools import cache

import pytest
from made_comparisons import tiled, whole
from page_code import ROOT, blocks_of, mark_of

import mm_lens
from mm_lens.metrics import METRICS

# As they stand, with what they leave: test_method_pages.py and test_data_pages.py.
ELSEWHERE = {"writing", "attribution", "lenses", "dictionaries", "recipes", "data", "evaluating"}
PAGES = [
    page
    for page in sorted((ROOT / "docs").rglob("*.md"))
    if blocks_of(page) and page.stem not in ELSEWHERE
]
SAMPLES = 4
IDS = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES]


@pytest.fixture
def session(tmp_path, monkeypatch):
    """An empty directory, models that are loaded once, and what a page leaves behind taken away."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mm_lens, "load", load_once, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = dict(METRICS)
    yield tmp_path
    METRICS.clear()
    METRICS.update(before)


@cache
def load_once(name, attention="sdpa", check=False):
    from mm_lens.model import load

    return load(name, attention=attention, check=check)


def take_few_samples(code: str) -> str:
    return re.sub(r"\blimit=(\d+)", lambda n: f"limit={min(int(n[1]), SAMPLES)}", code)


@pytest.mark.pages
@pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")
@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_a_page_runs_from_top_to_bottom(page, session):
    if page.name == "comparing.md":  # the runs of its command lines
        tiled().save("runs/llava-next")
        whole().save("runs/omnifusion")
    names = {"__name__": page.stem}
    for block in blocks_of(page):
        code = compile(take_few_samples(block.placed), block.page, "exec")
        if block.runs:
            exec(code, names)


def test_marks_are_known():
    """A word that nobody knows would take a block out of the tests."""
    pages = [ROOT / "README.md", *PAGES]
    marks = {mark_of(block) for page in pages for block in blocks_of(page)}
    assert marks <= {"", "no-run"}
    assert any(block.runs for page in pages for block in blocks_of(page))


def test_modules_that_pages_and_cards_run_are_there():
    """`python -m demo_training.train`, say; the cards once named modules that had moved."""
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "mm_lens").rglob("*.md")]
    named = {
        name
        for text in texts
        for name in re.findall(r"-m ((?:mm_lens|demo_training)[.\w]*\w)", text.read_text("utf-8"))
    }
    assert "demo_training.scenes.shortcuts" in named
    places = [ROOT / name.replace(".", "/") for name in sorted(named)]
    assert [
        str(place)
        for place in places
        if not (place.with_suffix(".py").is_file() or (place / "__main__.py").is_file())
    ] == []
