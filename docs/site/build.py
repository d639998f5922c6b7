"""Builds the documentation site: `make site`, or `python docs/site/build.py`.

The pages stay where they are read on their own; Sphinx gets a copy of them, in the same places, so
that every link holds in both. Warnings are errors, links between pages are checked.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import reference
from sphinx.cmd.build import main as sphinx

ROOT = Path(__file__).parents[2]
HERE = ROOT / "docs" / "site"
OUT = ROOT / "build" / "site"
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
"""Pages that lie beside docs/ and tutorials/."""
LINKED = ("mm_lens/data/sets/__init__.py", "mm_lens/demo")
"""What pages link to and no page shows: copied, so that the links hold."""


def lay_out(source: Path) -> None:
    """Copy what the site shows below `source`, and write the reference and the home page there."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "docs", source / "docs", ignore=shutil.ignore_patterns("*.py", "site"))
    shutil.copytree(ROOT / "tutorials", source / "tutorials")
    shutil.copytree(HERE / "_static", source / "_static")
    for name in PAGES:
        shutil.copy(ROOT / name, source / name)
    for name in LINKED:
        for path in sorted((ROOT / name).rglob("*.md")) or [ROOT / name]:
            copy = source / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    shutil.copy(HERE / "index.md", source / "index.md")
    reference.write(source / "api")


def build() -> int:
    """Build the site; returns Sphinx's exit code."""
    source = OUT / "source"
    lay_out(source)
    options = ["-W", "--keep-going", "-q", "-j", "2", "-d", str(OUT / "doctrees")]
    return int(sphinx([*options, "-c", str(HERE), str(source), str(OUT / "html")]))


if __name__ == "__main__":
    code = build()
    if code == 0:
        print(f"Open {(OUT / 'html' / 'index.html').relative_to(ROOT)}")
    sys.exit(code)
