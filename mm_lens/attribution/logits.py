"""A difference of logits taken apart: what each block, each head, and each head from each token
brings to the answer.

The last state of the last position is a sum of what the embedding and every block wrote there. With
the final norm's scale held fixed a difference of logits is linear in it, so that the parts add up
to the difference exactly (*direct logit attribution*, Elhage et al. 2021, "A mathematical framework
for transformer circuits"). A head's part is again a sum, over the tokens it reads: attention times
value, through the head's output matrix (value-weighted). Grouped-query attention included.

It misleads where a head works through later blocks: what these make of it counts as theirs. And a
part may be large only to be taken back by another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Float32
from torch import Tensor

from mm_lens.causal.answers import Answers
from mm_lens.errors import InputError, MMLensError
from mm_lens.layout.layout import TokenLayout
from mm_lens.layout.regions import Axis, find_regions
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.running.rerun import TOLERANCE


@dataclass(frozen=True, eq=False)
class LogitParts:
    """What a difference of logits is made of; on the CPU.

    Attributes:
        layout: of the inputs.
        total: the difference of logits.
        components: what each part writes: embedding, then attention and MLP of each block, and
            `bias`, what final norm and unembedding add by themselves.
        names: of the components.
        heads: each head's part of its block's attention; empty without `by_head`.
        tokens: each head's part from each token it reads.
        layers: blocks of `heads` and `tokens`.
    """

    layout: TokenLayout = field(repr=False)
    total: Float[Tensor, " batch"]
    components: Float32[Tensor, "component batch"] = field(repr=False)
    names: tuple[str, ...]
    heads: Float32[Tensor, "layer head batch"] = field(repr=False)
    tokens: Float32[Tensor, "layer head batch pos"] = field(repr=False)
    layers: tuple[int, ...]

    @property
    def table(self) -> pd.DataFrame:
        """A row for each component and row of the batch: component, row, value."""
        return pd.DataFrame(
            {"component": name, "row": row, "value": float(x)}
            for name, part in zip(self.names, self.components, strict=True)
            for row, x in enumerate(part)
        )

    def by(self, axis: Axis) -> pd.DataFrame:
        """What each head brings from each region, and from the rest.

        Columns: layer, head, region, row, value. Over disjoint regions and the rest ("elsewhere")
        the values of a head add up to its part.

        Raises:
            InputError: the heads were not taken apart; no such axis.
        """
        if not self.layers:
            raise InputError("The heads were not taken apart: pass by_head=True.")
        found = find_regions(self.layout, axis)
        masks = [*found.masks, ~found.masks.any(0)]
        parts = torch.stack([(self.tokens * mask).sum(-1) for mask in masks])
        return pd.DataFrame(
            {
                "layer": layer,
                "head": head,
                "region": label,
                "row": row,
                "value": float(parts[region, k, head, row]),
            }
            for k, layer in enumerate(self.layers)
            for head in range(parts.shape[2])
            for region, label in enumerate([*found.labels, "elsewhere"])
            for row in range(parts.shape[3])
        )


@torch.no_grad()
def logit_attribution(
    model: VisionLanguageBridge,
    inputs: Inputs,
    answers: Answers,
    *,
    by_head: bool = True,
) -> LogitParts:
    """Take `answers.logit_diff` apart, by block, head and source token; one forward pass.

    ```python
    parts = mm_lens.attribution.logit_attribution(model, inputs, answers)
    parts.table                                # by block
    parts.by({"shape": Box(10, 10, 40, 60)})   # by head and region
    ```

    Args:
        model: the model.
        inputs: what `model.prepare` returned.
        answers: made for these inputs.
        by_head: take attention apart, too.

    Raises:
        InputError: answers of other inputs.
        MMLensError: the parts do not add up on this model: its blocks scale what they write, its
            final norm is not one that only scales, or its heads' output passes another norm.
    """
    check_inputs(model, inputs)
    model.report.require("Direct logit attribution", "residual")
    blocks = range(model.cfg.n_layers)
    known = model.hook_dict
    written = [
        name
        for b in blocks
        for short in ("attn_out", "mlp_out")
        if (name := f"blocks.{b}.hook_{short}") in known
    ]
    last_name = f"blocks.{blocks[-1]}.hook_resid_post"
    names = ["blocks.0.hook_resid_pre", *written, last_name]
    inner = [f"blocks.{b}.attn.{x}" for b in blocks for x in ("hook_pattern", "hook_v", "hook_z")]
    with_heads = [name for name in inner if name in known] if by_head else []
    logits, cache = model.run_with_cache(inputs, names_filter=[*names, *with_heads])
    rows = torch.arange(len(logits), device=logits.device)
    last = answers.last.to(logits.device)
    state = cache[last_name][rows, last].double()
    parts = torch.stack([cache[name][rows, last].double() for name in names[:-1]])
    # Parallel blocks have no state in between, but write the same two things.
    _require_sum(parts.sum(0), state, logits.dtype, "What the blocks write does not add up")
    direction, bias = _direction(model, answers, logits)
    through = _through_norm(model, state, direction, logits.dtype)
    found = torch.cat([(parts * through).sum(-1), bias[None]])
    total = answers.logit_diff(logits).double()
    _require_sum(
        found.sum(0), total, logits.dtype, "The logits are not those of norm and unembedding"
    )
    layers = [b for b in blocks if f"blocks.{b}.attn.hook_pattern" in with_heads]
    heads = torch.zeros(0, model.cfg.n_heads, len(logits))
    tokens = torch.zeros(0, model.cfg.n_heads, *inputs.layout.shape)
    if layers:
        split = [_split(model, cache, b, rows, last, through, logits.dtype) for b in layers]
        heads = torch.stack([of_heads for of_heads, _ in split]).float().cpu()
        tokens = torch.stack([of_tokens for _, of_tokens in split]).float().cpu()
    return LogitParts(
        layout=inputs.layout.to("cpu"),
        total=total.float().cpu(),
        components=found.float().cpu(),
        names=("embedding", *(_name(name) for name in written), "bias"),
        heads=heads,
        tokens=tokens,
        layers=tuple(layers),
    )


def _name(hook: str) -> str:
    block, what = hook.removeprefix("blocks.").split(".hook_")
    return f"{what.removesuffix('_out')} {block}"


def _require_sum(parts: Tensor, whole: Tensor, dtype: torch.dtype, what: str) -> None:
    """Refuse parts that are not the whole, rounding aside.

    Raises:
        MMLensError: naming by how much.
    """
    scale = whole.abs().max().clamp(min=1e-6)
    error = float((parts - whole).abs().max() / scale)
    if not error <= 10 * TOLERANCE.get(dtype, 0.2):
        raise MMLensError(
            f"Direct logit attribution is not defined on this model. {what}: the parts miss the "
            f"whole by {error:.3g} of it."
        )


def _direction(
    model: VisionLanguageBridge, answers: Answers, logits: Tensor
) -> tuple[Float[Tensor, "batch d_model"], Float[Tensor, " batch"]]:
    """Direction of the difference in front of the unembedding, and what the latter's bias adds."""
    unembed: Any = model.original_model.get_output_embeddings()  # type: ignore[operator]
    weight = unembed.weight[answers.tokens.to(unembed.weight.device)].double().to(logits.device)
    offset = getattr(unembed, "bias", None)
    constant = weight.new_zeros(len(weight)) if offset is None else offset[answers.tokens].double()
    n, batch = len(weight), len(logits)
    right = torch.nn.functional.one_hot(answers.right, n).double()
    if answers.wrong is None:
        wrong = (1 - right) / (n - 1)
    else:
        wrong = torch.nn.functional.one_hot(answers.wrong, n).double()
    signs = (right - wrong).to(logits.device)
    assert signs.shape == (batch, n)
    return signs @ weight, signs @ constant.to(logits.device)


def _through_norm(
    model: VisionLanguageBridge,
    state: Float[Tensor, "batch d_model"],
    direction: Float[Tensor, "batch d_model"],
    dtype: torch.dtype,
) -> Float[Tensor, "batch d_model"]:
    """The direction in front of the final norm, whose scale is held fixed.

    Raises:
        MMLensError: the norm does more than to scale entry by entry.
    """
    norm: Any = model.ln_final.original_component
    weight = next(iter(norm.parameters())) if any(True for _ in norm.parameters()) else state
    device = weight.device

    def apply(x: Tensor) -> Tensor:
        out: Tensor = norm(x.to(device, weight.dtype))
        return out.double().to(state.device)

    gains = apply(torch.ones_like(state[:1]))[0]  # the weights, times the scale of ones
    out = apply(state)
    plain = state * gains
    scale = (out * plain).sum(-1) / plain.square().sum(-1)
    wanted = plain * rearrange(scale, "batch -> batch 1")
    _require_sum(wanted, out, dtype, "Its final norm does more than to scale each entry")
    return direction * gains * rearrange(scale, "batch -> batch 1")


def _split(
    model: VisionLanguageBridge,
    cache: Any,
    block: int,
    rows: Tensor,
    last: Tensor,
    through: Float[Tensor, "batch d_model"],
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "head batch"], Float[Tensor, "head batch pos"]]:
    """A block's heads, and what each brings from each token.

    Raises:
        MMLensError: heads' outputs do not add up to what the attention writes.
    """
    pattern = cache[f"blocks.{block}.attn.hook_pattern"][rows, :, last].double()
    values = cache[f"blocks.{block}.attn.hook_v"].double()
    z = cache[f"blocks.{block}.attn.hook_z"][rows, last].double()
    heads = pattern.shape[1]
    values = repeat(values, "b k h d -> b k (h same) d", same=heads // values.shape[2])
    mixed = einsum(pattern, values, "batch head key, batch key head d -> batch head d")
    _require_sum(mixed, z, dtype, f"Attention at block {block} is not a sum over values")
    output: Any = model.blocks[block].attn.o.original_component
    weight, offset = output.weight.double().to(z.device), getattr(output, "bias", None)
    matrices = rearrange(weight, "d_model (head d) -> head d d_model", head=heads)
    whole = einsum(z, matrices, "batch head d, head d d_model -> batch d_model")
    if offset is not None:
        whole = whole + offset.double().to(z.device)
    wrote = cache[f"blocks.{block}.hook_attn_out"][rows, last].double()
    _require_sum(whole, wrote, dtype, f"What heads write passes something else at block {block}")
    reads = einsum(matrices, through, "head d d_model, batch d_model -> batch head d")
    of_tokens = einsum(values, reads, "batch key head d, batch head d -> head batch key")
    of_tokens = of_tokens * rearrange(pattern, "batch head key -> head batch key")
    return of_tokens.sum(-1), of_tokens
