"""Seconds of each method over vlmprobe's for the same numbers, on the same weights.

    python benchmarks/beside_vlmprobe.py PYTHON [--rows 8] [--repeats 5]

PYTHON is of an environment with torch 2.13, transformers 5.3.0 and vlmprobe 1.0.1
(tests/outside/make_vlmprobe.py), which cannot be this one. The demo model and the same inputs, with
eager attention, which vlmprobe needs for half of its methods; one thread in each process, which run
in turns. Times are of the processor, and the best of `--repeats` counts.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Method = Callable[[], Any]
DIRECTION, STRENGTH = "direction", 0.5


def score(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1, 3] - logits[:, -1, 5]


def timed(run: Method) -> float:
    """Seconds of the processor."""
    start = time.process_time()
    run()
    return time.process_time() - start


# ---- theirs, in the other environment ----


def their_methods(folder: Path) -> dict[str, Method]:
    """By the names of `our_methods`."""
    from transformers import LlavaNextForConditionalGeneration as Model
    from vlmprobe import Prober
    from vlmprobe.adapters.huggingface import MODEL_CONTRACTS

    model, told = Model.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not told["missing_keys"], told
    assert not told["unexpected_keys"], told
    model = model.eval().requires_grad_(False)
    contract = ("model.language_model", ("image_token_index",))
    MODEL_CONTRACTS[Model.__module__, Model.__name__] = contract
    probe = Prober(model)
    given = torch.load(folder / "inputs.pt")
    corrupted, clean, direction = given["corrupted"], given["clean"], given[DIRECTION]
    with torch.no_grad():
        torch.save(model(**corrupted).logits, folder / "logits.pt")
    swap = {"source": clean, "metric": score}
    lens, attention, causal = probe.lens, probe.attention, probe.causal
    path = causal.path(
        senders=[(1, 0)], receivers=[(4, 1, "k")], sender_tokens="visual", receiver_tokens="all"
    )
    patch = causal.patch(tokens="visual")

    @torch.no_grad()
    def words() -> Any:
        """What the lens's user does with the logits, and ours does by itself."""
        logits = lens.logit(tokens="visual").run(corrupted).tensors["logits"]
        log_probs = logits.log_softmax(-1)
        return logits.topk(5, dim=-1), -(log_probs.exp() * log_probs).sum(-1)

    return {
        "forward pass": torch.no_grad()(lambda: model(**corrupted)),
        "logit lens, top words and entropy": words,
        "logit lens (theirs: logits alone)": lambda: lens.logit(tokens="visual").run(corrupted),
        "embedding neighbours": lambda: lens.embed(tokens="visual").run(corrupted, top_k=5),
        "attention map": lambda: attention.profile(
            queries="last_prompt", include_attention=True
        ).run(corrupted),
        "rollout": lambda: attention.rollout().run(corrupted),
        "relevance": lambda: attention.relevance().run(corrupted, metric=score),
        "logit attribution": lambda: attention.head_logits().run(corrupted),
        "patching, image": lambda: patch.run(corrupted, **swap),
        "patching, image and text (theirs: image)": lambda: patch.run(corrupted, **swap),
        "attribution patching": lambda: causal.attribute(tokens="visual").run(corrupted, **swap),
        "knock-out, each layer": lambda: causal.knockout().run(corrupted, metric=score),
        "knock-out, all layers": lambda: causal.knockout(joint=True).run(corrupted, metric=score),
        "steering, each layer": lambda: causal.steer(tokens="visual", strength=STRENGTH).run(
            corrupted, metric=score, direction=direction
        ),
        "path patching": lambda: path.run(corrupted, donor=clean, metric=score),
    }


def serve(folder: Path) -> None:
    """Run the method of each line, and say how long it took."""
    methods = their_methods(folder)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(f"{timed(methods[line.strip()])}\n")
        sys.stdout.flush()


class Other:
    """The process of the other environment."""

    def __init__(self, python: str, folder: Path) -> None:
        self.process = subprocess.Popen(
            [python, __file__, python, "--serve", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.say() == "ready"

    def say(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit("The other environment failed; see above.")
        return line

    def run(self, name: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return float(self.say())


# ---- ours ----


def our_methods(model: Any, corrupted: Any, clean: Any, direction: Any) -> dict[str, Method]:
    import mm_lens
    from mm_lens import attribution, looking
    from mm_lens.attribution import Node
    from mm_lens.causal import steering_hooks
    from mm_lens.causal.knockout import knockout

    blocks = range(model.cfg.n_layers)
    answers = mm_lens.Answers(model, corrupted, ["a", "b"], "a", "b", tokens=[3, 5])
    both = (model, corrupted)

    def cache(name: str) -> Any:
        return model.run_with_cache(clean, names_filter=mm_lens.names(name))[1]

    @torch.no_grad()
    def patch(*groups: str) -> Any:
        run = mm_lens.patching.get_act_patch_resid_post
        options = {"axis": list(groups), "progress": False}
        return run(*both, cache("resid_post"), score, **options).effect()

    @torch.no_grad()
    def cut(*sets: list[int]) -> Any:
        found = [score(model(corrupted))]
        for layers in sets:
            with knockout(*both, query="text", key="visual", layers=layers):
                found.append(score(model(corrupted)))
        return torch.stack(found[1:]) - found[0]

    @torch.no_grad()
    def steer() -> Any:
        found = [score(model(corrupted))]
        for k in blocks:
            options = {"layers": [k], "strength": STRENGTH}
            hooks = steering_hooks(*both, direction, "visual", **options)
            found.append(score(model.run_with_hooks(corrupted, fwd_hooks=hooks)))
        return torch.stack(found[1:]) - found[0]

    layers = [k + 1 for k in blocks]
    lens = {"layers": layers, "quantity": "logits", "top_k": 5, "chunk_size": 512}
    return {
        "forward pass": torch.no_grad()(lambda: model(corrupted)),
        "logit lens, top words and entropy": lambda: looking.visual_logit_lens(*both, **lens),
        "logit lens (theirs: logits alone)": lambda: looking.visual_logit_lens(*both, **lens),
        "embedding neighbours": lambda: looking.embedding_neighbours(*both, layers=[0], top_k=5),
        "attention map": lambda: looking.attention_map(*both, key="all"),
        "rollout": lambda: attribution.attention_rollout(*both, "all"),
        "relevance": lambda: attribution.relevance(*both, score, "all"),
        "logit attribution": lambda: attribution.logit_attribution(*both, answers),
        "patching, image": lambda: patch("visual"),
        "patching, image and text (theirs: image)": lambda: patch("visual", "text"),
        "attribution patching": lambda: attribution.attribution_patch(
            *both, cache("resid_post"), score, "resid_post", axis=["visual"]
        ),
        "knock-out, each layer": lambda: cut(*([k] for k in blocks)),
        "knock-out, all layers": lambda: cut([*blocks]),
        "steering, each layer": steer,
        "path patching": lambda: attribution.path_patch(
            *both,
            cache("z"),
            score,
            [Node("z", 1, 0)],
            [Node("k", 4, 1)],
            axis=["visual"],
            through_mlps=True,
        ),
    }


def hand_over(folder: Path, rows: int) -> tuple[Any, ...]:
    """The demo model here, and as 5.3 reads it in `folder`, with what both are run on."""
    import mm_lens
    from mm_lens import demo
    from mm_lens.data import datasets

    path = Path(demo.path("demo/llava-next"))
    shutil.copy(path / "config.json", folder)
    weights = load_file(path / "model.safetensors")
    tower = "vision_tower."  # 5.3 has one module more there

    def named(name: str) -> str:
        return (
            name if f"{tower}vision_model" in name else name.replace(tower, f"{tower}vision_model.")
        )

    save_file(
        {named(k): x for k, x in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    model = mm_lens.load("demo/llava-next", attention="eager", check=False)
    data = datasets.load("easy-vqa", "test", limit=2 * rows, seed=0)
    images = [sample.image for sample in data]
    questions = ["what color is the shape?"] * rows
    clean, corrupted = (model.prepare(questions, x) for x in (images[:rows], images[rows:]))
    direction = torch.linspace(-1, 1, model.cfg.d_model)
    given = {"corrupted": corrupted.native, "clean": clean.native, DIRECTION: direction}
    torch.save(given, folder / "inputs.pt")
    return model, corrupted, clean, direction


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("python", help="of the environment with vlmprobe")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", help="methods whose name begins so")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.serve:
        serve(Path(args.serve))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = hand_over(folder, args.rows)
        other = Other(args.python, folder)
        with torch.no_grad():
            apart = (given[0](given[1]) - torch.load(folder / "logits.pt")).abs().max()
        shape = tuple(given[1].layout.shape)
        print(f"{shape[0]} rows of {shape[1]} positions, one thread; logits differ by {apart:.0e}")
        print("\n| method | mm_lens | vlmprobe | ratio |\n|---|--:|--:|--:|")
        for method, ours in our_methods(*given).items():
            if args.only and not method.startswith(args.only):
                continue
            times = [(timed(ours), other.run(method)) for _ in range(args.repeats + 1)][1:]
            here, there = (min(found) for found in zip(*times, strict=True))
            print(f"| {method} | {here:.2f} s | {there:.2f} s | {here / there:.2f} |", flush=True)
        other.process.kill()


if __name__ == "__main__":
    main()
