"""Rows on their way from a GPU to a store, beside the forward pass.

`.cpu()` waits for everything that the GPU was told to do. Here rows are copied into pinned memory
on a stream of their own, and a thread puts them into the store when they have come. There is a
fixed number of buffers: when all are in use, the forward pass waits, so that memory is bounded.

Rows are put in the order in which they were taken: of two for one slot, the later one stays.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor

BUFFERS = 4
"""Rows of so many hooks may be on their way."""

Put: TypeAlias = Callable[[Tensor], None]


class Staging:
    """A few buffers, and a thread that empties them. Rows on the CPU are put at once.

    Args:
        buffers: how many there are.
        always: whether rows on the CPU take the way of those on a GPU.
    """

    def __init__(self, buffers: int = BUFFERS, always: bool = False) -> None:
        self.always = always
        self._free: queue.Queue[Tensor | None] = queue.Queue()
        for _ in range(buffers):
            self._free.put(None)
        self._jobs: queue.Queue[tuple[Any, Tensor, Tensor, Put] | None] = queue.Queue()
        self._streams: dict[torch.device, Any] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def take(self, rows: Tensor, put: Put) -> None:
        """Have `put` be called with these rows on the CPU, now or later, in the order of calls.

        `put` must not keep them: their memory is used again.
        """
        if not (rows.is_cuda or self.always):
            put(rows)
            return
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        size, buffer = rows.numel() * rows.element_size(), self._free.get()
        if buffer is None or len(buffer) < size:
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=rows.is_cuda)
        there = buffer[:size].view(rows.dtype).view(rows.shape)
        self._jobs.put((self._copy(rows, there), there, buffer, put))

    def drain(self) -> None:
        """Wait until all that was taken is put.

        Raises:
            Exception: what `put` raised.
        """
        self._jobs.join()
        self._raise()

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
        if error is None:
            self._raise()

    def _copy(self, rows: Tensor, there: Tensor) -> Any:
        """Copy rows, and return the event that says when they have come; None: now."""
        if not rows.is_cuda:
            there.copy_(rows)
            return None
        if rows.device not in self._streams:
            self._streams[rows.device] = torch.cuda.Stream(rows.device)
        stream = self._streams[rows.device]
        stream.wait_stream(torch.cuda.current_stream(rows.device))
        with torch.cuda.stream(stream):
            there.copy_(rows, non_blocking=True)
            rows.record_stream(stream)  # until it is copied, its memory is in use
            come = torch.cuda.Event()
            come.record(stream)
        return come

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            come, rows, buffer, put = job
            try:
                if come is not None:
                    come.synchronize()
                if self._error is None:  # after a failure nothing more is written
                    put(rows)
            except BaseException as error:  # told to the thread that takes
                self._error = error
            finally:
                self._free.put(buffer)
                self._jobs.task_done()
        self._jobs.task_done()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
