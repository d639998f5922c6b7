"""What the metrics cost beside llm-microscope 0.0.7 and one matrix product, on the same data.

    python benchmarks/metrics.py [--full] [--rounds 3] [--threads 1]

Peer, ours and the product take turns in one run, in CPU seconds on one thread (wall time on more);
a ratio is the median over rounds of the quotient within a round, so a machine that slows down for a
while does not bend it. The peer computes in
float64, in a process of its own with MALLOC_MMAP_THRESHOLD_=131072 (its loop fragments malloc
otherwise: 24 GB at n = 2,048). Its neighbour loop does the same work for every row: where all rows
would take over 20 s, some rows are timed and scaled, marked ~. Ours has its interval but for
linearity, where refits take most of the time: there the value alone comes first.

`--full` adds d = 4096 and n = 32,768 (about half an hour); `--only svd --full` takes five minutes,
without `--full` everything together takes three.
"""

from __future__ import annotations

import argparse
import builtins
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mm_lens.metrics import Tokens, evaluate

PAPER = ["linearity_paper", "linearity_update_paper", "dimension_paper", "anisotropy"]
LOOP_SECONDS = 20  # a longer neighbour loop of the peer is scaled from some of its rows


def clock() -> float:
    """CPU seconds of this process: others on the machine do not count. One thread only."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def states(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Two consecutive hooks: a curved 12-dimensional sheet, noise, and a massive token in 135."""
    generator = torch.Generator().manual_seed(n + d)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = torch.tanh(normal(n, 12) @ normal(12, d) / 3) + 0.02 * normal(n, d)
    x[::135] *= 60
    y = x + 0.3 * torch.tanh(x @ normal(d, d) / d**0.5) + 0.01 * normal(n, d)
    return x, y


def tokens_of(x: Tensor, samples: int) -> Tokens:
    index = torch.arange(len(x))
    return Tokens(x, index % samples, index // samples, index)


# The peer, in a process of its own ---------------------------------------------------------------


def serve() -> None:
    """Answer requests {task, n, d, rows} with {seconds, value}."""
    from importlib.util import find_spec, module_from_spec, spec_from_file_location

    package = find_spec("llm_microscope")
    spec = spec_from_file_location("f", f"{package.submodule_search_locations[0]}/functions.py")
    peer = module_from_spec(spec)
    spec.loader.exec_module(peer)  # by path: the package does not import by itself
    torch.set_num_threads(int(os.environ["PEER_THREADS"]))
    torch.set_default_dtype(torch.float64)
    data: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for line in sys.stdin:
        ask = json.loads(line)
        size = ask["n"], ask["d"]
        if size not in data:
            data = {size: states(*size)}
        x, y = data[size]
        rows = ask["rows"] or len(x)
        peer.range = lambda n, rows=rows: builtins.range(min(n, rows))
        start = clock()
        if ask["task"] == "dimension":
            value = peer.intrinsic_dimension(x, "cpu")
        elif ask["task"] == "linearity":
            value = peer.procrustes_similarity(x, y)
        elif ask["task"] == "update":
            value = peer.procrustes_similarity(x, y - x)
        else:
            value = peer.calculate_anisotropy_torch(x)
        print(json.dumps({"seconds": clock() - start, "value": value}), flush=True)


class Peer:
    """llm-microscope at the other end of a pipe."""

    def __init__(self, threads: int) -> None:
        environment = {
            **os.environ,
            "MALLOC_MMAP_THRESHOLD_": "131072",
            "PEER_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __call__(self, task: str, n: int, d: int, rows: int = 0) -> tuple[float, float]:
        """Seconds and value; with ``rows``, seconds scaled from so many rows of the loop."""
        ask = {"task": task, "n": n, "d": d, "rows": rows}
        print(json.dumps(ask), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        return answer["seconds"] * (n / rows if rows else 1), answer["value"]

    def rows_in_time(self, n: int, d: int) -> int:
        """How many rows of the neighbour loop to time; 0 for all of them."""
        seconds, _ = self("dimension", n, d, 8)
        return 0 if seconds < LOOP_SECONDS else max(16, int(n * LOOP_SECONDS / 4 / seconds))


# The two sides in turn ---------------------------------------------------------------------------


def timed(function: Callable[[], object]) -> tuple[float, object]:
    start = clock()
    value = function()
    return clock() - start, value


def compare(
    name: str,
    peer: Callable[[], tuple[float, dict[str, float] | None]],
    ours: dict[str, Callable[[], dict[str, float]]],
    goal: float,
    rounds: int,
    scaled: bool = False,
) -> list[float]:
    """Run both sides in turn and print; the seconds of our first variant."""
    times: dict[str, list[float]] = {"peer": [], **{variant: [] for variant in ours}}
    difference = math.nan
    for _ in range(rounds):
        seconds, expected = peer()
        times["peer"].append(seconds)
        for variant, function in ours.items():
            seconds, found = timed(function)
            times[variant].append(seconds)
            if expected is not None:
                difference = max(abs(found[k] - v) / abs(v) for k, v in expected.items())
    first = next(iter(ours))
    ratios = {
        variant: statistics.median(
            p / o for p, o in zip(times["peer"], times[variant], strict=True)
        )
        for variant in ours
    }
    mark = "~" if scaled else " "
    text = (
        f"{name:32s} {mark}{min(times['peer']):9.2f} s {min(times[first]):9.3f} s "
        f"{ratios[first]:8.1f}x (goal {goal:g})  {'met' if ratios[first] >= goal else 'MISSED'}"
    )
    for variant in list(ours)[1:]:
        text += f"; {variant} {ratios[variant]:.1f}x"
    if not math.isnan(difference):
        text += f"; difference {difference:.0e}"
    print(text, flush=True)
    return times[first]


def numbers(names: list[str], x: Tensor, y: Tensor, samples: int) -> dict[str, float]:
    found = evaluate(tokens_of(x, samples), tokens_of(y, samples), names)
    return {name: estimate.value for name, estimate in found.items()}


TASKS = {
    "dimension": "dimension_paper",
    "linearity": "linearity_paper",
    "update": "linearity_update_paper",
    "anisotropy": "anisotropy",
}


def dimension(peer: Peer, n: int, d: int, goal: float, rounds: int) -> None:
    x, y = states(n, d)
    rows = peer.rows_in_time(n, d)

    def theirs() -> tuple[float, dict[str, float] | None]:
        seconds, value = peer("dimension", n, d, rows)
        return seconds, None if rows else {"dimension_paper": value}

    def ours() -> dict[str, float]:
        return numbers(["dimension_paper"], x, y, 64)

    compare(f"TwoNN n={n} d={d}", theirs, {"": ours}, goal, rounds, bool(rows))
    if n < 8000:
        return
    low = x.float()
    buffer = torch.empty(512, n)

    def blocks() -> None:
        for block in low.split(512):
            torch.mm(block, low.T, out=buffer[: len(block)])

    ratios: dict[str, list[float]] = {"one call": [], "blocks": []}
    for _ in range(max(rounds, 3)):
        mine = timed(ours)[0]
        ratios["blocks"].append(mine / timed(blocks)[0])
        ratios["one call"].append(mine / timed(lambda: low @ low.T)[0])
    one, parts = (statistics.median(ratios[k]) for k in ("one call", "blocks"))
    met = "met" if one <= 1.3 else "MISSED"
    print(
        f"{'  / one float32 product x xᵀ':32s} {one:.2f} (goal 1.3)  {met}; "
        f"/ the product in blocks, kept nowhere {parts:.2f}",
        flush=True,
    )


def svd_metrics(peer: Peer, n: int, d: int, goals: dict[str, float], rounds: int) -> None:
    x, y = states(n, d)
    for task, goal in goals.items():
        name = TASKS[task]

        def theirs(task: str = task, name: str = name) -> tuple[float, dict[str, float]]:
            seconds, value = peer(task, n, d)
            return seconds, {name: value}

        def ours(name: str = name, samples: int = 64) -> dict[str, float]:
            return numbers([name], x, y, samples)

        variants = {"": ours}
        if task != "anisotropy":
            variants = {"": lambda ours=ours: ours(samples=1), "with interval": ours}
        compare(f"{task} n={n} d={d}", theirs, variants, goal, rounds)


def all_three(peer: Peer, n: int, d: int, goal: float, rounds: int) -> None:
    x, y = states(n, d)
    rows = peer.rows_in_time(n, d)

    def theirs() -> tuple[float, dict[str, float] | None]:
        total = 0.0
        for task in TASKS:
            total += peer(task, n, d, rows if task == "dimension" else 0)[0]
        return total, None

    def ours() -> dict[str, float]:
        return numbers(PAPER, x, y, 64)

    name = f"all, per hook, n={n} d={d}"
    compare(name, theirs, {"": ours}, goal, rounds, bool(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description="Metrics beside llm-microscope.")
    parser.add_argument("--full", action="store_true", help="also d = 4096 and n = 32,768")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="a part: dimension, svd, all")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    torch.set_num_threads(arguments.threads)
    cpu = next(
        (
            line.split(": ")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
        if Path("/proc/cpuinfo").exists()
        else iter([platform.processor()]),
        "unknown",
    )
    print(f"{cpu}, {arguments.threads} thread(s), torch {torch.__version__}")
    print(f"{'':32s} {'peer':>11s} {'ours':>11s} {'peer/ours':>9s}")
    peer, rounds, full, only = (
        Peer(arguments.threads),
        arguments.rounds,
        arguments.full,
        arguments.only,
    )
    if only in ("", "dimension"):
        dimension(peer, 2048, 576, 30, 1)
        dimension(peer, 8192, 96, 250, rounds)
        dimension(peer, 8192, 576, 250, rounds)
        if full:
            dimension(peer, 32768, 96, 250, 1)
            dimension(peer, 32768, 576, 250, 1)
    if only in ("", "svd"):
        svd_metrics(peer, 6912, 576, {"linearity": 2, "update": 2, "anisotropy": 2}, rounds)
        if full:
            svd_metrics(peer, 8192, 4096, {"linearity": 2, "anisotropy": 5}, 1)
    if only in ("", "all"):
        all_three(peer, 2048, 576, 4, 1)
        if full:
            all_three(peer, 8192, 4096, 6, 1)
    peer.process.stdin.close()


if __name__ == "__main__":
    main()
