"""What it costs to begin: processor seconds, without those of the interpreter itself.

    python benchmarks/startup.py [--runs 7]

Goals: `import mm_lens` 0.3 s, `mm-lens --help` 0.5 s.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys

COMMANDS = {
    "import mm_lens": (["-c", "import mm_lens"], 0.3),
    "mm-lens --help": (["-m", "mm_lens", "--help"], 0.5),
    "mm-lens profile --help": (["-m", "mm_lens", "profile", "--help"], 0.5),
}


def measure(arguments: list[str]) -> float:
    """Processor seconds of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    empty = statistics.median(measure(["-c", ""]) for _ in range(runs))
    print(f"python alone            {empty:.2f} s")
    for name, (arguments, goal) in COMMANDS.items():
        seconds = statistics.median(measure(arguments) for _ in range(runs)) - empty
        print(f"{name:23} {seconds:.2f} s (goal {goal})")


if __name__ == "__main__":
    main()
