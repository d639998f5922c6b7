"""A sparse autoencoder of the demo model's states: `python -m demo_training.dictionary --out DIR`.

States of image and text tokens, as many of each, behind one early block of `demo/llava-next`, from
pictures of easy-VQA train. Its figures are of pictures of easy-VQA test. The folder is one of
`mm_lens.dictionaries.load_coder`: `cfg.json` and `sae_weights.safetensors`, as SAELens writes them.

Why the first block: behind blocks 2 to 5 this model answers as well when the states of its image
tokens are zero, and no loss of answers would tell a good coder from a bad one there.

TopK (Gao et al. 2024, arXiv 2406.04093), with their auxiliary loss for features that do not fire.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

import mm_lens
from mm_lens.causal import ablation_hooks
from mm_lens.data.samples import DataSet
from mm_lens.dictionaries import feature_table, load_coder, splice_hooks
from mm_lens.looking.sampling import gather
from mm_lens.recipes.questions import Asked, ask, read_all

MODEL, LAYER = "demo/llava-next", 0
WIDTH, K = 384, 8
"""Features to begin with, four for each dimension of the states, and how many fire at a token."""
TOKENS = 16
"""Of each modality of each question."""
IDLE = 200
"""Steps after which a feature that did not fire counts as dead."""
GROUPS = ("visual", "text")
CHANGES = ("error put back", "error lost", "zero")
"""Of the states of a group: spliced in with what the coder misses, without it, nothing at all."""


def collect(model: Any, data: DataSet, batch: int = 32) -> Tensor:
    """States behind the block, of as many image as text tokens, in random order."""

    def each() -> Iterator[Any]:
        for start in range(0, len(data), batch):
            rows = data[start : start + batch]
            yield model.prepare([row.text for row in rows], [row.image for row in rows])

    # What leaves block k is state k + 1.
    state = LAYER + 1
    parts = [gather(model, each(), group, [state], most=TOKENS).states[state] for group in GROUPS]
    n = min(map(len, parts))
    states = torch.cat([part[torch.randperm(len(part))[:n]] for part in parts])
    return states[torch.randperm(len(states))]


def train(states: Tensor, steps: int, batch: int = 512, rate: float = 1e-3) -> dict[str, Tensor]:
    """Weights of the autoencoder, by the names of SAELens; its decoder's rows have length 1."""
    decoder = normalize(torch.randn(WIDTH, states.shape[1]), dim=1).requires_grad_()
    encoder = decoder.detach().T.clone().requires_grad_()
    bias = torch.zeros(WIDTH, requires_grad=True)
    centre = states.mean(0).clone().requires_grad_()
    spread = (states - centre.detach()).square().sum(1).mean()
    adam = torch.optim.Adam([encoder, decoder, bias, centre], rate)
    plan = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min(1.0, 5 * (1 - step / steps)))
    fired = torch.zeros(WIDTH, dtype=torch.long)
    for step in range(steps):
        x = states[torch.randint(len(states), (batch,))]
        raw = (x - centre) @ encoder + bias
        features = _keep(raw, K)
        missed = x - features @ decoder - centre
        loss = missed.square().sum(1).mean()
        fired[(features > 0).any(0)] = step
        dead = step - fired > IDLE
        if bool(dead.any()):
            late = _keep(raw.masked_fill(~dead, -torch.inf), min(2 * K, int(dead.sum())))
            loss = loss + (missed.detach() - late @ decoder).square().sum(1).mean() / 32
        adam.zero_grad()
        (loss / spread).backward()
        adam.step()
        plan.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)
    found = {"W_enc": encoder, "b_enc": bias, "W_dec": decoder, "b_dec": centre}
    return {name: x.detach().contiguous() for name, x in found.items()}


def prune(weights: dict[str, Tensor], states: Tensor) -> dict[str, Tensor]:
    """Without features that fire at none of the states: what is made of these stays the same."""
    w = weights
    raw = ((part - w["b_dec"]) @ w["W_enc"] + w["b_enc"] for part in states.split(4096))
    alive = torch.stack([(_keep(part, K) > 0).any(0) for part in raw]).any(0)
    return {
        "W_enc": w["W_enc"][:, alive].contiguous(),
        "b_enc": w["b_enc"][alive],
        "W_dec": w["W_dec"][alive],
        "b_dec": w["b_dec"],
    }


def _keep(raw: Tensor, k: int) -> Tensor:
    """The k largest of each row, where positive."""
    top = raw.topk(k, dim=1)
    return torch.zeros_like(raw).scatter(1, top.indices, top.values.relu())


def write(folder: Path, weights: dict[str, Tensor]) -> None:
    """The folder that `load_coder` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": "topk",
        "k": K,
        "d_in": weights["W_dec"].shape[1],
        "d_sae": weights["W_dec"].shape[0],
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {"model_name": MODEL, "hook_name": f"blocks.{LAYER}.hook_resid_post"},
    }
    (folder / "cfg.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    save_file(weights, folder / "sae_weights.safetensors")


def measure(model: Any, coder: Any, asked: list[Asked]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the coder explains of each modality, and what becomes of the answers.

    Returns:
        Of each group: explained, active, dead (features that fire at no token of it). Of each group
        and change the means of the metrics of `mm_lens.answers`.
    """
    shown = [question.inputs for question in asked]
    table = feature_table(model, shown, coder, GROUPS, layer=LAYER, least=0)
    dead = table.assign(dead=table["share"] == 0).groupby("group")["dead"].sum()
    attrs = {name: table.attrs[name] for name in ("explained", "active")}
    explained = pd.DataFrame({**attrs, "dead": dead}).loc[[*GROUPS]]
    explained.attrs["dead"] = int((table.groupby("feature")["share"].max() == 0).sum())

    def changed(question: Asked, group: str, change: str) -> list[Any]:
        if change == "zero":
            return ablation_hooks(model, question.inputs, group, layers=[LAYER])
        options = {"layer": LAYER, "error": change == "error put back"}
        return splice_hooks(model, question.inputs, coder, group, **options)

    rows = [{"group": "", "change": "none", **read_all(model, question)} for question in asked]
    for group in (*GROUPS, "all"):
        for change in CHANGES:
            for question in asked:
                with model.hooks(fwd_hooks=changed(question, group, change)):
                    found = read_all(model, question)
                rows.append({"group": group, "change": change, **found})
    answers = pd.DataFrame(rows).groupby(["group", "change"], sort=False).mean()
    return explained, answers


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=2000, help="of easy-VQA train")
    parser.add_argument("--held-out", type=int, default=100, help="questions of easy-VQA test")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", action="store_true", help="what is in --out, and do not train")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    model = mm_lens.load(MODEL, check=False)
    if not args.measure:
        data = mm_lens.datasets.load("easy-vqa", "train", limit=args.questions, seed=args.seed)
        states = collect(model, data)
        write(args.out, prune(train(states, args.steps), states))
    test = mm_lens.datasets.load("easy-vqa", limit=6 * args.held_out, seed=args.seed + 1)
    explained, answers = measure(model, load_coder(args.out), ask(model, test, args.held_out))
    print(explained.round(3), f"dead: {explained.attrs['dead']}", answers.round(3), sep="\n")


if __name__ == "__main__":
    main()
