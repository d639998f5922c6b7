"""What the hook points cost: ratios from one interleaved run on the demo model.

    python benchmarks/hooks.py [--rounds 15] [--rows 32]

Each round runs every variant once, in shuffled order; a ratio is the median over rounds of the
variants' quotient within a round, so a machine that slows down for a while does not bend it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import AutoModelForImageTextToText

import mm_lens
from mm_lens import demo
from mm_lens.data import datasets
from mm_lens.model.families import family_for

PATH = demo.path("demo/llava-next")
ARCHITECTURE = "LlavaNextForConditionalGeneration"


def native(attention: str):
    """The Hugging Face model, untouched."""
    return AutoModelForImageTextToText.from_pretrained(
        PATH, dtype=torch.float32, attn_implementation=attention
    ).eval()


def bare_bridge(attention: str, tokenizer):
    """The bridge with the family's components, and nothing of mm_lens on it."""
    model = native(attention)
    return build_bridge_from_module(
        model,
        ARCHITECTURE,
        hf_config=model.config,
        tokenizer=tokenizer,
        post_adapter_hook=lambda adapter: family_for(ARCHITECTURE).customise(adapter, attention),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, default=32, help="size of the batch")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    model = mm_lens.load("demo/llava-next", check=False)
    samples = datasets.load("easy-vqa", limit=arguments.rows)
    images = [s.image for s in samples]
    inputs = model.prepare([s.text for s in samples], images)
    rest = {k: v for k, v in inputs.items() if k != "input_ids"}
    hf = native("sdpa")
    bare = bare_bridge("sdpa", model.processor.tokenizer)
    eager = bare_bridge("eager", model.processor.tokenizer)
    full = mm_lens.names("resid_post")
    views = mm_lens.names("resid_post", ["visual", "text"])

    variants: dict[str, Callable[[], object]] = {
        "HF sdpa": lambda: hf(**inputs),
        "bridge sdpa, bare": lambda: bare(inputs.input_ids, **rest),
        "bridge eager, bare": lambda: eager(inputs.input_ids, **rest),
        "bridge sdpa, hook points unused": lambda: model(inputs),
        "cache resid_post": lambda: model.run_with_cache(inputs, names_filter=full),
        "cache visual + text resid_post": lambda: model.run_with_cache(inputs, names_filter=views),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    with torch.no_grad():
        for round_ in range(arguments.rounds + 3):
            order = list(variants)
            random.Random(round_).shuffle(order)
            for name in order:
                start = time.perf_counter()
                variants[name]()
                if round_ >= 3:  # warmed up
                    times[name].append(time.perf_counter() - start)

    batch, length = inputs.input_ids.shape
    print(f"{batch} rows of up to {length} tokens, float32, {arguments.threads} thread(s), CPU")
    for name, seconds in times.items():
        print(f"  {name:34s} {1000 * statistics.median(seconds):8.1f} ms")

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

    for text, a, b, goal in (
        ("unused hook points / bare bridge", "bridge sdpa, hook points unused",
         "bridge sdpa, bare", 1.02),
        ("visual + text cache / full cache", "cache visual + text resid_post",
         "cache resid_post", 1.05),
        ("bare sdpa bridge / HF sdpa", "bridge sdpa, bare", "HF sdpa", 1.10),
        ("bare eager bridge / HF sdpa", "bridge eager, bare", "HF sdpa", None),
    ):  # fmt: skip
        wanted = f"(goal ≤ {goal})" if goal else ""
        print(f"{text:36s} {ratio(a, b):6.3f} {wanted}")


if __name__ == "__main__":
    main()
