"""What other packages add to this one: objects under the entry points of a group."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from mm_lens.errors import MMLensError, MMLensWarning


def plugin_names(group: str) -> list[str]:
    """Names under which installed packages add something to `group`; nothing is imported."""
    return sorted(entry_points(group=group).names)


def plugins(group: str, kind: str) -> Iterator[Any]:
    """Every object that an installed package adds under `group`.

    One that cannot be loaded is left out with a warning, which calls it `kind`: a broken package
    must not take the others along.
    """
    for point in entry_points(group=group):
        try:
            loaded = point.load()
        except Exception as error:  # whatever the code of somebody else raises
            message = f"{kind} {point.value} cannot be loaded: {error}"
            warnings.warn(message, MMLensWarning, stacklevel=3)
            continue
        yield loaded


def plugin(group: str, name: str, kind: str) -> Any:
    """The object that an installed package adds under this name.

    Raises:
        MMLensError: its package cannot be loaded.
    """
    (point, *_) = entry_points(group=group, name=name)
    try:
        return point.load()
    except Exception as error:  # whatever the code of somebody else raises
        raise MMLensError(f"{kind} {point.value} cannot be loaded: {error}") from error
