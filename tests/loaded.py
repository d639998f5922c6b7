"""Run the tests three times on a busy machine, each time as if it were another machine.

`make test-loaded`, or `python tests/loaded.py [arguments of pytest]`. Beside the tests as many
processes compute as the machine has cores. The runs differ in the instructions that torch and NumPy
use, and so in the last digits of what they compute; in the order of the tests; in the seed of
Python's hashes, the time zone, the locale and the width of the terminal.

It is a plugin of pytest, too: `-p loaded` puts the tests into the order of $MM_LENS_ORDER.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys

import pytest

ORDER = "MM_LENS_ORDER"
MACHINES = [
    {ORDER: "", "PYTHONHASHSEED": "0"},
    {
        ORDER: "1",
        "PYTHONHASHSEED": "1",
        "ATEN_CPU_CAPABILITY": "avx2",
        "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "TZ": "Pacific/Kiritimati",
        "LC_ALL": "C.UTF-8",
        "COLUMNS": "40",
    },
    {
        ORDER: "2",
        "PYTHONHASHSEED": "2",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "TZ": "America/Caracas",
        "LC_ALL": "C",
        "COLUMNS": "200",
    },
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in another order, and the tests of each: fixtures of a file are still made once."""
    if seed := os.environ.get(ORDER):
        chance = random.Random(int(seed))
        places = {path: chance.random() for path in dict.fromkeys(item.path for item in items)}
        chance.shuffle(items)
        items.sort(key=lambda item: places[item.path])


def compute() -> None:
    """What keeps a core busy."""
    while True:
        sum(range(10_000))


def main(arguments: list[str]) -> int:
    """Returns the exit code: that of the first run that fails."""
    cores = os.cpu_count() or 1
    busy = [multiprocessing.Process(target=compute, daemon=True) for _ in range(cores)]
    for process in busy:
        process.start()
    for number, machine in enumerate(MACHINES, 1):
        told = " ".join(f"{name}={value!r}" for name, value in machine.items())
        print(f"Run {number} of {len(MACHINES)}: {told}", flush=True)
        call = [sys.executable, "-m", "pytest", "-p", "loaded", "-n", "2", "--dist", "worksteal"]
        call += ["-m", "not slow and not families and not pages and not browser", *arguments]
        paths = os.pathsep.join(["tests", os.environ.get("PYTHONPATH", "")])
        code = subprocess.run(call, env={**os.environ, **machine, "PYTHONPATH": paths}).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
