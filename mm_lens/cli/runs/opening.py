"""`mm-lens open`: the page of a run, in the browser."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from mm_lens.errors import InputError

PAGES = ("report.html", "compare.html", "index.html")
"""What a run's page may be called."""


def open_command(
    run: Annotated[Path, typer.Argument(help="Directory of a run, or a page.")],
    path_only: Annotated[
        bool, typer.Option("--path", help="Print where the page lies, and open nothing.")
    ] = False,
) -> None:
    """Open the page of a run in the browser.

    Example: mm-lens open runs/llava-next
    """
    page = find_page(run)
    print(page)
    if not path_only and not webbrowser.open(page.resolve().as_uri()):
        print("There is no browser here: open the page in one.")


def find_page(run: Path) -> Path:
    """The page of a run.

    Raises:
        InputError: there is none.
    """
    if run.is_file() and run.suffix.lower() in (".html", ".htm"):
        return run
    if not run.exists():
        raise InputError(f"There is no run {run}. Give a directory that mm-lens has written.")
    found = [run / name for name in PAGES if (run / name).is_file()]
    if not found:
        inside = sorted(path.name for path in run.iterdir()) if run.is_dir() else []
        near = [path.name for path in run.iterdir() if find_quietly(path)] if inside else []
        runs = f" These are runs: {', '.join(sorted(near))}." if near else ""
        raise InputError(f"{run} holds no page ({', '.join(PAGES)}).{runs}")
    return found[0]


def find_quietly(run: Path) -> bool:
    """Whether a directory holds a page."""
    return any((run / name).is_file() for name in PAGES)
