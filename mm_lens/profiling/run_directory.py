"""The run directory: what a run has done so far, on disk, for the next try and for each other.

Layout:

```python
lock, lock-1                     held by the processes that are at work
manifest                         what the run is: model, data, options, versions
part-0/index                     batches done by process 0, and which tokens it has sampled
part-0/visual.residual.003       their states (`mm_lens.profiling.stores`)
sites/residual.visual.003        finished metrics of one stream, modality and hook or head
maps/residual.visual.003         maps that lead to a state (`mm_lens.profiling.per_sample.maps`)
written                          a digest of the result that was written from all this: it can go
```

**A run killed at any moment is resumed and ends with the same table**, given as many threads in
each process as before: matrix products add in an order that depends on them, so a change is told.
Indices, sites and the manifest are replaced as a whole. States are written in place, before the
index that names them is: a slot changes hands only when its token has left the sample for good,
because smaller keys have come. If the index with these keys is lost, the batch that brought them is
done again, and they come again, in whichever process. So an index may name tokens whose states are
gone, but none that the merged sample of all batches keeps.

**Several processes** write parts of their own. They first agree on what is done, so that each batch
is in one part only, even where a network file system shows a file late. The merged sample is the
same for any number of them; the next try may have another number.

**Nothing else is touched.** A directory is a run's by the mark in its manifest; files of other
names stay where they are, whatever is deleted.
"""

from __future__ import annotations

import io
import json
import re
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout

from mm_lens._storage.checked import read_file, sync_directory, write_file
from mm_lens._storage.differences import find_differences
from mm_lens._storage.hashing import digest
from mm_lens.errors import DamageError, DataError, InputError, MMLensWarning
from mm_lens.profiling.collecting.token_sample import Group, TokenSample
from mm_lens.profiling.points.point import Point
from mm_lens.profiling.processes import Processes
from mm_lens.profiling.stores import FileStore

T = TypeVar("T")

SECONDS_TO_SEE = 120

LOCK, MANIFEST, INDEX, SITES, WRITTEN = "lock", "manifest", "index", "sites", "written"
MAPS = "maps"
MARK = b"mm_lens run\n"
THREADS = "threads"  # of the manifest: the one entry in which a run may differ from its next try
# All that runs write, in the order in which it can go: what is left is a run that has done less.
_FILES = (
    f"part-*/{INDEX}",
    f"part-*/{INDEX}.new",
    "part-*/*.*.[0-9][0-9][0-9]",
    "part-*/*.*.[0-9][0-9][0-9][0-9]",
    f"{MAPS}/*.*.[0-9][0-9][0-9]",
    f"{MAPS}/*.*.[0-9][0-9][0-9].new",
    f"{SITES}/*.*.[0-9][0-9][0-9]",
    f"{SITES}/*.*.[0-9][0-9][0-9][0-9]",
    f"{SITES}/*.*.[0-9][0-9][0-9].new",
    f"{SITES}/*.*.[0-9][0-9][0-9][0-9].new",
    f"{MANIFEST}.new",
    MANIFEST,
    f"{WRITTEN}.new",
    WRITTEN,
)


@dataclass
class Part:
    """What one process has collected.

    Attributes:
        sample: tokens and states.
        batches: numbers of the batches that are done.
        ids: digest of the id of every sample read, and its index in the data set.
        skipped: samples left out: their index, their name, and why.
        fingerprint: exclusive or of digests of the samples read.
        templated: samples whose prompt the chat template was applied to.
    """

    sample: TokenSample
    batches: list[int] = field(default_factory=list)
    ids: dict[int, int] = field(default_factory=dict)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    fingerprint: int = 0
    templated: int = 0

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
                "templated": self.templated,
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
        self.fingerprint, self.templated = found["fingerprint"], found["templated"]
        for group, entries in found["entries"].items():
            self.sample.reservoirs[group].bottom.restore(entries, found["seen"][group])

    def pack(self, stream: str, points: Sequence[Point]) -> dict[str, Any]:
        """Everything, the states of one stream included."""
        states = {
            (group, state): reservoir.store.read(stream, state, *reservoir.bottom.used)
            for group, reservoir in self.sample.reservoirs.items()
            for state, point in enumerate(points)
            if reservoir.bottom.size and group in self.sample.groups(point)
        }
        return {"part": self.to_bytes(), "states": states}

    def unpack(self, content: Mapping[str, Any], stream: str) -> None:
        """Take over what `pack` gave."""
        self.restore(content["part"])
        for (group, state), rows in content["states"].items():
            reservoir = self.sample.reservoirs[group]
            reservoir.store.write(stream, state, *reservoir.bottom.used, rows)


class RunDirectory:
    """An open run directory. Made by `open_run`.

    Attributes:
        path: the directory.
        processes: those that work on the run.
    """

    def __init__(self, path: Path, processes: Processes) -> None:
        self.path, self.processes = path, processes
        self._stores: list[FileStore] = []

    def share(self, items: Sequence[T], done: Collection[T]) -> list[T]:
        """This process's part of the items that no process has seen done.

        All look before any of them does more.
        """
        seen = self.processes.union(done)
        return self.processes.share([item for item in items if item not in seen])

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

    def parts(self, k: int, modalities: Sequence[Group], seed: int) -> tuple[Part, list[Part]]:
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

    def _part(self, path: Path, k: int, modalities: Sequence[Group], seed: int) -> Part:
        part = Part(TokenSample(k, modalities, seed, lambda group: self._store(path, group)))
        if (path / INDEX).exists():
            part.restore(read_file(path / INDEX))
        return part

    def _store(self, path: Path, group: Group) -> FileStore:
        self._stores.append(FileStore(path, group))
        return self._stores[-1]

    def close(self) -> None:
        """Close all files: deleted ones that are open keep their place on the disk."""
        for store in self._stores:
            store.close()

    def commit(self, part: Part) -> None:
        """Have this process's part survive whatever comes."""
        for reservoir in part.sample.reservoirs.values():
            reservoir.store.flush()
        own = self.path / f"part-{self.processes.rank}"
        sync_directory(own)
        write_file(own / INDEX, part.to_bytes())

    def sites(self) -> dict[str, Any]:
        """The finished sites by name.

        Raises:
            DataError: one of them is damaged.
        """
        files = [path for path in (self.path / SITES).glob("*") if path.suffix != ".new"]
        return {path.name: json.loads(read_file(path)) for path in files}

    def keep_site(self, name: str, content: Any) -> None:
        """Have a finished site survive."""
        (self.path / SITES).mkdir(exist_ok=True)
        write_file(self.path / SITES / name, json.dumps(content).encode())

    def maps(self) -> set[str]:
        """Names of the places whose maps are kept."""
        return {path.name for path in (self.path / MAPS).glob("*") if path.suffix != ".new"}

    def read_map(self, name: str) -> bytes:
        """What `keep_map` kept.

        Raises:
            DamageError: the file is damaged.
        """
        return read_file(self.path / MAPS / name)

    def keep_map(self, name: str, content: bytes) -> None:
        """Have the maps of a place survive."""
        (self.path / MAPS).mkdir(exist_ok=True)
        write_file(self.path / MAPS / name, content)


@contextmanager
def open_run(
    path: Path, manifest: Mapping[str, Any], processes: Processes, restart: bool = False
) -> Iterator[RunDirectory]:
    """Begin a run directory, or resume one. It stays, unless nothing was kept in it.

    Args:
        path: the directory; its parents are created.
        manifest: what the run is, as JSON: only the same run is resumed.
        processes: those that work on the run, all of which come here.
        restart: discard an earlier run.

    Raises:
        InputError: another run is in the directory, or at work in it, or it is something else.
        OSError: it cannot be written.
    """
    path, about = path.absolute(), json.loads(json.dumps(manifest))
    made = [parent for parent in (path, *path.parents) if not parent.exists()]
    run = RunDirectory(path, processes)
    lock = FileLock(path / (LOCK if processes.main else f"{LOCK}-{processes.rank}"))
    try:
        if processes.main:
            _check_ours(path)
            path.mkdir(parents=True, exist_ok=True)
            _acquire(lock, path)
            if restart or not note(path) or not (path / MANIFEST).exists():
                _discard(path)
                write_file(path / MANIFEST, MARK + json.dumps(about).encode())
        run.gather((path / MANIFEST).exists, bool)
        if not processes.main:
            _acquire(lock, path)
        _check_same(path, about)
        try:
            yield run
        except BaseException as error:
            if isinstance(error, DamageError):
                pass  # it says to begin anew: to run the same again would end the same
            elif note(path):
                error.add_note(note(path))
            elif processes.main:
                _remove(path, made)
            raise
    finally:
        run.close()
        lock.release()


def _acquire(lock: FileLock, path: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"Another run is at work in {path}. Wait for it.") from None


def note(path: Path) -> str:
    """What to tell whose run has failed: what it has left, or "" if that is nothing."""
    sites = (file for file in (path / SITES).glob("*") if file.suffix != ".new")
    if not any(path.glob(f"part-*/{INDEX}")) and not any(sites):
        return ""
    return f"What was done is in {path}: run the same again to resume."


def note_written(path: Path, provenance: Path) -> None:
    """Note in a run directory that its result is complete, before that gets its name.

    Args:
        path: the run directory.
        provenance: the file that tells this result from any other.
    """
    write_file(path / WRITTEN, f"{digest(provenance.read_bytes())}".encode())


def has_served(path: Path, provenance: Path) -> bool:
    """Whether the result with this provenance was written from a run directory, which can go.

    A run that is killed after its result got its name, and before this directory went, leaves it.
    """
    try:
        return read_file(path / WRITTEN) == f"{digest(provenance.read_bytes())}".encode()
    except (OSError, DataError):  # one of them is not there, or was never finished
        return False


def remove_run(path: Path) -> None:
    """Delete a run directory that has served; what others have put there stays."""
    if path.exists():
        _check_ours(path)
        _remove(path, [path])


def _check_ours(path: Path) -> None:
    """Refuse what no run has made: a run deletes what earlier ones have left."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file. Name a directory for the run.")
    names = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if MANIFEST in names:
        head = (path / MANIFEST).read_bytes()[: len(MARK)] if (path / MANIFEST).is_file() else None
        ours = head in (MARK, b"")  # an empty one is a damaged one
    else:
        pattern = rf"{LOCK}(-\d+)?|{MANIFEST}\.new|{WRITTEN}(\.new)?"
        ours = all(re.fullmatch(pattern, name) for name in names)
    if not ours:
        raise InputError(f"{path} is not empty and no run directory. Name another directory.")


def _check_same(path: Path, manifest: dict[str, Any]) -> None:
    earlier = json.loads(read_file(path / MANIFEST).removeprefix(MARK))
    then, now = earlier.pop(THREADS, None), manifest.get(THREADS)
    same = {name: value for name, value in manifest.items() if name != THREADS}
    found = [
        f"{name} is {there} there and {here} here"
        for name, there, here in find_differences(earlier, same)
    ]
    if found:
        raise InputError(
            f"{path} holds an unfinished run that is not this one: {'; '.join(found)}. "
            "Give restart=True (--restart) to discard it, or write elsewhere."
        )
    if then != now:
        warnings.warn(
            f"The run in {path} was begun with {then} threads in a process and goes on with {now}: "
            "its numbers may differ from those of an undisturbed run in their last digits. For the "
            f"same bytes set OMP_NUM_THREADS={then}.",
            MMLensWarning,
            stacklevel=2,
        )


def _discard(path: Path) -> None:
    """Delete what runs have written, and nothing else."""
    for pattern in _FILES:
        for file in path.glob(pattern):
            file.unlink(missing_ok=True)
    for directory in (*path.glob("part-*"), path / SITES, path / MAPS):
        with suppress(OSError):  # not there, or others have put something into it
            directory.rmdir()


def _remove(path: Path, made: list[Path]) -> None:
    """Delete a run, its locks, and those of the directories made for it that are empty then."""
    _discard(path)
    for file in path.glob(f"{LOCK}*"):
        file.unlink(missing_ok=True)
    with suppress(OSError):
        for directory in made:
            directory.rmdir()
