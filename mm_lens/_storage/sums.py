"""Checksums beside the files of a result, in the form that `sha256sum -c SHA256SUMS` reads.

They find damage, and edits that nobody meant to make, not forgery.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from mm_lens.errors import DataError

SUMS_FILE = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([\w.-]+)")


def write_sums(directory: Path, names: Sequence[str]) -> None:
    """Write the checksums of some files of a directory.

    Raises:
        OSError: it cannot be written.
    """
    lines = [f"{_digest(directory / name)}  {name}\n" for name in names]
    (directory / SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def check_sums(directory: Path) -> None:
    """See that the files are those that were written. Results of earlier versions have no sums.

    Raises:
        DataError: one is missing or another.
        OSError: one cannot be read.
    """
    file = directory / SUMS_FILE
    if not file.exists():
        return
    for line in file.read_text("utf-8", errors="replace").splitlines():
        entry = _LINE.fullmatch(line)
        if entry is None:
            raise DataError(f"{file} is damaged. Make the result again, or restore it from a copy.")
        digest, name = entry.groups()
        if not (directory / name).is_file() or _digest(directory / name) != digest:
            raise DataError(
                f"{directory / name} is damaged or was edited: its checksum in {SUMS_FILE} is "
                f"another. Make it again, or restore it from a copy; if it was edited on purpose, "
                f"delete {file}."
            )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
