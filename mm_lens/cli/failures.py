"""What the command line says when a command fails: one line, and an exit code.

Every failure that a user can cause is told so; the rest keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from mm_lens.cli import stopping
from mm_lens.errors import (
    DamageError,
    MMLensError,
    MMLensWarning,
    explain_import,
    lacks_memory,
    show_safely,
)

# The root of typer's complaints about a command line, wherever its version keeps that class.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

INTERRUPTED = "Interrupted: nothing was written."


class Interrupted(MMLensError):
    """Ctrl-C, with what is kept."""


@contextmanager
def warnings_in_lines() -> Iterator[None]:
    """Our own warnings as one line on stderr, without the place in the code."""
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        yield


def show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """As `warnings.showwarning`; those of libraries look as they always do."""
    own = issubclass(category, MMLensWarning)
    text = warnings.formatwarning(message, category, *place[:2]) if not own else ""
    print(text.rstrip() or f"mm-lens: warning: {message}", file=sys.stderr)


def explain(error: BaseException) -> tuple[int, str] | None:
    """Exit code and line for a failure: 2 for a wrong command line, 1 for the rest, 128 and its
    number for a signal (130 for Ctrl-C, 143 for SIGTERM).

    None if it is none that a user can cause.
    """
    if isinstance(error, UsageError):
        text = (_missing(error) or _line(error)).removesuffix(".")
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "mm-lens"
        return 2, f"{text}{'' if text.endswith('?') else '.'} See {command} --help."
    if isinstance(error, ImportError | RuntimeError) and (told := explain_import(error)):
        return 1, _line(told)
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        return 130, INTERRUPTED
    if isinstance(error, stopping.Stopped):
        return stopping.CODE, _line(error)
    if isinstance(error, MMLensError):
        return 130 if isinstance(error, Interrupted) else 1, _line(error)
    if isinstance(error, OSError) and not lacks_memory(error):
        return 1, _system(error)
    if lacks_memory(error) and not _is_of_gpu(error):
        return 1, f"Out of memory. Lower --batch-size or --tokens. {_notes(error)}".strip()
    if lacks_memory(error):
        advice = (
            "Lower --batch-size (--tokens, if the metrics had begun), or give --device-map auto."
        )
        return 1, f"The GPU is out of memory. {advice} {_notes(error)}".strip()
    return None


def _missing(error: Any) -> str:
    """All that is missing on a command line; "" where something else is wrong.

    typer names the first only. It has looked at everything that was given before.
    """
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    if context is None or parameter is None or not type(error).__name__.startswith("Missing"):
        return ""
    missing = [p for p in context.command.params if p.required and not context.params.get(p.name)]
    kinds = {p.param_type_name for p in missing}
    names = [p.opts[0] if p.param_type_name == "option" else p.name.upper() for p in missing]
    kind = " and ".join(f"{kind}{'s' * (len(names) > 1)}" for kind in sorted(kinds))
    return f"The command line lacks the {kind} {', '.join(map(repr, names))}"


def _is_of_gpu(error: BaseException) -> bool:
    told = ("CUDA", "HIP", "CUBLAS", "CUDNN")
    return type(error).__name__ == "OutOfMemoryError" or any(word in str(error) for word in told)


@contextmanager
def note_kept(run_dir: Path | None) -> Iterator[None]:
    """Have every failure say whether there is something to resume from."""
    try:
        yield
    except BaseException as error:
        from mm_lens.profiling import run_directory

        note = run_directory.note(run_dir) if run_dir is not None else ""
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"Interrupted. {note}" if note else INTERRUPTED) from error
        if note and not _notes(error) and not isinstance(error, DamageError):
            error.add_note(note)
        raise


def _system(error: OSError) -> str:
    notes = _notes(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full ({os.strerror(error.errno)}): {notes or 'nothing was written.'} "
            "Free some space or name another --out."
        )
    if error.filename:
        return show_safely(f"{error.filename}: {error.strerror}. {notes}".strip())
    return _line(error)


def _line(error: BaseException) -> str:
    """The message of an error on one line."""
    format_message = getattr(error, "format_message", None)  # typer's name the option as well
    text = format_message() if format_message else str(error)
    text = text.replace(": Value error, ", ": ")  # of some versions of typer, before a choice
    return " ".join(show_safely(f"{text or type(error).__name__} {_notes(error)}").split())


def _notes(error: BaseException) -> str:
    """What was noted on an error on its way up."""
    return " ".join(getattr(error, "__notes__", ()))
