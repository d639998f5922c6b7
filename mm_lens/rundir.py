"""The run directory: what a run has done so far, on disk, for the next try and for each other.

Layout::

    lock                             held by the run that is at work
    manifest                         what the run is: model, data, options, versions
    part-0/index                     batches done by process 0, and which tokens it has sampled
    part-0/visual.residual.003       their states (`mm_lens.stores`)
    cells/residual.visual.003        finished metrics of one stream, modality and layer

**A run killed at any moment goes on and ends with the same table.** Indices, cells and the manifest
are replaced as a whole. States are written in place, before the index that names them is: a slot
changes hands only when its token has left the sample for good, because smaller keys have come. If
the index with these keys is lost, the batch that brought them is done again, and they come again,
in whichever process. So an index may name tokens whose states are gone, but none that the merged
sample of all batches keeps.

**Several processes** write parts of their own. The merged sample is the same for any number of
them; the next try may have another number.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout

from mm_lens.checked import read_file, sync_directory, write_file
from mm_lens.distributed import Processes
from mm_lens.errors import DataError, InputError
from mm_lens.sampling import Modality, TokenSample
from mm_lens.stores import FileStore

T = TypeVar("T")

SECONDS_TO_SEE = 120

LOCK, MANIFEST, INDEX, CELLS = "lock", "manifest", "index", "cells"


@dataclass
class Part:
    """What one process has collected.

    Attributes:
        sample: tokens and states.
        batches: numbers of the batches that are done.
        ids: digest of the id of every sample read, and its index in the data set.
        skipped: samples left out: their index, their name, and why.
        fingerprint: exclusive or of digests of the samples read.
    """

    sample: TokenSample
    batches: list[int] = field(default_factory=list)
    ids: dict[int, int] = field(default_factory=dict)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    fingerprint: int = 0

    def to_bytes(self) -> bytes:
        """Everything but the states."""
        bottoms = {group: r.bottom for group, r in self.sample.reservoirs.items()}
        content = io.BytesIO()
        torch.save(
            {
                "batches": torch.tensor(self.batches, dtype=torch.int64),
                "ids": torch.tensor([[*self.ids], [*self.ids.values()]], dtype=torch.int64),
                "skipped": json.dumps(self.skipped),
                "fingerprint": self.fingerprint,
                "entries": {group: bottom.entries() for group, bottom in bottoms.items()},
                "seen": {group: bottom.seen for group, bottom in bottoms.items()},
            },
            content,
        )
        return content.getvalue()

    def restore(self, content: bytes) -> None:
        """Take over what `to_bytes` gave."""
        found = torch.load(io.BytesIO(content), weights_only=True)
        self.batches = found["batches"].tolist()
        self.ids = dict(zip(*found["ids"].tolist(), strict=True))
        self.skipped = json.loads(found["skipped"])
        self.fingerprint = found["fingerprint"]
        for group, entries in found["entries"].items():
            self.sample.reservoirs[group].bottom.restore(entries, found["seen"][group])


class RunDirectory:
    """An open run directory. Made by `open_run`.

    Attributes:
        path: the directory.
        processes: those that work on the run.
    """

    def __init__(self, path: Path, processes: Processes) -> None:
        self.path, self.processes = path, processes

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of what is left to do.

        Waits until every process has looked at what is done, before any of them does more.
        """
        self.processes.wait()
        return self.processes.share(items)

    def gather(self, look: Callable[[], T], complete: Callable[[T], bool]) -> T:
        """What all processes have written, when this one sees all of it.

        A network file system may show what another machine has written only after a while.

        Raises:
            DataError: something is missing for longer than that.
        """
        self.processes.wait()
        for _ in range(SECONDS_TO_SEE):
            if complete(found := look()):
                return found
            time.sleep(1)
        raise DataError(
            f"Not all that the processes have done is in {self.path}. "
            "It must lie on a file system that all of them see."
        )

    def parts(self, k: int, modalities: Sequence[Modality], seed: int) -> tuple[Part, list[Part]]:
        """This process's part and those of all others, as of their last commit.

        Raises:
            DataError: an index is damaged.
        """
        own = self.path / f"part-{self.processes.rank}"
        own.mkdir(exist_ok=True)
        directories = {own, *(path.parent for path in self.path.glob(f"part-*/{INDEX}"))}
        found = {path: self._part(path, k, modalities, seed) for path in sorted(directories)}
        mine = found.pop(own)
        return mine, list(found.values())

    def _part(self, path: Path, k: int, modalities: Sequence[Modality], seed: int) -> Part:
        part = Part(TokenSample(k, modalities, seed, lambda group: FileStore(path, group)))
        if (path / INDEX).exists():
            part.restore(read_file(path / INDEX))
        return part

    def commit(self, part: Part) -> None:
        """Have this process's part survive whatever comes."""
        for reservoir in part.sample.reservoirs.values():
            reservoir.store.flush()
        own = self.path / f"part-{self.processes.rank}"
        sync_directory(own)
        write_file(own / INDEX, part.to_bytes())

    def cells(self) -> dict[str, Any]:
        """The finished cells by name.

        Raises:
            DataError: one of them is damaged.
        """
        files = [path for path in (self.path / CELLS).glob("*") if path.suffix != ".new"]
        return {path.name: json.loads(read_file(path)) for path in files}

    def keep_cell(self, name: str, content: Any) -> None:
        """Have a finished cell survive."""
        (self.path / CELLS).mkdir(exist_ok=True)
        write_file(self.path / CELLS / name, json.dumps(content).encode())


@contextmanager
def open_run(
    path: Path, manifest: Mapping[str, Any], processes: Processes, restart: bool = False
) -> Iterator[RunDirectory]:
    """Begin a run directory, or go on with one. It stays, unless nothing was kept in it.

    Args:
        path: the directory; its parents are created.
        manifest: what the run is, as JSON: only the same run is gone on with.
        processes: those that work on the run, all of which come here.
        restart: discard an earlier run.

    Raises:
        InputError: another run is in the directory, or at work in it, or it is something else.
        OSError: it cannot be written.
    """
    path, about = path.absolute(), json.loads(json.dumps(manifest))
    made = [parent for parent in (path, *path.parents) if not parent.exists()]
    run, lock = RunDirectory(path, processes), FileLock(path / LOCK)
    try:
        if processes.main:
            _check_ours(path)
            path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise InputError(f"Another run is at work in {path}. Wait for it.") from None
            if restart or not note(path) or not (path / MANIFEST).exists():
                _discard(path)
                write_file(path / MANIFEST, json.dumps(about).encode())
        run.gather((path / MANIFEST).exists, bool)
        _check_same(path, about)
        try:
            yield run
        except BaseException as error:
            if note(path):
                error.add_note(note(path))
            elif processes.main:
                _remove(path, made)
            raise
    finally:
        lock.release()


def note(path: Path) -> str:
    """What to tell whose run has failed: what it has left, or "" if that is nothing."""
    if not any(path.glob(f"part-*/{INDEX}")):
        return ""
    return f"What was done is in {path}: run the same again to go on."


def remove_run(path: Path) -> None:
    """Delete a run directory that has served."""
    if path.exists():
        _check_ours(path)
        shutil.rmtree(path)


def _check_ours(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file. Name a directory for the run.")
    known = {LOCK, f"{MANIFEST}.new", CELLS}
    names = {entry.name for entry in path.iterdir()} if path.exists() else set()
    strangers = {name for name in names - known if not name.startswith("part-")}
    if strangers and MANIFEST not in names:
        raise InputError(f"{path} is not empty and no run directory. Name another directory.")


def _check_same(path: Path, manifest: dict[str, Any]) -> None:
    earlier = json.loads(read_file(path / MANIFEST))
    if found := list(_differences(earlier, manifest)):
        raise InputError(
            f"{path} holds an unfinished run that is not this one: {'; '.join(found)}. "
            "Give restart=True (--restart) to discard it, or write elsewhere."
        )


def _differences(earlier: Any, now: Any, name: str = "") -> Iterator[str]:
    """Every entry in which two manifests differ, in words."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key in sorted({*earlier, *now}):
            inner = f"{name}.{key}" if name else key
            yield from _differences(earlier.get(key), now.get(key), inner)
    elif earlier != now:
        yield f"{name} is {earlier} there and {now} here"


def _discard(path: Path) -> None:
    (path / MANIFEST).unlink(missing_ok=True)  # first, so that no half of a run is taken for one
    for entry in path.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)


def _remove(path: Path, made: list[Path]) -> None:
    """Remove a run directory in which nothing was kept, and the directories made for it."""
    shutil.rmtree(path, ignore_errors=True)
    for parent in made[1:] if made else ():
        if any(parent.iterdir()):
            break
        parent.rmdir()
