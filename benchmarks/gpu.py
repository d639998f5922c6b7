"""The costs of a 7B model on one GPU, as ratios from interleaved runs, in at most five minutes.

    python benchmarks/gpu.py              # one GPU; without one it says so and ends
    python benchmarks/gpu.py --trial      # the demo model on the CPU: does the script work

Shapes of LLaVA-NeXT-Mistral-7B with random weights in bfloat16, pictures of the sizes of
photographs. Rounds run every variant once, in shuffled order; a ratio is the median over rounds of
the quotient within a round. What is not measured is worked out from what is, and marked so.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from profile_time import demo_pair, photographs, real_pair

import mm_lens
from mm_lens.data import datasets
from mm_lens.looking import attention_map
from mm_lens.metrics import METRICS, Tokens, evaluate, preset
from mm_lens.profiling.states import SamplingPlan, collect

PHOTOGRAPHS, CELLS, OF_TEXT = 300, 132, 66
"""Of a default profile: pictures, cells of visual and of all tokens (streams, modalities, states),
and cells of text."""
TEXT_TOKENS = 30
"""Of one question, chat template included."""


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant in each round; a first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 1):
        order = list(variants)
        random.Random(round_).shuffle(order)
        for name in order:
            synchronize()
            start = time.perf_counter()
            variants[name]()
            synchronize()
            if round_:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Mapping[str, list[float]], over: str, under: str, scale: float = 1) -> float:
    """Median over rounds of the quotient within a round."""
    pairs = zip(times[over], times[under], strict=True)
    return statistics.median(a / b / scale for a, b in pairs)


def show(what: str, found: float, goal: float | None, unit: str = "") -> None:
    """One row of the table."""
    verdict = (
        "" if goal is None else f"goal ≤ {goal:g}{unit}  {'met' if found <= goal else 'MISSED'}"
    )
    print(f"{what:58s} {found:8.3f}{unit:2s} {verdict}", flush=True)


def measure_states(native: Any, model: Any, data: Any, size: int, rounds: int) -> float:
    """States of one and of both streams over bare forward passes; seconds of both for a sample."""
    batches = [data[i : i + size] for i in range(0, len(data), size)]
    start = time.perf_counter()
    prepared = [model.prepare([s.text for s in b], [s.image for s in b]) for b in batches]
    processor = time.perf_counter() - start

    def states(streams: tuple[Any, ...]) -> Any:
        plan = SamplingPlan(
            n_samples=len(data),
            streams=streams,
            modalities=("visual", "text", "all"),
            k=max(12 * model.cfg.d_model, 2048),
            batch_size=size,
            seed=0,
            on_error="raise",
        )
        return collect(model, data, plan, progress=False)

    times = interleaved(
        {
            "HF": lambda: [native(**x.native, logits_to_keep=1) for x in prepared],
            "one": lambda: states(("residual",)),
            "both": lambda: states(("residual", "main")),
        },
        rounds,
    )
    show("states of one stream / HF forward", ratio(times, "one", "HF"), 1.10)
    show("states of both streams / two HF forwards", ratio(times, "both", "HF", 2), 1.10)
    show("  HF forward, a sample", 1000 * statistics.median(times["HF"]) / len(data), None, "ms")
    show("  its processor, a sample, in one thread", 1000 * processor / len(data), None, "ms")
    return statistics.median(times["both"]) / len(data)


def measure_calls(
    native: Any, model: Any, data: Any, rows: int, goals: tuple[float, float]
) -> None:
    """The bridge, and a cache of visual states, over the native model."""
    inputs = model.prepare([s.text for s in data[:rows]], [s.image for s in data[:rows]])
    names = mm_lens.names("resid_post", modality="visual")
    times = interleaved(
        {
            "HF": lambda: native(**inputs.native),
            "bridge": lambda: model(inputs),
            "caching": lambda: model.run_with_cache(inputs, names_filter=names),
            "map": lambda: attention_map(model, inputs),
        },
        rounds=9,
    )
    of = f"/ HF forward, {rows} row(s)"
    show(f"bridge {of}", ratio(times, "bridge", "HF"), goals[0])
    show(f"caching visual resid_post {of}", ratio(times, "caching", "HF"), goals[1])
    show(f"attention map of the last query {of}", ratio(times, "map", "HF"), None)


def measure_cell(n: int, d: int, device: str, goals: Mapping[str, float]) -> float:
    """Metrics of one cell, all presets; seconds."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    x = torch.tanh(draw(n, 24) @ draw(24, d) / 5) + 0.05 * draw(n, d)
    y = x + 0.3 * torch.tanh(x.roll(1, 1))
    index = torch.arange(n, device=device)
    columns = [index % 300, index // 300, index]
    before, after = (Tokens(s.to(torch.bfloat16), *columns) for s in (x, y))
    del x, y
    chosen = list(dict.fromkeys([*preset("honest"), *preset("paper")]))
    whole, rest = 0.0, 0.0
    kinds = list(dict.fromkeys(metric.kind for metric in chosen))
    seconds = {}
    for kind in kinds:
        names = [metric for metric in chosen if metric.kind == kind]
        evaluate(before.take(index[:2000]), after.take(index[:2000]), names)
        synchronize()
        start = time.perf_counter()
        evaluate(before, after if METRICS[names[0].name].arity == 2 else None, names)
        synchronize()
        seconds[kind] = time.perf_counter() - start
        whole += seconds[kind]
        rest += 0 if kind in ("dimension", "linearity") else seconds[kind]
    show(f"metrics of one cell, n = {n:,}, d = {d:,}", whole, goals.get("whole"), "s")
    for kind in ("dimension", "linearity"):
        show(f"  {kind}", seconds[kind], goals.get(kind), "s")
    show("  the others", rest, goals.get("rest"), "s")
    return whole


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Costs of a 7B model on one GPU.")
    parser.add_argument("--trial", action="store_true", help="the demo model, on what there is")
    parser.add_argument("--rounds", type=int, default=3, help="of the states (default 3)")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not given.trial:
        print("benchmarks/gpu.py: there is no GPU here, so nothing was measured. --trial runs the")
        print("script on the demo model.")
        return
    begun = time.perf_counter()
    machine = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    names = ("mm-lens", "torch", "transformers", "transformer-lens")
    print(machine, *(f"{name} {version(name)}" for name in names), sep=", ", flush=True)
    if given.trial:
        torch.set_num_threads(1)
        native, model = demo_pair(device)
        data: Any = list(datasets.load("easy-vqa", limit=8))
        size, n = 4, 2000
    else:
        native, model = real_pair(device, None)
        data = photographs(48)
        size, n = 8, 49_152
    with torch.no_grad():
        each = measure_states(native, model, data, size, given.rounds)
        measure_calls(native, model, data, 1, (1.05, 1.10))
        measure_calls(native, model, data, 4, (1.03, 1.05))
    d = model.cfg.d_model
    del native, model
    cell = measure_cell(n, d, device, {"whole": 2, "dimension": 1.2, "linearity": 0.6, "rest": 0.2})
    of_text = measure_cell(min(n, PHOTOGRAPHS * TEXT_TOKENS), d, device, {})
    minutes = (PHOTOGRAPHS * each + CELLS * cell + OF_TEXT * of_text) / 60
    what = f"profile of {PHOTOGRAPHS} photographs, {CELLS + OF_TEXT} cells: worked out"
    show(what, minutes, None if given.trial else 8, "min")
    print(f"{time.perf_counter() - begun:.0f} s in all")


if __name__ == "__main__":
    main()
