"""SIGTERM ends a command as Ctrl-C does: with a line that says so, and nothing half-written.

Schedulers send it at the end of a job's time, and launchers to the other processes of a run when
one of them has ended.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mm_lens.profiling import processes

GRACE = 5.0
"""Seconds until a process is ended that waits inside of a library, where Python hears nothing."""

CODE = 128 + signal.SIGTERM
"""Exit code, as shells give it."""


class Stopped(BaseException):
    """SIGTERM has come. No error: nothing that skips what fails is to skip this."""


@contextmanager
def heed_sigterm() -> Iterator[threading.Event]:
    """Within the block, SIGTERM raises `Stopped` in the main thread, once.

    It sets the event that is given; whoever sets it first is not disturbed any more.

    Where that thread is inside of a library (waiting for other processes, say) and does not come
    back within `GRACE` seconds, the process says its line and ends.
    """
    heard = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield heard  # signals are the main thread's
        return

    def stop(number: int, frame: Any) -> None:
        if not heard.is_set():
            heard.set()
            raise Stopped(describe())

    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    earlier = signal.signal(signal.SIGTERM, stop)
    # Written to by C code when the signal comes, whatever the main thread is doing.
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(ours, heard), daemon=True)
    watcher.start()
    try:
        yield heard
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, earlier)
        theirs.close()
        watcher.join()
        ours.close()


def _watch(signals: socket.socket, heard: threading.Event) -> None:
    while numbers := signals.recv(64):
        if signal.SIGTERM in numbers and not heard.wait(GRACE):
            if processes.is_to_say_why(own=False):
                print(f"mm-lens: {describe()} The same command resumes.", file=sys.stderr)
                sys.stderr.flush()
            os._exit(CODE)


def describe() -> str:
    """What has happened, as far as this process can know."""
    count = processes.count_processes()
    if count == 1:
        return "Stopped (SIGTERM)."
    return (
        f"{processes.name()} was told to stop (SIGTERM): the job was ended, or another of its "
        "processes was (killed? out of memory?)."
    )
