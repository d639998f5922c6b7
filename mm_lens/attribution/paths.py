"""Path patching: what a sender changes at a receiver, along the direct path between the two alone.

Three runs (Wang et al. 2022, arXiv 2211.00593; Goldowsky-Dill et al. 2023, arXiv 2304.05969): the
corrupted run; the corrupted run with the sender's clean activations at the positions of a region,
and with everything that blocks write behind it held at the corrupted run's values (with
`through_mlps`, only what attention writes: as in the former paper), in which the receiver's input
is read; the corrupted run with that input in the receiver's place. Without a
receiver the second run is the result: the direct path to the logits.

Senders: "resid_pre", "attn_out", "mlp_out", or one head's "z". Receivers: one head's "q", "k" or
"v", "pre" of an MLP, "resid_pre". Where query heads share keys and values (grouped-query attention)
"k" and "v" are counted as the model has them, one for each group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.utilities.components_utils import get_act_name

from mm_lens.attribution.running import evaluate_rows
from mm_lens.causal.transfer import Move, read_clean
from mm_lens.errors import HookError, InputError
from mm_lens.layout.groups import group_mask
from mm_lens.layout.matching import match_regions
from mm_lens.layout.regions import Axis, find_regions
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.cache import LayoutCache
from mm_lens.model.hooks import NamedHook
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.running.logit_metrics import LogitMetric
from mm_lens.model.streams import resolve_blocks

SENDERS = ("resid_pre", "attn_out", "mlp_out", "z")
RECEIVERS = ("q", "k", "v", "pre", "resid_pre")
OF_HEADS = ("z", "q", "k", "v")


@dataclass(frozen=True)
class Node:
    """A place in the model: `Node("z", 3, head=1)`, `Node("mlp_out", 4)`.

    Attributes:
        hook: short name of the hook point.
        layer: block, negative ones from the end.
        head: of "z", "q", "k" or "v"; None takes all.
    """

    hook: str
    layer: int
    head: int | None = None

    def __str__(self) -> str:
        """As it stands in tables."""
        return f"{self.hook} {self.layer}" + (f".{self.head}" if self.head is not None else "")


@torch.no_grad()
def path_patch(
    model: VisionLanguageBridge,
    corrupted: Inputs,
    clean_cache: LayoutCache,
    metric: LogitMetric,
    senders: Sequence[Node],
    receivers: Sequence[Node] | None = None,
    *,
    axis: Axis = "modality",
    receiver_where: Any = "all",
    through_mlps: bool = False,
) -> pd.DataFrame:
    """Patch each direct path from a sender's region to a receiver.

    ```python
    path_patch(model, corrupted, clean_cache, answers.logit_diff,
               [Node("z", 1, head=2)], [Node("k", 3, head=0)], axis={"shape": box})
    ```

    Cost: a run for each sender and region, and one more for each receiver.

    Args:
        model: in evaluation mode.
        corrupted: what `model.prepare` returned for the corrupted run; may be of another layout
            than the clean one.
        clean_cache: holds the senders' activations in the clean run.
        metric: from logits [batch, pos, d_vocab] to one number for each row; see `mm_lens.answers`.
        senders: what is clean.
        receivers: what reads it, in later blocks; None: the logits, directly.
        axis: regions at whose positions the senders are clean; see `mm_lens.regions`.
        receiver_where: positions at which receivers read: a group, a mask, `"last"`.
        through_mlps: let the MLPs in between see the sender, as parts of the path.

    Returns:
        A row for each sender, region, receiver and row of the batch: sender, region, receiver,
        row, effect (metric less that of the corrupted run).

    Raises:
        InputError: a receiver does not come after its sender; no such head or region; the metric
            returns something else.
        HookError: no such sender or receiver, or its activations are not in the cache.
        MMLensError: on this model blocks do not add up: there are no direct paths.
    """
    check_inputs(model, corrupted)
    model.report.require("Path patching", "residual")
    known = [_resolve(model, node, SENDERS, "sender") for node in senders]
    reads = None
    if receivers is not None:
        reads = [_resolve(model, node, RECEIVERS, "receiver") for node in receivers]
        for sender in known:
            for node in reads:
                same = sender.hook == "resid_pre" or (
                    node.hook == "pre" and sender.hook != "mlp_out"
                )
                if node.layer < sender.layer or (node.layer == sender.layer and not same):
                    raise InputError(
                        f"The receiver {node} does not come after the sender {sender}: there is no "
                        "path from one to the other. Take a receiver of a later block."
                    )
    if not known or reads == []:
        raise InputError("Path patching takes a sender, as Node('z', 3, head=1), or more.")
    regions = find_regions(corrupted.layout, axis)
    moves = [Move(*x) for x in match_regions(regions, corrupted.layout, clean_cache.layout)]
    n = model.cfg.n_layers
    writes = [
        name
        for b in range(n)
        for name in (f"blocks.{b}.hook_attn_out", f"blocks.{b}.hook_mlp_out")
        if name in model.hook_dict
    ]
    logits, cache = model.run_with_cache(corrupted, names_filter=writes)
    held = {name: cache.read(name) for name in writes}
    base = evaluate_rows(metric, logits, len(corrupted.input_ids))
    at = group_mask(corrupted.layout, receiver_where)
    rows: list[dict[str, Any]] = []
    for sender in known:
        name = str(get_act_name(sender.hook, sender.layer))
        clean = read_clean(clean_cache, name)
        held_back = _behind(sender, writes)
        after = [x for x in held_back if not through_mlps or x.endswith("attn_out")]
        for label, move in zip(regions.labels, moves, strict=True):
            hooks: list[NamedHook] = [(name, partial(_send, move=move, clean=clean, node=sender))]
            hooks += [(x, partial(_freeze, value=held[x])) for x in after]
            found: dict[Node, Tensor] = {}
            for node in reads or ():
                hooks.append((str(get_act_name(node.hook, node.layer)), _Keep(node, found)))
            direct = model.run_with_hooks(corrupted, fwd_hooks=hooks)
            results: dict[str, Tensor] = {}
            if reads is None:
                results["logits"] = direct
            for node in reads or ():
                put = partial(_receive, value=found[node], node=node, at=at)
                hook = (str(get_act_name(node.hook, node.layer)), put)
                results[str(node)] = model.run_with_hooks(corrupted, fwd_hooks=[hook])
            for receiver, value in results.items():
                effect = evaluate_rows(metric, value, len(base)) - base
                rows += [
                    {
                        "sender": str(sender),
                        "region": label,
                        "receiver": receiver,
                        "row": row,
                        "effect": float(x),
                    }
                    for row, x in enumerate(effect)
                ]
    return pd.DataFrame(rows)


def _behind(sender: Node, writes: Sequence[str]) -> list[str]:
    """What blocks write behind a sender: held as it was."""
    keep = []
    for name in writes:
        block = int(name.split(".")[1])
        attention = name.endswith("attn_out")
        mine = block == sender.layer and (
            sender.hook == "resid_pre" or (sender.hook in ("z", "attn_out") and not attention)
        )
        if block > sender.layer or mine:
            keep.append(name)
    return keep


def _resolve(model: VisionLanguageBridge, node: Any, known: Sequence[str], what: str) -> Node:
    if not isinstance(node, Node) or node.hook not in known:
        raise HookError(
            f"A {what} is a Node of {', '.join(known)}, as Node({known[0]!r}, 3), not {node!r}."
        )
    (layer,) = resolve_blocks(model, node.hook, [node.layer])
    heads = model.cfg.n_heads
    if node.hook in ("k", "v"):
        heads = getattr(model.cfg, "n_key_value_heads", None) or heads
    if node.head is not None and (node.hook not in OF_HEADS or not 0 <= node.head < heads):
        there = f"there are {heads}, 0 to {heads - 1}" if node.hook in OF_HEADS else "it has none"
        raise InputError(f"The {what} {node} has no head {node.head}: {there}.")
    return Node(node.hook, layer, node.head)


class _Keep:
    """Keeps what a receiver would read."""

    def __init__(self, node: Node, found: dict[Node, Tensor]) -> None:
        self.node, self.found = node, found

    def __call__(self, tensor: Tensor, hook: Any) -> None:
        self.found[self.node] = tensor.detach().clone()


def _send(tensor: Tensor, hook: Any, move: Move, clean: Tensor, node: Node) -> Tensor:
    out, values = tensor.clone(), move.values(clean).to(tensor)
    if node.head is None:
        out[move.row, move.target] = values
    else:
        out[move.row, move.target, node.head] = values[:, node.head]
    return out


def _freeze(tensor: Tensor, hook: Any, value: Tensor) -> Tensor:
    return value


def _receive(tensor: Tensor, hook: Any, value: Tensor, node: Node, at: Tensor) -> Tensor:
    out, here = tensor.clone(), at.to(tensor.device)
    if node.head is None:
        out[here] = value[here]
    else:
        out[:, :, node.head][here] = value[:, :, node.head][here]
    return out
