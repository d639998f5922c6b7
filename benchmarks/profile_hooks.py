"""What a hook of a profile costs, beside what a state of the residual stream costs.

One run measures the states alone, the other as many hooks of one width besides. Both take the same
tokens and metrics, in turn; the ratio is of the time per hook, its metrics included.

    python benchmarks/profile_hooks.py --samples 60 --repeat 3
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch

import mm_lens

METRICS = ["linearity_heldout", "dimension_mle", "anisotropy"]
PAIRS = [("resid_mid", "mlp_out"), ("resid_pre", "attn_out")]


def seconds(model: object, data: object, hooks: Sequence[str], pairs: list[object]) -> float:
    """Time of one profile, per hook whose states are kept."""
    begun = time.perf_counter()
    found = mm_lens.profile(
        model,
        data,
        hooks=hooks,
        pairs=pairs,
        metrics=METRICS,
        streams=["residual"],
        tokens=2048,
        progress=False,
    )
    hooks_kept = {*found.table.hook, *found.table.source} - {""}
    return (time.perf_counter() - begun) / len(hooks_kept)


def main() -> None:
    """Print seconds per hook of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo/llava-next")
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = mm_lens.load(options.model, check=False)
    data = mm_lens.datasets.load("easy-vqa", limit=options.samples)
    ratios = []
    for i in range(options.repeat + 1):  # the first warms up
        alone = seconds(model, data, ["states"], ["states"])
        more = seconds(
            model, data, ["states", "attn_out", "mlp_out", "resid_mid"], ["states", *PAIRS]
        )
        if i:
            ratios.append(more / alone)
            print(f"states {alone:.2f} s per hook, components {more:.2f} s, ratio {ratios[-1]:.2f}")
    print(f"median ratio {sorted(ratios)[len(ratios) // 2]:.2f} (goal 1.10)")


if __name__ == "__main__":
    main()
