"""The site holds every page. `make site` builds it, with warnings as errors and links checked."""

from __future__ import annotations

import re

from page_code import ROOT

SITE = ROOT / "docs" / "site"
HOME = (SITE / "index.md").read_text("utf-8")
TREES = re.findall(r"^```\{toctree\}\n(.*?)^```", HOME, re.MULTILINE | re.DOTALL)
LINES = [line for tree in TREES for line in tree.split("\n") if line and not line.startswith(":")]
LISTED = [re.sub(r"^.*<(.*)>$", r"\1", line) for line in LINES]


def test_each_page_is_in_one_table_of_contents():
    pages = [page for page in (ROOT / "docs").rglob("*.md") if SITE not in page.parents]
    pages += [*(ROOT / "tutorials").glob("*.ipynb"), *(ROOT / "mm_lens" / "demo").rglob("*.md")]
    names = {page.relative_to(ROOT).with_suffix("").as_posix() for page in pages}
    assert names <= {*LISTED}
    assert len(LISTED) == len({*LISTED})


def test_what_is_listed_is_there():
    there = {*LISTED} - {"api/index"}  # written by docs/site/reference.py
    assert not [name for name in there if not any(ROOT.glob(f"{name}.*"))]


def test_each_picture_is_in_the_gallery():
    gallery = (ROOT / "docs" / "gallery.md").read_text("utf-8")
    shown = {*re.findall(r"^!\[[^\]]+\]\((images/[^)]+)\)", gallery, re.MULTILINE)}
    docs = ROOT / "docs"
    there = {path.relative_to(docs).as_posix() for path in (docs / "images").rglob("*.png")}
    assert shown == there
