"""SIGTERM ends a command with a line, wherever it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from mm_lens.cli import commands as cli
from mm_lens.cli import stopping


def send(signum=signal.SIGTERM):
    os.kill(os.getpid(), signum)


def test_sigterm_is_told_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cli, "app", lambda *args, **kwargs: send())
    before = signal.getsignal(signal.SIGTERM)
    assert cli.run([]) == 143
    assert capsys.readouterr() == ("", "mm-lens: Stopped (SIGTERM).\n")
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_one_of_several_says_which_it_is(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert stopping.describe().startswith("Process 3 of 4 was told to stop (SIGTERM)")


def test_tidying_up_is_not_disturbed(monkeypatch):
    tidied = []

    def work(*args, **kwargs):
        try:
            send()
        finally:
            send()
            tidied.append(True)

    monkeypatch.setattr(cli, "app", work)
    assert cli.run([]) == 143
    assert tidied == [True]


def test_other_signals_are_as_before(monkeypatch, capsys):
    monkeypatch.setattr(cli, "app", lambda *args, **kwargs: send(signal.SIGINT))
    # A shell starts what runs in the background with this signal ignored, and so do these tests.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.run([]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "Interrupted" in capsys.readouterr().err


def test_commands_run_in_other_threads_too(monkeypatch):
    monkeypatch.setattr(cli, "app", lambda *args, **kwargs: 0)
    codes = []
    thread = threading.Thread(target=lambda: codes.append(cli.run([])))
    thread.start()
    thread.join()
    assert codes == [0]


STUCK = """
import ctypes, os, signal, sys, threading
from mm_lens.cli import commands, stopping
stopping.GRACE = 0.2
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)

def app(*args, **kwargs):
    libc.pthread_mutex_lock(mutex)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    libc.pthread_mutex_lock(mutex)  # for ever, and no signal gets it out

commands.app = app
commands.main([])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="made for glibc's mutex")
def test_a_process_that_waits_inside_of_a_library_says_its_line_and_ends():
    done = subprocess.run(
        [sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 143
    assert done.stderr == "mm-lens: Stopped (SIGTERM). The same command resumes.\n"
