"""What a forward pass of the bridge costs over Hugging Face's: ratios from one interleaved run.

    python benchmarks/blocks.py [--nnsight FOLDER]

The demo model on easy-VQA, one thread, one row and eight. Beside the native model: the bridge as
TransformerLens runs it (`parts.quiet.restore`), ours without a hook, and ours caching `resid_post`,
of all tokens and of the visual ones; and, if a folder is named that nnsight was installed into,
nnsight saving what every block gives, of all tokens (`pip install --target FOLDER --no-deps nnsight
greenlet cloudpickle websocket-client zstandard`: the versions of everything else are those of this
environment). Times are of the processor, and hold on a machine that is busy with other things; a
ratio is the quotient of medians over rounds that run every variant once.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

import mm_lens
from mm_lens import demo
from mm_lens.data import datasets
from mm_lens.model.parts.quiet import restore

ROUNDS, FIRST = 25, 3
GOALS = {1: 1.15, 8: 1.03}


def save_with_nnsight(folder: str, native: Any) -> Callable[[Any], Any]:
    """Runs the native model under nnsight, saving the output of every block."""
    if folder not in sys.path:
        sys.path.append(folder)  # behind all that is installed here
    import nnsight

    wrapped = nnsight.NNsight(native)
    layers = wrapped.model.language_model.layers

    def run(inputs: Any) -> Any:
        with wrapped.trace(**inputs.native):
            states = nnsight.save([layer.output for layer in layers])
        return states

    return run


def main() -> None:
    """Print a table for each number of rows."""
    parser = argparse.ArgumentParser(description="What a forward pass of the bridge costs.")
    parser.add_argument("--nnsight", help="folder that nnsight was installed into")
    folder = parser.parse_args().nnsight
    torch.set_num_threads(1)
    path = demo.path("demo/llava-next")
    native = AutoModelForImageTextToText.from_pretrained(path, attn_implementation="sdpa").eval()
    model = mm_lens.load("demo/llava-next", check=False)
    plain = copy.deepcopy(model)
    restore(plain)
    every, visual = mm_lens.names("resid_post"), mm_lens.names("resid_post", modality="visual")
    samples = list(datasets.load("easy-vqa", limit=max(GOALS)))
    for rows, goal in GOALS.items():
        inputs = model.prepare([s.text for s in samples[:rows]], [s.image for s in samples[:rows]])
        variants: dict[str, Callable[[], Any]] = {
            "native": lambda inputs=inputs: native(**inputs.native),
            "TransformerLens's parts": lambda inputs=inputs: plain(inputs),
            "bridge": lambda inputs=inputs: model(inputs),
            "caching resid_post": lambda inputs=inputs: model.run_with_cache(
                inputs, names_filter=every
            ),
            "caching visual resid_post": lambda inputs=inputs: model.run_with_cache(
                inputs, names_filter=visual
            ),
        }
        if folder is not None:
            saved = save_with_nnsight(folder, native)
            variants["nnsight saving every block"] = lambda inputs=inputs, run=saved: run(inputs)
        times: dict[str, list[float]] = {name: [] for name in variants}
        with torch.no_grad():
            assert torch.equal(plain(inputs), model(inputs))
            for _ in range(ROUNDS):
                for name, run in variants.items():
                    start = time.process_time()
                    run()
                    times[name].append(time.process_time() - start)
        medians = {name: statistics.median(spent[FIRST:]) for name, spent in times.items()}
        print(f"{rows} row(s), goal {goal} for the bridge")
        for name, median in medians.items():
            print(f"  {name:27} {median * 1000:7.1f} ms {median / medians['native']:6.3f}")


if __name__ == "__main__":
    main()
