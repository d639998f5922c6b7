"""Prints docs/minimax_m3.md: MiniMax M3 in miniature, by kind of layer and length of context.

PYTHONPATH=tests python docs/minimax_m3.py   # about a minute
"""

from __future__ import annotations

from pathlib import Path

import before_transformers  # noqa: F401  torchvision, where it is
import numpy as np
import pandas as pd
import tiny_families
import torch
from PIL import Image

import mm_lens
from mm_lens.data.datasets import Sample
from mm_lens.model.running.masks import read_masks

PAGE = Path(__file__).parent / "minimax_m3.md"
METRICS = ("linearity_heldout", "dimension_mle", "anisotropy_without_massive")
CONTEXTS = {"short": 2, "long": 150}
"""Characters of text in front of the picture."""

KEPT = 8
"""Blocks of four keys that a sparse block keeps: all of a short prompt, as in the real model, where
2,048 keys are kept and a picture makes at most 576 tokens."""


def make_samples(n_characters: int, count: int = 60) -> list[Sample]:
    """Random words, and a picture of noise behind them."""
    rng = np.random.default_rng(0)
    token = tiny_families.build("minimax-m3")[1].image_token
    letters = np.array([*"abcdefgh  "])
    return [
        Sample(
            id=str(k),
            text="".join(rng.choice(letters, n_characters)) + token + "?",
            image=Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)),
            answer=None,
        )
        for k in range(count)
    ]


def share_of_keys(model: mm_lens.VisionLanguageBridge, samples: list[Sample]) -> dict[int, float]:
    """Of the keys before it, the share that the last query of a prompt sees, by layer."""
    inputs = model.prepare(samples[0].text, samples[0].image, chat_template=False)
    with torch.no_grad(), read_masks(model) as masks:
        model(inputs)
    return {layer: mask[0, :, -1].float().mean().item() for layer, mask in masks.items()}


def measure() -> pd.DataFrame:
    """One row for each context and layer."""
    native, processor = tiny_families.build("minimax-m3")
    model = mm_lens.load(hf_model=native, processor=processor, check=False)
    for block in native.model.language_model.layers[1:]:
        block.self_attn.indexer.topk_blocks = KEPT
    kinds = native.config.text_config.layer_types
    rows = []
    for context, n_characters in CONTEXTS.items():
        samples = make_samples(n_characters)
        seen = share_of_keys(model, samples)
        profile = mm_lens.profile(
            model,
            samples,
            metrics=METRICS,
            modalities=["visual"],
            tokens=1000,
            progress=False,
            chat_template=False,
        )
        table = profile.table[profile.table.stream == "residual"]
        for layer, kind in enumerate(kinds):
            own = table[table.layer == layer + 1].set_index("metric").value
            rows.append(
                {
                    "context": context,
                    "block": layer,
                    "attention": "dense" if kind == "full_attention" else "sparse",
                    "keys seen": seen[layer],
                    **own.reindex(METRICS),
                }
            )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition("<!-- printed -->\n")
    _, mark, after = rest.partition("<!-- end -->")
    found = measure().round(2)
    lines = [found.columns, ["---"] * len(found.columns), *found.itertuples(index=False)]
    table = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    PAGE.write_text(f"{before}<!-- printed -->\n{table}\n{mark or '<!-- end -->'}{after}", "utf-8")
    print(table)
