"""Writing a directory as a whole: complete, or not there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mm_lens._storage.differences import find_differences
from mm_lens._storage.texts import read_json
from mm_lens.errors import InputError, MMLensError

JOURNAL = "journal.json"


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
    check_free(path, mark, overwrite)
    with _make_parents(path):
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            new = work / "new"
            new.mkdir()
            yield new
            check_free(path, mark, overwrite)
            _exchange(new, path, work / "old")
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def resumable_directory(
    path: str | Path, mark: str, origin: Mapping[str, Any], overwrite: bool = False
) -> Iterator[Path]:
    """As `whole_directory`, but what was written stays for the next try if the block fails.

    It stays in a directory beside `path`, called like it with `.partial` at the end, with a
    journal that says what it was made from. Files ending in `.part` are removed.

    Args:
        path: the directory to write.
        mark: name of a file that tells a directory written by this program.
        origin: what the content is made from, as JSON: only the same is resumed.
        overwrite: replace an earlier directory.

    Raises:
        InputError: `path` is a file, or holds files and may not be replaced.
        MMLensError: an unfinished directory of another origin lies there, or another process is
            writing it.
        OSError: it cannot be written.
    """
    path = Path(os.path.abspath(path))
    check_free(path, mark, overwrite)
    staging = path.with_name(f"{path.name}.partial")
    with _make_parents(path), _lock(path):
        check_free(path, mark, overwrite)
        if (staging / mark).exists() and not (staging / JOURNAL).exists():
            shutil.rmtree(staging)  # killed in its very last step
        _open_journal(staging, json.loads(json.dumps(origin)))
        try:
            yield staging
        except BaseException:
            for unfinished in staging.glob("*.part"):
                unfinished.unlink()
            if [file.name for file in staging.iterdir()] == [JOURNAL]:
                shutil.rmtree(staging, ignore_errors=True)
            raise
        check_free(path, mark, overwrite)
        (staging / JOURNAL).unlink()
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        _exchange(staging, path, old)
        shutil.rmtree(old, ignore_errors=True)


def _open_journal(staging: Path, origin: dict[str, Any]) -> None:
    """Begin a journal, or see that the one there tells of the same origin."""
    journal = staging / JOURNAL
    if not staging.exists() or not any(staging.iterdir()):
        staging.mkdir(exist_ok=True)
    elif journal.exists():
        try:
            earlier = read_json(journal)
        except ValueError as error:
            raise MMLensError(
                f"{journal} is damaged ({error}). Delete {staging} to begin anew."
            ) from error
        if difference := next(find_differences(earlier, origin), None):
            name, then, now = difference
            raise MMLensError(
                f"{staging} is the unfinished work on something else ({name}: {then} then, {now} "
                "now). Delete it to begin anew, or name another directory."
            )
        return
    elif [file.name for file in staging.iterdir()] != [f"{JOURNAL}.part"]:
        raise MMLensError(f"{staging} is in the way: it was not written by mm-lens. Move it.")
    draft = staging / f"{JOURNAL}.part"
    draft.write_text(json.dumps(origin), "utf-8")
    draft.rename(journal)


@contextmanager
def _make_parents(path: Path) -> Iterator[None]:
    """Create the directories above, and remove those that end up empty."""
    made = [parent for parent in path.parents if not parent.exists()]  # the nearest one first
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for parent in made:
            if not any(parent.iterdir()):
                parent.rmdir()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; the lock of a killed one is free."""
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise MMLensError(f"Another process is writing {path}. Wait for it.") from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()


def _exchange(new: Path, path: Path, old: Path) -> None:
    """Put `new` at `path`, and what is there at `old`."""
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise


def check_free(path: Path, mark: str, overwrite: bool) -> None:
    """See that a directory is not there, is empty, or may be replaced.

    Raises:
        InputError: it is not so.
    """
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
