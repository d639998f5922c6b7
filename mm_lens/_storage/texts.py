"""Texts from files: JSON that cannot exhaust the machine, and names that can be written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_JSON = 2**26
"""Most bytes of a JSON file, 64 MiB: objects take twenty times that in memory. The largest files of
published models, their tokenizers, have half of it."""


MAX_DEPTH = 100
"""Most objects and lists inside of each other: who walks through them calls itself at each."""


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is none, is nested too deep, or an object in it names an entry twice.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    level, depth = [found], 0
    while level := [inner for outer in level for inner in _inner(outer)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deep")
    return found


def _inner(value: Any) -> list[Any]:
    """What is in an object or list and may hold more."""
    held = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for each in held if isinstance(each, (dict, list))]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the entry {twice!r} is there twice")
    return found


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        ValueError: it is no regular file, larger than `MAX_JSON`, not UTF-8, or as `parse_json`.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError("it is not a file")
    if (size := path.stat().st_size) > MAX_JSON:
        raise ValueError(f"it has {size:,} bytes, more than the {MAX_JSON:,} of any such file")
    return parse_json(path.read_text("utf-8"))


def make_encodable(text: str) -> str:
    """A name as it is, with escapes for the bytes of a file name that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
