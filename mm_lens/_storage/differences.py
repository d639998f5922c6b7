"""Telling in what a thing that was kept differs from the one that is asked for now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def find_differences(earlier: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every entry in which two JSON objects differ.

    Args:
        earlier: one of them.
        now: the other.
        name: of the entry that they are of themselves.

    Returns:
        Its name, with dots between the keys that lead to it, and both values; None stands for an
        entry that is missing.
    """
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key in sorted({*earlier, *now}):
            inner = f"{name}.{key}" if name else key
            yield from find_differences(earlier.get(key), now.get(key), inner)
    elif earlier != now:
        yield name, earlier, now
