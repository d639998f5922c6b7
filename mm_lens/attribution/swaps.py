"""Attribution patching: the effect of patching a region, from gradients, with its error.

`mm_lens.patching` runs the model once for every layer, region and head. To first order the effect
of putting clean activations into the corrupted run is `Σ (clean - corrupted)·gradient` over the
positions of the region, and one pass with gradients gives all of them at once (Nanda 2023,
"Attribution patching"; Syed et al. 2023, arXiv 2310.10348). With `steps` the gradient is the mean
along the line from the corrupted embeddings to the clean ones (as EAP-IG, Hanna et al. 2024, arXiv
2403.17806).

How far the estimate is off is not to be seen from it: `SwapEstimate.compare` takes true patches of
the same sweep and says. Large where the model saturates: a norm, or an attention that is sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Float32
from torch import Tensor
from transformer_lens.patching import PatchingResult
from transformer_lens.utilities.components_utils import get_act_name

from mm_lens.arguments import require_whole
from mm_lens.attribution.running import differentiate_points
from mm_lens.causal.patching import check_sweep
from mm_lens.causal.transfer import Move, read_clean
from mm_lens.errors import HookError, InputError
from mm_lens.layout.matching import match_positions, match_regions
from mm_lens.layout.regions import Axis, find_regions
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.cache import LayoutCache
from mm_lens.model.inputs import Inputs
from mm_lens.model.running.logit_metrics import LogitMetric
from mm_lens.model.streams import resolve_blocks


@dataclass(frozen=True, eq=False)
class SwapEstimate:
    """Estimated effects of patching, in the order of `mm_lens.patching`'s own results.

    Attributes:
        activation_name: what was patched.
        axis: of the regions.
        regions: their names.
        layers: blocks.
        effect: change of the metric by each patch; the head axis has size 1 without heads.
        baseline: metric of the corrupted run.
    """

    activation_name: str
    axis: str
    regions: tuple[str, ...]
    layers: tuple[int, ...]
    effect: Float32[Tensor, "layer region head batch"] = field(repr=False)
    baseline: Float[Tensor, " batch"]

    @property
    def table(self) -> pd.DataFrame:
        """One row for each layer, region, head and row of the batch."""
        _, _, heads, batch = self.effect.shape
        return pd.DataFrame(
            {"layer": layer, "region": region, "head": head, "row": row, "effect": float(x)}
            for k, layer in enumerate(self.layers)
            for r, region in enumerate(self.regions)
            for head in range(heads)
            for row in range(batch)
            for x in [self.effect[k, r, head, row]]
        )

    def compare(self, true: PatchingResult) -> pd.DataFrame:
        """The estimate beside true patches of the same sweep: how far it can be trusted.

        Args:
            true: from the function of `mm_lens.patching` for the same activation, axis, layers and
                heads, with a metric of one value for each row.

        Returns:
            A row for each layer, and one for all (layer -1): n patches, correlation (NaN of fewer
            than three), slope of true on estimated through 0, worst absolute error, and the
            largest true effect, which it is to be held against.

        Raises:
            InputError: it is of another sweep.
        """
        values = true.effect()
        wanted = self.effect if "head" in true.axis_names else self.effect.squeeze(2)
        named = true.index_df[true.axis_names[1]].tolist() if len(true.axis_names) > 1 else []
        if tuple(values.shape) != tuple(wanted.shape) or set(named) != set(self.regions):
            raise InputError(
                f"The true patches are of another sweep: {tuple(values.shape)} values along "
                f"{true.axis_names}, and the estimate has {tuple(wanted.shape)} along layer, "
                f"{self.axis}, head. Pass the result of the same layers, axis and heads."
            )
        rows = []
        for layer, found, real in [
            *zip(self.layers, wanted, values, strict=True),
            (-1, wanted, values),
        ]:
            x, y = (np.asarray(t.double().flatten()) for t in (found, real))
            spread = len(x) > 2 and x.std() > 0 and y.std() > 0
            rows.append(
                {
                    "layer": layer,
                    "n": len(x),
                    "correlation": float(np.corrcoef(x, y)[0, 1]) if spread else float("nan"),
                    "slope": float((x * y).sum() / max((x * x).sum(), 1e-300)),
                    "worst_error": float(np.abs(x - y).max()),
                    "largest_effect": float(np.abs(y).max()),
                }
            )
        return pd.DataFrame(rows)


def attribution_patch(
    model: VisionLanguageBridge,
    corrupted: Inputs,
    clean_cache: LayoutCache,
    metric: LogitMetric,
    activation_name: str = "resid_pre",
    *,
    axis: Axis = "segment",
    layers: Sequence[int] | None = None,
    heads: bool = False,
    steps: int = 1,
) -> SwapEstimate:
    """Estimate every patch of a sweep at once: `steps` forward and backward passes in all.

    Arguments are those of `mm_lens.patching`. Inputs may be of different layouts.

    Args:
        model: in evaluation mode.
        corrupted: what `model.prepare` returned for the corrupted run.
        clean_cache: of the clean run; it holds `activation_name` at `layers`, and with `steps` the
            embeddings too (`names("resid_pre", layers=[0])`).
        metric: from logits to one number for each row, with a gradient.
        activation_name: one of `mm_lens.patching.PATCHABLE` but "resid_mid".
        axis: the regions; see `mm_lens.regions`.
        layers: blocks, negative ones from the end; None takes all that have the hook point.
        heads: each attention head alone (z, q, k, v only).
        steps: points of the line between the embeddings at which gradients are taken; 1: at the
            corrupted ones.

    Raises:
        InputError: a region has no position in some row, or the clean input none that matches; the
            metric has no gradient.
        HookError: the activation cannot be patched by region, or is not in the cache.
    """
    check_sweep(model, corrupted, clean_cache, activation_name, heads)
    require_whole("steps", steps, 1)
    if activation_name == "resid_mid":
        raise HookError(
            "Gradients of resid_mid are those of the MLP alone, without the skip past it, while a "
            "patch there changes both. Take resid_pre, resid_post, attn_out or mlp_out."
        )
    found = find_regions(corrupted.layout, axis)
    moves = [Move(*move) for move in match_regions(found, corrupted.layout, clean_cache.layout)]
    blocks = resolve_blocks(model, activation_name, layers)
    names = {k: str(get_act_name(activation_name, k)) for k in blocks}
    clean = {k: read_clean(clean_cache, name) for k, name in names.items()}
    gradients: dict[str, Tensor] = {}
    own: Any = None
    baseline: Any = None
    for step in range(steps):
        enter = None if not step else _towards(corrupted, clean_cache, step / steps)
        states, found_there, value = differentiate_points(
            model, corrupted, metric, [*names.values()], enter
        )
        own, baseline = (states, value) if own is None else (own, baseline)
        for name, gradient in found_there.items():
            gradients[name] = gradients.get(name, 0) + gradient / steps
    batch = corrupted.layout.shape[0]
    effects = [
        torch.stack([_of_region(move, clean[k], own[n], gradients[n], batch) for move in moves])
        for k, n in names.items()
    ]
    effect = torch.stack(effects)
    if not heads:
        effect = effect.sum(2, keepdim=True)
    return SwapEstimate(
        activation_name, found.axis, found.labels, blocks, effect.float().cpu(), baseline.cpu()
    )


def _of_region(
    move: Move, clean: Tensor, own: Tensor, gradient: Tensor, batch: int
) -> Float[Tensor, "head batch"]:
    """First-order change of the metric by one patch, for each head."""
    values = move.values(clean).to(own)
    change = (values - own[move.row, move.target]) * gradient[move.row, move.target]
    if change.ndim == 2:
        change = rearrange(change, "n d -> n 1 d")
    of_positions = change.sum(-1)
    out = of_positions.new_zeros(batch, of_positions.shape[1])
    out.index_add_(0, move.row.to(out.device), of_positions)
    return rearrange(out, "batch head -> head batch")


def _towards(corrupted: Inputs, clean_cache: LayoutCache, share: float) -> Any:
    """What enters block 0, that share of the way to what the clean run has there."""
    there = read_clean(clean_cache, "blocks.0.hook_resid_pre")
    match = match_positions(corrupted.layout, clean_cache.layout)
    row, position = (match >= 0).nonzero(as_tuple=True)
    source = match[row, position]

    def enter(states: Tensor) -> Tensor:
        out = states.clone()
        wanted = there[row, source].to(states)
        out[row, position] += share * (wanted - states[row, position])
        return out

    return enter
