"""The pages on metrics do what they say: their code runs, their anchors exist."""

import re
import sys
from pathlib import Path

import pytest

from mm_lens.errors import MMLensWarning
from mm_lens.metrics import METRICS, load_installed
from mm_lens.metrics.core import TWIN

ROOT = Path(__file__).parents[2]


@pytest.fixture
def registry():
    """Metrics that a test registers are gone afterwards."""
    before = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(before)


def code() -> list[str]:
    page = (ROOT / "docs" / "adding_a_metric.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_code_of_adding_a_metric_runs(registry):
    blocks = code()
    assert len(blocks) >= 5
    names = {"__name__": "sparsity"}
    exec(compile("\n".join(blocks), "docs/adding_a_metric.md", "exec"), names)
    assert "sparsity" in METRICS


def test_a_package_adds_a_metric_and_a_broken_one_takes_none_along(tmp_path, monkeypatch, registry):
    """An installed package, as pip leaves it: files and their entry points."""
    (tmp_path / "toy_sparsity.py").write_text("\n".join(code()[:3]), encoding="utf-8")
    (tmp_path / "toy_broken.py").write_text("raise RuntimeError('no such thing')")
    info = tmp_path / "toy-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[mm_lens.metrics]\na = toy_broken\nb = toy_sparsity\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "sparsity" not in METRICS
    with pytest.warns(MMLensWarning, match="Metric toy_broken cannot be loaded: no such thing"):
        load_installed()
    assert "sparsity" in METRICS
    monkeypatch.delitem(sys.modules, "toy_sparsity")


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_and_figures_of_the_pages_exist():
    for page in [ROOT / "docs" / "metrics.md", *(ROOT / "docs" / "metrics").glob("*.md")]:
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            file, _, anchor = link.partition("#")
            target = (page.parent / file) if file else page
            assert target.exists(), (page.name, link)
            assert not anchor or anchor in anchors(target), (page.name, link)


def test_every_metric_is_on_a_page():
    pages = [ROOT / "docs" / "metrics.md", *(ROOT / "docs" / "metrics").glob("*.md")]
    text = " ".join(page.read_text(encoding="utf-8") for page in pages)
    tables = re.findall(r"^\|(.*?)\|", text, re.MULTILINE)  # first columns
    named = set()
    for cell in tables:
        first = ""
        for name in re.findall(r"`([a-z_0-9]+)`", cell):
            first = first or name
            # `_half` after `dimension_mle` goes on from where the two names part
            stems = [first[:i] for i in range(len(first) + 1)] if name.startswith("_") else [""]
            named |= {stem + name for stem in stems}
    # Twins are named once for all on the page of their kind.
    twins = {
        metric.twin: name for name, metric in METRICS.items() if metric.twin == f"{name}{TWIN}"
    }
    assert TWIN in text
    named |= {twin for twin, name in twins.items() if name in named}
    assert {*METRICS} <= named, {*METRICS} - named
    assert "<!-- end -->" in text
    assert not re.search(r"<!-- table \w+ -->\n<!-- end -->", text), "run docs/figures.py"
