"""The pages on methods: their code runs, and each method has what a reader asks for.

That is a definition, when it misleads, what it costs, a few lines of code, and a picture of what
these draw; the first three as a row of a table or in words.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mm_lens.model.running.methods import METHODS

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("pages_pictures", ROOT / "docs" / "pictures.py")
pictures = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = pictures  # dataclasses look their module up
spec.loader.exec_module(pictures)

ELSEWHERE = {
    "profile": "docs/metrics has a page for each metric: test_metrics_pages.py",
    "model": "what every method runs",
}
SAID_WITH = {
    "ablation_table": "ablation_hooks",
    "fit_probe": "probe_table",
    "knockout_table": "knockout",
}
"""Two functions of one method, which have one section."""
LARGEST = 60 * 1024
"""Of a picture, in bytes."""


@dataclass(frozen=True)
class Section:
    """A part of a page from a heading to the next one."""

    page: str
    text: str

    @property
    def code(self) -> str:
        return "\n".join(re.findall(r"^```python[^\n]*\n(.*?)^```", self.text, re.M | re.S))

    @property
    def images(self) -> list[str]:
        return re.findall(r"^!\[[^\]]{20,}\]\((images/\S+\.png)\)$", self.text, re.M)


def sections() -> list[Section]:
    found = []
    for page in pictures.PAGES:
        starts = [m.start() for m in re.finditer(r"^#+ ", pictures.read(page), re.M)]
        text = pictures.read(page)
        ends = [*starts[1:], len(text)]
        found += [Section(page, text[a:b]) for a, b in zip(starts, ends, strict=True)]
    return found


def listed() -> set[str]:
    """The methods of docs/tools.md and of `model.methods()`."""
    text = pictures.read("tools")
    table = text[text.index(pictures.BEGIN) : text.index(pictures.END)]
    names = re.findall(r"^\| `([\w.]+)", table, re.M) + [method.name for method in METHODS]
    short = {name.split(".")[-1] for name in names} - ELSEWHERE.keys()
    short = {name for name in short if not name.startswith("hook_")}  # no methods: hook points
    return {SAID_WITH.get(name, name) for name in short}


def rows_of_tables() -> dict[str, dict[str, str]]:
    """What the tables of the pages say of a method, by the head of the column."""
    found = {}
    for page in pictures.PAGES:
        lines = pictures.read(page).splitlines()
        for k, line in enumerate(lines):
            if not re.match(r"^\| (method|function) \|", line):
                continue
            head = [cell.strip() for cell in line.strip("|").split("|")]
            for row in lines[k + 2 :]:
                if not row.startswith("|"):
                    break
                cells = [cell.strip() for cell in row.strip("|").split("|")]
                found[cells[0].strip("`")] = dict(zip(head, cells, strict=True))
    return found


def missing_of(name: str) -> set[str]:
    """What a reader does not find of a method."""
    row = rows_of_tables().get(name, {})
    here = [s for s in sections() if re.search(rf"\b{name}\b", s.code) and s.images]
    told = "\n".join(s.text for s in here)
    words = re.sub(r"^```.*?^```|^[!#][^\n]*$", "", told, flags=re.M | re.S).strip()
    there = {
        "definition": bool(row.get("what it is")) or len(words) > 60,
        "when it misleads": bool(row.get("when it misleads")) or "*It misleads*" in told,
        "cost": bool(row.get("cost") or row.get("passes")) or "*Cost*" in told,
        "code": bool(here),
        "picture": bool(here),
    }
    return {part for part, found in there.items() if not found}


def test_every_method_has_its_five_parts():
    assert len(listed()) > 30
    assert {name: missing for name in sorted(listed()) if (missing := missing_of(name))} == {}


@pytest.mark.parametrize("page", pictures.PAGES)
def test_every_page_of_methods_says_when_it_misleads_and_what_it_costs(page):
    text = pictures.read(page)
    assert re.search(r"misleads", text)
    assert re.search(r"\*Cost\*|\| (cost|passes) \||^## What it costs", text, re.M)
    assert "images/" in text


def test_pictures_are_drawn_by_the_code_above_them():
    drawn = pictures.all_pictures()
    names = [one.name for one in drawn]
    assert len(names) == len({*names})
    files = {path.stem: path.stat().st_size for path in pictures.METHODS.glob("*.png")}
    assert files.keys() == {*names}
    assert max(files.values()) < LARGEST
    for one in drawn:
        compile(one.code, one.name, "exec")
        assert len(one.alt) >= 20, one.name


def test_the_gallery_shows_them_all():
    """Written by the script from the pages: `python docs/pictures.py gallery`."""
    text = pictures.read("gallery")
    start, end = text.index(pictures.BEGIN) + len(pictures.BEGIN), text.index(pictures.END)
    assert text[start:end].strip() == pictures.make_gallery(pictures.all_pictures()).strip()


def test_a_picture_without_code_is_found():
    page = "# A\n\n```python\nx\n```\n\n## B\n\n![a picture](images/methods/b.png)\n"
    with pytest.raises(ValueError, match=r"no code above b\.png"):
        pictures.find_pictures("page", page)
    here = page.replace("## B\n\n", "")
    (one,) = pictures.find_pictures("page", here)
    assert (one.heading, one.alt, one.name, one.code) == ("A", "a picture", "b", "x\n")
    plain = here.replace("methods/", "")
    assert pictures.find_pictures("page", plain) == []


@pytest.mark.pages
@pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")
@pytest.mark.parametrize("page", ["writing", "attribution", "lenses", "dictionaries", "recipes"])
def test_a_page_runs_as_pasted(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = pictures.read(page)
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    assert len(blocks) >= 3
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, f"docs/{page}.md", "exec"), scope)
    if page == "writing":
        assert 'id="sentence"' in (tmp_path / "written.html").read_text("utf-8")
