"""Files that lenses are kept in: safetensors, with what they are in their metadata."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mm_lens.errors import DataError


@contextmanager
def open_stored(path: str | Path, kind: str, format: str) -> Iterator[Any]:
    """Open what a `save` wrote; whatever fails while it is read is told with the file.

    Args:
        path: of the file.
        kind: what messages call it.
        format: what its metadata must say under "format".

    Raises:
        DataError: the file is not there, none of these, or damaged.
    """
    try:
        with safe_open(Path(path), "pt") as file:
            if (file.metadata() or {}).get("format") != format:
                raise DataError(f"{path} is no {kind} of mm_lens. Give what save wrote.")
            yield file
    except DataError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a {kind}: {error}") from error
