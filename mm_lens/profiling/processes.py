"""Several processes of one run, as `accelerate launch` or `torchrun` starts them.

Each takes a share of the work and leaves its results in the run directory
(`mm_lens.profiling.run_directory`), so nothing goes over the network but what is done and "wait for
the others": any number of processes works, on any number of machines that see one file system.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from mm_lens.errors import MMLensError

T = TypeVar("T")

# A process may be done hours before another whose images are larger.
_PATIENCE = timedelta(days=7)

# The process that counts who has failed answers at once, or it has gone.
_ANSWER = timedelta(seconds=3)

_FAILED = "mm_lens/failed"  # how many processes have said why they end


class AnotherEndedError(MMLensError):
    """Another process of this run has ended, and so this one ends."""


class Processes:
    """This process and the others of its run; alone unless a launcher started several.

    Attributes:
        rank: number of this process.
        count: number of processes.
    """

    def __init__(self) -> None:
        self._state: Any = None
        self.rank, self.count = 0, 1
        if count_processes() > 1:
            import torch
            from accelerate import PartialState  # type: ignore[import-untyped]

            # Puts each process of a machine on a GPU of its own.
            self._state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
            self.rank, self.count = self._state.process_index, self._state.num_processes

    @property
    def main(self) -> bool:
        """Whether this is the process that shows progress and writes the result."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of the items, which are the same in every process."""
        if self._state is None:
            return list(items)
        with self._state.split_between_processes(list(items)) as mine:
            return list(mine)

    def union(self, items: Collection[T]) -> set[T]:
        """The items of all processes, in each of them.

        Raises:
            AnotherEndedError: one of them has ended.
        """
        if self._state is None:
            return set(items)
        from accelerate.utils import gather_object  # type: ignore[import-untyped]

        with _blame_others():
            return set(gather_object(list(items)))

    def wait(self) -> None:
        """Return when every process has come here.

        Raises:
            AnotherEndedError: one of them has ended.
        """
        if self._state is not None:
            with _blame_others():
                self._state.wait_for_everyone()

    def finish(self) -> None:
        """Wait for the others and let go of them: one that only exits may take them down."""
        self.wait()
        if self._state is not None:
            self._state.destroy_process_group()


@contextmanager
def _blame_others() -> Iterator[None]:
    """Say it where another process has not come."""
    try:
        yield
    except RuntimeError as error:
        raise AnotherEndedError(
            f"{name()} has stopped: another process of this run has ended, and if it said nothing "
            "it was killed (out of memory?)."
        ) from error


def name() -> str:
    """What to call this process in a message, of several."""
    return f"Process {int(os.environ.get('RANK') or 0) + 1} of {count_processes()}"


def count_processes() -> int:
    """How many processes the launcher has started; 1 without a launcher."""
    names = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    return max(int(os.environ.get(name) or 1) for name in names)


def find_own_gpus(n_gpus: int) -> range:
    """The GPUs of this process, those of a machine shared out evenly among its processes."""
    count = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    each = max(1, n_gpus // count)
    first = int(os.environ.get("LOCAL_RANK") or 0) * each % max(n_gpus, 1)
    return range(first, min(first + each, n_gpus))


def is_started_alone() -> bool:
    """Whether several processes were asked for, and accelerate started one.

    So does `accelerate launch --cpu --num_processes N`, which leaves the rest to MPI.
    """
    return count_processes() == 1 and {"MASTER_PORT", "ACCELERATE_DYNAMO_BACKEND"} <= {*os.environ}


def is_to_say_why(own: bool) -> bool:
    """Whether this process, which ends, is to say why.

    Of those with a reason of their own, the first: the others fail for the same one, as a rule. Of
    those that end because another has, each, unless that one has said why; one that was killed has
    not.

    Args:
        own: whether the reason is this process's own.
    """
    if count_processes() == 1:
        return True
    import torch.distributed as dist

    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=_ANSWER,
        )
        return int(store.add(_FAILED, int(own))) == int(own)
    except (RuntimeError, KeyError):  # the process that keeps the count is gone: it failed first
        return not own or os.environ.get("RANK", "0") == "0"
