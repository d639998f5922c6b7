"""Writing a directory as a whole: complete, or not there, at whatever moment the writer is killed.

A directory that is replaced is moved away before the new one gets its name. A writer killed between
the two leaves both beside it; the next one puts things in order before it begins.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mm_lens._storage.differences import find_differences
from mm_lens._storage.texts import read_json
from mm_lens.errors import InputError, MMLensError

JOURNAL, LOCK = "journal.json", "lock"


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
    check_ahead(path, mark, overwrite)
    with _make_parents(path):
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            new = work / "new"
            with FileLock(work / LOCK):
                new.mkdir()
                yield new
                check_free(path, mark, overwrite)
                _exchange(new, path, work / "old")
        finally:
            _remove(work)


def _tidy_up(path: Path) -> None:
    """Remove what killed writers of `path` have left, and put back what they had moved away."""
    for work in path.parent.glob(f".{glob.escape(path.name)}.{'?' * 8}"):
        if not (work / LOCK).exists():
            with suppress(OSError):  # not empty, so none of ours
                work.rmdir()
            continue
        lock = FileLock(work / LOCK)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):  # at work; or not ours to touch
            continue
        if (work / "old").exists() and not path.exists():
            (work / "old").rename(path)
        lock.release()
        _remove(work)


def _remove(work: Path) -> None:
    """Remove a temporary directory: its lock last, which tells it from those of others."""
    for name in ("new", "old", "."):
        shutil.rmtree(work / name, ignore_errors=True)


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
    path, made_from = Path(os.path.abspath(path)), json.loads(json.dumps(origin))
    check_ahead(path, mark, overwrite)
    staging, old = path.with_name(f"{path.name}.partial"), path.with_name(f".{path.name}.old")
    with _make_parents(path), _lock(path):
        _settle(path, staging, old, made_from)
        check_free(path, mark, overwrite)
        _open_journal(staging, made_from)
        try:
            yield staging
        except BaseException:
            for unfinished in staging.glob("*.part"):
                unfinished.unlink()
            if [file.name for file in staging.iterdir()] == [JOURNAL]:
                shutil.rmtree(staging, ignore_errors=True)
            raise
        check_free(path, mark, overwrite)
        _exchange(staging, path, old)
        # Last: as long as it is there, the next try knows that this one was killed here.
        shutil.rmtree(old, ignore_errors=True)
        (path / JOURNAL).unlink()


def _settle(path: Path, staging: Path, old: Path, origin: dict[str, Any]) -> None:
    """Put in order what a writer has left that was killed while directories changed their names.

    What has the name already goes on from there if it is made from the same, so that the same call
    ends as if nothing had been; else it is finished.
    """
    journal = path / JOURNAL
    if journal.exists():
        if json.loads(journal.read_text("utf-8")) == origin and not staging.exists():
            path.rename(staging)
        else:
            shutil.rmtree(old, ignore_errors=True)
            journal.unlink()
    if old.exists() and not path.exists():
        old.rename(path)


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
    file = _lock_file(path)
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


def check_ahead(path: Path, mark: str, overwrite: bool) -> None:
    """`check_free` before work begins, and after what killed writers have left is in order.

    Raises:
        InputError: as `check_free`.
        MMLensError: another process is writing it, resumably.
    """
    path = Path(os.path.abspath(path))
    check_below(path)
    _tidy_up(path)
    if _lock_file(path).exists():  # of a writer at work, or of one that was killed: then it goes
        with _lock(path):
            pass
    check_free(path, mark, overwrite)


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def check_below(path: Path) -> None:
    """See that what `path` is to lie in is, or can become, a directory.

    Raises:
        InputError: it is a file.
    """
    for parent in Path(os.path.abspath(path)).parents:
        if parent.is_dir():
            return
        if parent.exists():
            raise InputError(
                f"{parent} is a file: nothing can be written below it; name another directory."
            )


def check_free(path: Path, mark: str, overwrite: bool) -> None:
    """See that a directory is not there, is empty, or may be replaced.

    Raises:
        InputError: it is not so.
    """
    check_below(path)
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
    if not overwrite and not (path / JOURNAL).is_file():  # its writer was killed in its last step
        raise InputError(
            f"{path} exists already. Name another directory, or replace it: overwrite=True "
            "(--overwrite)."
        )
