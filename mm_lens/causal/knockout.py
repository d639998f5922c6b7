"""Attention knock-out: queries of one group no longer see the keys of another.

What was attended there becomes exactly 0 and the rest is renormalised, since the scores are masked
before the softmax, as a native model's attention mask does (Geva et al. 2023, arXiv 2304.14767,
section 4). Works under sdpa and eager attention alike, for any window of layers and heads.

`key` is where information comes from, `query` where it goes: that the question no longer looks at
the image is `query="question", key="visual"`. Groups are those of the layout, `"last"`, a `Box` or
a mask (`mm_lens.regions`).

What a query sees is read from the mask that each block really gets: causal, a sliding window, image
tokens that see each other, padding. Knocking out what no block shows is an error, no silent no-op.
So is leaving a query without any key: there is nothing to renormalise. `keep_self` leaves each
query the key of its own position.

Where a block chooses the keys that it attends to (block-sparse attention), what is cut is taken out
of the choice. A key that would have lost it changes nothing, and still counts as cut in `knockout`,
which sees the choice without it alone; `knockout_table` has run the model before, and warns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from mm_lens.arguments import describe_value
from mm_lens.causal.cutting import (
    Check,
    Edges,
    choose_heads,
    mask_keys,
    same_for_copies,
    with_attention,
)
from mm_lens.causal.effects import EffectTable, effect_table, make_windows
from mm_lens.errors import InputError, MMLensWarning
from mm_lens.layout.groups import group_mask
from mm_lens.layout.layout import TokenLayout
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.running.logit_metrics import LogitMetrics
from mm_lens.model.running.rerun import Rerun
from mm_lens.model.running.writing import WRITTEN
from mm_lens.model.streams import resolve_layers


@contextmanager
def knockout(
    model: VisionLanguageBridge,
    inputs: Inputs,
    *,
    query: Any,
    key: Any,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    keep_self: bool = False,
) -> Iterator[None]:
    """Knock out attention of `query` to `key` in every forward pass of `inputs` inside.

    ```python
    with knockout(model, inputs, query="last", key="visual", layers=range(4, 8)):
        logits = model(inputs)
    with knockout(model, inputs, query="text", key=Box(10, 10, 40, 60)):
        text = model.generate(inputs)
    ```

    In `generate` (greedy, beams, sampling; with and without the KV cache) it holds for what is
    written as well: `"text"`, `"all"` and the segment behind the image go on in it, `"last"` is
    whatever position writes, `"written"` is what was written alone. Keys of the prompt stay cut.

    Args:
        model: the model.
        inputs: what it is run on inside.
        query: group of the queries: those who look. Also `"written"`, in `generate`.
        key: group of the keys: what is looked at.
        layers: blocks, negative ones from the end; None takes all that have attention.
        heads: heads; None takes all.
        keep_self: leave each query the key of its own position.

    Raises:
        MMLensError: the check at load found that keys cannot be hidden in this model.
        InputError: a group has no position in some row; no layer or no head is named; a block has
            no attention. And in the forward pass, or after `generate`: no query of some row sees a
            key of it in any of the layers; a query would be left without keys; other inputs are
            run (copies of these, and what is written behind them, will do).
    """
    check_inputs(model, inputs)
    model.report.require("A knock-out", "mask")
    layout = inputs.layout
    for name, group in (("query", query), ("key", key)):
        if not (isinstance(group, str) and group == WRITTEN):
            _check_group(name, group, group_mask(layout, group))
    edges = Edges(layout, query, key, keep_self, choose_heads(model, heads))
    blocks = with_attention(model) if layers is None else resolve_layers(layers, model.cfg.n_layers)
    check = Check(layout, f"{group_name(key)} → {group_name(query)}", blocks)
    with mask_keys(model, dict.fromkeys(blocks, edges), check):
        yield
    check.close()


def find_edges(
    layout: TokenLayout, query: Any, key: Any, keep_self: bool = False
) -> Bool[Tensor, "batch query key"]:
    """Pairs of query and key to be knocked out, whether or not the model lets one see the other.

    Raises:
        InputError: a group has no position in some row.
    """
    queries, keys = group_mask(layout, query), group_mask(layout, key)
    _check_group("query", query, queries)
    _check_group("key", key, keys)
    edges = queries[:, :, None] & keys[:, None, :]
    if keep_self:
        edges = edges & ~torch.eye(layout.shape[1], dtype=torch.bool, device=layout.device)
    return edges


def _check_group(name: str, group: Any, mask: Bool[Tensor, "batch pos"]) -> None:
    if bool((empty := ~mask.any(1)).any()):
        raise InputError(
            f"There is nothing to knock out in row {int(empty.nonzero()[0])}: "
            f"{name}={group_name(group)!r} has no position there."
        )


def knockout_table(
    model: VisionLanguageBridge,
    samples: Sequence[tuple[Inputs, LogitMetrics]],
    edges: Sequence[tuple[Any, Any]] | Mapping[str, tuple[Any, Any]],
    *,
    window: int = 1,
    stride: int = 1,
    heads: Sequence[int] | None = None,
    keep_self: bool = False,
    **options: Any,
) -> EffectTable:
    """Effect of knocking out each edge in each window of layers, over samples, as a tidy table.

    ```python
    knockout_table(model, [(inputs, answers.metrics), …], [("visual", "last")], window=3).plot()
    ```

    Args:
        model: in evaluation mode.
        samples: inputs and their metric (or named metrics), see `mm_lens.answers`.
        edges: pairs (key, query), from where information comes to where it goes, as
            `("visual", "last")`; or a mapping from names to such pairs, which masks need.
        window, stride: layers knocked out together, and from the start of one window to the next.
        heads: heads knocked out together; None takes all.
        keep_self: leave each query the key of its own position.
        options: those of `mm_lens.causal.effects.effect_table`.

    Returns:
        One row for each window, edge and metric: first_layer, last_layer, edge, key, query, metric,
        baseline, value, effect, low, high, p_value, n. `effect` is value - baseline, its
        interval a bootstrap over samples, its p-value a sign-flip permutation test.

    Raises:
        InputError: see `knockout`; or two edges have one name.
        DataError: `save` holds another table.
    """
    named = name_apart(edges, _name_edge, "edges")
    model.report.require("A knock-out", "mask")
    blocks = with_attention(model)
    windows = make_windows(model.cfg.n_layers, window, stride)
    spans = [span for span in windows if not {*span}.isdisjoint(blocks)]
    trials = [
        {
            "first_layer": span[0],
            "last_layer": span[-1],
            "edge": name,
            "key": group_name(key),
            "query": group_name(query),
        }
        for span in spans
        for name, (key, query) in named.items()
    ]

    def prepare(rerun: Rerun) -> Any:
        layout = rerun.inputs.layout
        chosen = choose_heads(model, heads)
        which = torch.ones(1, dtype=torch.bool) if chosen is None else chosen
        blocked = {
            name: find_edges(layout, query, key, keep_self)[:, None]
            & which.to(layout.device)[:, None, None]
            for name, (key, query) in named.items()
        }
        for name, edges in blocked.items():
            _check_windows(rerun, spans, edges, name)
        return partial(_run, model, rerun, blocked, blocks)

    groups = [describe_group(group) for edge in named.values() for group in edge]
    about = ["knockout", *groups, window, stride, heads, keep_self]
    return effect_table(model, samples, trials, prepare, about=about, **options)


def _check_windows(rerun: Rerun, spans: Sequence[range], edges: Tensor, name: str) -> None:
    """Refuse an edge that no window cuts; warn where some do not.

    Raises:
        InputError: nothing is cut, or a query is left without keys.
    """
    check, real = Check(rerun.inputs.layout, name, ()), rerun.inputs.layout.mask("all")
    cut = {
        block: check.block(block, rerun.masks[block], edges, real)
        for block in sorted({block for span in spans for block in span})
        if block in rerun.masks
    }
    check.verdict(torch.stack([*cut.values()]).any(0), "any of the blocks")
    idle = [s for s in spans if not bool(torch.stack([cut[b] for b in s if b in cut]).any(0).all())]
    if idle:
        shown = ", ".join(f"{s[0]}–{s[-1]}" if len(s) > 1 else str(s[0]) for s in idle)
        warnings.warn(
            f"The edge {name!r} is cut in no row, or not in all, by the windows of layers {shown}: "
            "the model's attention mask shows its queries none of its keys there (as a sliding "
            "window does). Where it cuts nothing the effect is 0.",
            MMLensWarning,
            stacklevel=5,
        )


def _run(
    model: VisionLanguageBridge,
    rerun: Rerun,
    blocked: Mapping[str, Tensor],
    blocks: Sequence[int],
    trials: Sequence[Mapping[str, Any]],
) -> tuple[Tensor, ...]:
    """Logits of each trial; all of them are of one window."""
    span = range(trials[0]["first_layer"], trials[0]["last_layer"] + 1)
    together = torch.cat([blocked[trial["edge"]] for trial in trials])
    one = same_for_copies(together, rerun.inputs.layout)
    with mask_keys(model, dict.fromkeys([block for block in span if block in blocks], one)):
        return rerun.run(span[0], len(trials))


def _name_edge(edge: Any) -> str:
    if not isinstance(edge, (tuple, list)) or len(edge) != 2:
        raise InputError(
            'Edges are pairs (key, query), as [("visual", "last")]; '
            f"{describe_value(edge)} is none."
        )
    return " → ".join(map(group_name, edge))


def name_apart(
    items: Sequence[Any] | Mapping[str, Any], name: Callable[[Any], str], what: str
) -> Mapping[str, Any]:
    """What a table is made of, by names that are its rows.

    Raises:
        InputError: two have one name, and their rows would fall together.
    """
    if isinstance(items, str):
        raise InputError(f"{what} are a list, as [{items!r}], or a mapping from names to {what}.")
    if isinstance(items, Mapping):
        return items
    found: dict[str, Any] = {}
    for item in items:
        if (called := name(item)) in found:
            raise InputError(
                f"Two {what} are called {called!r}, and would be one row of the table. Pass a "
                f"mapping from names to {what}."
            )
        found[called] = item
    return found


def group_name(group: Any) -> str:
    """Name of a group in tables: a mask has none of its own."""
    return "mask" if hasattr(group, "dtype") else str(group)


def describe_group(group: Any) -> Any:
    """A group as the fingerprint of a table takes it: masks by all their bits."""
    return torch.as_tensor(group) if hasattr(group, "dtype") else group
