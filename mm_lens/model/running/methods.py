"""Which methods work on a model, and why the others do not: `model.methods()`.

A method needs some of what the check at load tries (`mm_lens.model.report`), attention patterns,
attention in every block, or to know where image tokens lie. What it needs is written down here,
once; the tools refuse by the same report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from mm_lens.model.report import Need

if TYPE_CHECKING:
    from mm_lens.model.bridge import VisionLanguageBridge


@dataclass(frozen=True)
class Method:
    """A method, by the name that it is imported under.

    Attributes:
        name: below `mm_lens`.
        needs: of the check at load.
        attention: "some": a block with attention; "all": in every block; "": none is needed.
        sums: whether heads must hand on what they gathered as it is, not through a gate.
    """

    name: str
    needs: tuple[Need, ...] = ()
    attention: str = ""
    sums: bool = False


METHODS: Sequence[Method] = (
    Method("profile"),
    Method("patching", ("rerun",)),
    Method("causal.knockout.knockout", ("mask",), attention="some"),
    Method("causal.knockout_table", ("mask", "rerun"), attention="some"),
    Method("causal.write_without", ("mask", "cache"), attention="some"),
    Method("causal.ablation_hooks"),
    Method("causal.ablation_table", ("rerun",)),
    Method("causal.steering_hooks"),
    Method("causal.difference_of_means"),
    Method("causal.principal_directions"),
    Method("looking.visual_logit_lens"),
    Method("looking.lens_curves"),
    Method("looking.fit_tuned_lens"),
    Method("looking.fit_jacobian_lens"),
    Method("looking.embedding_neighbours"),
    Method("looking.latent_lens"),
    Method("looking.patchscope", ("cache",)),
    Method("looking.head_lens", ("residual",), "some"),
    Method("looking.attention_map", attention="some"),
    Method("looking.read_written", ("cache",)),
    Method("looking.probe_table"),
    Method("dictionaries.feature_values"),
    Method("dictionaries.splice_hooks"),
    Method("heads.head_scores", attention="some"),
    Method("heads.copying_scores", ("residual",), "some", sums=True),
    Method("heads.relative_attention", attention="some"),
    Method("heads.find_sinks"),
    Method("heads.redistribution_hooks", ("pattern",), "some"),
    Method("heads.reweighting_hooks", ("pattern",), "some"),
    Method("attribution.gradient_input"),
    Method("attribution.integrated_gradients"),
    Method("attribution.smooth_grad"),
    Method("attribution.grad_cam"),
    Method("attribution.pixel_attribution"),
    Method("attribution.tower_grad_cam"),
    Method("attribution.attention_rollout", ("pattern",), "all"),
    Method("attribution.relevance", ("pattern",), "all"),
    Method("attribution.attention_attribution", ("pattern",), "all"),
    Method("attribution.logit_attribution", ("residual",), "all"),
    Method("attribution.attribution_patch"),
    Method("attribution.path_patch", ("residual",)),
    Method("attribution.deletion_insertion", ("rerun",)),
)


def list_methods(bridge: VisionLanguageBridge) -> pd.DataFrame:
    """One row for each method: method, works, and the reason where it does not."""
    rows = [(m.name, reason_against(bridge, m)) for m in METHODS]
    return pd.DataFrame(
        {"method": name, "works": not reason, "reason": reason} for name, reason in rows
    )


def reason_against(bridge: VisionLanguageBridge, method: Method) -> str:
    """Why a method does not work on a model; empty if it does."""
    found = [f for f in bridge.report.findings if f.level == "error" and f.spoils in method.needs]
    if found:
        return found[0].message
    blocks: Any = bridge.blocks
    without = [k for k, b in enumerate(blocks) if getattr(b, "attn", None) is None]
    if method.attention == "all" and without:
        return f"Block {without[0]} has no attention."
    if method.attention and len(without) == len(blocks):
        return "No block has attention."
    if method.sums and getattr(bridge.cfg, "gated_q_proj", False):
        return "Heads pass on what they gathered through a gate: of one token it says nothing."
    return ""
