"""Scores of heads: how much of the picture they look at, how concentrated, and whether at a region.

Of the attention of the queries (the mean over them) to the image tokens of a row:

- `image`: its sum, a share of all that the head attends to;
- `region`: the part of `image` that falls into the region; by chance it is `region_tokens`, the
  region's share of the image tokens;
- `overlap`: tokens of the overview with more than its mean, against those of the region:
  intersection over union;
- `hit`: whether the largest one lies in the region;
- `entropy`: over the image tokens, as a share of the largest possible; 0: one token, 1: all alike;
- `spatial_entropy`: tokens of the overview with more than its mean fall into connected pieces (by
  edge or corner); the entropy over pieces, each by its number of tokens, in nats: 0 where it is one
  piece (Kang et al. 2025, arXiv 2503.06287).

A head that looks at a thing on one picture may look at its place on all: score it over pictures
whose regions lie elsewhere, and hold it against heads drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float32
from scipy import ndimage
from torch import Tensor

from mm_lens.errors import InputError
from mm_lens.layout.groups import group_mask
from mm_lens.layout.layout import TokenLayout
from mm_lens.layout.matching import match_positions
from mm_lens.looking.attention import attention_map
from mm_lens.looking.token_tensor import TokenValues, name_layers
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.streams import resolve_layers


def head_scores(
    model: VisionLanguageBridge,
    inputs: Inputs,
    region: Any = None,
    *,
    query: Any = "last",
    layers: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Score every head; one forward pass. See the module for the columns.

    ```python
    table = head_scores(model, inputs, mm_lens.regions.Box(10, 10, 40, 60))
    table.sort_values("region", ascending=False).head()
    ```

    Args:
        model: the model.
        inputs: what `model.prepare` returned; every row has an image.
        region: a `Box`, a group, a mask: where the thing is; None leaves its columns out.
        query: who looks: "last", a group or a mask.
        layers: blocks, negative ones from the end; None takes all that have attention.

    Returns:
        A row for each block, head and row of the batch: layer, head, row, and the scores.

    Raises:
        InputError: a row has no image token, or none in the region; no such block.
    """
    weights = attention_map(model, inputs, query=query, key="visual", layers=layers)
    numbers = [int(name.split()[-1]) for name in weights.layer_names]
    layout = inputs.layout.to("cpu")
    visual = layout.mask("visual")
    inside = None if region is None else group_mask(inputs.layout, region).cpu() & visual
    for name, mask in (("image", visual), ("region", inside)):
        if mask is not None and not bool(mask.any(1).all()):
            raise InputError(
                f"Row {int((~mask.any(1)).nonzero()[0])} has no token of the {name}, so that heads "
                "have no score there."
            )
    values = weights.as_subclass(Tensor).double()
    return pd.DataFrame(
        {
            "layer": layer,
            "head": head,
            "row": row,
            **_score(values[k, head, row], layout, row, None if inside is None else inside[row]),
        }
        for k, layer in enumerate(numbers)
        for head in range(values.shape[1])
        for row in range(values.shape[2])
    )


def _score(
    weights: Float[Tensor, " pos"],
    layout: TokenLayout,
    row: int,
    inside: Bool[Tensor, " pos"] | None,
) -> dict[str, float]:
    visual = layout.mask("visual")[row]
    here = weights[visual]
    total = here.sum()
    shares = here / total.clamp(min=1e-12)
    n = len(here)
    entropy = -(shares * shares.clamp(min=1e-300).log()).sum() / np.log(max(n, 2))
    base = layout.mask("base")[row]
    base = base if bool(base.any()) else visual
    found = weights[base]
    above = torch.zeros_like(visual)
    above[base] = found > found.mean()
    scores = {
        "image": float(total),
        "entropy": float(entropy),
        "spatial_entropy": _spatial_entropy(layout, row, above),
    }
    if inside is None:
        return scores
    aims = inside & base
    together = int((above | aims).sum())
    return scores | {
        "region": float(shares[inside[visual]].sum()),
        "region_tokens": float(inside.sum() / n),
        "overlap": int((above & aims).sum()) / max(together, 1),
        "hit": float(inside[visual][here.argmax()]),
    }


def _spatial_entropy(layout: TokenLayout, row: int, above: Bool[Tensor, " pos"]) -> float:
    """Entropy over connected pieces of tokens, in nats."""
    at = above & (layout.row[row] >= 0)
    if not bool(at.any()):
        return 0.0
    rows, cols = layout.row[row][at].numpy(), layout.col[row][at].numpy()
    grid = np.zeros((int(rows.max()) + 1, int(cols.max()) + 1), dtype=int)
    grid[rows, cols] = 1
    pieces, n = ndimage.label(grid, np.ones((3, 3)))
    shares = np.bincount(pieces.ravel())[1:] / grid.sum()
    assert len(shares) == n
    return float(-(shares * np.log(shares)).sum())


def relative_attention(
    model: VisionLanguageBridge,
    inputs: Inputs,
    neutral: Inputs,
    *,
    query: Any = "last",
    neutral_query: Any = "last",
    layers: Sequence[int] | None = None,
) -> Float32[TokenValues, "layers heads batch pos"]:
    """Attention under a question over that under a neutral prompt, for each image token.

    1: looked at as much as whatever is asked. A map of raw attention shows where the head always
    looks as well (Zhang et al. 2025, arXiv 2502.17422).

    ```python
    neutral = model.prepare("Write a general description of the image.", image)
    relative_attention(model, inputs, neutral).plot()
    ```

    Args:
        model: the model.
        inputs: the question.
        neutral: the same pictures under the neutral prompt.
        query: who looks in `inputs`.
        neutral_query: who looks in `neutral`.
        layers: blocks, negative ones from the end; None takes all that have attention.

    Returns:
        NaN off the image tokens. A tensor with `plot` and `explore`.

    Raises:
        InputError: the pictures are of other sizes; no such query or block.
    """
    check_inputs(model, neutral)
    asked = attention_map(model, inputs, query=query, layers=layers)
    blocks = [int(name.split()[-1]) for name in asked.layer_names]
    plain = attention_map(model, neutral, query=neutral_query, layers=blocks)
    layout, other = inputs.layout.to("cpu"), neutral.layout.to("cpu")
    visual = layout.mask("visual")
    if layout.image_sizes != other.image_sizes:
        raise InputError(
            f"The neutral inputs have pictures of other sizes: {other.image_sizes}, not "
            f"{layout.image_sizes} (height, width). Prepare the same pictures with both prompts."
        )
    match = match_positions(layout, other)
    row, position = visual.nonzero(as_tuple=True)
    out = torch.full(tuple(asked.shape), torch.nan)
    base = plain.as_subclass(Tensor)[:, :, row, match[row, position]]
    out[:, :, row, position] = asked.as_subclass(Tensor)[:, :, row, position] / base.clamp(
        min=torch.finfo(torch.float32).tiny
    )
    names = name_layers(resolve_layers(blocks, model.cfg.n_layers), "block")
    return TokenValues.of(out, inputs, "attention / attention under the neutral prompt", names)
