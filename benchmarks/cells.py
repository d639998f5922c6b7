"""Does it pay to measure two cells at once? Wall time on two cores, both ways in turn.

    python benchmarks/cells.py [--n 8192] [--d 96] [--cells 4] [--rounds 3]

A cell is one stream, modality and hook: here two hooks of made-up tokens with both presets. One way
gives a cell all threads; the other runs as many cells as there are threads, with one each, and
holds that many in memory. It says as well whether the numbers are the same to the last bit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from metrics import states, tokens_of

from mm_lens.metrics import METRICS, evaluate


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Cells one after the other, or at once.")
    parser.add_argument("--n", type=int, default=8192)
    parser.add_argument("--d", type=int, default=96)
    parser.add_argument("--cells", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    x, y = states(given.n, given.d)
    before, after = tokens_of(x, 64), tokens_of(y, 64)
    names = [metric.name for metric in METRICS.values() if metric.presets & {"paper", "honest"}]

    def cell(threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)  # of this thread of Python
        return evaluate(before, after, names)

    def in_turn() -> list[dict[str, Any]]:
        return [cell(given.threads) for _ in range(given.cells)]

    def at_once() -> list[dict[str, Any]]:
        with ThreadPoolExecutor(given.threads) as pool:
            return list(pool.map(cell, [1] * given.cells))

    found = {way.__name__: way()[0] for way in (in_turn, at_once)}  # and warmed up
    times: dict[str, list[float]] = {"in_turn": [], "at_once": []}
    for _ in range(given.rounds):
        for way in (in_turn, at_once):
            start = time.perf_counter()
            way()
            times[way.__name__].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(times["at_once"], times["in_turn"], strict=True)]
    same = sum(repr(found["in_turn"][name]) == repr(found["at_once"][name]) for name in names)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{given.cells} cells, n = {given.n}, d = {given.d}, {given.threads} threads")
    for name, taken in times.items():
        print(f"  {name:8} {statistics.median(taken):7.2f} s")
    print(f"at once / in turn {statistics.median(ratios):.2f} ({spread})")
    print(f"{same} of {len(names)} estimates are the same to the last bit")


if __name__ == "__main__":
    main()
