"""Sweeps one by one and several at a time: ``python benchmarks/patching.py [model]``.

Prints seconds for one sweep (resid_pre, every layer × region): TransformerLens's way, one whole
forward pass for each patch; ours with one patch per pass, which runs the vision tower and the lower
blocks once; and ours with several patches per pass. One thread; best of three, since other work on
the machine can only add.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import mm_lens
from mm_lens.causal import patching
from mm_lens.causal.transfer import Move, patch
from mm_lens.data import datasets
from mm_lens.layout.matching import match_regions
from mm_lens.layout.regions import Grid, find_regions


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """Best of `repeats`."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def one_by_one(
    model: Any, corrupted: Any, cache: Any, metric: Callable[..., Any], axis: Any
) -> torch.Tensor:
    """What TransformerLens's loop does: a whole forward pass for each patch."""
    found = find_regions(corrupted.layout, axis)
    moves = [Move(*x) for x in match_regions(found, corrupted.layout, cache.layout)]
    values = []
    for layer in range(model.cfg.n_layers):
        name = f"blocks.{layer}.hook_resid_pre"
        for move in moves:

            def hook(tensor: Any, hook: Any, move: Move = move, name: str = name) -> Any:
                return patch(tensor, hook, [(move, None)], cache[name], len(tensor))

            values.append(metric(model.run_with_hooks(corrupted, fwd_hooks=[(name, hook)])))
    return torch.stack(values).reshape(model.cfg.n_layers, len(found), -1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo/llava-next")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = mm_lens.load(args.model, check=False)
    samples = datasets.load("easy-vqa", "test", limit=2, seed=0)
    clean, corrupted = (model.prepare("what color is the shape?", s.image) for s in samples)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, 3] - logits[:, -1, 5]

    axis = Grid(4, 4)
    with torch.no_grad():
        _, cache = model.run_with_cache(clean, names_filter=mm_lens.names("resid_pre"))
        want = one_by_one(model, corrupted, cache, metric, axis)
        base = seconds(lambda: one_by_one(model, corrupted, cache, metric, axis), args.repeats)
        n = want.numel()
        print(f"{args.model}: {n} patches, {corrupted.layout.shape[1]} positions")
        print(f"{'whole passes, one by one':28}{base:8.2f} s{base / n * 1e3:8.1f} ms per patch")
        for size in (1, 4, 8, 16):

            def run(size: int = size) -> Any:
                return patching.get_act_patch_resid_pre(
                    model, corrupted, cache, metric, axis=axis, batch_size=size, progress=False
                )

            difference = (run().values - want).abs().max().item()
            took = seconds(run, args.repeats)
            print(
                f"{f'mm_lens, {size} per pass':28}{took:8.2f} s{took / n * 1e3:8.1f} ms per patch"
                f"{base / took:7.1f}× (largest difference {difference:.1e})"
            )


if __name__ == "__main__":
    main()
