"""What each kind of metric takes of memory: the table of `mm_lens/profiling/memory.py`.

    python benchmarks/metrics_memory.py

Computes all metrics of a kind on made-up tokens of several numbers and widths, and takes the most
bytes that torch holds at a time, by its own record of allocations. Prints the factors that fit best
(of n d float64 numbers, n d numbers as given, blocks of 8,192 rows where these have 16 bit, d², n
and d float64 numbers), the largest error, and that of the table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy.optimize import nnls

from mm_lens.metrics import METRICS, Tokens, evaluate
from mm_lens.profiling import memory

SIZES = (
    *((1000, 32), (12_000, 32), (8192, 64), (1200, 96), (6000, 128), (3072, 256), (12_000, 128)),
    *((6144, 512), (2500, 512)),
)
DTYPES = (torch.float32, torch.bfloat16)


def live_peak(work: Callable[[], object]) -> int:
    """Most bytes that torch holds at a time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as seen:
        work()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


def make(n: int, d: int, dtype: torch.dtype, seed: int) -> Tokens:
    """Correlated states of samples of 40 tokens."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator)
    x = (torch.randn(n, d, generator=generator) @ mixing).to(dtype)
    count = torch.arange(n)
    return Tokens(x, count // 40, count % 40, count % 97, count)


def main() -> None:
    for kind, paper in memory.PEAKS:
        chosen = [m for m in METRICS.values() if m.kind == kind and m.takes_all == paper]
        features, taken, told = [], [], []
        for dtype, (n, d) in itertools.product(DTYPES, SIZES):
            one = make(n, d, dtype, 0)
            other = make(n, d, dtype, 1) if chosen[0].arity == 2 else None
            taken.append(live_peak(partial(evaluate, one, other, chosen)))
            told.append(max(memory.peak(m, n, d, d, dtype.itemsize) for m in chosen))
            block = min(n, memory.BLOCK) * d * (dtype.itemsize == 2)
            features.append([8 * n * d, dtype.itemsize * n * d, 8 * block, 8 * d * d, 8 * n, 8 * d])
        a, y = np.array(features, float), np.array(taken, float)
        factors, _ = nnls(a / y[:, None], np.ones(len(y)))
        fitted, table = np.abs(a @ factors / y - 1).max(), np.abs(np.array(told) / y - 1).max()
        print(
            f"{kind}, {'paper' if paper else 'honest'}: {np.round(factors, 2).tolist()}, largest "
            f"error {fitted:.1%}; of the table {table:.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
