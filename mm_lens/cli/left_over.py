"""What a command has left that was killed between writing its result and removing its states."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from mm_lens.profiling import processes


def command() -> str:
    """The command that is running, as it can be given again."""
    return shlex.join(["mm-lens", *sys.argv[1:]])


def finish(run_dir: Path, out: Path, quiet: bool) -> bool:
    """Remove a run directory from which `out` was written completely.

    Args:
        run_dir: the run directory.
        out: directory of the result.
        quiet: do not say so.

    Returns:
        Whether the result is that of this very command, which is done then.
    """
    if not run_dir.is_dir():
        return False
    from mm_lens.profiling import run_directory
    from mm_lens.profiling.result import PROVENANCE_FILE

    if not run_directory.has_served(run_dir, out / PROVENANCE_FILE):
        return False
    earlier = json.loads((out / PROVENANCE_FILE).read_text("utf-8"))
    crew = processes.Processes()
    crew.wait()  # all of them have seen it
    if crew.main:
        run_directory.remove_run(run_dir)
    crew.wait()
    if earlier.get("command") != command():
        return False
    crew.finish()
    if crew.main and not quiet:
        print(f"{out} is complete: only {run_dir} was left to remove.")
    return True
