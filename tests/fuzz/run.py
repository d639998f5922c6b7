"""`make fuzz`: thousands of damaged files, each in a process that has 2 GB and a watch."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parents[1])]


def main() -> int:
    """Run the cases; 1 if one of them is a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5_000, help="of all targets together")
    parser.add_argument("--first", type=int, default=0, help="seed of the first case of a target")
    parser.add_argument("--only", help="one target")
    asked = parser.parse_args()

    from fuzz import harness
    from transformers.utils import logging

    logging.disable_progress_bar()
    outcome = harness.Outcome()
    harness.limit_memory()
    for name, count in harness.shares(asked.cases).items():
        if asked.only in (None, name):
            count = asked.cases if asked.only else count
            with tempfile.TemporaryDirectory() as folder:
                seeds = range(asked.first, asked.first + count)
                known = len(outcome.faults)
                harness.run(name, seeds, Path(folder) / "fuzz", outcome)
            print(f"{name}: {count} cases", *outcome.faults[known:], sep="\n  ", flush=True)
    print(outcome)
    return bool(outcome.faults)


if __name__ == "__main__":
    sys.exit(main())
