"""Writing a directory as a whole: complete, or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mm_lens.errors import InputError


@contextmanager
def whole_directory(path: str | Path, mark: str, overwrite: bool = False) -> Iterator[Path]:
    """A temporary directory that becomes `path` when the block ends without an error.

    It lies beside `path` (renaming is atomic within a file system only) and is removed on any
    error, Ctrl-C included.

    Args:
        path: the directory to write; its parents are created.
        mark: name of a file that tells a directory written by this program. `overwrite` replaces no
            other directory, for it would delete what somebody else put there.
        overwrite: replace an earlier directory.

    Raises:
        InputError: `path` is a file, or holds files and may not be replaced.
        OSError: it cannot be written.
    """
    path = Path(os.path.abspath(path))
    _check_free(path, mark, overwrite)
    made = [parent for parent in path.parents if not parent.exists()]  # the nearest one first
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        new = work / "new"
        new.mkdir()
        yield new
        _check_free(path, mark, overwrite)
        if path.exists():
            path.rename(work / "old")
        try:
            new.rename(path)
        except OSError:
            if (work / "old").exists():
                (work / "old").rename(path)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
        for parent in made:
            if not any(parent.iterdir()):
                parent.rmdir()


def _check_free(path: Path, mark: str, overwrite: bool) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path} is a file. Name a directory.")
    if not any(path.iterdir()):
        return
    if not (path / mark).is_file():
        raise InputError(
            f"{path} is not empty and holds no {mark}, so it was not written by mm-lens. "
            "Name another directory."
        )
    if not overwrite:
        raise InputError(f"{path} exists already. Name another directory, or overwrite it.")
